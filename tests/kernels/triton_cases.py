"""The Triton kernels, run by Triton's interpreter on the CPU, against the reference in float64; see `test_triton.py`.

An error may be twice what plain PyTorch makes from the same logits in float32, and a little more; in half precision one
unit in the last place comes on top, since the interpreter cuts off where a GPU rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from compressor.kernels import gpu, reference
from compressor.kernels import triton_launch as launch
from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher
from compressor.kernels.triton_launch import Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*(invalid value|divide by zero|overflow|All-NaN).*:RuntimeWarning")

FLOOR = 2e-6  # absolute; a value of about 1 in float32 has an error of 6e-8
UNIT_IN_LAST_PLACE = {torch.float32: 2**-23, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DIVERGENCES = {
    "forward_kl": LossSettings(2.0),
    "reverse_kl": LossSettings(2.0, "reverse_kl"),
    "jsd": LossSettings(2.0, "jsd", 0.3),
    "jsd-mirrored": LossSettings(1.5, "jsd", 0.9),
    "total_variation": LossSettings(2.0, "total_variation"),
}
LOOPED = Plan("looped", 64, 1)
SPLIT = Plan("split", 64, 1, 3)
PLANS = {"resident": None, "looped": LOOPED, "split": SPLIT}


@dataclass
class Case:
    """One call, and how it is to be made."""

    inputs: LossInputs
    settings: LossSettings
    plan: Plan | None = None
    gradient_scale: float | None = None
    in_place: bool = False


def logits(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0, spread: float = 3.0) -> Tensor:
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)


def labels_of(rows: int, width: int, ignored: int | None = None) -> Tensor:
    found = torch.randint(0, width, (rows,), generator=torch.Generator().manual_seed(9))
    if ignored is not None:
        found[ignored] = -100
    return found


def pair(rows: int, width: int, dtype: torch.dtype = torch.float32) -> LossInputs:
    return LossInputs(logits(rows, width, dtype), logits(rows, width, dtype, seed=1), labels_of(rows, width, ignored=1))


def in_dtype(inputs: LossInputs, dtype: torch.dtype) -> LossInputs:
    """The same numbers in another dtype; what the float64 reference is given."""

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    teacher = inputs.teacher
    if isinstance(teacher, SparseTeacher):
        known: Tensor | SparseTeacher = replace(teacher, values=teacher.values.to(dtype))
    else:
        known = teacher.to(dtype)
    student = inputs.student.detach().to(dtype).requires_grad_()
    return LossInputs(student, known, inputs.labels, cast(inputs.row_weights), cast(inputs.class_weights))


def expected(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inputs = in_dtype(case.inputs, dtype)
    loss = reference.distillation_rows(inputs, case.settings)
    loss.sum().backward()
    assert inputs.student.grad is not None
    return loss.detach(), inputs.student.grad * (case.gradient_scale or 1.0)


def computed(case: Case) -> tuple[Tensor, Tensor]:
    inputs = case.inputs
    if case.in_place:
        inputs = replace(inputs, student=inputs.student.clone(memory_format=torch.preserve_format))
        gradient = inputs.student
    else:
        gradient = torch.full_like(inputs.student, 7.0)
    scale = None if case.gradient_scale is None else torch.tensor(case.gradient_scale)
    return launch.row_losses(inputs, case.settings, gradient, scale, case.plan), gradient


def assert_within(found: Tensor, exact: Tensor, plain: Tensor, rounding: float) -> None:
    """NaN and infinities in the same places; finite values within twice plain PyTorch's largest error."""
    assert torch.equal(found.isnan(), exact.isnan())
    infinite = exact.isinf()
    assert torch.equal(found[infinite].double(), exact[infinite])
    finite = exact.isfinite()
    assert found[finite].isfinite().all()
    error = (found.double() - exact)[finite].abs()
    budget = 2 * (plain.double() - exact)[finite].abs().nan_to_num(posinf=0).max() if finite.any() else 0.0
    allowed = budget + FLOOR + rounding * exact[finite].abs()
    assert (error <= allowed).all(), f"{(error - allowed).max():.2e} above {float(allowed.max()):.2e}"


