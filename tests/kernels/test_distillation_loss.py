"""Both implementations against an independent float64 calculation in NumPy, and the corners of the definition."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from compressor.kernels import distillation_loss, reference


@pytest.fixture(params=["reference", "cpu"])
def implementation(request, monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", request.param)


both = pytest.mark.usefixtures("implementation")


def make_logits(rows, width, seed=0, offset=0.0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, width, generator=generator) * scale + offset
    teacher = torch.randn(rows, width, generator=generator) * scale - offset
    labels = torch.randint(0, width, (rows,), generator=generator)
    return student, teacher, labels


def exact(student, teacher, labels, temperature, hard_weight):
    """Loss [N] and gradient [N, V] in float64."""
    s, t = student.double().numpy(), teacher.double().numpy()
    log_s, log_t = log_softmax(s / temperature, axis=1), log_softmax(t / temperature, axis=1)
    soft = (np.exp(log_t) * (log_t - log_s)).sum(axis=1)
    loss = (1 - hard_weight) * temperature**2 * soft
    gradient = (1 - hard_weight) * temperature * (np.exp(log_s) - np.exp(log_t))
    for row, label in enumerate(labels.numpy()):
        if label == reference.IGNORE_INDEX:
            continue
        log_p = log_softmax(s[row])
        loss[row] -= hard_weight * log_p[label]
        gradient[row] += hard_weight * np.exp(log_p)
        gradient[row, label] -= hard_weight
    return loss, gradient


def float32_error(student, teacher, labels, temperature, hard_weight):
    """What plain PyTorch in float32 loses on this case: loss, gradient."""
    s = student.clone().requires_grad_()
    loss = reference.distillation_rows(s, teacher, labels, temperature, hard_weight)
    loss.sum().backward()
    want_loss, want_gradient = exact(student, teacher, labels, temperature, hard_weight)
    return np.abs(loss.detach().numpy() - want_loss).max(), np.abs(s.grad.numpy() - want_gradient).max()


@both
def test_a_case_by_hand():
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(9.0), 0.0]])  # at T = 2: 3/4, 1/4
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2.0, hard_weight=0.25)
    loss.backward()
    soft = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(0.75 * 4 * soft + 0.25 * math.log(2), rel=1e-6)
    first = 0.75 * 2 * (0.5 - 0.75) + 0.25 * 0.5
    assert student.grad[0].tolist() == pytest.approx([first, -first], rel=1e-6)


@pytest.mark.parametrize("width", [1, 2, 7, 511, 512, 513, 1031])
@pytest.mark.parametrize(("temperature", "hard_weight"), [(1.0, 0.0), (2.0, 0.3), (0.7, 1.0), (4.0, 0.5)])
@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
@both
def test_as_exact_as_plain_float32(width, temperature, hard_weight, offset):
    student, teacher, labels = make_logits(9, width, offset=offset)
    labels[4] = reference.IGNORE_INDEX
    case = (student, teacher, labels, temperature, hard_weight)
    want_loss, want_gradient = exact(*case)
    student = student.clone().requires_grad_()
    loss = distillation_loss(
        student, teacher, labels, temperature=temperature, hard_weight=hard_weight, reduction="none"
    )
    loss.sum().backward()
    loss_error, gradient_error = float32_error(*case)
    assert np.abs(loss.detach().numpy() - want_loss).max() <= 2 * loss_error + 2e-6 * (1 + np.abs(want_loss).max())
    assert np.abs(student.grad.numpy() - want_gradient).max() <= 2 * gradient_error + 1e-6


@both
def test_a_long_row_stays_exact():
    student, teacher, labels = make_logits(3, 50257)
    want_loss, want_gradient = exact(student, teacher, labels, 2.0, 0.5)
    student.requires_grad_()
    loss = distillation_loss(student, teacher, labels, temperature=2.0, hard_weight=0.5, reduction="none")
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach().numpy(), want_loss, rtol=2e-6)
    np.testing.assert_allclose(student.grad.numpy(), want_gradient, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@both
def test_upstream_gradient_and_reduction(reduction):
    student, teacher, labels = make_logits(6, 33)
    want_loss, want_gradient = exact(student, teacher, labels, 3.0, 0.2)
    upstream = np.array([2.0, -1.0, 0.0, 0.5, 3.0, 1.5])
    student.requires_grad_()
    loss = distillation_loss(student, teacher, labels, temperature=3.0, hard_weight=0.2, reduction=reduction)
    if reduction == "none":
        loss.backward(torch.from_numpy(upstream).float())
        want, weight = want_loss, upstream
    else:
        (loss * 2.5).backward()
        share = 1.0 if reduction == "sum" else 1 / 6
        want, weight = want_loss.sum() * share, np.full(6, 2.5 * share)
    np.testing.assert_allclose(loss.detach().numpy(), want, rtol=1e-5)
    np.testing.assert_allclose(student.grad.numpy(), want_gradient * weight[:, None], atol=2e-6)


def test_gradcheck_of_the_reference():
    student, teacher, labels = make_logits(4, 5)
    labels[1] = reference.IGNORE_INDEX
    student, teacher = student.double().requires_grad_(), teacher.double()
    assert torch.autograd.gradcheck(lambda s: reference.distillation_rows(s, teacher, labels, 1.7, 0.4), (student,))


@both
def test_ignored_rows_keep_only_the_soft_part():
    student, teacher, labels = make_logits(5, 12)
    labels[:] = reference.IGNORE_INDEX
    soft_only = distillation_loss(student, teacher, temperature=2.0, reduction="none")
    mixed = distillation_loss(student, teacher, labels, temperature=2.0, hard_weight=0.25, reduction="none")
    torch.testing.assert_close(mixed, 0.75 * soft_only)
    student.requires_grad_()
    hard_only = distillation_loss(student, teacher, labels, temperature=2.0, hard_weight=1.0, reduction="none")
    hard_only.sum().backward()
    assert hard_only.tolist() == [0.0] * 5
    assert not student.grad.any()


@both
def test_teacher_without_mass_contributes_nothing():
    student, teacher, _ = make_logits(3, 10)
    kept = distillation_loss(student[:, :7].contiguous(), teacher[:, :7].contiguous(), temperature=2.0)
    student[:, 7:] = teacher[:, 7:] = -math.inf
    student.requires_grad_()
    loss = distillation_loss(student, teacher, temperature=2.0)
    loss.backward()
    torch.testing.assert_close(loss, kept)
    assert student.grad.isfinite().all()
    assert not student.grad[:, 7:].any()


@both
def test_student_without_mass_where_the_teacher_has_some_is_infinite():
    student, teacher, labels = make_logits(2, 10)
    student[0, 3] = -math.inf
    assert distillation_loss(student, teacher, temperature=2.0, reduction="none").isinf().tolist() == [True, False]
    labels[:] = 3
    hard = distillation_loss(student, teacher, labels, temperature=2.0, hard_weight=1.0, reduction="none")
    assert hard.isinf().tolist() == [True, False]


@pytest.mark.parametrize("spoilt", ["student", "teacher"])
@pytest.mark.parametrize("column", [0, 5, 1030])
@both
def test_nan_spoils_its_row_and_no_other(spoilt, column):
    student, teacher, _ = make_logits(3, 1031)
    {"student": student, "teacher": teacher}[spoilt][1, column] = math.nan
    student.requires_grad_()
    loss = distillation_loss(student, teacher, temperature=2.0, reduction="none")
    loss.nansum().backward()
    assert loss.isnan().tolist() == [False, True, False]
    assert student.grad[[0, 2]].isfinite().all()


@both
def test_a_row_of_nothing_is_nan():
    student, teacher, _ = make_logits(2, 4)
    teacher[0] = -math.inf
    assert distillation_loss(student, teacher, temperature=2.0, reduction="none").isnan().tolist() == [True, False]


@both
def test_no_rows():
    student = torch.empty(0, 5, requires_grad=True)
    labels = torch.empty(0, dtype=torch.int64)
    loss = distillation_loss(student, torch.empty(0, 5), labels, temperature=2.0, hard_weight=0.5, reduction="none")
    loss.sum().backward()
    assert loss.shape == (0,)
    assert student.grad.shape == (0, 5)
    assert distillation_loss(student, torch.empty(0, 5), temperature=2.0).isnan()


@both
def test_equal_logits_cost_nothing():
    logits, _, _ = make_logits(4, 100)
    loss = distillation_loss(logits, logits.clone(), temperature=2.0, reduction="none")
    assert loss.abs().max() < 1e-6


@both
def test_inputs_stay_as_they_were():
    student, teacher, labels = make_logits(8, 65)
    copies = [t.clone() for t in (student, teacher, labels)]
    student.requires_grad_()
    distillation_loss(student, teacher, labels, temperature=2.0, hard_weight=0.5).backward()
    for now, before in zip((student.detach(), teacher, labels), copies, strict=True):
        assert torch.equal(now, before)


def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", "cpu")
    student, teacher, labels = make_logits(257, 300)  # large enough to be shared out
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            s = student.clone().requires_grad_()
            loss = distillation_loss(s, teacher, labels, temperature=2.0, hard_weight=0.5, reduction="none")
            loss.sum().backward()
            results.append((loss.detach(), s.grad))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_half_precision_is_computed_in_float32():
    student, teacher, _ = make_logits(4, 50)
    rounded = (student.bfloat16(), teacher.bfloat16())
    loss = distillation_loss(*rounded, temperature=2.0, reduction="none")
    want, _ = exact(*rounded, torch.zeros(4, dtype=torch.int64), 2.0, 0.0)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), want, rtol=1e-5)
