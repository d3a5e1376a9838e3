"""Every implementation of this machine against an independent float64 calculation; the definition's corners."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import dense, randn

from compressor import native
from compressor.kernels import distillation_loss, reference
from compressor.kernels.settings import IGNORE_INDEX, LossInputs, LossSettings

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "total_variation")
CPU = tuple(f"cpu-{name}" for name in native.load().instruction_sets())


@pytest.fixture(params=("reference", *CPU))
def implementation(request, monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", request.param)
    return request.param


every = pytest.mark.usefixtures("implementation")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def arguments(inputs: LossInputs, chosen: LossSettings) -> dict:
    return {**vars(chosen), "row_weights": inputs.row_weights, "class_weights": inputs.class_weights}


def computed(inputs: LossInputs, chosen: LossSettings, **more):
    """Losses and gradient of the chosen implementation, through the public function."""
    student = inputs.student.detach().requires_grad_()
    loss = distillation_loss(
        student, inputs.teacher, inputs.labels, **arguments(inputs, chosen), reduction="none", **more
    )
    loss.sum().backward()
    return loss.detach().double().numpy(), student.grad.double().numpy()


def plain(inputs: LossInputs, chosen: LossSettings):
    """What PyTorch makes of the definition in the dtype of the inputs."""
    student = inputs.student.detach().requires_grad_()
    loss = reference.distillation_rows(LossInputs(**{**vars(inputs), "student": student}), chosen)
    loss.sum().backward()
    return loss.detach().double().numpy(), student.grad.double().numpy()


def assert_as_exact_as_pytorch(inputs: LossInputs, chosen: LossSettings) -> None:
    """The error budget: twice PyTorch's own error against float64, plus little."""
    with np.errstate(over="ignore"):
        want_loss, want_gradient = dense(inputs, chosen)
    plain_loss, plain_gradient = plain(inputs, chosen)
    loss, gradient = computed(inputs, chosen)
    loss_budget = 2 * np.abs(plain_loss - want_loss).max(initial=0) + 2e-6 * (1 + np.abs(want_loss).max(initial=0))
    assert np.abs(loss - want_loss).max(initial=0) <= loss_budget
    # A gradient is a difference of terms of this size.
    terms = chosen.student_scale * (8 * chosen.soft_weight / chosen.temperature + chosen.hard_weight)
    rounding = torch.finfo(inputs.student.dtype).eps / 8 * np.abs(want_gradient).max(initial=0)
    budget = 2 * np.abs(plain_gradient - want_gradient).max(initial=0) + 3e-7 * terms + rounding
    assert np.abs(gradient - want_gradient).max(initial=0) <= budget


def example(rows, width, seed=0, dtype=torch.float32, offset=0.0, teacher_width=None, **more):
    labels = torch.randint(0, width, (rows,), generator=torch.Generator().manual_seed(seed))
    return LossInputs(
        (randn(rows, width, seed=seed) + offset).to(dtype),
        (randn(rows, teacher_width or width, seed=seed + 1) - offset).to(dtype),
        labels,
        **more,
    )


@every
def test_a_case_by_hand():
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(9.0), 0.0]])  # at T = 2: 3/4, 1/4
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2.0, hard_weight=0.25)
    loss.backward()
    soft = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(0.75 * 4 * soft + 0.25 * math.log(2), rel=1e-6)
    first = 0.75 * 2 * (0.5 - 0.75) + 0.25 * 0.5
    assert student.grad[0].tolist() == pytest.approx([first, -first], rel=1e-6)


@pytest.mark.parametrize(
    ("divergence", "beta", "value"),
    [
        ("forward_kl", 0.5, 0.75 * math.log(3) + 0.25 * math.log(1 / 3)),
        ("reverse_kl", 0.5, 0.25 * math.log(1 / 3) + 0.75 * math.log(3)),
        ("total_variation", 0.5, 0.5),
        ("jsd", 0.5, 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))),
        ("jsd", 0.0, 0.75 * math.log(3) + 0.25 * math.log(1 / 3)),
    ],
)
@every
def test_divergences_by_hand(divergence, beta, value):
    student = torch.tensor([[0.0, math.log(3.0)]])
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    loss = distillation_loss(student, teacher, temperature=1.0, divergence=divergence, beta=beta)
    assert loss.item() == pytest.approx(value, rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("temperature", "hard_weight"), [(2.0, 0.0), (1.0, 0.3), (2.0, 0.3), (3.0, 0.3), (4.0, 1.0)])