def check(case: Case) -> None:
    untouched = case.inputs.student.clone()
    loss, gradient = computed(case)
    exact_loss, exact_gradient = expected(case, torch.float64)
    plain_loss, plain_gradient = expected(case, torch.float32)
    assert loss.dtype == torch.float32
    assert gradient.dtype == case.inputs.student.dtype
    assert_within(loss, exact_loss, plain_loss, 4 * UNIT_IN_LAST_PLACE[torch.float32])
    assert_within(gradient, exact_gradient, plain_gradient, UNIT_IN_LAST_PLACE[gradient.dtype])
    assert torch.equal(untouched.nan_to_num(1.25), case.inputs.student.nan_to_num(1.25)), "the input was changed"
    alone = launch.row_losses(case.inputs, case.settings, None, None, case.plan)
    torch.testing.assert_close(alone, loss, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("settings", DIVERGENCES.values(), ids=DIVERGENCES)
@pytest.mark.parametrize("hard_weight", [0.0, 0.4])
def test_divergences(settings, plan, hard_weight):
    check(Case(pair(3, 300), replace(settings, hard_weight=hard_weight), plan))


@pytest.mark.parametrize("width", [1, 2, 17, 64, 128, 200, 300])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_widths(width, plan):
    check(Case(pair(4, width), LossSettings(2.0, hard_weight=0.3, label_smoothing=0.1), plan))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_gradient_in_float32_of_float16_logits(plan):
    inputs = pair(3, 300, torch.float16)
    gradient = torch.full(inputs.student.shape, 7.0)
    scale = torch.tensor(1 / 30_000)
    launch.row_losses(inputs, LossSettings(2.0, hard_weight=0.3), gradient, scale, plan)
    _, exact = expected(Case(inputs, LossSettings(2.0, hard_weight=0.3), gradient_scale=1 / 30_000), torch.float64)
    assert (gradient.double() - exact).norm() / exact.norm() < 1e-5


def test_a_width_of_thousands():
    check(Case(pair(2, 9001), LossSettings(2.0, hard_weight=0.3)))  # split
    check(Case(pair(2, 9001), LossSettings(2.0, hard_weight=0.3), Plan("looped", 2048, 4)))
    check(Case(pair(2, 8000, torch.bfloat16), LossSettings(2.0, "jsd", hard_weight=0.3)))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
    ],
)
def test_dtypes(student, teacher, plan):
    inputs = replace(pair(3, 100, student), teacher=logits(3, 100, teacher, seed=1))
    check(Case(inputs, LossSettings(2.0, hard_weight=0.5), plan))
    check(Case(inputs, LossSettings(1.0, "reverse_kl"), plan))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("plan", [None, LOOPED], ids=["resident", "looped"])
def test_temperatures_scales_and_an_unscaled_soft_part(temperature, plan):
    settings = LossSettings(temperature, hard_weight=0.6, student_scale=0.8, teacher_scale=1.3)
    check(Case(pair(3, 90), settings, plan))
    check(Case(pair(3, 90), replace(settings, times_temperature_squared=False, student_scale=1.0), plan))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("hard_weight", [0.5, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_weights_and_smoothing(plan, hard_weight, smoothing):
    settings = LossSettings(2.0, hard_weight=hard_weight, label_smoothing=smoothing, ignore_index=-3)
    inputs = replace(
        pair(4, 70),
        labels=torch.tensor([3, -3, 69, 0]),
        row_weights=torch.tensor([0.5, 2.0, 0.0, -1.0]),
        class_weights=torch.rand(70, generator=torch.Generator().manual_seed(3)) * 2,
    )
    check(Case(inputs, settings, plan, gradient_scale=0.25))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("in_place", [False, True])
def test_ignored_rows_are_not_read(plan, in_place):
    inputs = pair(3, 130)
    inputs.student[1], inputs.teacher[1] = float("nan"), float("nan")
    case = Case(inputs, LossSettings(2.0, hard_weight=0.0), plan, gradient_scale=0.5, in_place=in_place)
    loss, gradient = computed(case)
    assert loss[1] == 0
    assert torch.equal(gradient[1], torch.zeros(130))
    assert gradient[0].any()
    check(replace(case, in_place=False))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_in_place(plan, name):
    case = Case(pair(3, 150, torch.bfloat16), replace(DIVERGENCES[name], hard_weight=0.5), plan)
    apart, inside = computed(case), computed(replace(case, in_place=True))
    assert torch.equal(apart[0], inside[0])
    assert torch.equal(apart[1], inside[1])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_strides(plan):
    settings = LossSettings(2.0, hard_weight=0.5)
    wide = LossInputs(logits(6, 160)[::2, 7:140], logits(3, 200, seed=1)[:, :133], labels_of(6, 133)[::2])
    check(Case(wide, settings, plan))
    across = LossInputs(logits(133, 3).t(), logits(133, 3, seed=1).t(), labels_of(3, 133))
    check(Case(across, settings, plan))
    check(Case(across, settings, plan, in_place=True) if plan else Case(wide, settings, plan, in_place=True))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("vocabulary", ["truncate", "mask"])
@pytest.mark.parametrize("teacher_width", [100, 128, 260])
def test_vocabularies(plan, vocabulary, teacher_width):
    inputs = replace(pair(2, 203), teacher=logits(2, teacher_width, seed=1))
    inputs.student[:, 190:] += 250  # only the student's: it must not push the others below the smallest number
    for name in ("forward_kl", "jsd", "total_variation") if teacher_width == 100 else ("forward_kl",):
        check(Case(inputs, replace(DIVERGENCES[name], hard_weight=0.4, vocabulary=vocabulary), plan))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("settings", DIVERGENCES.values(), ids=DIVERGENCES)
def test_offsets_cost_no_accuracy(plan, settings):
    """Row maxima that move from block to block, and lie far from 0 and from each other."""
    student, teacher = logits(3, 300), logits(3, 300, seed=1)
    student[0] += 1000
    teacher[0] -= 1000
    student[1, 100:], teacher[1, :200] = student[1, 100:] + 20, teacher[1, :200] - 15
    check(Case(LossInputs(student, teacher, labels_of(3, 300)), replace(settings, hard_weight=0.5), plan))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "jsd-mirrored", "total_variation"])
