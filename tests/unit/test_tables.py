"""Data files for text: every format, and everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from compressor.errors import DataError
from compressor.recipe_data import DataSource
from compressor.tasks.tables import read_columns

ROWS: list[dict[str, Any]] = [
    {"text": "first, with a comma", "label": 0},
    {"text": 'second "quoted"', "label": 1},
    {"text": "third é 数\nand a second line", "label": 1},
]


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    table = datasets.Dataset.from_list(ROWS)
    if suffix == ".csv":
        table.to_csv(path)
    elif suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_columns(tmp_path: Path, suffix: str) -> None:
    columns = read_columns(DataSource(path=written(tmp_path, suffix)), ("label", "text"), tmp_path / "cache")
    assert columns == {name: [row[name] for row in ROWS] for name in ("label", "text")}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """The library keeps a converted copy; it must not outlive the file."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "old"}\n')
    assert read_columns(DataSource(path=path), ("text",), tmp_path / "cache")["text"] == ["old"]
    path.write_text('{"text": "newer"}\n')
    assert read_columns(DataSource(path=path), ("text",), tmp_path / "cache")["text"] == ["newer"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_missing_column_names_those_there_are(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="missing column sentence; it has text, label"):
        read_columns(DataSource(path=written(tmp_path, suffix)), ("text", "sentence"), tmp_path / "cache")


@pytest.mark.parametrize("name", ["data[1].jsonl", "data*.jsonl", "data?.jsonl", "ein Name.jsonl", "{a}.jsonl"])
def test_a_name_is_a_name_and_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "data1.jsonl").write_text('{"text": "wrong"}\n')
    (tmp_path / name).write_text('{"text": "right"}\n')
    assert read_columns(DataSource(path=tmp_path / name), ("text",), tmp_path / "cache")["text"] == ["right"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.jsonl", b"", "the file is empty"),
        ("data.csv", b"", "the file is empty"),
        ("data.csv", b"text,label\n", "no rows"),
        ("data.jsonl", b'{"text": "a"}\n{"text": \n', "not readable as .jsonl"),
        ("data.jsonl", b"not json at all\n", "not readable as .jsonl"),
        ("data.jsonl", b"\n\n", "data.jsonl"),
        ("data.jsonl", b"3\n4\n", "data.jsonl"),
        ("data.jsonl", b"[]", "data.jsonl"),
        ("data.jsonl", b'{"text": "\xff\xfe"}\n', "data.jsonl"),
        ("data.csv", b"text,label\na,1\nb,2,3,4\n", "not readable as .csv"),
        ("data.csv", b'text,label\n"a,1\n', "not readable as .csv"),
        ("data.csv", b"\xff\xfe\x00", "data.csv"),
        ("data.parquet", b"PAR1 and no more", "does not end as a Parquet file does"),
        ("data.txt", b"a\n", "expected a file ending in"),
        ("data", b"a\n", "expected a file ending in"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_columns(DataSource(path=tmp_path / name), ("text",), tmp_path / "cache")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nobody_is_told_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library counts the uses of its readers on a server, unless it is told not to."""
    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    read_columns(DataSource(path=written(tmp_path, ".csv")), ("text",), tmp_path / "cache")
    assert not asked


def test_no_file(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "no data files"), (tmp_path / "absent.jsonl", "found none")):
        with pytest.raises(DataError, match=words):
            read_columns(DataSource(path=path), ("text",), tmp_path / "cache")
