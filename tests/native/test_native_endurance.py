"""The native loss over many calls, and beside other threads."""

import threading

import pytest
import torch

from compressor import native
from compressor.kernels import cpu
from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher


def resident_bytes():
    return native.load().memory_use()[0]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_memory_does_not_grow(kind):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 40, generator=generator)
    known = SparseTeacher(torch.arange(12).view(3, 4), torch.zeros(3, 4), "zero")
    inputs = LossInputs(student, teacher if kind == "dense" else known, torch.tensor([1, 2, 3]))
    settings, gradient = LossSettings(2.0, hard_weight=0.5), torch.empty(3, 40)
    fastest = native.load().instruction_sets()[-1]
    for call in range(102_000):
        if call == 2000:
            before = resident_bytes()
        cpu.row_losses(inputs, settings, gradient, None, fastest)
    assert resident_bytes() - before <= 2**20


def test_other_threads_run_during_a_call():
    """Another thread sees the call half done: the first row's loss is there, the last one's is not yet."""
    rows, width = 500_000, 1000  # all rows are the same memory: much work in little of it
    logits, loss = torch.randn(width), torch.full((rows,), torch.nan)
    problem = native.load().DistillProblem()
    problem.rows, problem.loss = rows, loss.data_ptr()
    problem.width = problem.soft_width = problem.teacher_width = width
    problem.student = problem.teacher = native.load().Matrix(logits.data_ptr(), 0, "float32")
    call = threading.Thread(target=native.load().distill_loss, args=(problem, "baseline", 1))
    call.start()
    seen_half_done = False
    while call.is_alive() and not seen_half_done:
        first, last = loss[0].isnan().item(), loss[-1].isnan().item()
        seen_half_done = not first and last
    call.join()
    assert seen_half_done
    assert loss.abs().max() < 1e-6
