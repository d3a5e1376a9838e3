"""Tiny teachers of every task, one finished run of each, and runs of the command; shared by the whole session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_runs import Ended, Running, run_fresh
from made_inputs import Inputs, generation_inputs, image_inputs, sentence_inputs, tagging_inputs, text_inputs

_MAKERS = {
    "sentence-embedding": sentence_inputs,
    "text-classification": text_inputs,
    "token-classification": tagging_inputs,
    "text-generation": generation_inputs,
    "image-classification": image_inputs,
}
TASKS = tuple(_MAKERS)

# The forked commands inherit it: see command_runs.environment.
os.environ["OMP_NUM_THREADS"] = "1"

Start = Callable[..., Running]
Run = Callable[..., Ended]
Begun = Callable[..., Path]


@dataclass(frozen=True)
class Finished:
    """A run that came to its end. To be read only: change copies."""

    inputs: Inputs
    recipe: Path
    out: Path
    ended: Ended


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    return {task: _MAKERS[task](tmp_path_factory.mktemp(task)) for task in TASKS}


@pytest.fixture(scope="session")
def finished_runs(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """One run of every task, side by side; that of images from a fresh interpreter."""
    folder = tmp_path_factory.mktemp("finished")
    recipes = {task: inputs[task].write_recipe(folder / task) for task in TASKS}
    *forked, fresh = TASKS
    ended = {}
    for two in (forked[:2], forked[2:]):  # as many at once as a small machine has cores
        started = {task: Running(("compress", recipes[task]), folder / f"{task}.streams") for task in two}
        ended |= {task: running.end() for task, running in started.items()}
    ended[fresh] = run_fresh("compress", recipes[fresh], cwd=folder)
    return {task: Finished(inputs[task], recipes[task], folder / task, ended[task]) for task in TASKS}


@pytest.fixture(params=TASKS)
def finished(request: pytest.FixtureRequest, finished_runs: dict[str, Finished]) -> Finished:
    run = finished_runs[request.param]
    assert run.ended.code == 0, run.ended.stderr
    return run


@pytest.fixture
def image_run(finished_runs: dict[str, Finished]) -> Finished:
    """The cheapest of them."""
    run = finished_runs["image-classification"]
    assert run.ended.code == 0, run.ended.stderr
    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command; what is still running at the end of the test is killed."""
    running: list[Running] = []

    def begin(*arguments: str | Path, largest_file: int | None = None) -> Running:
        running.append(Running(arguments, tmp_path / f"command-{len(running)}", largest_file))
        return running[-1]

    yield begin
    for command_run in running:
        command_run.kill()


@pytest.fixture
def run(start: Start) -> Run:
    """Runs a command to its end."""

    def to_its_end(*arguments: str | Path, largest_file: int | None = None) -> Ended:
        ended: Ended = start(*arguments, largest_file=largest_file).end()
        return ended

    return to_its_end


@pytest.fixture
def begun(image_run: Finished) -> Begun:
    """begun(out, stage, **changes) writes a run folder as it is when `stage` is about to begin; returns its recipe."""

    def copy(out: Path, before: str | None = None, **changes: object) -> Path:
        order = image_run.ended.stages("done")
        shutil.copytree(image_run.out, out, dirs_exist_ok=True)
        if before is not None:
            for name in order[order.index(before) :]:
                for folder in (out / "stages").glob(f"{name}-*"):
                    if folder.name.rpartition("-")[0] == name:
                        shutil.rmtree(folder)
            forget_outcome(out)
        return image_run.inputs.write_recipe(out, **changes)

    return copy


def forget_outcome(out: Path) -> None:
    """Removes what a finished run puts beside its stages."""
    shutil.rmtree(out / "bundle")
    (out / "result.json").unlink()
    (out / "report.html").unlink()
