"""The distillation loss as compiled for 64-bit Arm, under emulation."""

import platform
import sys
from pathlib import Path

import builds
import loss_problems
import needed
import pytest
import torch

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

pytestmark = pytest.mark.skipif(
    platform.machine() == "aarch64", reason="this is the processor itself: test_instruction_sets.py runs there"
)


@pytest.fixture(scope="module")
def folder():
    """Built with CMakeLists.txt's own flags; kept, so that the next run compiles what has changed."""
    needed.require(COMPILER, "g++-aarch64-linux-gnu")
    found = builds.ROOT / "build" / "aarch64"
    target = {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64", "CMAKE_CXX_COMPILER": COMPILER}
    settings = [f"-D{name}={value}" for name, value in {**target, "COMPRESSOR_MODULE": "OFF"}.items()]
    builds.output_of(sys.executable, "-m", "cmake", "-S", builds.ROOT, "-B", found, *settings)
    builds.output_of(sys.executable, "-m", "cmake", "--build", found)
    return found


@pytest.fixture(scope="module")
def cases():
    problems = [
        *loss_problems.grid(),
        *loss_problems.unusual(),
        loss_problems.tiny(),
        loss_problems.large(torch.float32),
    ]
    return [(problem, loss_problems.expected(problem)) for problem in problems]


@pytest.fixture(scope="module")
def program(folder):
    """The words of the command."""
    needed.require(EMULATOR, "qemu-user")
    loader = Path(builds.output_of(COMPILER, "-print-file-name=ld-linux-aarch64.so.1").strip()).resolve()
    return [EMULATOR, "-L", loader.parents[1], folder / "distill_loss_check"]


@pytest.mark.parametrize("name", ["neon", "baseline"])
def test_the_loss_is_that_of_the_reference(name, program, cases, tmp_path):
    answers = loss_problems.solve(program, name, [problem for problem, _ in cases], tmp_path)
    found = [fault for case, got in zip(cases, answers, strict=True) for fault in loss_problems.faults(*case, got)]
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("name", ["neon", "baseline"])
@pytest.mark.parametrize("dtype", loss_problems.DTYPES[1:], ids=str)
def test_rounding_is_to_the_nearest_and_then_to_even(name, dtype, program, tmp_path):
    problem, exactly = loss_problems.rounding(dtype)
    (answer,) = loss_problems.solve(program, name, [problem], tmp_path)
    torch.testing.assert_close(answer.gradient, exactly.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["neon", "baseline"])
def test_an_instruction_set_leaves_its_object_by_one_function_only(name, folder):
    needed.require("aarch64-linux-gnu-nm", "binutils-aarch64-linux-gnu")
    found = folder / builds.CORE / "distill_loss" / f"{name}.cpp.o"
    assert builds.symbols_that_leave(found, "aarch64-linux-gnu-nm") == builds.only_entry(name)