def test_infinite_logits(plan, name):
    student, teacher = logits(6, 140), logits(6, 140, seed=1)
    infinity = float("inf")
    teacher[0, 3:70] = -infinity
    student[1, 3:70], teacher[1, 3:70] = -infinity, -infinity
    teacher[2] = -infinity
    student[3] = -infinity
    student[4, 5], teacher[5, 5] = float("nan"), float("nan")
    check(Case(LossInputs(student, teacher), DIVERGENCES[name], plan))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_mass_where_the_student_has_none(plan):
    student, teacher = logits(2, 140), logits(2, 140, seed=1)
    student[0, 10:90] = -float("inf")
    check(Case(LossInputs(student, teacher), LossSettings(2.0), plan))
    assert launch.row_losses(LossInputs(student, teacher), LossSettings(2.0), None, None, plan)[0] == float("inf")
    teacher[1, 7] = -float("inf")
    losses = launch.row_losses(LossInputs(student, teacher), LossSettings(2.0, "reverse_kl"), None, None, plan)
    assert losses[1] == float("inf")
    assert losses[0].isfinite()


def test_labels_that_do_not_exist_give_nan_and_read_nothing():
    inputs = replace(pair(3, 40), labels=torch.tensor([40, -1, 3]))
    loss, gradient = computed(Case(inputs, LossSettings(2.0, hard_weight=0.5)))
    assert loss[:2].isnan().all()
    assert loss[2].isfinite()
    assert gradient[2].isfinite().all()


def known_classes(mode: str, rows: int, width: int, count: int) -> SparseTeacher:
    generator = torch.Generator().manual_seed(5)
    indices = torch.stack([torch.randperm(width, generator=generator)[:count] for _ in range(rows)])
    values = torch.randn(rows, count, generator=generator) * 2
    if mode == "ghost":
        values = values.log_softmax(dim=1) + torch.tensor(0.8).log()
    if mode == "sampled":
        indices[:, 1::3] = indices[:, ::3][:, : indices[:, 1::3].shape[1]]
        values = torch.full_like(values, -torch.tensor(float(count)).log())
    if count > 2:
        indices[0, 2] = -1
        values[0, 2] = float("nan")
    return SparseTeacher(indices, values, mode)


