"""Licence texts beside a teacher: which of them a bundle passes on, and that it is whole with them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_bundle import TEXTS, contents

from compressor.bundle.archive import pack, unpack
from compressor.bundle.build import write_bundle
from compressor.bundle.licenses import license_texts
from compressor.bundle.verify import verify_bundle
from compressor.errors import TeacherError
from compressor.onnx_file import describe_onnx
from compressor.preprocess import TextPreprocessor


def test_which_files_are_licence_texts(tmp_path: Path) -> None:
    passed_on = ["COPYING.LESSER", "LICENCE", "LICENSE", "LICENSE-APACHE", "NOTICE.md", "UNLICENSE", "license_mit.txt"]
    for name in (*passed_on, "README.md", "LICENSED.txt", "config.json", "LICENSE (copy).txt", "noticed"):
        (tmp_path / name).write_text(f"of {name}")
    assert license_texts(tmp_path) == {f"licenses/{name}": f"of {name}".encode() for name in passed_on}


def test_there_may_be_none(tmp_path: Path) -> None:
    assert license_texts(tmp_path) == {}


def test_only_regular_files_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (teacher := tmp_path / "teacher").mkdir()
    (teacher / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(TeacherError, match="LICENSE: leads out of"):
        license_texts(teacher)
    (teacher / "LICENSE").unlink()
    os.mkfifo(teacher / "LICENSE")
    with pytest.raises(TeacherError, match="expected a regular file, got a pipe"):
        license_texts(teacher)
    (teacher / "LICENSE").unlink()
    (teacher / "LICENSE").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(TeacherError, match="expected at most 1,048,576 bytes"):
        license_texts(teacher)


def test_a_bundle_with_licence_texts(embedder_onnx: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    model = describe_onnx(embedder_onnx, "student", "float32")
    parts = contents(model, "sentence-embedding", {"max_length": 16}, TEXTS, tokenizer_file)
    texts = {"licenses/LICENSE": b"Permission is hereby granted", "licenses/NOTICE": b"Made by somebody"}
    (folder := tmp_path / "bundle").mkdir()
    write_bundle(model, replace(parts, licenses=texts), TextPreprocessor(tokenizer_file, 16), folder)
    verify_bundle(folder)
    pack(folder, tmp_path / "bundle.tar.zst")
    unpack(tmp_path / "bundle.tar.zst", tmp_path / "again")
    verify_bundle(tmp_path / "again")
    for name, content in texts.items():
        assert (tmp_path / "again" / name).read_bytes() == content
    names = [entry["name"] for entry in json.loads((folder / "manifest.json").read_text())["files"]]
    assert names == sorted(names)
    assert set(texts) <= set(names)
    card = (folder / "README.md").read_text()
    assert "- its licence texts: [licenses/LICENSE](licenses/LICENSE), [licenses/NOTICE](licenses/NOTICE)\n" in card
