"""What a training tells MLflow, read from the plain files of its store; and what is told while a bar moves."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow_copy
import pytest
from ruamel.yaml import YAML
from test_training import BATCH, EPOCHS, STEPS, Linear, Plain, StopAt, data

from compressor import progress as progress_module
from compressor.artifacts import TrainingHistory
from compressor.distill import Workplace, train
from compressor.errors import TrainingError
from compressor.learning import parameters
from compressor.progress import SILENT, Bar, Progress
from compressor.recipe_distill import ClassDistillation
from compressor.recipe_file import recipe_from_values

TOLD = {"distill.epochs": "2", "teacher.path": "minilm", "long": "x" * 9000}


class Hearing(Progress):
    """Keeps the lines; shows no bar."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
        with SILENT.bar(title, total, unit, done) as bar:
            yield bar


def learn(folder: Path, progress: Progress = SILENT, rate: float = 0.05) -> TrainingHistory:
    folder.mkdir(exist_ok=True)
    settings = ClassDistillation(epochs=EPOCHS, batch_size=BATCH, learning_rate=rate)
    place = Workplace(folder, progress, folder.with_name("distill-77"), TOLD)
    return train(Linear(), Plain(), Plain(), data(folder), settings, place)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an MLflow store, where MLflow is."""
    mlflow_copy.make_importable(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    return tmp_path / "mlruns"


def runs_in(store: Path) -> list[Path]:
    return [path.parent for path in store.glob("*/*/meta.yaml") if (path.parent / "params").is_dir()]


def points(run: Path, metric: str) -> list[tuple[int, float]]:
    """Step and value of every line of a metric's file: milliseconds, value, step."""
    fields = [line.split() for line in (run / "metrics" / metric).read_text().splitlines()]
    return [(int(step), float(value)) for _, value, step in fields]


def meta(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load((path / "meta.yaml").read_text())
    return found


FINISHED, FAILED, KILLED = 3, 4, 5  # as MLflow's RunStatus numbers them


def test_an_interrupted_training_is_one_run_of_mlflow(store: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run", StopAt(3))
    (run,) = runs_in(store)
    assert meta(run)["status"] == KILLED
    history = learn(tmp_path / "run")
    assert runs_in(store) == [run]
    assert meta(run)["status"] == FINISHED
    assert [step for step, _ in points(run, "train/loss")] == list(range(1, STEPS + 1))
    assert dict(points(run, "train/loss")) == pytest.approx({p.step: p.loss for p in history.losses})
    assert dict(points(run, "held_out/score")) == pytest.approx({p.step: p.score for p in history.scores})
    assert len(points(run, "train/learning_rate")) == STEPS
    assert meta(run)["run_name"] == "distill-77"
    assert meta(run.parent)["name"] == "compressor"
    told = {path.name: path.read_text() for path in (run / "params").iterdir()}
    assert told == {**TOLD, "long": "x" * 500}


def test_mlflow_hears_of_a_failure_and_forgets_a_deleted_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with pytest.raises(TrainingError):
        learn(tmp_path / "run", rate=1e36)
    (run,) = runs_in(store)
    assert meta(run)["status"] == FAILED
    assert meta(run.parent)["name"] == "mine"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'other'}")
    said = Hearing()
    learn(tmp_path / "run", said)
    assert not [line for line in said.lines if "MLflow" in line]
    (other,) = runs_in(tmp_path / "other")
    assert meta(other)["status"] == FINISHED


def test_a_training_goes_on_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, without the password that MLflow's own message holds; nothing of it is left in the environment."""
    mlflow_copy.make_importable(monkeypatch)
    with socket.socket() as taken:  # bound but not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        said = Hearing()
        history = learn(tmp_path / "run", said)
    assert history.steps == STEPS
    (line,) = [line for line in said.lines if "MLflow" in line]
    assert "the training goes on without MLflow: MlflowException: " in line
    assert f"127.0.0.1:{port}" in line
    assert "hunter2" not in line
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_mlflow_that_is_wanted_and_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    said = Hearing()
    assert learn(tmp_path / "run", said).steps == STEPS
    assert [line.strip() for line in said.lines if "MLflow" in line] == [
        "MLFLOW_TRACKING_URI is set, but MLflow is not installed: pip install mlflow-skinny"
    ]


def test_a_tracker_is_told_numbers_and_names_but_no_contract() -> None:
    recipe = recipe_from_values(
        {
            "task": "text-classification",
            "teacher": {
                "endpoint": "https://inside.example/v1",
                "model": "big",
                "classes": ["sport", "food"],
                "permission": "written-permission",
                "reference": "contract of 3 May",
                "terms": "https://inside.example/terms",
                "prompt": "SECRET {text}",
            },
            "data": {"train": "/somewhere/of/mine/train.jsonl", "eval": "/somewhere/of/mine/eval.jsonl"},
            "student": {"folder": "/somewhere/of/mine/student"},
        },
        "here",
    )
    told = parameters(recipe, ClassDistillation(epochs=7))
    assert told["distill.epochs"] == "7"
    assert told["teacher.model"] == "big"
    assert told["data.train"] == "train.jsonl"
    assert told["student.folder"] == "student"
    everything = " ".join([*told, *told.values()])
    assert not [word for word in ("inside.example", "SECRET", "contract", "somewhere") if word in everything]


def test_the_line_of_a_bar_has_rate_and_time_left_of_this_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,000 steps of which an earlier run did 600; 100 more in 20 seconds: 5 a second, 60 seconds left."""
    now = [50.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress().bar("distil", 1000, "step", done=600) as bar:
        now[0] += 20.0
        bar.advance(100, note="loss 0.1234")
    assert capsys.readouterr().err == "  distil: 70%, 5 step/s, 60 s left loss 0.1234\n"