@pytest.mark.parametrize("mode", ["zero", "ghost", "sampled"])
@pytest.mark.parametrize("hard_weight", [0.0, 0.4])
@pytest.mark.parametrize(("width", "count"), [(200, 7), (77, 20), (5, 5), (30, 1)])
def test_sparse_teachers(mode, hard_weight, width, count):
    settings = LossSettings(2.0, hard_weight=hard_weight, teacher_scale=1.2, label_smoothing=0.1)
    teacher = known_classes(mode, 3, width, count)
    labels = labels_of(3, width, ignored=1)
    labels[2] = teacher.indices[2, 0]
    inputs = LossInputs(logits(3, width), teacher, labels, class_weights=torch.linspace(0.5, 2, width))
    for block in (64, 512):
        check(Case(inputs, settings, Plan("looped", block, 1), gradient_scale=0.5))
    check(Case(replace(inputs, student=inputs.student.bfloat16()), settings, LOOPED))
    in_place, apart = (computed(Case(inputs, settings, LOOPED, in_place=inside)) for inside in (True, False))
    assert torch.equal(in_place[1], apart[1])


def test_more_known_classes_than_a_chunk_holds(monkeypatch):
    monkeypatch.setattr(launch, "MOST_ENTRIES", 16)
    for mode in ("zero", "ghost", "sampled"):
        check(Case(LossInputs(logits(2, 90), known_classes(mode, 2, 90, 40)), LossSettings(1.5), LOOPED))


def test_a_ghost_that_a_confident_student_gives_almost_nothing():
    student = logits(2, 120)
    teacher = known_classes("ghost", 2, 120, 6)
    student.scatter_add_(1, teacher.indices.clamp(min=0), torch.full((2, 6), 40.0))
    check(Case(LossInputs(student, teacher), LossSettings(1.0), LOOPED))


def test_a_ghost_without_a_rest():
    teacher = known_classes("ghost", 2, 50, 6)
    whole = replace(teacher, values=teacher.values.nan_to_num(-30.0).log_softmax(dim=1))
    check(Case(LossInputs(logits(2, 50), whole), LossSettings(1.0), LOOPED))


def test_a_known_class_that_does_not_exist_gives_nan_and_writes_nothing():
    teacher = SparseTeacher(torch.tensor([[2, 50], [1, 3]]), torch.zeros(2, 2), "zero")
    inputs = LossInputs(logits(2, 50), teacher)
    loss, gradient = computed(Case(inputs, LossSettings(1.0), LOOPED))
    assert loss[0].isnan()
    assert gradient[1].isfinite().all()


def test_no_rows():
    inputs = pair(4, 10)
    none = LossInputs(inputs.student[:0], inputs.teacher[:0], inputs.labels[:0])
    gradient = torch.empty(0, 10)
    assert gpu.row_losses(none, LossSettings(2.0, hard_weight=0.5), gradient, None).shape == (0,)
    assert gpu.scaled(gradient, torch.tensor(2.0), in_place=True).shape == (0, 10)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("width", [1, 40, 301])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled(in_place, width, dtype, monkeypatch):
    monkeypatch.setattr(launch, "SCALED", (32, 1))
    monkeypatch.setattr(launch, "SCALED_WIDTH", 256)
    rows = torch.tensor([1.0, 0.3, -2.0, 0.0])
    for upstream in (rows, torch.tensor(0.7), torch.tensor(1.0), torch.tensor(0.5).expand(4)):
        for gradient in (logits(4, width, dtype), logits(4, width + 5, dtype)[:, 2:-3], logits(width, 4, dtype).t()):
            before = gradient.clone()
            exact = before.double() * (upstream.unsqueeze(1) if upstream.ndim else upstream)
            found = gpu.scaled(gradient, upstream, in_place)
            assert found.dtype == dtype
            assert (found.data_ptr() == gradient.data_ptr()) == in_place
            assert torch.equal(gradient, found if in_place else before)
            assert ((found.double() - exact).abs() <= UNIT_IN_LAST_PLACE[dtype] * exact.abs()).all()


def test_what_is_needed_is_said(monkeypatch):
    assert gpu.missing() is None
    assert gpu.devices() == ("cuda", "cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert gpu.devices() == ("cuda",)
    if not torch.cuda.is_available():
        assert gpu.missing() == "Triton needs a CUDA device, or TRITON_INTERPRET=1"


def test_few_long_rows_are_split_and_many_are_not():
    assert launch.candidates(4096, 8192, 132)[0].kernel == "resident"
    assert launch.candidates(4096, 8193, 132)[0].kernel == "looped"
    split = launch.candidates(16, 128256, 132)[0]
    assert split.kernel == "split"
    assert 16 * split.parts >= 2 * 132
