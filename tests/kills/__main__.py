"""Kills `compress` and `device install` at random moments, by kill -9, and resumes them: `python tests/kills`.

Three quarters of the kills strike `compress`. Each trial is one run, from an empty folder to its bundle, killed in
every stage, at a moment between its begin and about its end, told by the processor time of the run, so that a busy
machine does not shift it. After every kill nothing may be torn: what has its final name is whole. Nothing that was kept
may be lost either: a finished stage and a whole shard stay the files that they were, and the next checkpoint is no
older. In the end all but what is measured must be as in a run that nobody disturbed, byte by byte: the student, what
its teacher said, the ONNX files, the bundle. The other kills strike updates of a device (`installer_kills.py`). One
line for each trial and a summary; exit code 1 when one fails.
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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path += [str(Path(__file__).resolve().parents[1] / "e2e"), str(Path(__file__).resolve().parents[1] / "delivery")]

import installer_kills
import safetensors.numpy
from kept_and_torn import SIGNALS, begun, kept, made, torn
from made_inputs import text_inputs

from compressor import pipeline, stages
from compressor.artifacts import STAGES, GateDecision
from compressor.bundle.verify import verify_bundle
from compressor.distill import cache, record, training
from compressor.progress import Progress

REPORT = "report"  # after the stages: the bundle in its place, result.json, report.html
PLACES = (*STAGES, REPORT)
# Of a stage that continues, the kills in one trial; each in a part of it, since what is left shrinks with every resume.
KILLS_IN = {SIGNALS: 3, "distill": 3}
SHARE_OF_PART = 0.4
EPOCHS, SHARD_ROWS, CHECKPOINT_EVERY_S = 4, 8, 0.1  # small, so that every trial sees many of each
LONGEST_S = 600.0
DELAY_S = 0.01  # at most, of a kill: or none would strike a run that waits for the disk


# For a place, how long after the run has come there it is to be killed, and how much later it is.
Moments = Callable[[str], tuple[float, float]]


@dataclass
class Tally:
    """How many kills struck where, and how many left a file half written, under its temporary name."""

    struck: Counter[str] = field(default_factory=Counter)
    writing: int = 0
    identical: int = 0

    @property
    def kills(self) -> int:
        return self.struck.total()

    def add(self, place: str, out: Path, temporaries: set[str]) -> None:
        """One kill; `temporaries` are those of earlier ones."""
        self.struck[place] += 1
        new = {path.name for path in out.rglob(".*.tmp")} - temporaries
        temporaries |= new
        self.writing += bool(new)


class Told(Progress):
    """Tells this process of each stage that begins and ends, rather than the user."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(quiet=True)
        self._connection = connection

    def log(self, line: str) -> None:
        if not line.startswith(" "):
            self._connection.send(line)


def last_candidate(_: Any, candidates: Any, *__: Any) -> GateDecision:
    """What ships without the gate, which goes by the times that were measured."""
    return GateDecision(candidates[-1].name, "the last", ())


def work(recipe: Path, connection: Connection) -> None:
    """A run of the pipeline in a process of its own, with shards and checkpoints in quick succession."""
    os.setsid()  # its children are killed with it
    cache.ROWS = record.ROWS = SHARD_ROWS
    training._CHECKPOINT_EVERY_S = CHECKPOINT_EVERY_S
    pipeline.choose = last_candidate
    stages.explained = lambda timed, *_: timed  # it would profile for a minute, or not, by what was measured
    pipeline.compress(recipe, progress=Told(connection))


@dataclass
class Running:
    """A run and where it is: a stage, `REPORT`, or None between two. `began_s`: when, on the clock of that place."""

    process: BaseProcess
    told: Connection
    place: str | None = None
    began_s: float = 0.0

    def now_s(self) -> float:
        """Processor seconds of the run's only busy thread; in the benchmark, which others do, seconds on the clock."""
        if self.place == "benchmark":
            return time.monotonic()
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9

    def spent_s(self) -> float:
        """Since the begin of the place."""
        return self.now_s() - self.began_s

    def listen(self) -> bool:
        """Waits a millisecond for news. False where the run has ended."""
        try:
            while self.told.poll(0.001):
                stage, _, rest = self.told.recv().partition(":")
                if stage in STAGES:
                    self.place = stage if not rest else REPORT if stage == "bundle" else None
                    self.began_s = self.now_s()
        except (EOFError, ConnectionResetError):
            return False
        return True


@contextmanager
def running(recipe: Path) -> Iterator[Running]:
    """A run of the pipeline. What is left of it and of its children is killed in the end."""
    context = multiprocessing.get_context("fork")
    told, tells = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(recipe, tells))
    process.start()
    tells.close()
    try:
        yield Running(process, told)
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        told.close()
    if process.exitcode not in (0, -signal.SIGKILL):
        sys.exit(f"a run ended by itself with {process.exitcode}")


