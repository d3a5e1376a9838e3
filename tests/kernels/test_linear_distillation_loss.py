"""The loss from hidden states against the loss of the logits that they make, in float64."""

import math

import pytest
import torch
from independent import randn

from compressor.kernels import LinearLayer, LossSettings, SparseTeacher, distillation_loss, linear_distillation_loss

ROWS, HIDDEN, TEACHER_HIDDEN, WIDTH = 37, 24, 40, 301


def layers(dtype=torch.float32, scale=0.4):
    student = (
        randn(ROWS, HIDDEN, seed=1, scale=1),
        randn(WIDTH, HIDDEN, seed=2, scale=scale),
        randn(WIDTH, seed=3, scale=1),
    )
    teacher = (
        randn(ROWS, TEACHER_HIDDEN, seed=4, scale=1),
        randn(WIDTH, TEACHER_HIDDEN, seed=5, scale=scale),
        randn(WIDTH, seed=6, scale=1),
    )
    return [[x.to(dtype) for x in side] for side in (student, teacher)]


def wanted(student, teacher, labels, settings, reduction, upstream=1.0, **more):
    """Value and gradients of the unfused loss in float64; `teacher` is logits or sparse."""
    parts = [x.double().requires_grad_() for x in student]
    logits = torch.nn.functional.linear(*parts)
    loss = distillation_loss(logits, teacher, labels, **vars(settings), reduction=reduction, **more)
    (loss * upstream).backward()
    return loss.detach(), [x.grad for x in parts]


def found(student, teacher, labels, settings, reduction, upstream=1.0, **more):
    hidden, weight, bias = (x.detach().clone().requires_grad_() for x in student)
    loss = linear_distillation_loss(
        hidden, weight, teacher, labels, settings=settings, student_bias=bias, reduction=reduction, **more
    )
    (loss * upstream).backward()
    return loss.detach(), [hidden.grad, weight.grad, bias.grad]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("chunk_rows", [None, 1, 10, 37, 1000])
def test_against_the_unfused_loss_in_float64(reduction, chunk_rows):
    student, teacher = layers()
    labels = torch.randint(0, WIDTH, (ROWS,), generator=torch.Generator().manual_seed(0))
    labels[[0, 20]] = -100
    settings = LossSettings(2.0, hard_weight=0.3, label_smoothing=0.1)
    more = {"row_weights": torch.rand(ROWS), "class_weights": torch.rand(WIDTH)}
    logits = torch.nn.functional.linear(*(x.double() for x in teacher))
    want, want_gradients = wanted(student, logits, labels, settings, reduction, upstream=-1.7, **more)
    loss, gradients = found(
        student, LinearLayer(*teacher), labels, settings, reduction, upstream=-1.7, chunk_rows=chunk_rows, **more
    )
    torch.testing.assert_close(loss, want.float(), rtol=1e-5, atol=0)
    for gradient, expected in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(
            gradient, expected.float(), rtol=1e-4, atol=2e-6 * float(expected.abs().max()) + 1e-7
        )


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd", "total_variation"])
def test_other_divergences(divergence):
    student, teacher = layers()
    settings = LossSettings(1.5, divergence, beta=0.3)
    logits = torch.nn.functional.linear(*(x.double() for x in teacher))
    want, want_gradients = wanted(student, logits, None, settings, "mean")
    loss, gradients = found(student, LinearLayer(*teacher), None, settings, "mean", chunk_rows=16)
    torch.testing.assert_close(loss, want.float(), rtol=1e-5, atol=1e-6)
    for gradient, expected in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("mode", ["zero", "ghost", "sampled"])
def test_a_sparse_teacher(mode):
    student, teacher = layers()
    log_p = torch.log_softmax(torch.nn.functional.linear(*teacher) / 2, dim=1)
    values, indices = log_p.topk(9, dim=1)
    known = SparseTeacher(indices, values if mode != "sampled" else torch.full_like(values, -math.log(9)), mode)
    want, want_gradients = wanted(student, known, None, LossSettings(2.0), "mean")
    loss, gradients = found(student, known, None, LossSettings(2.0), "mean", chunk_rows=16)
    torch.testing.assert_close(loss, want.float(), rtol=1e-5, atol=1e-6)
    for gradient, expected in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_bfloat16_adds_the_weight_gradient_in_float32():
    """With one row a chunk, adding in bfloat16 would lose what is small beside the sum."""
    student, teacher = layers(torch.bfloat16)
    logits = torch.nn.functional.linear(*(x.double() for x in teacher))
    _, want = wanted(student, logits, None, LossSettings(2.0), "sum")
    for chunk_rows in (1, 37):
        _, gradients = found(student, LinearLayer(*teacher), None, LossSettings(2.0), "sum", chunk_rows=chunk_rows)
        assert all(g.dtype == torch.bfloat16 for g in gradients)
        for gradient, expected in zip(gradients, want, strict=True):
            error = (gradient.double() - expected).norm() / expected.norm()
            assert error < 0.02  # logits and their gradient are rounded to eight bits, each entry by up to 0.4%


