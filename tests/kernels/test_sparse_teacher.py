"""A teacher known at a few classes: every implementation against float64 by hand, and what sampling promises."""

import math

import numpy as np
import pytest
import torch
from independent import dense, randn, sparse

from compressor import native
from compressor.kernels import SparseTeacher, distillation_loss
from compressor.kernels.settings import LossInputs, LossSettings

CPU = tuple(f"cpu-{name}" for name in native.load().instruction_sets())
MODES = ("zero", "ghost", "sampled")


@pytest.fixture(params=("reference", *CPU))
def _implementation(request, monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", request.param)


every = pytest.mark.usefixtures("_implementation")


def known_classes(mode, rows, width, count, temperature, seed=0):
    """A teacher's top classes, or draws from it; the last entry of row 0 is padding where there are two."""
    logits = randn(rows, width, seed=seed + 1)
    log_p = torch.log_softmax(logits / temperature, dim=1)
    if mode == "sampled":
        generator = torch.Generator().manual_seed(seed)
        indices = torch.multinomial(log_p.exp(), count, replacement=True, generator=generator)
        values = torch.full((rows, count), -math.log(count))
    else:
        values, indices = (logits if mode == "zero" else log_p).topk(count, dim=1)
    if count > 1:
        indices[0, -1] = -1
    return indices, values


def computed(student, teacher, chosen, labels=None):
    student = student.detach().requires_grad_()
    loss = distillation_loss(student, teacher, labels, **vars(chosen), reduction="none")
    loss.sum().backward()
    return loss.detach().double().numpy(), student.grad.double().numpy()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("width", "count"), [(1, 1), (2, 1), (7, 3), (300, 16), (2500, 50)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@every
def test_against_float64(mode, width, count, temperature):
    student = randn(5, width, seed=3)
    indices, values = known_classes(mode, 5, width, count, temperature)
    chosen = LossSettings(temperature, student_scale=1.2)
    want_loss, want_gradient = sparse(student, indices, values, mode, chosen)
    loss, gradient = computed(student, SparseTeacher(indices, values, mode), chosen)
    np.testing.assert_allclose(loss, want_loss, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every
def test_half_precision(mode, dtype):
    student = randn(4, 700, seed=3, dtype=dtype)
    indices, values = known_classes(mode, 4, 700, 12, 2.0)
    want_loss, want_gradient = sparse(student, indices, values, mode, LossSettings(2.0))
    loss, gradient = computed(student, SparseTeacher(indices, values, mode), LossSettings(2.0))
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@every
def test_mixed_with_labels(mode, temperature):
    """The soft part by hand, the hard part from a dense call whose soft part is off."""
    student, labels = randn(5, 90, seed=3), torch.tensor([0, 5, 89, -100, 7])
    indices, values = known_classes(mode, 5, 90, 9, temperature)
    labels[0] = indices[0, 0]  # a class that both parts correct
    options = {"label_smoothing": 0.1}
    chosen = LossSettings(temperature, hard_weight=0.3, **options)
    soft_loss, soft_gradient = sparse(student, indices, values, mode, chosen)
    hard_loss, hard_gradient = dense(
        LossInputs(student, student, labels), LossSettings(temperature, hard_weight=1.0, **options)
    )
    soft_loss[3] = soft_gradient[3] = 0
    loss, gradient = computed(student, SparseTeacher(indices, values, mode), chosen, labels)
    np.testing.assert_allclose(loss, soft_loss + 0.3 * hard_loss, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(gradient, soft_gradient + 0.3 * hard_gradient, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("mode", ["zero", "ghost"])
@every
def test_all_classes_known_is_forward_kl(mode):
    student, logits = randn(4, 40, seed=3), randn(4, 40, seed=4)
    values = logits if mode == "zero" else torch.log_softmax(logits / 2, dim=1)
    indices = torch.arange(40).expand(4, 40).contiguous()
    want_loss, want_gradient = dense(LossInputs(student, logits), LossSettings(2.0))
    loss, gradient = computed(student, SparseTeacher(indices, values, mode), LossSettings(2.0))
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, atol=5e-6)


@pytest.mark.parametrize("mode", MODES)
@every
def test_of_a_row_of_padding_nothing_is_known(mode):
    teacher = SparseTeacher(torch.full((2, 3), -1), torch.zeros(2, 3), mode)
    loss, gradient = computed(randn(2, 8, seed=3), teacher, LossSettings(2.0))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@every
def test_nothing_missing_and_a_student_that_has_nothing_left():
    student = torch.tensor([[0.0, 1.0, -math.inf]])
    values = torch.log_softmax(torch.tensor([[0.0, 2.0]]), dim=1)
    loss, gradient = computed(student, SparseTeacher(torch.tensor([[0, 1]]), values, "ghost"), LossSettings(1.0))
    q, p = (1 / (1 + math.e), math.e / (1 + math.e)), (1 / (1 + math.e**2), math.e**2 / (1 + math.e**2))
    assert loss[0] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-5)
    np.testing.assert_allclose(gradient[0], [q[0] - p[0], q[1] - p[1], 0], atol=1e-6)


@every
def test_a_student_that_has_nearly_nothing_elsewhere():
    """The mass outside the known classes is not found by subtraction from 1."""
    student = torch.full((1, 3000), -18.0)
    student[0, :4] = torch.tensor([3.0, 2.0, 1.0, 0.5])
    indices = torch.arange(4)[None]
    values = torch.log(torch.tensor([[0.4, 0.3, 0.1, 0.05]]))
    want_loss, want_gradient = sparse(student, indices, values, "ghost", LossSettings(1.0))
    loss, gradient = computed(student, SparseTeacher(indices, values, "ghost"), LossSettings(1.0))
    np.testing.assert_allclose(loss, want_loss, rtol=3e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-5, atol=1e-6)


def test_draws_estimate_the_gradient_of_forward_kl_without_bias():
    student, logits = randn(1, 12, seed=3, scale=1), randn(1, 12, seed=4, scale=1)
    _, want = dense(LossInputs(student, logits), LossSettings(2.0))
    draws, count = 4000, 5
    generator = torch.Generator().manual_seed(0)
    indices = torch.multinomial(torch.softmax(logits / 2, 1).expand(draws, -1), count, True, generator=generator)
    values = torch.full(indices.shape, -math.log(count))
    _, gradient = computed(
        student.expand(draws, -1).clone(), SparseTeacher(indices, values, "sampled"), LossSettings(2.0)
    )
    standard_error = gradient.std(axis=0) / math.sqrt(draws)
    assert (np.abs(gradient.mean(axis=0) - want[0]) < 5 * standard_error).all()
    assert (standard_error < 0.02).all()


@pytest.mark.parametrize("policy", ["truncate", "mask"])
@every
def test_classes_that_the_student_lacks_are_left_out(policy):
    student = randn(3, 20, seed=3)
    indices = torch.tensor([[0, 25, 4], [3, 2, 20], [1, 2, 3]])
    values = randn(3, 3, seed=5)
    without = torch.where(indices < 20, indices, -1)
    want_loss, want_gradient = sparse(student, without, values, "zero", LossSettings(2.0))
    loss, gradient = computed(student, SparseTeacher(indices, values, "zero"), LossSettings(2.0, vocabulary=policy))
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, atol=2e-6)


def teacher_of(indices, mode="zero"):
    return SparseTeacher(torch.tensor(indices), torch.zeros(len(indices), 2), mode)


@pytest.mark.parametrize(
    ("indices", "values", "mode", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2), "top", "one of zero, ghost"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3), "zero", r"\[N, K\] with K >= 1"),
        (torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0), "zero", r"\[N, K\] with K >= 1"),
        (torch.zeros(3, 2), torch.zeros(3, 2), "zero", "indices must be int64"),
    ],
)
def test_teachers_that_cannot_be(indices, values, mode, message):
    with pytest.raises(ValueError, match=message):
        SparseTeacher(indices, values, mode)


@pytest.mark.parametrize(
    ("indices", "mode", "options", "message"),
    [
        ([[1, 3]], "zero", {}, "student's 3 rows, got 1"),
        ([[1, 9]] * 3, "zero", {}, "below the student's 5 columns, got 9"),
        ([[1, 1]] * 3, "ghost", {}, "distinct"),
        ([[1, 2]] * 3, "zero", {"divergence": "jsd"}, "forward_kl, got jsd"),
    ],
)
def test_teachers_that_do_not_fit(indices, mode, options, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(torch.zeros(3, 5), teacher_of(indices, mode), temperature=1.0, **options)