def complete(recipe: Path) -> dict[str, float]:
    """An undisturbed run. Returns how long it was in every place that it came to, in seconds on the clock of each."""
    spent: dict[str, float] = {}
    with running(recipe) as run:
        while run.listen():
            if run.place is not None:
                spent[run.place] = run.spent_s()
        run.process.join(LONGEST_S)
    return spent


def struck(recipe: Path, out: Path, place: str, after_s: float, delay_s: float) -> str | None:
    """Kills a run so long after it has come to a place, or as soon as it has left it. Returns where that was; None
    where the run ended before.
    """
    reached, until = False, time.monotonic() + LONGEST_S
    with running(recipe) as run:
        while run.listen() and not (reached and (run.place != place or run.spent_s() >= after_s)):
            reached = reached or run.place == place
            if time.monotonic() > until:
                sys.exit(f"{place}: not reached, or not left, after {LONGEST_S:g} s")
        time.sleep(delay_s)
    if run.process.exitcode == 0:
        return None
    under_way = next((stage for stage in STAGES if begun(out, stage) is not None), "between")
    return REPORT if run.place == REPORT else under_way


def planned(most: int, generator: random.Random) -> list[str]:
    """Where the kills of one trial are to strike, in order: everywhere, or in so many places at random."""
    everywhere = [place for place in PLACES for _ in range(KILLS_IN.get(place, 1))]
    chosen = generator.sample(range(len(everywhere)), min(most, len(everywhere)))
    return [everywhere[number] for number in sorted(chosen)]


def trial(out: Path, recipe: Path, places: list[str], moments: Moments, tally: Tally) -> None:
    """From an empty run folder to the bundle."""
    shutil.rmtree(out, ignore_errors=True)
    temporaries: set[str] = set()
    before = kept(out)
    for place in places:
        where = struck(recipe, out, place, *moments(place))
        if where is None:
            break
        tally.add(where, out, temporaries)
        after = kept(out)
        if bad := torn(out) + before.lost(after):
            sys.exit(f"after {tally.kills} kills, the last of them in {where}: " + "; ".join(bad))
        before = after
    complete(recipe)


def kill_compress(kills: int, generator: random.Random, folder: Path) -> Tally:
    tally, trials, out = Tally(), 0, folder / "out"
    inputs = text_inputs(folder)
    recipe = inputs.write_recipe(out, **recipe_changes(other_model(inputs.folder / "teacher")))
    known = complete(recipe)
    if missing := set(PLACES) - set(known):
        sys.exit(f"an undisturbed run does not come to {', '.join(sorted(missing))}")
    expected = made(out)
    print("undisturbed: " + ", ".join(f"{place} {known[place]:.2f} s" for place in PLACES), flush=True)

    def moments(place: str) -> tuple[float, float]:
        part = SHARE_OF_PART if KILLS_IN.get(place, 1) > 1 else 1.0
        return generator.uniform(0, part * known[place]), generator.uniform(0, DELAY_S)

    while tally.kills < kills:
        earlier = tally.kills
        trial(out, recipe, planned(kills - tally.kills, generator), moments, tally)
        if different := [name for name, value in made(out).items() if expected[name] != value]:
            sys.exit(f"after {tally.kills} kills another: {', '.join(different)}")
        trials, tally.identical = trials + 1, tally.identical + tally.kills - earlier
        print(f"{tally.kills:4} kills: what trial {trials} made is the same", flush=True)
    verify_bundle(out / "bundle")
    return tally


def other_model(teacher: Path) -> Path:
    """The teacher with other weights, in a folder beside it."""
    folder = teacher.with_name("reference")
    shutil.copytree(teacher, folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    halved = {name: tensor / 2 if name == "classifier.weight" else tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(halved, folder / "model.safetensors", {"format": "pt"})
    return folder


def recipe_changes(reference: Path) -> dict[str, object]:
    """So that every stage is there, and takes seconds."""
    return {
        "distill__epochs": EPOCHS,
        "quantize__qat": {"epochs": 1},
        "verify__reference": {"path": str(reference), "permission": "own-model"},
        "benchmark__budget_s": 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator, began, installs = random.Random(options.seed), time.monotonic(), math.ceil(options.kills / 4)
    with tempfile.TemporaryDirectory(prefix="compressor-kills-") as scratch:
        tally = kill_compress(options.kills - installs, generator, Path(scratch))
        Path(scratch, "updates").mkdir()
        updates = installer_kills.run(installs, options.seed, Path(scratch, "updates"))
    print(
        f"{tally.kills} kills of compress ({listed(tally.struck)}; {tally.writing} while a file was being written):"
        f" 0 torn files, {tally.identical} resumes byte-identical"
    )
    print(f"{updates.total()} kills of updates ({listed(updates)}): always the old version or the new")
    print(f"{tally.kills + updates.total()} kills at random moments, {time.monotonic() - began:.0f} s")


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {place}" for place, count in counts.items())


if __name__ == "__main__":
    main()
