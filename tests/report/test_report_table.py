"""The terminal table: it fits, it keeps what matters, it writes no escape sequence where none belongs."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len

from compressor.report.table import print_table, summary_line
from compressor.result import Result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(result: Result, width: int | None = None) -> str:
    stream = io.StringIO()
    print_table(result, stream, width)
    return stream.getvalue()


@pytest.fixture
def hostile(result: Result) -> Result:
    teacher, *others = result.models
    return replace(
        result, models=(replace(teacher, name="[red]" + "very-long-name-" * 9 + "\x1b[2J\u5b57" * 20), *others)
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal(result: Result, hostile: Result, width: int):
    for each in (result, hostile):
        lines = printed(each, width).splitlines()
        assert len(lines) > 6
        assert max(map(cell_len, lines)) <= width


def test_every_model_is_one_line(result: Result):
    for width in (80, 120):
        lines = printed(result, width).splitlines()
        header, rows = lines[0], lines[1:6]
        assert header.split()[0] == "model"
        assert [line.lstrip("* ").split("  ")[0] for line in rows] == [
            "teacher",
            "student",
            "student-int8",
            "student-int8-static",
            "hard labels only",
        ]


def test_a_disturbed_timing_is_called_so(result: Result):
    assert "times INVALID: other work used 0.95 processors on average" in printed(result, 120)
    undisturbed = replace(result, timing=replace(result.timing, reasons=(), warnings=("teacher drifts",)))
    assert "INVALID" not in printed(undisturbed, 120)
    assert "times: teacher drifts" in printed(undisturbed, 120)


def test_where_the_quality_went(result: Result):
    text = " ".join(printed(result).split())
    assert "AUROC -0.0105 by distillation, student-torch; +0.0000 by export, student; -0.0011 by quantization" in text
    assert "student-int8: layer.0/output in weight-int8 for" in text


def test_another_judge(result: Result):
    expected = "reference roberta-reviews: AUROC 0.887; agreement with teacher 0.927, student-int8 0.911"
    assert expected in " ".join(printed(result).split())
    assert "reference" not in printed(replace(result, reference=None))


def test_all_columns_at_120_and_the_claims_at_80(result: Result):
    wide, narrow = printed(result, 120).splitlines(), printed(result, 80).splitlines()
    for header in ("params", "MB", "smaller", "p50 ms", "p99 ms", "faster", "inf/s", "AUROC [95%]", "kept", "agree"):
        assert header in wide[0]
    for header in ("MB", "smaller", "faster", "AUROC [95%]", "kept"):
        assert header in narrow[0]
    assert "inf/s" not in narrow[0]
    shipped = "* student-int8 8.34M 6.8 13.4x 0.917 1.20 6.1x 1,059 0.880 [0.868, 0.892] 98.7% 0.966"
    assert " ".join(wide[3].split()) == shipped


def test_the_sentence_ends_the_table(result: Result):
    assert printed(result, 120).rstrip().endswith(summary_line(result))


def test_a_pipe_gets_plain_text_and_follows_columns(result: Result, hostile: Result, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "inf/s" in printed(result)
    assert "\x1b" not in printed(hostile)
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, printed(result).splitlines())) <= 80


def test_a_terminal_gets_weight_and_no_color_keeps_colour_out(result: Result, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    print_table(result, terminal, 120)
    assert "\x1b[1m" in terminal.getvalue()
    assert "\x1b[3" not in terminal.getvalue()


def test_an_ascii_stream_can_be_written(hostile: Result):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_table(hostile, stream, 120)
    stream.flush()
    assert b"student-int8 ships" in raw.getvalue()


def test_absent_measurements_are_a_dash(result: Result):
    bare = replace(result, models=(replace(result.models[0], bytes=None, latency=None),), shipped=None, control=None)
    cells = printed(bare, 120).splitlines()[1].split()
    assert cells[:8] == ["teacher", "22.7M", "-", "-", "-", "-", "-", "-"]


def test_a_teacher_out_of_reach_is_no_baseline_of_size_or_speed(result: Result):
    teacher = replace(result.models[0], bytes=None, latency=None, parameters=0)
    unseen = replace(result, models=(teacher, *result.models[1:]))
    stream = io.StringIO()
    print_table(unseen, stream, width=160)
    lines = stream.getvalue().splitlines()
    row = next(line for line in lines if "teacher" in line.split()[:2])
    assert row.split().count("-") >= 5
    assert "the teacher's size and speed unknown: faster is in relation to the float32 student" in " ".join(lines)
    assert "the teacher's size and speed unknown" in summary_line(unseen)
    assert "smaller" not in summary_line(unseen)
    assert "faster" not in summary_line(unseen)
