"""Drawings: scales by hand, and markup that parses whatever the numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.artifacts import Interval
from compressor.report import charts, svg
from compressor.report.trade_off import trade_off
from compressor.result import ModelResult, Result, SizeShare
from compressor.timings import TimesShown

HOSTILE = "<script>alert(1)</script>\"'&\x00"
NAMESPACE = "{http://www.w3.org/2000/svg}"


def parsed(markup: str) -> ElementTree.Element:
    assert not re.search(r"\b(nan|inf)\b", markup)
    return ElementTree.fromstring(markup)


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{NAMESPACE}text")]


def test_a_linear_scale_maps_ends_and_middle():
    scale = svg.Scale(0, 10, 100, 0)
    assert (scale(0), scale(5), scale(10)) == (100, 50, 0)


def test_a_logarithmic_scale_maps_decades_evenly():
    scale = svg.Scale(1, 100, 0, 200, log=True)
    assert (scale(1), scale(10), scale(100)) == (0, 100, 200)


def test_ticks_are_round_and_inside():
    assert svg.ticks(svg.Scale(0, 10, 0, 1)) == (0, 2, 4, 6, 8, 10)
    assert svg.ticks(svg.Scale(0.81, 0.905, 0, 1)) == (0.82, 0.84, 0.86, 0.88, 0.9)
    assert svg.ticks(svg.Scale(4, 150, 0, 1, log=True)) == (5, 10, 20, 50, 100)


def test_tick_labels_share_their_decimals():
    assert svg.tick_labels((0.9, 0.95, 1.0)) == ("0.90", "0.95", "1.00")
    assert svg.tick_labels((0.5, 1, 2000), like=False) == ("0.5", "1", "2,000")


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5),
    st.integers(3, 6),
)
def test_any_values_get_an_axis_of_positive_length(values: list[float], target: int):
    scale = svg.linear_scale(values, 0, 100)
    assert scale.low < scale.high
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    marks = svg.ticks(scale, target)
    assert 1 <= len(marks) <= 2 * target + 2


def test_overlap_of_boxes_by_hand():
    box = svg.Box(0, 0, 10, 10)
    assert box.overlap(svg.Box(5, 5, 20, 20)) == 25
    assert box.overlap(svg.Box(10, 0, 20, 10)) == 0
    assert svg.Box(-5, 0, 5, 10).outside(box) == 50


def test_text_and_attributes_are_escaped():
    root = parsed(svg.picture(10, 10, HOSTILE, svg.label(0, 0, HOSTILE)))
    assert root.attrib["aria-label"] == HOSTILE.replace("\x00", "?")
    assert texts(root) == [HOSTILE.replace("\x00", "?")]
    assert list(root.iter(f"{NAMESPACE}script")) == []


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_every_chart_parses_and_describes_itself(result: Result, width: int):
    points = ((0.0, 1.0), (10.0, 0.5))
    drawn = [
        trade_off(result.models, result.shipped, 0.86, "AUROC", width),
        charts.latency_bars(result.models, result.shipped, width),
        charts.latency_distribution(result.models, result.shipped, width),
        charts.size_bars(result.sizes, result.shipped, width),
        charts.curve(charts.Curve(points, "Loss", "loss", 10), width),
    ]
    for root in map(parsed, drawn):
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert root.find(f"{NAMESPACE}title") is not None
        assert root.attrib["viewBox"].startswith(f"0 0 {width} ")


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_labels_of_the_trade_off_stay_inside_and_apart(result: Result, width: int):
    root = parsed(trade_off(result.models, result.shipped, 0.8611, "AUROC", width))
    names = {model.name for model in result.models}
    boxes = []
    for each in root.iter(f"{NAMESPACE}text"):
        if each.text in names:
            left, baseline = float(each.attrib["x"]), float(each.attrib["y"])
            boxes.append(svg.Box(left, baseline - 10, left + svg.text_width(each.text), baseline + 14))
    assert len(boxes) == len(names)
    assert all(box.left >= 0 and box.right <= width for box in boxes)
    assert all(one.overlap(other) == 0 for one, other in combinations(boxes, 2))


def test_the_area_of_a_bubble_is_the_time(result: Result):
    teacher, student = result.models[0], result.models[1]
    assert student.latency is not None
    quarter = replace(student, latency=replace(student.latency, p50_ms=5.6 / 4))
    root = parsed(trade_off((teacher, quarter), None, None, "AUROC", charts.WIDE))
    radii = [float(each.attrib["r"]) for each in root.iter(f"{NAMESPACE}circle") if "bubble" in each.attrib["class"]]
    assert sorted(radii) == [12, 24]


def degenerate(models: tuple[ModelResult, ...]) -> list[tuple[ModelResult, ...]]:
    zero = Interval(0.0, 0.0, 0.0)
    nothing = tuple(replace(each, bytes=1, quality=replace(each.quality, quality=zero)) for each in models)
    untimed = tuple(replace(each, latency=None) for each in models)
    named = tuple(replace(each, name=f"{index}{HOSTILE}" * 30) for index, each in enumerate(models))
    return [models[:1], nothing, untimed, named]


@pytest.mark.parametrize("case", range(4))
def test_degenerate_models_are_drawn(result: Result, case: int):
    models = degenerate(result.models)[case]
    root = parsed(trade_off(models, None, None, "AUROC", charts.NARROW))
    assert sum("dot" in each.attrib["class"] for each in root.iter(f"{NAMESPACE}circle")) == len(models)
    if models[0].latency:
        bars = parsed(charts.latency_bars(models, None, charts.NARROW))
        assert len(list(bars.iter(f"{NAMESPACE}rect"))) == 3 * len(models)


def test_bars_of_no_time_and_no_bytes_have_no_width(result: Result):
    model = result.models[0]
    assert model.latency is not None
    still = replace(model, latency=replace(model.latency, p50_ms=0.0, p90_ms=0.0, p99_ms=0.0))
    for markup in (
        charts.latency_bars((still,), None, charts.WIDE),
        charts.size_bars((SizeShare("teacher", "graph", 0),), None, charts.WIDE),
    ):
        assert {each.attrib["width"] for each in parsed(markup).iter(f"{NAMESPACE}rect")} == {"0"}


def test_a_histogram_has_its_mass_where_the_times_are(result: Result):
    """Half of the times at 1 ms, half at 4 ms: bars at both ends and none between."""
    model = result.models[0]
    assert model.latency is not None
    times = TimesShown(True, (0.0, 0.49, 0.51, 1.0), (1.0, 1.01, 3.99, 4.0))
    drawn = replace(model, latency=replace(model.latency, distribution=times))
    root = parsed(charts.latency_distribution((drawn,), None, charts.NARROW))
    bars = sorted((float(each.attrib["x"]), float(each.attrib["height"])) for each in root.iter(f"{NAMESPACE}rect"))
    high = [x for x, height in bars if height > 20]
    assert len(high) >= 2
    assert high[-1] - high[0] > 150
    assert all(height < 4 for x, height in bars if high[0] + 30 < x < high[-1] - 30)


def test_what_has_no_samples_for_a_percentile_has_no_bar(result: Result):
    model = result.models[0]
    assert model.latency is not None
    few = replace(model, latency=replace(model.latency, p90_ms=None, p99_ms=None))
    assert len(list(parsed(charts.latency_bars((few,), None, charts.WIDE)).iter(f"{NAMESPACE}rect"))) == 1


def test_segments_of_a_bar_add_up_to_its_length():
    sizes = (SizeShare("a", "weights", 60), SizeShare("b", "weights", 50), SizeShare("a", "graph", 40))
    root = parsed(charts.size_bars(sizes, None, charts.WIDE))
    widths = [float(each.attrib["width"]) for each in root.iter(f"{NAMESPACE}rect")]
    assert sum(widths[:2]) == pytest.approx(2 * widths[2], abs=0.2)


def test_one_point_and_equal_points_are_a_curve():
    for points in (((5.0, 0.0),), ((5.0, 0.3), (10.0, 0.3))):
        root = parsed(charts.curve(charts.Curve(points, "Score", "score", 5, dots=True), charts.NARROW))
        assert len(list(root.iter(f"{NAMESPACE}circle"))) == len(points)
        assert "best: step 5" in texts(root)


def test_thinning_keeps_the_mean_and_the_limit():
    points = [(float(step), float(step % 7)) for step in range(1000)]
    thin = charts.thinned(points, 100)
    assert len(thin) == 100
    assert sum(y for _, y in thin) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert charts.thinned(points[:50], 100) == tuple(points[:50])


def test_kinds_beyond_the_palette_share_its_last_colour():
    parts = [f"part {index}" for index in range(9)]
    assert [charts.part_css(parts, part) for part in parts[4:]] == ["part-4"] + ["part-5"] * 4
