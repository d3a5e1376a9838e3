"""Runs tests/native/test_ort_versions.py with every minor version of ONNX Runtime from 1.19 on, one after the other.

Of each its newest patch, fetched into .cache. Prints a line for each; exit code 1 when one could not be had or fails.
Arguments go to pytest. `make test-ort-matrix` calls this.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
NATIVE_TESTS = TESTS / "native"
sys.path.insert(0, str(TESTS))

import runtimes  # noqa: E402  (beside the tests, which are no package)


def published() -> set[tuple[int, ...]]:
    """What pip lists for this Python, and for the one that has wheels from the oldest version on."""
    found: set[tuple[int, ...]] = set()
    for python in {"3.11", f"{sys.version_info.major}.{sys.version_info.minor}"}:
        command = [sys.executable, "-m", "pip", "index", "versions", "onnxruntime", "--only-binary=:all:"]
        listed = subprocess.run([*command, f"--python-version={python}"], capture_output=True, text=True, check=False)
        if listed.returncode:
            sys.exit(f"pip lists no versions of onnxruntime: {listed.stderr.strip()}")
        (line,) = (line for line in listed.stdout.splitlines() if line.startswith("Available versions: "))
        found |= {tuple(map(int, name.split("."))) for name in line.partition(": ")[2].split(", ")}
    return found


def newest_patches() -> list[str]:
    oldest = tuple(map(int, runtimes.OLDEST.split(".")))
    newest: dict[tuple[int, ...], tuple[int, ...]] = {}
    for version in sorted(published()):
        if version >= oldest:
            newest[version[:2]] = version
    return [".".join(map(str, version)) for version in newest.values()]


def tested(version: str, arguments: list[str]) -> tuple[bool, str]:
    """Whether all is well, and what to print."""
    try:
        runtimes.library(version)
    except runtimes.NotFetchedError as reason:
        return False, str(reason)
    command = [sys.executable, "-m", "pytest", "--quiet", "--no-header", "-p", "no:cacheprovider", *arguments]
    ended = subprocess.run(
        [*command, NATIVE_TESTS / "test_ort_versions.py"],
        env={**os.environ, "COMPRESSOR_ORT_VERSIONS": version},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout.strip().splitlines() or [f"pytest ended with exit code {ended.returncode}"]
    if ended.returncode:
        return False, "\n".join([lines[-1], *lines, ended.stderr])
    # A crash of the interpreter, or a test that was skipped, is no success.
    return "skipped" not in lines[-1], lines[-1]


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    failed = []
    for version in newest_patches():
        begin = time.monotonic()
        well, said = tested(version, arguments)
        print(
            f"onnxruntime {version}: {'ok' if well else 'FAILED'}, {said} ({time.monotonic() - begin:.0f} s)",
            flush=True,
        )
        failed += [] if well else [version]
    if failed:
        print("failed with onnxruntime", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
