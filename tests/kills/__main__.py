"""Kills training and caching at random moments, by kill -9, and resumes them: `python tests/kills --kills 100`.

Each trial starts from a run folder whose first stages are finished, and is killed again and again, at a random moment
each time, until the student is trained. After every kill no file may be torn: what has its final name is whole, and a
checkpoint loads. In the end the student's weights, and what the teacher said, must be those of a run that nobody
disturbed, byte by byte. One line for each trial; exit code 1 when one fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import safetensors
from made_inputs import text_inputs

from compressor.distill import cache, record, training
from compressor.distill.checkpoint import load_checkpoint
from compressor.pipeline import compress
from compressor.progress import SILENT
from compressor.store import sha256_file

SIGNALS, DISTILL = "signals", "distill"
EPOCHS, SHARD_ROWS, CHECKPOINT_EVERY_S = 6, 32, 0.1  # small, so that every trial sees many of each
LONGEST_S = 120.0


@dataclass(frozen=True)
class Trained:
    """What must come out the same, by SHA-256."""

    weights: str
    signals: tuple[str, ...]


def finished(out: Path, stage: str) -> Path | None:
    """The stage's folder under its final name."""
    found = [path for path in (out / "stages").glob(f"{stage}-*") if path.suffix != ".partial"]
    return found[0] if found else None


def trained(out: Path) -> Trained:
    weights, signals = finished(out, DISTILL), finished(out, SIGNALS)
    assert weights is not None
    assert signals is not None
    shards = tuple(sha256_file(path) for path in sorted(signals.glob("*.safetensors")))
    return Trained(sha256_file(weights / "model.safetensors"), shards)


def torn(out: Path) -> list[str]:
    """Files with a final name that are not whole."""
    bad = [str(stage) for stage in (out / "stages").glob("*") if not _sealed_or_partial(stage)]
    for checkpoint in out.rglob("checkpoint.pt"):
        load_checkpoint(checkpoint)  # raises where it is torn
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


def run_until(recipe: Path, out: Path, stage: str, killed_after_s: float | None) -> tuple[bool, float]:
    """Runs until the stage is finished, or is killed. Whether it is finished, and the seconds that it took."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(recipe,))
    process.start()
    assert process.pid is not None
    began = time.monotonic()
    limit_s = LONGEST_S if killed_after_s is None else killed_after_s
    while finished(out, stage) is None and time.monotonic() - began < limit_s and process.is_alive():
        time.sleep(0.001)
    if not process.is_alive() and finished(out, stage) is None:
        sys.exit(f"the run ended with {process.exitcode} before the stage {stage} was finished")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return finished(out, stage) is not None, time.monotonic() - began


def trial(begun: Path, out: Path, recipe: Path, moments: random.Random, whole_s: float) -> int:
    """From the copy of a run folder to the trained student; how many kills it took."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(begun, out)
    kills = 0
    while True:
        done, _ = run_until(recipe, out, DISTILL, moments.uniform(0.1, 0.7) * whole_s)
        if bad := torn(out):
            sys.exit("torn after a kill: " + "; ".join(bad))
        if done:
            return kills
        kills += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        out, begun = Path(scratch, "out"), Path(scratch, "begun")
        inputs = text_inputs(Path(scratch))
        recipe = inputs.write_recipe(out, distill__epochs=EPOCHS, distill__control=False)
        run_until(recipe, out, "student", None)
        for stage in (SIGNALS, DISTILL):
            for path in (out / "stages").glob(f"{stage}-*"):
                shutil.rmtree(path)
        shutil.copytree(out, begun)
        _, whole_s = run_until(recipe, out, DISTILL, None)
        expected, kills, resumes = trained(out), 0, 0
        print(f"undisturbed: {whole_s:.1f} s", flush=True)
        while kills < options.kills:
            count = trial(begun, out, recipe, moments, whole_s)
            if trained(out) != expected:
                sys.exit(f"after {count} kills the student, or what the teacher said, is another")
            kills, resumes = kills + count, resumes + count
            print(f"{kills:4} kills: 0 torn files, {resumes} resumes, the student is the same", flush=True)


if __name__ == "__main__":
    main()
