"""`python -m bench CASE [--json FILE] [--quick]`: runs one case, prints what it found, checks its bars.

A case is a module of this package with `run(quick: bool) -> dict`: `rows`, a list of flat dicts, and `bars`, which
gives for each bar's name {"value", "bar", "holds"}. The exit code is 1 when a bar does not hold. FILE gets all of it,
with the machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from compressor.store import write_atomic

PACKAGES = ("compressor", "numpy", "onnx", "onnxruntime", "torch")


def cases() -> list[str]:
    """The names of the modules beside this one."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def machine() -> dict[str, object]:
    """What the numbers depend on; nothing that tells whose machine it is."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    named = [line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name")]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": named[0] if named else platform.machine(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
    }


def versions() -> dict[str, str | None]:
    """Python's version and those of the packages; null for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def write_json(result: dict[str, Any], path: Path) -> None:
    """Makes the folder, and the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_result(result: dict[str, Any]) -> None:
    rows = result["rows"]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_shown(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for name, bar in result["bars"].items():
        verdict = "holds" if bar["holds"] else "DOES NOT HOLD"
        print(f"{name}: {_shown(bar['value'])} (bar {_shown(bar['bar'])}): {verdict}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures one question about this program.")
    parser.add_argument("case", choices=cases())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: shows that the case runs")
    options = parser.parse_args(arguments)
    if options.json is not None:  # a folder that cannot be made must not cost the result
        options.json.parent.mkdir(parents=True, exist_ok=True)
    found = importlib.import_module(f"bench.{options.case}").run(options.quick)
    result = {"case": options.case, "quick": options.quick, "machine": machine(), "versions": versions(), **found}
    print_result(result)
    if options.json is not None:
        write_json(result, options.json)
    return 0 if all(bar["holds"] for bar in result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