@every
def test_as_exact_as_plain_pytorch(dtype, divergence, temperature, hard_weight):
    chosen = LossSettings(
        temperature, divergence, beta=0.3, hard_weight=hard_weight, student_scale=1.2, teacher_scale=0.8
    )
    for width in (1, 2, 7, 16, 33, 1023, 1031, 2500):
        assert_as_exact_as_pytorch(example(5, width, dtype=dtype), chosen)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@every
def test_options(divergence, temperature):
    inputs = example(6, 300, row_weights=torch.rand(6), class_weights=torch.rand(300))
    inputs.labels[[1, 4]] = IGNORE_INDEX
    for smoothing, squared in ((0.0, True), (0.1, False), (1.0, True)):
        chosen = LossSettings(
            temperature, divergence, hard_weight=0.4, label_smoothing=smoothing, times_temperature_squared=squared
        )
        assert_as_exact_as_pytorch(inputs, chosen)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_shapes_and_options_at_random(data):
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    rows, width = draw(st.integers(0, 5)), draw(st.integers(1, 2100))
    chosen = LossSettings(
        draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])),
        draw(st.sampled_from(DIVERGENCES)),
        beta=draw(st.sampled_from([0.0, 0.001, 0.3, 0.5, 0.9, 0.999, 1.0])),
        hard_weight=draw(st.sampled_from([0.0, 0.5, 1.0])),
        label_smoothing=draw(st.sampled_from([0.0, 0.2])),
        vocabulary=draw(st.sampled_from(["truncate", "mask"])),
    )
    teacher_width = draw(st.integers(1, width + 40))
    masked = chosen.vocabulary == "mask" and teacher_width < width
    if masked and chosen.at_the_ends().divergence == "reverse_kl":
        teacher_width = width
    inputs = example(rows, width, seed=draw(st.integers(0, 99)), dtype=dtype, teacher_width=teacher_width)
    padded = torch.full((rows, width + draw(st.integers(0, 17))), math.nan, dtype=dtype)
    padded[:, :width] = inputs.student
    inputs = LossInputs(padded[:, :width], inputs.teacher, inputs.labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSOR_KERNEL", draw(st.sampled_from(CPU)))
        assert_as_exact_as_pytorch(inputs, chosen)


@pytest.mark.parametrize("offset", [1000.0, -1000.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@every
def test_large_logits_stay_at_the_accuracy_of_float32(offset, divergence):
    inputs = example(7, 1500, offset=offset)
    assert_as_exact_as_pytorch(inputs, LossSettings(2.0, divergence, hard_weight=0.3))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@every
def test_rows_that_rise_far_late(divergence):
    """A block whose logits lie far above all before it, and logits that only that block's maximum makes small."""
    inputs = example(3, 5000)
    inputs.student[0, 4000:] += 200
    inputs.teacher[1, 3000] += 300
    inputs.student[2, 1024:] -= 500
    assert_as_exact_as_pytorch(inputs, LossSettings(1.0, divergence))
    assert_as_exact_as_pytorch(inputs, LossSettings(2.0, divergence, hard_weight=0.5))


@every
def test_a_long_row_stays_exact():
    inputs = example(3, 50257)
    want_loss, want_gradient = dense(inputs, LossSettings(2.0, hard_weight=0.5))
    loss, gradient = computed(inputs, LossSettings(2.0, hard_weight=0.5))
    np.testing.assert_allclose(loss, want_loss, rtol=2e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("end", [0.0, 1.0])
@every
def test_jsd_is_continuous_at_its_ends(end, implementation):
    dtype = torch.float64 if implementation == "reference" else torch.float32
    inputs = LossInputs(randn(4, 200, seed=0, scale=0.5, dtype=dtype), randn(4, 200, seed=1, scale=0.5, dtype=dtype))
    limit, limit_gradient = dense(inputs, LossSettings(2.0, "forward_kl" if end == 0 else "reverse_kl"))
    for distance, tolerance in ((0.0, 5e-6), (1e-6, 5e-6), (1e-4, 1e-4), (1e-3, 1e-3)):
        loss, gradient = computed(inputs, LossSettings(2.0, "jsd", beta=abs(end - distance)))
        np.testing.assert_allclose(loss, limit, rtol=tolerance)
        np.testing.assert_allclose(gradient, limit_gradient, atol=tolerance)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@every
def test_upstream_gradient_and_reduction(reduction):
    inputs = example(6, 33)
    inputs.labels[2] = IGNORE_INDEX
    want_loss, want_gradient = dense(inputs, LossSettings(3.0, hard_weight=0.2))
    upstream = np.array([2.0, -1.0, 5.0, 0.5, 3.0, 1.5])
    student = inputs.student.requires_grad_()
    loss = distillation_loss(
        student, inputs.teacher, inputs.labels, temperature=3.0, hard_weight=0.2, reduction=reduction
    )
    if reduction == "none":
        loss.backward(torch.from_numpy(upstream).float())
        want, weight = want_loss, upstream
    else:
        (loss * 2.5).backward()
        share = 1.0 if reduction == "sum" else 1 / 5  # five rows count
        want, weight = want_loss.sum() * share, np.full(6, 2.5 * share)
    np.testing.assert_allclose(loss.detach().numpy(), want, rtol=1e-5)
    np.testing.assert_allclose(student.grad.numpy(), want_gradient * weight[:, None], atol=2e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck_of_the_reference(divergence):
    inputs = example(4, 5, dtype=torch.float64, row_weights=torch.rand(4), class_weights=torch.rand(5))
    inputs.labels[1] = IGNORE_INDEX
    chosen = LossSettings(1.7, divergence, beta=0.3, hard_weight=0.4, label_smoothing=0.1, student_scale=1.3)

    def loss(student):
        return reference.distillation_rows(LossInputs(**{**vars(inputs), "student": student}), chosen)

    assert torch.autograd.gradcheck(loss, (inputs.student.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every
def test_ignored_rows_are_exactly_zero_and_not_read(dtype):
    inputs = example(5, 12, dtype=dtype)
    inputs.labels[[0, 3]] = IGNORE_INDEX
    inputs.student[0] = math.nan
    inputs.teacher[3] = math.nan
    loss, gradient = computed(inputs, LossSettings(2.0, hard_weight=0.25))
    assert (loss[[0, 3]] == 0).all()
    assert (gradient[[0, 3]] == 0).all()
    assert np.isfinite(loss).all()
    assert (loss[[1, 2, 4]] > 0).all()


@every
def test_of_no_row_that_counts_the_mean_is_zero():
    inputs = example(3, 8)
    inputs.labels[:] = IGNORE_INDEX
    student = inputs.student.requires_grad_()
    loss = distillation_loss(student, inputs.teacher, inputs.labels, temperature=2.0, hard_weight=0.5)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@every
def test_teacher_without_mass_contributes_nothing(divergence):
    inputs = example(3, 1400)
    chosen = LossSettings(2.0, divergence)
    kept_loss, kept = computed(LossInputs(inputs.student[:, :1200].clone(), inputs.teacher[:, :1200].clone()), chosen)
    inputs.student[:, 1200:] = inputs.teacher[:, 1200:] = -math.inf
    loss, gradient = computed(inputs, chosen)
    np.testing.assert_allclose(loss, kept_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, :1200], kept, atol=1e-7)
    assert not gradient[:, 1200:].any()


@every
def test_student_without_mass_where_the_teacher_has_some_is_infinite():
    inputs = example(2, 10)
    inputs.student[0, 3] = -math.inf
    assert np.isinf(computed(inputs, LossSettings(2.0))[0]).tolist() == [True, False]
    inputs.labels[:] = 3
    assert np.isinf(computed(inputs, LossSettings(2.0, hard_weight=1.0))[0]).tolist() == [True, False]
    assert np.isfinite(computed(inputs, LossSettings(2.0, "jsd"))[0]).all()


@pytest.mark.parametrize("spoilt", ["student", "teacher"])
@pytest.mark.parametrize("column", [0, 5, 1030])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@every
def test_nan_spoils_its_row_and_no_other(spoilt, column, divergence):
    inputs = example(3, 1031)
    getattr(inputs, spoilt)[1, column] = math.nan
    loss, gradient = computed(inputs, LossSettings(2.0, divergence))
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isfinite(gradient[[0, 2]]).all()
    assert np.isnan(gradient[1]).any() or divergence == "total_variation"  # whose slope is a sign


@every
def test_a_row_of_nothing_is_nan():
    inputs = example(2, 4)
    inputs.teacher[0] = -math.inf
    assert np.isnan(computed(inputs, LossSettings(2.0))[0]).tolist() == [True, False]


@every
def test_no_rows():
    student = torch.empty(0, 5, requires_grad=True)
    labels = torch.empty(0, dtype=torch.int64)
    loss = distillation_loss(student, torch.empty(0, 5), labels, temperature=2.0, hard_weight=0.5, reduction="none")
    loss.sum().backward()
    assert loss.shape == (0,)
    assert student.grad.shape == (0, 5)
    assert distillation_loss(student, torch.empty(0, 5), temperature=2.0).item() == 0


@every
def test_equal_logits_cost_nothing():
    logits = randn(4, 100, seed=0)
    loss = distillation_loss(logits, logits.clone(), temperature=2.0, reduction="none")
    assert loss.abs().max() < 1e-6


@pytest.mark.parametrize("policy", ["truncate", "mask"])
@pytest.mark.parametrize(("student_width", "teacher_width"), [(50, 37), (37, 50), (1100, 1030)])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "total_variation"])
@every
def test_vocabularies_of_different_size(policy, student_width, teacher_width, divergence):
    inputs = example(4, student_width, teacher_width=teacher_width)
    inputs.labels[0] = student_width - 1
    for temperature, hard_weight in ((2.0, 0.0), (2.0, 0.5), (1.0, 0.5)):
        chosen = LossSettings(temperature, divergence, hard_weight=hard_weight, vocabulary=policy)
        assert_as_exact_as_pytorch(inputs, chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every
def test_any_layout_gives_the_same(dtype):
    inputs = example(5, 37, dtype=dtype)
    want = computed(inputs, LossSettings(2.0, hard_weight=0.5))
    apart = torch.zeros(5, 64, dtype=dtype)
    apart[:, 3:40] = inputs.student
    for student in (apart[:, 3:40], inputs.student.t().contiguous().t()):
        found = computed(LossInputs(student, inputs.teacher, inputs.labels), LossSettings(2.0, hard_weight=0.5))
        for one, other in zip(found, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert not apart[:, :3].any()
    assert not apart[:, 40:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every
def test_dtypes_of_student_and_teacher_may_differ(dtype):
    inputs = example(4, 70)
    want_loss, want_gradient = dense(LossInputs(inputs.student.bfloat16(), inputs.teacher.to(dtype)), LossSettings(2.0))
    loss, gradient = computed(LossInputs(inputs.student.bfloat16(), inputs.teacher.to(dtype)), LossSettings(2.0))
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, atol=2 * 2**-9)


@every
def test_inputs_stay_as_they_were():
    inputs = example(8, 1100)
    copies = [t.clone() for t in (inputs.student, inputs.teacher, inputs.labels)]
    computed(inputs, LossSettings(2.0, hard_weight=0.5))
    for now, before in zip((inputs.student, inputs.teacher, inputs.labels), copies, strict=True):
        assert torch.equal(now, before)


@pytest.mark.parametrize("name", CPU)
def test_threads_do_not_change_a_bit(name, monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", name)
    inputs = example(257, 300)  # large enough to be shared out
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(computed(inputs, LossSettings(2.0, hard_weight=0.5)))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert (loss == results[0][0]).all()
        assert (gradient == results[0][1]).all()


@pytest.mark.parametrize("name", CPU)
def test_a_gradient_larger_than_the_caches_is_the_same(name, monkeypatch):
    """It is written by other instructions."""
    monkeypatch.setenv("COMPRESSOR_KERNEL", name)
    inputs = example(9, 250_001)
    whole = computed(inputs, LossSettings(2.0, hard_weight=0.5))
    for row in (0, 8):
        part = LossInputs(inputs.student[row : row + 1], inputs.teacher[row : row + 1], inputs.labels[row : row + 1])
        loss, gradient = computed(part, LossSettings(2.0, hard_weight=0.5))
        assert loss[0] == pytest.approx(whole[0][row], rel=1e-6)
        np.testing.assert_allclose(gradient[0], whole[1][row], rtol=1e-4, atol=1e-9)
