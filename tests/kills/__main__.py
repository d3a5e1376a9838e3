"""Kills training and caching at random moments, by kill -9, and resumes them: `python tests/kills --kills 100`.

Each trial starts from a run folder whose first stages are finished, and is killed again and again, at a random moment
each time, until the student is trained: about when the teacher's outputs are recorded until they are, then in the
training. Moments are told by the processor time of the run, so that a busy machine does not shift them. After every
kill no file may be torn: what has its final name is whole, and a checkpoint loads. Nothing that was kept may be lost
either: a whole shard stays the file that it was, and the next checkpoint is no older. In the end the student's weights,
and what the teacher said, must be those of a run that nobody disturbed, byte by byte. One line for each trial and a
summary; exit code 1 when one fails.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import safetensors
from made_inputs import text_inputs

from compressor.distill import cache, record, training
from compressor.distill.checkpoint import load_checkpoint
from compressor.errors import TrainingError
from compressor.pipeline import compress
from compressor.progress import SILENT
from compressor.store import sha256_file

SIGNALS, DISTILL = "signals", "distill"
EPOCHS, SHARD_ROWS, CHECKPOINT_EVERY_S = 6, 8, 0.1  # small, so that every trial sees many of each
LONGEST_S = 600.0
DELAY_S = 0.01  # at most, of a kill: or none would strike a run that waits for the disk


@dataclass(frozen=True)
class Trained:
    """What must come out the same, by SHA-256."""

    weights: str
    signals: tuple[str, ...]


@dataclass(frozen=True)
class Moments:
    """When an undisturbed run records, and when it trains: seconds of processor time since its start."""

    recording: tuple[float, float]
    training: tuple[float, float]

    def drawn(self, recorded: bool, generator: random.Random) -> float:
        """A moment to kill at. In the first part of either, since what is left of it shrinks with every resume."""
        begin, end = self.training if recorded else self.recording
        return generator.uniform(begin, begin + (0.4 if recorded else 0.6) * (end - begin))


@dataclass
class Tally:
    """How many kills struck where, and how many left a file half written, under its temporary name."""

    recording: int = 0
    training: int = 0
    between: int = 0
    writing: int = 0
    identical: int = 0

    @property
    def kills(self) -> int:
        return self.recording + self.training + self.between

    def add(self, out: Path, temporaries: set[str]) -> None:
        """One kill; `temporaries` are those of earlier ones."""
        if begun(out, DISTILL) is not None:
            self.training += 1
        elif begun(out, SIGNALS) is not None:
            self.recording += 1
        else:
            self.between += 1
        new = {path.name for path in out.rglob(".*.tmp")} - temporaries
        temporaries |= new
        self.writing += bool(new)


@dataclass(frozen=True)
class Kept:
    """What a resumed run must not do again."""

    shards: dict[str, tuple[int, int]]  # name: inode and time of the last change in ns
    step: int

    def lost(self, later: Kept) -> list[str]:
        """What `later` has no more, or has anew."""
        again = [f"{name} was recorded again" for name, file in self.shards.items() if later.shards.get(name) != file]
        return again + ([f"step {self.step} was lost"] if later.step < self.step else [])


def finished(out: Path, stage: str) -> Path | None:
    """The stage's folder under its final name."""
    found = [path for path in (out / "stages").glob(f"{stage}-*") if path.suffix != ".partial"]
    return found[0] if found else None


def begun(out: Path, stage: str) -> Path | None:
    """The stage's folder under its provisional name."""
    return next((out / "stages").glob(f"{stage}-*.partial"), None)


def trained(out: Path) -> Trained:
    weights, signals = finished(out, DISTILL), finished(out, SIGNALS)
    assert weights is not None
    assert signals is not None
    shards = tuple(sha256_file(path) for path in sorted(signals.glob("*.safetensors")))
    return Trained(sha256_file(weights / "model.safetensors"), shards)


def kept(out: Path) -> Kept:
    """The shards that the recording has noted, and the step of the checkpoint, or of a finished training."""
    folder = finished(out, SIGNALS) or begun(out, SIGNALS)
    noted = [] if folder is None else [shard.path for shard in cache.finished_shards(folder).values()]
    files = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in noted}
    training_folder = begun(out, DISTILL)
    state = None if training_folder is None else load_checkpoint(training_folder / "checkpoint.pt")
    step = sys.maxsize if finished(out, DISTILL) is not None else 0 if state is None else state["at"]["step"]
    return Kept(files, step)


