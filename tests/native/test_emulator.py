"""An emulated program says so: its times would be those of the emulator."""

import platform
import subprocess
from pathlib import Path

import builds
import needed
import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
HARNESS = builds.ROOT / "csrc" / "harness"

PROGRAM = """
#include <sys/prctl.h>
#include <cstdio>
#include "compressor/machine.h"
int main(int count, char** arguments) {
  if (count > 1) prctl(PR_SET_NAME, arguments[1]);
  const compressor::Target target = compressor::describe_target("");
  std::printf("%s|%s|%s", target.architecture.c_str(), target.processor.c_str(), target.emulator.c_str());
}
"""

ARM_CPUINFO = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"

pytestmark = pytest.mark.skipif(platform.machine() == "aarch64", reason="this is the processor itself")


def build(compiler, folder):
    source, program = folder / "who.cpp", folder / "who"
    source.write_text(PROGRAM)
    flags = ("-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-static", f"-I{builds.ROOT / 'csrc' / 'include'}")
    builds.output_of(compiler, *flags, source, HARNESS / "target.cpp", "-o", program)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    needed.require(COMPILER, "g++-aarch64-linux-gnu")
    needed.require(EMULATOR, "qemu-user")
    return build(COMPILER, tmp_path_factory.mktemp("aarch64"))


def emulated(*command):
    architecture, processor, emulator = builds.output_of(EMULATOR, *command).split("|")
    assert architecture == "aarch64"
    return processor, emulator


def sysroot(folder, **files):
    """A folder whose files the emulator shows the program in place of the system's."""
    for name, text in files.items():
        path = folder / "proc" / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_emulator_is_named(program):
    assert emulated(program)[1] == EMULATOR


def test_the_emulator_is_named_where_it_shows_a_processor_for_onnxruntime(program, tmp_path):
    root = sysroot(tmp_path, cpuinfo=ARM_CPUINFO)
    assert emulated("-L", root, program) == ("implementer 0x41, part 0xd08", EMULATOR)


def test_a_program_with_a_name_of_its_own_is_emulated_too(program):
    assert emulated(program, "runner")[1] == "an emulator of aarch64"


def test_the_kernel_tells_even_where_the_processor_looks_right(program, tmp_path):
    if not Path("/proc/sys/kernel/arch").exists():
        pytest.skip("this kernel does not name its architecture; Linux 6.1 does")
    root = sysroot(tmp_path, cpuinfo=ARM_CPUINFO)
    assert emulated("-L", root, program, "runner")[1] == "an emulator of aarch64"


def test_the_processor_tells_where_the_kernel_does_not(program, tmp_path):
    root = sysroot(tmp_path, sys_kernel_arch="aarch64\n")
    assert emulated("-L", root, program, "runner")[1] == "an emulator of aarch64"


def test_this_machines_own_program_is_not_emulated(tmp_path):
    needed.require("g++", "g++")
    program = build("g++", tmp_path)
    said = subprocess.run([program, "runner"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{platform.machine()}|")
    assert said.endswith("|")
