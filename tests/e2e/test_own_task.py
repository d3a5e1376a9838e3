"""The example of a task of one's own, run as its page says, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from command_runs import Ended, run_fresh

import compressor

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's two files in a folder of their own, its data and teacher made by it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "examples").mkdir()
    for name in ("own_task.py", "own-task.yaml"):
        shutil.copyfile(EXAMPLES / name, folder / "examples" / name)
    source = (folder / "examples" / "own_task.py").read_text()
    scope = {"__name__": "own_task", "__file__": str(folder / "examples" / "own_task.py")}
    exec(compile(source, "own_task.py", "exec"), scope)
    scope["main"]()  # type: ignore[operator]
    return folder


def _compress(project: Path, *changes: str) -> Ended:
    settings = [part for change in ("benchmark.budget_s=5", *changes) for part in ("--set", change)]
    return run_fresh("compress", "examples/own-task.yaml", *settings, cwd=project)


def test_a_task_of_ones_own_goes_the_whole_way(project: Path) -> None:
    ended = _compress(project)
    assert ended.code == 0, ended.stderr
    out = project / "runs" / "own-task"
    result = json.loads((out / "result.json").read_text())
    with np.load(project / ".cache" / "assets" / "own-task" / "eval.npz") as held_out:
        vibration, wear = held_out["vibration"], held_out["wear"]
    predicted = compressor.load(out / "bundle")(vibration)
    session = onnxruntime.InferenceSession(out / "bundle" / "model.onnx")
    np.testing.assert_allclose(predicted, session.run(["wear"], {"vibration": vibration})[0], atol=1e-5)
    explained = 1 - ((predicted - wear) ** 2).sum() / ((wear - wear.mean(axis=0)) ** 2).sum()
    assert explained > 0.95
    shipped = next(model for model in result["models"] if model["name"] == result["shipped"])
    assert shipped["quality"]["quality"]["value"] == pytest.approx(explained, abs=1e-4)

    again = _compress(project)
    assert "distill" in again.stages("kept")
    file = project / "examples" / "own_task.py"
    file.write_text(file.read_text().replace('metric_name="R2"', 'metric_name="R squared"'))
    changed = _compress(project, "distill.epochs=1")
    assert "teacher" in changed.stages("done")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("def task() -> OwnTask:", "def tusk() -> OwnTask:", "expected a callable 'task'"),
        ("    return OwnTask(", "    return dict(", "expected an OwnTask, got dict"),
        ('file["vibration"], file["wear"]', 'file["vibration"], file["tear"]', "reading it failed: KeyError"),
        ('file["vibration"], file["wear"]', 'file["vibration"], file["wear"][:3]', "2000 inputs, but truth for 3"),
        ("metric=variance_explained", "metric=lambda *_: -0.3", "the teacher's metric is -0.3 on the 500 held-out"),
        ("return network(width=12)", "return nn.Linear(7, 2)", "own_task.py:student: calling it on float32 [1, 3, 64]"),
    ],
)
def test_a_definition_that_does_not_fit_is_one_line(
    project: Path, tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    broken = tmp_path / "project"
    shutil.copytree(project, broken)
    file = broken / "examples" / "own_task.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    ended = _compress(broken, "out=elsewhere")
    assert ended.code not in (0, 1)
    assert complaint in ended.lines[-1]
    assert "Traceback" not in ended.stderr
    assert "student" not in ended.stages("done"), "before any work"
