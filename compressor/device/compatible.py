"""Whether a device has what a bundle needs, before any of its files is taken."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.device.manifest import DeviceManifest, Requirements
from compressor.errors import DeviceError, MissingDependencyError, StorageError
from compressor.processor import instruction_sets

DISK_RESERVE_BYTES = 1 << 20  # for folders, links, the state
_AVAILABLE = re.compile(r"^MemAvailable:\s*(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """What a device has. `ram_bytes`: memory that is available now, None where the system does not say."""

    onnxruntime: str
    providers: tuple[str, ...]
    architecture: str
    instruction_sets: frozenset[str]
    ram_bytes: int | None


def this_machine() -> Machine:
    """The machine that this runs on. Raises MissingDependencyError without onnxruntime."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "a device needs the package 'onnxruntime', which is not installed; run: pip install onnxruntime"
        ) from None
    available = _AVAILABLE.search(_text(Path("/proc/meminfo")))
    return Machine(
        onnxruntime.__version__,
        tuple(onnxruntime.get_available_providers()),
        platform.machine(),
        instruction_sets(),
        int(available[1]) * 1024 if available else None,
    )


def check_compatible(manifest: DeviceManifest, machine: Machine, free_bytes: int) -> None:
    """Raises DeviceError where the machine lacks something, StorageError where the bundle does not fit on the disk."""
    needs = manifest.requires
    if not _version(needs.onnxruntime_min) <= _version(machine.onnxruntime) <= _highest(needs):
        most = f" and at most {needs.onnxruntime_max}" if needs.onnxruntime_max else ""
        raise DeviceError(
            f"the model (opset {manifest.opset}, IR version {needs.ir_version}) needs onnxruntime"
            f" {needs.onnxruntime_min}{most}, the device has {machine.onnxruntime}; install another there"
        )
    _check_all("execution providers", needs.providers, machine.providers)
    if needs.instruction_sets:
        if machine.architecture not in needs.instruction_sets:
            raise DeviceError(
                f"the model is for {', '.join(sorted(needs.instruction_sets))}, the device is {machine.architecture}"
            )
        _check_all("instruction sets", needs.instruction_sets[machine.architecture], machine.instruction_sets)
    if machine.ram_bytes is not None and machine.ram_bytes < needs.ram_bytes:
        raise DeviceError(
            f"the model needs {_megabytes(needs.ram_bytes)} MB of memory, the device has"
            f" {_megabytes(machine.ram_bytes)} MB available; end other programs there"
        )
    if free_bytes < manifest.bytes + DISK_RESERVE_BYTES:
        raise StorageError(
            f"the bundle needs {_megabytes(manifest.bytes + DISK_RESERVE_BYTES)} MB on the disk, the device has"
            f" {_megabytes(free_bytes)} MB free; free some space there"
        )


def _check_all(what: str, needed: Sequence[str], there: Sequence[str] | frozenset[str]) -> None:
    if missing := [name for name in needed if name not in there]:
        raise DeviceError(f"the model needs the {what} {', '.join(missing)}, which the device lacks")


def _highest(needs: Requirements) -> tuple[float, ...]:
    return (float("inf"),) if needs.onnxruntime_max is None else _version(needs.onnxruntime_max)


def _version(text: str) -> tuple[float, ...]:
    """1.20.1 and 1.24.0.dev20260101 as numbers, three of them."""
    numbers = re.findall(r"\d+", text)[:3]
    return tuple(float(number) for number in numbers + ["0"] * (3 - len(numbers)))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.4g}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
