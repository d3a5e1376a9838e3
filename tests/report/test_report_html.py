"""The page: self-contained, complete, and safe with whatever names come in."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compressor.error_attribution import ErrorAttribution
from compressor.errors import MissingDependencyError, StorageError
from compressor.report.html import render_report, write_report
from compressor.report.rows import summary_line
from compressor.result import Result

HOSTILE = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """Tags, attributes and text of a page, and what was left open."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hostile_layers(found: ErrorAttribution) -> ErrorAttribution:
    assert found.remedy is not None
    layers = tuple(replace(layer, node=HOSTILE, operator=HOSTILE) for layer in found.layers)
    return replace(found, model=HOSTILE, layers=layers, remedy=replace(found.remedy, node=HOSTILE))


def hostile(result: Result) -> Result:
    models = tuple(replace(model, name=model.name + HOSTILE, precision=HOSTILE) for model in result.models)
    return replace(
        result,
        task=HOSTILE,
        models=models,
        shipped=models[2].name,
        reason=HOSTILE,
        lineage=replace(result.lineage, permission=HOSTILE, source="https://example.org/" + HOSTILE),
        data={HOSTILE: HOSTILE},
        refused=(replace(result.refused[0], reason=HOSTILE),),
        sizes=tuple(replace(share, part=HOSTILE) for share in result.sizes),
        quality_steps=tuple(replace(step, before=HOSTILE) for step in result.quality_steps),
        attributions=tuple(hostile_layers(found) for found in result.attributions),
        reference=replace(result.reference, source=HOSTILE, agreement={HOSTILE: 0.5}),
        recipe={HOSTILE: [HOSTILE, "</pre></details>"]},
    )


def test_the_page_is_well_formed_and_complete(result: Result):
    page = Page(render_report(result))
    assert page.open == []
    assert summary_line(result) in page.text
    for model in result.models:
        assert model.name in page.text
    assert "INVALID: other work used 0.95 processors" in page.text
    for expected in ("hard labels only", result.refused[0].reason, result.lineage.permission, '"temperature": 2.0'):
        assert expected in page.text
    # Six drawings, each for wide and for narrow pages.
    assert len(page.all("svg")) == 12


def test_the_sections_come_in_the_order_of_their_weight(result: Result):
    text = Page(render_report(result).partition("<body>")[2].partition("</body>")[0]).text
    titles = (
        "student-int8 ships",
        "parameters",
        "Size, quality, latency",
        "p90",
        "How the times spread",
        "Training loss",
        "Held-out score",
        "Where the bytes are",
        "What does not ship",
        "Where the quality went",
        "Parity",
        "Time of each stage",
        "The teacher",
        "The recipe",
    )
    places = [text.index(title) for title in titles]
    assert places == sorted(places)


def test_numbers_stand_in_the_row_of_their_model(result: Result):
    rows = re.findall(r"<tr role=\"row\".*?</tr>", render_report(result), re.DOTALL)
    shipped = [row for row in rows if 'class="ships"' in row]
    assert len(shipped) == 1
    text = Page(shipped[0]).text
    assert text == (
        "student-int8 ships int8 dynamic 8.34M 6.8 13.4x 0.917 1.20 6.1x 6.0x to 6.2x 1,059 84 "
        "0.880 0.868 to 0.892 98.7% 98.1% to 99.2% 0.966"
    )


def test_where_the_time_of_what_does_not_ship_goes(result: Result):
    page = Page(render_report(result)).text
    assert "asks for 97.0%; its time goes, by operator, 41.2% in 3 QAttention, 20.0% in 14 QuantizeLinear;" in page
    assert "20.0% in 14 QuantizeLinear; 20.0% of its time rounds numbers" in page


def test_where_the_quality_went(result: Result):
    section = Page(render_report(result).partition("Where the quality went</h2>")[2].partition("</section>")[0]).text
    assert "distillation teacher student-torch -0.0105" in section
    # 10^-2.24 of the outputs' energy is error now, 10^-2.58 then.
    assert "layer.0/output in weight-int8 for 0.018 MB more takes 54.3% of the error away" in section
    assert "layer.0/output MatMul 18.3 26.1 0.999 0.790 layer.1/query MatMul 31.9" in section


def test_the_page_loads_nothing(result: Result):
    source = render_report(hostile(result))
    page = Page(source)
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "srcset", "action", "data"} & set(attributes)
    styles = source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_text_stays_text(result: Result):
    source = render_report(hostile(result))
    page = Page(source)
    assert page.open == []
    assert page.all("script") == []
    assert "<script" not in source
    assert f"student-int8{HOSTILE} ships" in page.text
    # A name with quotes must not open an attribute: every attribute is one that the template or svg.py writes.
    plain = {name for _, attributes in Page(render_report(result)).tags for name in attributes}
    assert {name for _, attributes in page.tags for name in attributes} == plain


def bare(result: Result) -> Result:
    """One model, nothing measured beyond its quality, nothing recorded."""
    teacher = replace(result.models[0], bytes=None, latency=None)
    history = replace(result.history, losses=(), scores=())
    return replace(
        result,
        models=(teacher,),
        parities=(),
        quality_steps=(),
        attributions=(),
        shipped=None,
        reason="no candidate was written",
        history=history,
        sizes=(),
        refused=(),
        stages=(),
        data={},
        control=None,
        recipe={},
    )


def test_an_almost_empty_result_is_a_page(result: Result):
    page = Page(render_report(bare(result)))
    assert page.open == []
    assert page.all("svg") == []
    for expected in ("Nothing ships: no candidate was written", "Nothing was timed.", "There was no other candidate."):
        assert expected in page.text
    assert "hard labels only" not in page.text


def test_a_model_of_unknown_size_is_said_to_be_missing_from_the_drawing(result: Result):
    remote = replace(result.models[0], bytes=None)
    page = Page(render_report(replace(result, models=(remote, *result.models[1:]))))
    assert "Not drawn, as the size is unknown: teacher." in page.text


def test_the_file_is_the_page_and_nothing_else_is_left(result: Result, tmp_path: Path):
    destination = tmp_path / "report.html"
    destination.write_text("old", encoding="utf-8")
    write_report(result, destination)
    assert destination.read_text(encoding="utf-8") == render_report(result)
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_report(result: Result, tmp_path: Path):
    blocked = tmp_path / "report.html"
    (blocked / "inside").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"expected to write the report .*report\.html, got"):
        write_report(result, blocked)
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(StorageError, match="No such file"):
        write_report(result, tmp_path / "absent" / "report.html")


def test_without_jinja2_the_error_says_what_to_install(result: Result, monkeypatch: pytest.MonkeyPatch):
    # None is how Python itself marks a module that must not be found.
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"'jinja2'.*pip install 'compressor\[train\]'"):
        render_report(result)
