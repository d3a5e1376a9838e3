"""Hand-computed cases of the numbers that people read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compressor.artifacts import Interval
from compressor.errors import DataError
from compressor.report import formatting
from compressor.report.rows import rows, summary_line
from compressor.result import Result


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        (formatting.megabytes, 90_900_000, "90.9"),
        (formatting.megabytes, 8_500_000, "8.5"),
        (formatting.megabytes, 42_300, "0.042"),
        (formatting.megabytes, 1_340_000_000, "1,340"),
        (formatting.megabytes, 0, "0.000"),
        (formatting.milliseconds, 5.6, "5.60"),
        (formatting.milliseconds, 0.9172, "0.917"),
        (formatting.milliseconds, 12.34, "12.3"),
        (formatting.milliseconds, 1234.5, "1,234"),
        (formatting.ratio, 13.4, "13.4x"),
        (formatting.ratio, 6.12, "6.1x"),
        (formatting.ratio, 1.043, "1.04x"),
        (formatting.ratio, 250.4, "250x"),
        (formatting.percent, 0.9872, "98.7%"),
        (formatting.count, 22_713_216, "22.7M"),
        (formatting.count, 999_600, "1M"),
        (formatting.count, 125_400_000, "125M"),
        (formatting.count, 999, "999"),
        (formatting.count, 1_500_000_000, "1.5B"),
        (formatting.rate, 1090.3, "1,090"),
        (formatting.rate, 12.34, "12.3"),
        (formatting.score, 0.892, "0.892"),
        (formatting.score, 0.0, "0.000"),
        (formatting.score, 41.27, "41.3"),
        (formatting.cosine, 0.9999998, "> 0.999999"),
        (formatting.cosine, 1.0, "1.000000"),
        (formatting.duration, 9.4, "9.4 s"),
        (formatting.duration, 412.6, "6.9 min"),
        (formatting.duration, 12_240, "3.4 h"),
        (formatting.metric_name, "auroc", "AUROC"),
        (formatting.metric_name, "my_metric", "my metric"),
    ],
)
def test_a_number_reads_as_computed_by_hand(form, value, expected):
    assert form(value) == expected


def test_shortening_keeps_both_ends_and_the_limit():
    assert formatting.shorten("student-int8-static", 12) == "stude..tatic"
    assert formatting.shorten("student", 12) == "student"


def test_control_characters_never_reach_the_reader():
    assert formatting.printable("a\x1b[31mb\nc\x00") == "a?[31mb?c?"


def test_the_headline_says_what_ships(result: Result):
    # 90.9 MB / 6.783582 MB = 13.4001
    assert summary_line(result) == (
        "student-int8 ships: 13.4x smaller, 6.1x faster, 98.7% of the teacher's AUROC (95% interval 98.1 to 99.2%)"
    )


def test_the_headline_says_why_nothing_ships(result: Result):
    failed = replace(result, shipped=None, reason="the best candidate keeps 93.3%, the recipe asks for 97.0%")
    assert summary_line(failed) == "Nothing ships: the best candidate keeps 93.3%, the recipe asks for 97.0%"
    assert not any(row.ships for row in rows(failed))


@pytest.mark.parametrize(
    ("speedup", "claim"),
    [
        (Interval(1.02, 0.97, 1.07), "no measurable difference in speed"),
        (Interval(0.5, 0.49, 0.51), "2.0x slower"),
        (Interval(1.5, 1.4, 1.6), "1.50x faster"),
    ],
)
def test_the_headline_claims_no_more_than_the_interval_supports(result: Result, speedup: Interval, claim: str):
    assert claim in summary_line(with_shipped_speedup(result, speedup)).split(", ")


def with_shipped_speedup(result: Result, speedup: Interval) -> Result:
    shipped = result.models[2]
    assert shipped.latency is not None
    changed = replace(shipped, latency=replace(shipped.latency, speedup=speedup))
    return replace(result, models=(result.models[0], changed))


def test_what_was_not_measured_is_not_claimed(result: Result):
    teacher = replace(result.models[0], bytes=None, latency=None, parameters=0)
    shipped = replace(result.models[2], latency=None)
    bare = replace(result, models=(teacher, shipped))
    assert summary_line(bare).startswith("student-int8 ships: 98.7% of the teacher's AUROC")
    assert (rows(bare)[0].megabytes, rows(bare)[0].parameters, rows(bare)[1].smaller, rows(bare)[1].p50) == ("",) * 4


def test_a_shipped_name_without_a_model_is_refused(result: Result):
    with pytest.raises(DataError, match=r"expected .*teacher.* got 'lost'"):
        summary_line(replace(result, shipped="lost"))