def test_only_what_is_asked_for_gets_a_gradient():
    student, teacher = layers()
    hidden, weight, _ = student
    hidden.requires_grad_()
    loss = linear_distillation_loss(hidden, weight, LinearLayer(*teacher), settings=LossSettings(2.0))
    loss.backward()
    assert hidden.grad.abs().sum() > 0
    assert weight.grad is None
    with torch.no_grad():
        again = linear_distillation_loss(hidden, weight, LinearLayer(*teacher), settings=LossSettings(2.0))
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert not again.requires_grad


def test_float16_keeps_its_gradients_for_the_loss_scale():
    student, teacher = layers()
    student, teacher = ([(x * 0.2).half() for x in side] for side in (student, teacher))
    logits = torch.nn.functional.linear(*(x.double() for x in teacher))
    _, want = wanted(student, logits, None, LossSettings(1.0), "mean", upstream=65536.0)
    _, gradients = found(student, LinearLayer(*teacher), None, LossSettings(1.0), "mean", upstream=65536.0)
    for gradient, expected in zip(gradients, want, strict=True):
        assert gradient.dtype == torch.float16
        assert (gradient.double() - expected).norm() / expected.norm() < 1e-3


def test_under_autocast_it_computes_in_autocasts_dtype():
    student, teacher = layers()
    logits = torch.nn.functional.linear(*(x.double() for x in teacher))
    want, want_gradients = wanted(student, logits, None, LossSettings(2.0), "mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = [student[0].bfloat16(), *student[1:]]  # hidden states of a layer under autocast, a weight in float32
        loss, gradients = found(mixed, LinearLayer(*teacher), None, LossSettings(2.0), "mean")
    assert loss.item() == pytest.approx(want.item(), rel=0.02)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    for gradient, expected in zip(gradients, want_gradients, strict=True):
        assert (gradient.double() - expected).norm() / expected.norm() < 0.03


def test_compiled_code_calls_it_as_it_is():
    student, teacher = layers()
    compiled = torch.compile(
        lambda h: linear_distillation_loss(h, student[1], LinearLayer(*teacher), settings=LossSettings(2.0)) * 2
    )
    plain = linear_distillation_loss(student[0], student[1], LinearLayer(*teacher), settings=LossSettings(2.0))
    torch.testing.assert_close(compiled(student[0]), plain * 2)


def test_logits_of_all_rows_are_never_held():
    """Peak memory of torch's allocations stays below one [N, V] matrix."""
    rows, hidden, width = 4096, 32, 4000
    student = (torch.randn(rows, hidden, requires_grad=True), torch.randn(width, hidden, requires_grad=True))
    teacher = LinearLayer(torch.randn(rows, hidden), torch.randn(width, hidden))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_distillation_loss(*student, teacher, settings=LossSettings(2.0), chunk_rows=64).backward()
    held = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert 0 < peak < rows * width * 4 / 4


def test_no_rows():
    student, teacher = layers()
    empty = LinearLayer(teacher[0][:0], *teacher[1:])
    hidden = student[0][:0].requires_grad_()
    loss = linear_distillation_loss(hidden, student[1], empty, settings=LossSettings(2.0))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, HIDDEN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduction": "none"}, "give row_weights"),
        ({"labels": torch.zeros(2 * ROWS, dtype=torch.int64)}, rf"labels must be int64 \[{ROWS}\]"),
        ({"row_weights": torch.ones(ROWS + 2)}, rf"row_weights must be floating \[{ROWS}\]"),
        (
            {"teacher": SparseTeacher(torch.zeros(50, 1, dtype=torch.int64), torch.zeros(50, 1), "zero")},
            f"student's {ROWS} rows, got 50",
        ),
        ({"chunk_rows": 0}, "at least 1, got 0"),
        ({"student_weight": torch.zeros(WIDTH, 3)}, r"\[N, H\] and \[V, H\]"),
        ({"student_weight": torch.zeros(WIDTH, HIDDEN).half()}, "must be torch.float32"),
        ({"student_bias": torch.zeros(3)}, rf"bias must be \[{WIDTH}\]"),
        ({"teacher": LinearLayer(torch.zeros(5, 4), torch.zeros(WIDTH, 4))}, f"{ROWS} rows, got 5"),
        ({"teacher": LinearLayer(torch.zeros(ROWS, 4), torch.zeros(7, 4))}, f"{WIDTH} columns, got 7"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    student, teacher = layers()
    given = {"student_hidden": student[0], "student_weight": student[1], "teacher": LinearLayer(*teacher)}
    with pytest.raises(ValueError, match=message):
        linear_distillation_loss(**{**given, "settings": LossSettings(2.0), **changes})
