"""Kills `compressor device install` at random moments, by kill -9: `tests/delivery/installer_kills.py --kills 200`.

Each trial begins an update, or every fourth time puts the current version there anew, and kills it with all its
children: half of them at a moment of an undisturbed update, half at one after the first file is being written. Then
what is current must be the old version or the new one, whole, by its signature and hashes, and the next update must go
through and leave nothing of the killed one. One line for each trial and a summary; exit code 1 when one fails.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path

from made_bundles import Signer, make_bundle, make_signer

from compressor.device import versions
from compressor.device.state import id_of

LONGEST_S = 120.0
ENDED = "ended before"


def begin(bundle: Path, root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "compressor.device", "install", str(bundle), "--root", str(root)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    )


def finish(bundle: Path, root: Path) -> None:
    process = begin(bundle, root)
    _, said = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, said.decode()


def unfinished(root: Path) -> list[Path]:
    return [path for folder in (root, root / "versions", root / "keys") for path in folder.glob(".unfinished-*")]


def kill_at(process: subprocess.Popen[bytes], root: Path, seconds: float, after_first_file: bool) -> None:
    """Kills the update and its children, unless it ends before."""
    deadline = time.monotonic() + LONGEST_S
    while after_first_file and process.poll() is None and not unfinished(root):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def struck(root: Path, code: int, before: int, now: int) -> str:
    """Where the update was when it was killed."""
    if code == 0:
        return ENDED
    if now != before:
        return "after the swap"
    if unfinished(root):
        return "while writing or testing"
    return "before writing" if len(list((root / "versions").iterdir())) <= 2 else "between test and swap"


def trial(bundle: Path, signer: Signer, root: Path, duration_s: float, generator: random.Random) -> str:
    """One kill, and the update after it. Returns where it struck; raises AssertionError, or what a check raises."""
    before = versions.status(root).version
    assert before is not None
    signer.sign(bundle, before + 1)
    after_first_file = generator.random() < 0.5
    process = begin(bundle, root)
    kill_at(process, root, generator.uniform(0, duration_s * (0.6 if after_first_file else 1.1)), after_first_file)
    versions.check_current(root)
    now = versions.status(root).version
    assert now in (before, before + 1), f"{now} is current, expected {before} or {before + 1}"
    where = struck(root, process.returncode, before, now)
    finish(bundle, root)
    found = versions.status(root)
    assert (found.version, found.floor) == (before + 1, before + 1)
    assert not unfinished(root)
    assert {id_of(path.name) for path in (root / "versions").iterdir()} == {found.current, found.previous}
    return where


def repair(bundle: Path, root: Path, duration_s: float, generator: random.Random) -> str:
    """One kill while a current version with a file too much is put there anew: its own files are there all the time."""
    before = versions.status(root)
    (root / "current" / "notes.txt").write_text("of somebody")
    process = begin(bundle, root)
    kill_at(process, root, generator.uniform(0, duration_s * 0.6), generator.random() < 0.5)
    for path in bundle.iterdir():
        assert (root / "current" / path.name).read_bytes() == path.read_bytes(), path.name
    finish(bundle, root)
    versions.check_current(root)
    assert versions.status(root) == before
    assert not unfinished(root)
    return ENDED if process.returncode == 0 else "in a repair"


def run(kills: int, seed: int, folder: Path) -> Counter[str]:
    """So many kills; an update that ends before its kill is none. Returns how many struck where."""
    generator, signer, root = random.Random(seed), make_signer(folder), folder / "device"
    bundles = [signer.sign(make_bundle(folder / name, number), number) for number, name in enumerate("ab", 1)]
    first = subprocess.run(
        [
            sys.executable,
            "-m",
            "compressor.device",
            "install",
            bundles[0],
            "--root",
            root,
            "--public-key",
            signer.public,
        ],
        capture_output=True,
        check=True,
    )
    assert first.stdout
    started = time.monotonic()
    finish(bundles[1], root)
    duration_s = time.monotonic() - started
    places: Counter[str] = Counter()
    for number in count():
        if places.total() == kills:
            break
        if number % 4 == 2:  # what the update before has installed
            where = repair(bundles[(number - 1) % 2], root, duration_s, generator)
        else:
            where = trial(bundles[number % 2], signer, root, duration_s, generator)
        places[where] += where != ENDED
        print(f"update {number + 1}: {where}", flush=True)
    return +places


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compressor-kills-") as folder:
        places = run(options.kills, options.seed, Path(folder))
    print(
        f"{options.kills} kills, always the old version or the new: " + ", ".join(f"{n} {p}" for p, n in places.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
