"""What a user reads of a result: made-up results, and the lines that are printed."""

import io

import pytest

from compressor.benchmark.result import (
    BenchResult,
    Bounded,
    ComparisonFound,
    Conditions,
    Load,
    Memory,
    ModelFound,
    RunFound,
    Runtime,
    TargetFound,
)
from compressor.benchmark.table import print_bench

TARGET = TargetFound("x86_64", "Some CPU", "Linux 6.1", 2, 1000.0, None, None)
LOAD = Load(1.0, 2.0, 3.0, Memory(1.0, 2.0, 3.0, 4.0, 5.0))


def printed(speedup=(2.0, 1.9, 2.1), least_effect=0.02, complete=True, **model):
    """The lines of a run of two models, of which the second is the one described."""
    conditions = Conditions(1, 99, False, "cpu", 1, {}, 0, 40.0, least_effect, 50, 10)
    baseline = ModelFound("slow", 1000, LOAD, answers_unknown="it is the baseline, and nothing says what is expected")
    comparison = ComparisonFound("fast", "slow", Bounded(*speedup), 50, 8, 0.95, "inconclusive")
    models = (baseline, ModelFound("fast", 500, LOAD, **model))
    run = RunFound(1, "stream", Runtime("1.31.1", 1), TARGET, conditions, complete, models, (comparison,))
    out = io.StringIO()
    print_bench(BenchResult(1, "0.1.0", complete, (), (run,)), out)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("speedup", "text"),
    [
        ((2.154, 2.1234, 2.2134), "2.154 [2.12, 2.21]"),
        ((1.003, 1.0004, 1.0049), "1.003 [1.0004, 1.0049]"),
        ((0.9998, 0.99962, 0.99998), "0.9998 [0.99962, 0.99998]"),
        ((1.25, 1.2511, 1.2512), "1.25 [1.2511, 1.2512]"),
        ((1.25, 1.25, 1.25), "1.25 [1.25, 1.25]"),
        ((1.0, 0.95, 1.05), "1 [0.95, 1.05]"),
        ((12.34567, None, 12.5), "12.35 [, 12.5]"),
        ((1.1, 1.1 + 1e-15, 1.2), "1.1 [1.1, 1.2]"),
    ],
)
def test_an_interval_has_the_digits_that_tell_it_from_1_and_its_bounds_apart(speedup, text):
    assert any(line.startswith(f"fast: {text} times the speed of slow: ") for line in printed(speedup))


@pytest.mark.parametrize(
    ("least", "text"), [(0.001, "0.1%"), (0.0, "0%"), (0.02, "2%"), (0.07, "7%"), (0.0025, "0.25%"), (1.0, "100%")]
)
def test_what_a_verdict_needs_is_not_rounded_away(least, text):
    assert any(line.endswith(f"a verdict needs {text})") for line in printed(least_effect=least))


def test_why_outputs_were_not_compared_is_said_but_not_of_the_baseline():
    reason = "its outputs have other names than the baseline's"
    compared = [line for line in printed(answers_unknown=reason) if "not compared" in line]
    assert compared == [f"fast: outputs not compared: {reason}"]


def test_a_run_that_was_ended_early_says_so_before_anything_is_known_of_the_machine():
    line = "interrupted: this is what was measured until then"
    assert line in printed(complete=False)
    assert line not in printed()
