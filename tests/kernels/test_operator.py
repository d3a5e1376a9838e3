"""The loss as torch sees it: registered, compiled, in place, asked twice."""

import pytest
import torch
from independent import randn

from compressor.kernels import LossSettings, SparseTeacher, distillation_loss, selected_implementation


def case(rows=6, width=33):
    return randn(rows, width, seed=0).requires_grad_(), randn(rows, width, seed=1), torch.arange(rows)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("sparse", [False, True])
def test_opcheck(reduction, sparse):
    student, teacher, labels = case()
    indices = torch.arange(4).expand(6, 4).contiguous() if sparse else None
    known = torch.zeros(6, 4) if sparse else teacher
    arguments = (student, known, indices, labels, torch.rand(6), torch.rand(33), "zero" if sparse else "")
    settings = " ".join(str(value) for value in vars(LossSettings(2.0, hard_weight=0.3)).values())
    torch.library.opcheck(
        torch.ops.compressor.distillation_loss.default,
        (*arguments, settings, reduction, True, selected_implementation(student)),
    )


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiled_without_a_break(reduction):
    student, teacher, labels = case()
    options = {"temperature": 2.0, "hard_weight": 0.3, "reduction": reduction}

    def step(logits):
        return (distillation_loss(logits * 2, teacher, labels, **options) * 3).sum()

    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(student), step(student))
    (got,) = torch.autograd.grad(compiled(student), student)
    (want,) = torch.autograd.grad(step(student), student)
    torch.testing.assert_close(got, want)


def test_in_place_the_gradient_takes_the_logits_memory():
    _, teacher, labels = case()
    hidden, weight = randn(6, 9, seed=3), randn(9, 33, seed=4, scale=1).requires_grad_()
    logits = hidden @ weight
    loss = distillation_loss(logits, teacher, labels, temperature=2.0, hard_weight=0.5, in_place=True)
    overwritten = logits.detach().clone()
    (loss * 3).backward()
    again = weight.detach().requires_grad_()
    want = distillation_loss(hidden @ again, teacher, labels, temperature=2.0, hard_weight=0.5)
    (want * 3).backward()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(weight.grad, again.grad)
    torch.testing.assert_close(hidden.T @ overwritten * 3, again.grad)


def test_in_place_autograd_refuses_where_the_logits_are_needed():
    student, teacher, _ = case()
    with pytest.raises(ValueError, match="got a leaf"):
        distillation_loss(student, teacher, temperature=2.0, in_place=True)
    loss = distillation_loss(torch.tanh(student), teacher, temperature=2.0, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_is_refused_where_rows_share_memory_or_the_dtype_is_too_narrow():
    teacher = randn(4, 7, seed=1)
    shared = (randn(1, 7, seed=0).requires_grad_() * 1).expand(4, 7)
    with pytest.raises(ValueError, match=r"own memory, got strides \(0, 1\)"):
        distillation_loss(shared, teacher, temperature=2.0, in_place=True)
    windows = (randn(10, seed=0).requires_grad_() * 1).as_strided((4, 7), (1, 1))
    with pytest.raises(ValueError, match="own memory"):
        distillation_loss(windows, teacher, temperature=2.0, in_place=True)
    with pytest.raises(ValueError, match="got float16"):
        distillation_loss(randn(4, 7, seed=0).requires_grad_().half(), teacher, temperature=2.0, in_place=True)


def test_a_mean_in_float16_keeps_its_gradient_for_the_loss_scale():
    """What GradScaler does: 1 / N alone would push every entry below float16's smallest number."""
    student = randn(512, 8000, seed=0, dtype=torch.float16)
    teacher = (student.float() + randn(512, 8000, seed=1, scale=0.1)).half()
    found, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    (distillation_loss(found, teacher, temperature=2.0) * 65536).backward()
    (distillation_loss(exact, teacher.double(), temperature=2.0) * 65536).backward()
    assert found.grad.dtype == torch.float16
    assert (found.grad.double() - exact.grad).norm() / exact.grad.norm() < 1e-3


def test_compiled_with_dynamic_shapes_and_a_temperature_that_changes():
    compiled = torch.compile(lambda s, t, temperature: distillation_loss(s, t, temperature=temperature), dynamic=True)
    for rows, temperature in ((3, 2.0), (5, 1.5), (8, 4.0)):
        student, teacher, _ = case(rows)
        want = distillation_loss(student, teacher, temperature=temperature)
        torch.testing.assert_close(compiled(student, teacher, temperature), want)


def test_in_place_without_a_gradient_changes_nothing():
    student, teacher, _ = case()
    before = student.detach().clone()
    with torch.no_grad():
        distillation_loss(student, teacher, temperature=2.0, in_place=True)
    assert torch.equal(student, before)


def test_in_place_with_a_sparse_teacher_and_rows_apart():
    memory = randn(5, 50, seed=0)
    student = (memory.clone().requires_grad_() * 1.0)[:, 4:40]
    teacher = SparseTeacher(torch.arange(3).expand(5, 3).contiguous(), randn(5, 3, seed=2), "zero")
    plain = memory[:, 4:40].clone().requires_grad_()
    want = distillation_loss(plain, teacher, temperature=2.0)
    loss = distillation_loss(student, teacher, temperature=2.0, in_place=True)
    torch.testing.assert_close(loss, want)
    want.backward()
    torch.testing.assert_close(student.detach(), plain.grad)


def test_asked_twice_it_answers_the_same():
    student, teacher, _ = case()
    loss = distillation_loss(student, teacher, temperature=2.0)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(loss, student, torch.tensor(3.0), retain_graph=True)
    (third,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(second, 3 * first)
    assert torch.equal(third, first)


def test_a_second_derivative_is_refused():
    student, teacher, _ = case()
    loss = distillation_loss(student, teacher, temperature=2.0)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


def test_without_a_gradient_none_is_made():
    student, teacher, _ = case()
    with torch.no_grad():
        loss = distillation_loss(student, teacher, temperature=2.0)
    assert not loss.requires_grad
    assert distillation_loss(student.detach(), teacher, temperature=2.0).item() == pytest.approx(loss.item())
