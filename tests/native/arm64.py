"""The measuring program for 64-bit Arm, and the words that run it under emulation."""

from __future__ import annotations

import sys
from pathlib import Path

import builds
import needed

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# Not the emulator's default, which has all that it can emulate: there ONNX Runtime takes its kernels for SME, and a
# dynamic int8 product is wrong (ONNX Runtime 1.31.1, QEMU 7.2: whose fault is not known; without SME the bits agree).
PROCESSOR = "cortex-a76"
WITHOUT_DOT_PRODUCT = "cortex-a72"

# ONNX Runtime reads this at its start, and ends with SIGSEGV where it finds another processor's. It must be that of
# the emulated one: with instructions that are only promised here it ends with SIGILL.
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 50.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: {part}
CPU revision\t: 1
"""
_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_PROCESSORS = {
    PROCESSOR: (f"{_FEATURES} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp", "0xd0b"),
    WITHOUT_DOT_PRODUCT: (f"{_FEATURES} cpuid", "0xd08"),
}


def runner() -> Path:
    """Kept, so that the next run compiles what has changed. Not test_neon.py's folder: both may build at once."""
    needed.require(COMPILER, "g++-aarch64-linux-gnu")
    folder = builds.ROOT / "build" / "aarch64-runner"
    target = {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64", "CMAKE_CXX_COMPILER": COMPILER}
    settings = [f"-D{name}={value}" for name, value in {**target, "COMPRESSOR_MODULE": "OFF"}.items()]
    builds.output_of(sys.executable, "-m", "cmake", "-S", builds.ROOT, "-B", folder, *settings)
    builds.output_of(sys.executable, "-m", "cmake", "--build", folder, "--target", "compressor_runner")
    return folder / "compressor-runner"


def words(processor: str, program: Path, root: Path) -> list[str | Path]:
    """Of the command: the emulator, which shows Arm's libraries and processor, kept in `root`, in place of this
    machine's."""
    needed.require(EMULATOR, "qemu-user")
    loader = Path(builds.output_of(COMPILER, "-print-file-name=ld-linux-aarch64.so.1").strip()).resolve()
    features, part = _PROCESSORS[processor]
    (root / "lib").symlink_to(loader.parent)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(CPUINFO.format(features=features, part=part))
    return [EMULATOR, "-cpu", processor, "-L", root, program]
