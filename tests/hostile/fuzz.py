"""Mutants of ONNX models, manifests and recipes, made by atheris from honest and hostile ones.

    python tests/hostile/fuzz.py [--seconds 60 | --mutants 100000] [--seed 1]

Each is read as the commands read it. A model that passes the look and the trial is then opened, described and run in
this process: whatever ends it, or raises anything but an error of errors.py, is a finding, kept in .cache/fuzz. The
trial's child is forked from one that has onnxruntime loaded already, which takes
milliseconds where a fresh one takes half a second; its limits and what it does are the program's.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import re
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "delivery")]

with atheris.instrument_imports(include=["compressor.intake", "compressor.device.manifest", "compressor.recipe_file"]):
    from compressor.bundle.manifest import open_bundle
    from compressor.device.manifest import MANIFEST, read_manifest
    from compressor.errors import BundleError, CompressorError
    from compressor.intake.onnx_model import check_onnx
    from compressor.intake.trial import PATIENCE, TRIAL_S, try_once
    from compressor.limited import RUNTIME_BYTES, limit_this_process
    from compressor.recipe_file import read_recipe
    from compressor.recipe_template import recipe_template

from made_bundles import make_bundle  # noqa: E402 (found by the path above)
from made_onnx import HONEST, HOSTILE  # noqa: E402

from compressor.inspection import inspect_opened  # noqa: E402
from compressor.recipe import RECIPES  # noqa: E402

_FINDINGS = Path(__file__).parent.parent.parent / ".cache" / "fuzz"
_HANGING = ("bomb: endless Loop", "bomb: doubling functions")  # every mutant of these would take its whole time
_PARTS = {"models": 0.6, "manifests": 0.2, "recipes": 0.2}  # of the mutants, or of the time
_COUNTED = (*_PARTS, "refused by a look", "refused by a trial", "opened here")


class Counts:
    """Numbers that a process shares with those it forks."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8 * len(_COUNTED))

    def add(self, name: str) -> None:
        place = 8 * _COUNTED.index(name)
        (count,) = struct.unpack_from("q", self._shared, place)
        struct.pack_into("q", self._shared, place, count + 1)

    def lines(self) -> list[str]:
        return [f"{struct.unpack_from('q', self._shared, 8 * i)[0]:10,} {name}" for i, name in enumerate(_COUNTED)]


def start_trials(model: Path) -> Callable[[], bool]:
    """Forks a process that tries out the model whenever it is asked, in a child each time; True where that passes."""
    asked, ask = os.pipe()
    answers, answer = os.pipe()
    if os.fork() == 0:
        os.close(ask)
        import onnxruntime  # noqa: F401

        while os.read(asked, 1):
            child = os.fork()
            if child == 0:
                os._exit(_trial(model))
            os.write(answer, bytes([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0]))
        os._exit(0)
    os.close(asked)

    def passes() -> bool:
        os.write(ask, b"?")
        return os.read(answers, 1) == b"\0"

    return passes


def _trial(model: Path) -> int:
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    limit_this_process(TRIAL_S, RUNTIME_BYTES)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * TRIAL_S)
    try:
        return 1 if try_once(model, b"") else 0
    except MemoryError:
        return 1


def reader(kind: str, folder: Path, counts: Counts) -> Callable[[bytes], None]:
    """What is done with a mutant of that kind."""
    model, manifest, recipe = folder / "model.onnx", folder / MANIFEST, folder / "recipe.yaml"

    def read_bundle(content: bytes) -> None:
        manifest.write_bytes(content)
        with contextlib.suppress(BundleError):
            read_manifest(content)  # as a device does
        open_bundle(folder)

    def read_yaml(content: bytes) -> None:
        recipe.write_bytes(content)
        read_recipe(recipe)

    if kind != "models":
        return read_bundle if kind == "manifests" else read_yaml
    passes = start_trials(model)

    def read_model(content: bytes) -> None:
        model.write_bytes(content)
        try:
            size = check_onnx(model, BundleError).bytes
        except CompressorError:
            counts.add("refused by a look")
            raise
        if not passes():
            counts.add("refused by a trial")
            return
        counts.add("opened here")
        inspect_opened(model, size)
        try_once(model, b"")

    return read_model


def mutator(seeds: Sequence[bytes]) -> Callable[[bytes, int, int], bytes]:
    """Mostly a seed with a few other bytes in their places, so that lengths stay what they say and what is deep inside
    is reached; otherwise whatever libFuzzer makes of what it kept.
    """

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.25:
            return bytes(atheris.Mutate(data, most))
        changed = bytearray(draw.choice(seeds))
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            place = draw.randrange(len(changed))
            changed[place] = draw.choice((changed[place] ^ 1 << draw.randrange(8), draw.randrange(256), 0, 1, 127))
        return bytes(changed)

    return mutate


def seeds_of(kind: str) -> list[bytes]:
    """Honest ones, and hostile ones that a look at them does not find."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "models":
            for name, make in {**HONEST, **HOSTILE}.items():
                (place := Path(scratch) / name).mkdir()
                path = make(place)
                if name not in _HANGING and path.is_file() and path.stat().st_size < 1 << 14 and _passes(path):
                    found.append(path.read_bytes())
        elif kind == "manifests":
            honest = (make_bundle(Path(scratch) / "bundle", 1) / MANIFEST).read_bytes()
            found = [honest, re.sub(rb'("max_abs_error": )[^,\n]+', rb"\g<1>" + b"9" * 400, honest)]
        else:
            found = [recipe_template(task).encode() for task in RECIPES]
    return found


def _passes(model: Path) -> bool:
    try:
        return not check_onnx(model, BundleError).outside
    except BundleError:
        return False


def fuzz(kind: str, end: str, seed: int, counts: Counts) -> bool:
    """Feeds mutants of one kind to what reads them, in a process of their own; whether that came to its end."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus, folder = Path(scratch) / "corpus", Path(scratch) / "read"
        corpus.mkdir()
        folder.mkdir()
        seeds = seeds_of(kind)
        for number, content in enumerate(seeds):
            (corpus / str(number)).write_bytes(content)
        inside = os.fork()
        if inside == 0:
            read = reader(kind, folder, counts)

            def one(data: bytes) -> None:
                counts.add(kind)
                with contextlib.suppress(CompressorError):
                    read(data)

            _FINDINGS.mkdir(parents=True, exist_ok=True)
            flags = [
                "-max_len=16384",
                "-timeout=30",
                "-rss_limit_mb=2048",
                "-verbosity=0",
                f"-artifact_prefix={_FINDINGS}/",
                f"-seed={seed}",
                end,
            ]
            atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutator(seeds))
            atheris.Fuzz()
        return os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1]) == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--mutants", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts, started, ended = Counts(), time.monotonic(), []
    for kind, part in _PARTS.items():
        end = f"-max_total_time={max(1, int(options.seconds * part))}"
        if options.mutants:
            end = f"-runs={int(options.mutants * part)}"
        ended.append(fuzz(kind, end, options.seed, counts))
    print("\n".join(counts.lines()), f"{time.monotonic() - started:10,.0f} s", sep="\n")
    print("no mutant ended the process that reads it" if all(ended) else "a finding: see above")
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
