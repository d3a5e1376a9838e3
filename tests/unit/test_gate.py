"""The gate: what ships, what is passed over and why, and when nothing ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.artifacts import GateDecision, Interval, OnnxModel, Parity, Quality
from compressor.errors import GateError
from compressor.recipe import Gate
from compressor.recipe_quantize import Search
from compressor.timings import Latency, Timing
from compressor.verify.gate import Measured, choose


@dataclass(frozen=True)
class Model:
    name: str
    megabytes: int
    ms: float
    kept: tuple[float, float] = (0.99, 0.985)
    parity: bool = True
    unsure: float = 0.1  # how far below its value the interval of its speed beside float32 reaches


TEACHER = Model("teacher", 100, 10.0, (1.0, 1.0))
STUDENT = Model("student", 30, 4.0)
INT8 = Model("student-int8", 8, 3.0)


QUIET = Timing(True, (), (), ())


def decide(
    *models: Model,
    gate: Gate | None = None,
    seen: bool = True,
    limits: Search | None = None,
    timing: Timing = QUIET,
) -> GateDecision:
    chosen = (TEACHER, *models)
    teacher, *candidates = (OnnxModel(m.name, "", Path(m.name), m.megabytes * 10**6, 1, 20, (), ()) for m in chosen)
    return choose(
        teacher if seen else None,
        candidates,
        Measured(
            {m.name: Quality(m.name, "AUROC", Interval(0.9, 0.89, 0.91), kept(m), 0.9, 100) for m in chosen},
            {m.name: latency(m) for m in chosen},
            {m.name: parity(m) for m in chosen},
            timing,
        ),
        gate or Gate(),
        limits,
    )


def kept(model: Model) -> Interval:
    value, low = model.kept
    return Interval(value, low, value + (value - low))


def parity(model: Model) -> Parity:
    return Parity(model.name, "student", 9, 1, 0.1, 0.5, None, model.parity, "mean cosine >= 0.9", "MatMul odd")


def latency(model: Model) -> Latency:
    ms, faster = model.ms, TEACHER.ms / model.ms
    speedup = Interval(faster, faster, faster)
    of_float32 = STUDENT.ms / ms
    beside_float32 = None if model is TEACHER else Interval(of_float32, of_float32 - model.unsure, of_float32 + 0.1)
    return Latency(
        model.name, 500, ms, ms, ms, ms, ms, ms, 1000 / ms, 1, 1, speedup, beside_float32, "", None, 1, 1, ""
    )


def reasons(decision: GateDecision) -> dict[str, str]:
    return {refused.name: refused.reason for refused in decision.passed_over}


def test_the_largest_gain_ships() -> None:
    decision = decide(STUDENT, INT8)
    assert decision.shipped == "student-int8"
    assert decision.reason == "12.5 times smaller and 3.3 times faster than its teacher"
    assert reasons(decision) == {
        "student": "passes, but gains less: 3.3 times smaller and 2.5 times faster than its teacher"
    }


def test_gain_weighs_size_and_speed_alike() -> None:
    """Twice as small outweighs a fifth slower than the other int8, and the other way round."""
    small, fast = Model("small", 8, 2.4), Model("fast", 16, 2.0)
    assert decide(STUDENT, small, fast).shipped == "small"
    assert decide(STUDENT, small, Model("faster", 16, 1.0)).shipped == "faster"


def test_what_is_not_smaller_than_the_teacher_does_not_ship() -> None:
    with pytest.raises(GateError, match="nothing ships"):
        decide(Model("student", 100, 1.0))


def test_the_objections_are_told() -> None:
    with pytest.raises(GateError) as raised:
        decide(Model("student", 100, 1.0), Model("student-int8", 8, 0.5, parity=False))
    reasons = dict(raised.value.objections)
    assert "not smaller than its teacher" in reasons["student"]
    assert "departs from student" in reasons["student-int8"]
    assert "not smaller than its teacher" in str(raised.value), "quality is not what stood in the way"


@pytest.mark.parametrize(("ms", "unsure"), [(4.0, 0.0), (4.1, 0.0), (3.8, 0.06)])
def test_int8_that_is_not_shown_to_be_faster_than_float32_is_passed_over(ms: float, unsure: float) -> None:
    """Also where it seems to be faster, but 1 is within the interval."""
    decision = decide(STUDENT, Model("student-int8", 8, ms, unsure=unsure))
    assert decision.shipped == "student"
    assert "not shown to be faster than float32 here" in reasons(decision)["student-int8"]


def test_int8_that_is_a_little_faster_beyond_doubt_ships() -> None:
    assert decide(STUDENT, Model("student-int8", 8, 3.8, unsure=0.05)).shipped == "student-int8"


def test_int8_that_departs_is_passed_over() -> None:
    decision = decide(STUDENT, Model("student-int8", 8, 3.0, parity=False))
    assert decision.shipped == "student"
    assert "departs from student: mean cosine 0.5" in reasons(decision)["student-int8"]
    assert "the first layer that departs is MatMul odd" in reasons(decision)["student-int8"]


@pytest.mark.parametrize(
    ("judge", "value", "low", "ships"),
    [
        ("lower-bound", 0.99, 0.981, True),
        ("lower-bound", 0.99, 0.979, False),
        ("value", 0.99, 0.979, True),
        ("value", 0.979, 0.97, False),
        ("lower-bound", 0.98, 0.98, True),
        ("value", 0.98, 0.5, True),
        ("lower-bound", float("nan"), float("nan"), False),
        ("value", float("nan"), float("nan"), False),
    ],
)
def test_what_is_judged(judge: str, value: float, low: float, ships: bool) -> None:
    gate = Gate.model_validate({"judge": judge, "max_drop": 0.02})
    decision = decide(STUDENT, Model("student-int8", 8, 3.0, (value, low)), gate=gate)
    assert (decision.shipped == "student-int8") is ships
    if not ships:
        assert "98.0% must be kept" in reasons(decision)["student-int8"]


def test_the_float32_student_may_fail_while_int8_passes() -> None:
    worse = Model("student", 30, 4.0, (0.97, 0.96))
    assert decide(worse, INT8).shipped == "student-int8"


def test_nothing_passes_names_the_closest_and_a_remedy() -> None:
    with pytest.raises(GateError) as raised:
        decide(Model("student", 30, 4.0, (0.95, 0.94)), Model("student-int8", 8, 3.0, (0.93, 0.92)))
    message = str(raised.value)
    assert message.startswith("nothing ships: the best candidate, student, keeps 95.0% (95% interval 94.0% to 96.0%)")
    assert "98.0% must be kept (lower-bound); train longer" in message
    assert "\n" not in message


def test_when_only_the_interval_is_too_wide_the_remedy_is_more_data() -> None:
    with pytest.raises(GateError, match="evaluate on more data"):
        decide(Model("student", 30, 4.0, (0.99, 0.97)))


def test_a_permitted_drop_of_nothing() -> None:
    assert decide(Model("student", 30, 4.0, (1.0, 1.0)), gate=Gate(max_drop=0.0)).shipped == "student"
    with pytest.raises(GateError):
        decide(Model("student", 30, 4.0, (0.999, 0.999)), gate=Gate(max_drop=0.0))


def test_a_teacher_out_of_reach_is_no_measure() -> None:
    """Its size and speed are unknown: float32 is what int8 is compared with, and no word claims more."""
    decision = decide(STUDENT, INT8, seen=False)
    assert decision.shipped == "student-int8"
    assert decision.reason.startswith("3.8 times smaller and 3.3 times faster than in float32")
    assert decision.reason.endswith("the teacher's size and speed are unknown")
    large = Model("student", 500, 4.0)
    assert decide(large, seen=False).reason == "the float32 student; the teacher's size and speed are unknown"
    with pytest.raises(GateError):
        decide(large)


@pytest.mark.parametrize(
    ("limits", "ships", "beyond"),
    [
        ({"max_mb": 8}, "student-int8", {"student": "weighs 30,000,000 bytes; quantize.search.max_mb permits 8 MB"}),
        ({"max_ms": 3.0}, "student-int8", {"student": "takes 4 ms; quantize.search.max_ms permits 3 ms"}),
        ({"max_mb": 30, "max_ms": 4.0}, "student-int8", {}),
        ({"max_mb": 30, "max_ms": 2.9}, None, {"student": "takes 4 ms", "student-int8": "takes 3 ms"}),
        ({"max_mb": 7.9}, None, {"student": "weighs 30,000,000", "student-int8": "weighs 8,000,000"}),
    ],
)
def test_limits_bind_whatever_ships(limits: dict[str, float], ships: str | None, beyond: dict[str, str]) -> None:
    """Also the float32 student, and the candidates that no search found."""
    search = Search.model_validate(limits)
    if ships is None:
        with pytest.raises(GateError, match=r"^nothing ships: the best candidate, \S+: (weighs|takes)") as raised:
            decide(STUDENT, INT8, limits=search)
        told = dict(raised.value.objections)
        assert "\n" not in str(raised.value)
    else:
        decision = decide(STUDENT, INT8, limits=search)
        assert decision.shipped == ships
        told = {name: reason for name, reason in reasons(decision).items() if not reason.startswith("passes")}
    assert told.keys() == beyond.keys()
    assert all(told[name].startswith(reason) for name, reason in beyond.items())


def test_what_an_invalid_timing_decides_says_so() -> None:
    disturbed = Timing(False, ("the machine was busy",), (), ())
    assert decide(STUDENT, INT8, timing=disturbed).reason.endswith("; the timing is INVALID: the machine was busy")
    assert "INVALID" not in decide(STUDENT, INT8).reason
