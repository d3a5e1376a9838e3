"""The processor that this runs on, as Linux tells of it, and what a timing belongs to."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)
_NAME = re.compile(r"^model name\s*:\s*(.+?)\s*$", re.MULTILINE)


def measured_on() -> list[object]:
    """What a timing belongs to: it is measured again on another machine, or with another onnxruntime."""
    return [processor_name(), len(os.sched_getaffinity(0)), version_of("onnxruntime")]


def processor_name() -> str:
    """The model of the processor; the architecture where there is none."""
    text = _cpuinfo()
    if text is None:
        return platform.processor() or "unknown"
    found = _NAME.search(text)
    return found[1] if found else platform.machine()


def instruction_sets() -> frozenset[str]:
    """The flags of /proc/cpuinfo; empty where it has none."""
    found = _FLAGS.search(_cpuinfo() or "")
    return frozenset(found[1].split() if found else ())


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> str | None:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