def torn(out: Path) -> list[str]:
    """Files with a final name that are not whole."""
    bad = [str(stage) for stage in (out / "stages").glob("*") if not _sealed_or_partial(stage)]
    for checkpoint in out.rglob("checkpoint.pt"):
        try:
            load_checkpoint(checkpoint)
        except TrainingError as error:
            bad.append(str(error))
    for path in out.rglob("*.safetensors"):
        try:
            with safetensors.safe_open(path, "np") as file:
                [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (no dict)
        except safetensors.SafetensorError as error:
            bad.append(f"{path}: {error}")
    return bad


def _sealed_or_partial(stage: Path) -> bool:
    return stage.suffix == ".partial" or (stage / "artifact.json").is_file()


def work(recipe: Path) -> None:
    """A run of the pipeline in a process of its own, with shards and checkpoints in quick succession."""
    cache.ROWS = record.ROWS = SHARD_ROWS
    training._CHECKPOINT_EVERY_S = CHECKPOINT_EVERY_S
    compress(recipe, progress=SILENT)


def spent_s(pid: int) -> float:
    """Processor seconds of the process's only busy thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


@contextmanager
def running(recipe: Path) -> Iterator[BaseProcess]:
    """A run of the pipeline, killed in the end. It must not have ended by itself before."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(recipe,))
    process.start()
    yield process
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        sys.exit(f"a run ended by itself with {process.exitcode}")


def run_until(recipe: Path, out: Path, stage: str, killed_at_s: float = math.inf, delay_s: float = 0.0) -> None:
    """Runs until the stage is finished, or is killed: at this processor time, and a little later."""
    began = time.monotonic()
    with running(recipe) as process:
        assert process.pid is not None
        while finished(out, stage) is None and process.is_alive() and time.monotonic() - began < LONGEST_S:
            if spent_s(process.pid) >= killed_at_s:
                time.sleep(delay_s)
                return
            time.sleep(0.001)
    if finished(out, stage) is None:
        sys.exit(f"the stage {stage} was not finished after {LONGEST_S:g} s")


def moments(recipe: Path, out: Path) -> Moments:
    """Of an undisturbed run."""
    began, seen = time.monotonic(), dict[str, float]()
    with running(recipe) as process:
        assert process.pid is not None
        while "trained" not in seen and process.is_alive() and time.monotonic() - began < LONGEST_S:
            now = spent_s(process.pid)
            for name, path in {
                "recording": begun(out, SIGNALS),
                "recorded": finished(out, SIGNALS),
                "training": begun(out, DISTILL),
                "trained": finished(out, DISTILL),
            }.items():
                if path is not None:
                    seen.setdefault(name, now)
            time.sleep(0.001)
    if "trained" not in seen:
        sys.exit(f"the student was not trained after {LONGEST_S:g} s")
    return Moments((seen["recording"], seen["recorded"]), (seen["training"], seen["trained"]))


def trial(start: Path, out: Path, recipe: Path, when: tuple[Moments, random.Random], tally: Tally) -> None:
    """From the copy of a run folder to the trained student."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(start, out)
    temporaries: set[str] = set()
    before = kept(out)
    known, generator = when
    while True:
        moment = known.drawn(finished(out, SIGNALS) is not None, generator)
        run_until(recipe, out, DISTILL, moment, generator.uniform(0, DELAY_S))
        after = kept(out)
        if bad := torn(out) + before.lost(after):
            sys.exit(f"after {tally.kills} kills: " + "; ".join(bad))
        if finished(out, DISTILL) is not None:
            return
        tally.add(out, temporaries)
        before = after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator, tally, trials = random.Random(options.seed), Tally(), 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        out, start = Path(scratch, "out"), Path(scratch, "start")
        inputs = text_inputs(Path(scratch))
        recipe = inputs.write_recipe(out, distill__epochs=EPOCHS, distill__control=False)
        run_until(recipe, out, "student")
        for stage in (SIGNALS, DISTILL):
            for path in (out / "stages").glob(f"{stage}-*"):
                shutil.rmtree(path)
        shutil.copytree(out, start)
        known = moments(recipe, out)
        expected = trained(out)
        print(f"undisturbed: records at {known.recording[0]:.2f} to {known.recording[1]:.2f} s,", end=" ")
        print(f"trains at {known.training[0]:.2f} to {known.training[1]:.2f} s of processor time", flush=True)
        while tally.kills < options.kills:
            earlier = tally.kills
            trial(start, out, recipe, (known, generator), tally)
            if trained(out) != expected:
                sys.exit(f"after {tally.kills} kills the student, or what the teacher said, is another")
            trials, tally.identical = trials + 1, tally.identical + tally.kills - earlier
            print(f"{tally.kills:4} kills: the student of trial {trials} is the same", flush=True)
    print(
        f"{tally.kills} kills at random moments ({tally.recording} in caching, {tally.training} in training,"
        f" {tally.between} before or between; {tally.writing} while a file was being written): 0 torn files,"
        f" {tally.identical} resumes byte-identical in {trials} trials; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
