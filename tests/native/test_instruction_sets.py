"""The distillation loss without Python, by every instruction set of this machine; and that none leaks into the rest."""

import platform
import re
from dataclasses import replace

import builds
import loss_problems
import needed
import pytest
import torch

from compressor import native

# On a processor that rounds to bfloat16 by itself, avx512 takes that; the other way is tested by a name of its own.
NAMES = ("baseline", "avx2", "avx512", "avx512-without-bf16", "neon")
OF_X86 = {"baseline", "avx2", "avx512", "avx512_bf16"}


@pytest.fixture(scope="module")
def cases():
    problems = [*loss_problems.grid(), *loss_problems.unusual(), loss_problems.tiny()]
    problems += [loss_problems.large(dtype) for dtype in (torch.float32, torch.bfloat16)]
    return [(problem, loss_problems.expected(problem)) for problem in problems]


def solve(name, problems, folder):
    if name.removesuffix("-without-bf16") not in native.load().instruction_sets():
        pytest.skip(f"this processor or build lacks {name}")
    return loss_problems.solve([builds.folder_of_this_machine() / "distill_loss_check"], name, problems, folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_reference(name, cases, tmp_path):
    answers = solve(name, [problem for problem, _ in cases], tmp_path)
    found = [fault for case, got in zip(cases, answers, strict=True) for fault in loss_problems.faults(*case, got)]
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", loss_problems.DTYPES[1:], ids=str)
def test_rounding_is_to_the_nearest_and_then_to_even(name, dtype, tmp_path):
    problem, exactly = loss_problems.rounding(dtype)
    (answer,) = solve(name, [problem], tmp_path)
    torch.testing.assert_close(answer.gradient, exactly.to(dtype), rtol=0, atol=0)


def test_most_problems_have_a_finite_answer(cases):
    finite = [bool(want.loss.isfinite().all() and want.gradient.isfinite().all()) for _, want in cases]
    assert all(finite[: len(loss_problems.grid())])
    assert not all(finite)


@pytest.mark.parametrize("dtype", loss_problems.DTYPES, ids=str)
def test_a_small_fault_is_seen(dtype, cases, tmp_path):
    """The judge itself: one element off by little, one loss, one byte between the rows."""
    problem, want = next(
        case
        for case in cases
        if case[0].inputs.student.dtype == dtype
        and case[0].placement == "apart"
        and case[0].gradient_stride > case[0].inputs.student.shape[1] > 1000
        and case[0].settings.divergence == "forward_kl"
    )
    (answer,) = solve("baseline", [problem], tmp_path)
    assert not list(loss_problems.faults(problem, want, answer))
    largest = want.gradient.abs().argmax()
    off = answer.gradient.contiguous()
    off.view(-1)[largest] *= 1 + 4 * torch.finfo(dtype).eps + 1e-5
    wrong = {
        "gradient": replace(answer, gradient=off),
        "loss": replace(answer, loss=answer.loss + 1e-5 * (1 + answer.loss)),
        "between": replace(answer, between=b"\0" + answer.between[1:]),
    }
    for what, changed in wrong.items():
        (fault,) = loss_problems.faults(problem, want, changed)
        assert what in fault


def objects():
    """Of the core: the name of the source, and the object."""
    core = builds.folder_of_this_machine() / builds.CORE
    found = {path.name.removesuffix(".cpp.o"): path for path in core.rglob("*.cpp.o")}
    assert {"baseline", "dispatch", "memory"} <= set(found)
    return found


def test_an_instruction_set_leaves_its_object_by_one_function_only():
    """A function that several objects define, an inline one or a template of the standard library, is linked once: from
    the object that the linker meets first, with the instructions of that one."""
    needed.require("nm", "binutils")
    found = {name: path for name, path in objects().items() if name in {*OF_X86, "neon"}}
    assert len(found) >= 2
    for name, path in found.items():
        assert builds.symbols_that_leave(path) == builds.only_entry(name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the instructions of x86-64 only")
def test_no_object_has_instructions_beyond_its_own():
    needed.require("objdump", "binutils")
    # Every instruction of AVX and later begins with v; the mask registers k0 to k7 came with AVX-512.
    any_avx, avx512, bfloat16 = r"\tv", r"%zmm|%k[0-7]", r"\tvcvtneps2bf16|\tvcvtne2ps2bf16"
    own = {"avx2": r"%ymm", "avx512": avx512, "avx512_bf16": bfloat16}
    foreign = {"avx2": avx512, "avx512": bfloat16, "avx512_bf16": "no such instruction"}
    for name, path in objects().items():
        code = builds.output_of("objdump", "--disassemble", "--no-show-raw-insn", path)
        assert not re.search(foreign.get(name, any_avx), code), name
        assert re.search(own.get(name, r"\tret"), code), name
