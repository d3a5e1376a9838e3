"""Bundles: the same bytes from the same inputs, every kind of damage found, and answers as onnxruntime gives them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from ruamel.yaml import YAML
from tokenizers import Tokenizer

import compressor
from compressor.artifacts import Interval, OnnxModel, Provenance, Quality
from compressor.bundle.build import Contents, write_bundle
from compressor.bundle.card import model_card
from compressor.bundle.golden import golden_cases
from compressor.bundle.manifest import check_files, dump_manifest, open_bundle
from compressor.bundle.predictor import Predictor, load
from compressor.bundle.verify import verify_bundle
from compressor.certificate import (
    CERTIFICATE,
    certificate,
    certificate_beside,
    dump_certificate,
    read_certificate,
    summary,
)
from compressor.errors import BundleError, DataError
from compressor.inspection import inspect_path, inspection_lines
from compressor.onnx_file import describe_onnx
from compressor.preprocess import ImagePreprocessor, TextPreprocessor
from compressor.store import sha256_file

MakeOnnx = Callable[..., Path]
TEXTS = ["the cat sat on the mat", "", "a dog runs!"]
QUALITY = Quality("student", "AUROC", Interval(0.9, 0.88, 0.92), Interval(0.99, 0.98, 1.0), 0.97, 100)
LINEAGE = Provenance("tiny-teacher", "f" * 64, "MIT", "license-permits")


def contents(
    model: OnnxModel, task: str, answer: dict[str, Any], inputs: list[Any], tokenizer: Path | None
) -> Contents:
    data = {"training": "9 rows", "evaluation": "3 rows"}
    return Contents(
        task, replace(model, bytes=10**6), answer, inputs, tokenizer, LINEAGE, data, {"task": task}, QUALITY
    )


@pytest.fixture
def text_bundle(embedder_onnx: Path, tokenizer_file: Path, tmp_path: Path) -> Path:
    return write_text_bundle(embedder_onnx, tokenizer_file, tmp_path / "bundle")


def write_text_bundle(model_file: Path, tokenizer: Path, folder: Path) -> Path:
    folder.mkdir()
    model = describe_onnx(model_file, "student", "float32")
    parts = contents(model, "sentence-embedding", {"max_length": 16}, TEXTS, tokenizer)
    written = write_bundle(model, parts, TextPreprocessor(tokenizer, 16), folder)
    assert written.bytes == sum(p.stat().st_size for p in folder.iterdir() if p.name != "manifest.json")
    assert written.manifest_sha256 == sha256_file(folder / "manifest.json")
    return folder


CLASSES = ["cat", "dog", "fish"]


@pytest.fixture
def image_bundle(make_onnx: MakeOnnx, tmp_path: Path) -> Path:
    return write_image_bundle(make_onnx, tmp_path)


def write_image_bundle(make_onnx: MakeOnnx, tmp_path: Path, **image: str) -> Path:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    weight = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32) / 500
    file = make_onnx(
        tmp_path / "image.onnx",
        nodes,
        {"pixels": (TensorProto.UINT8, ["batch", 4, 4, 1])},
        {name: (TensorProto.FLOAT, ["batch", 3]) for name in ("logits", "probabilities")},
        {"weight": weight},
    )
    model = describe_onnx(file, "student", "float32")
    answer = {"image": {"height": 4, "width": 4, "channels": 1, **image}, "classes": CLASSES}
    folder = tmp_path / "image-bundle"
    folder.mkdir()
    write_bundle(
        model, contents(model, "image-classification", answer, pictures(), None), ImagePreprocessor(4, 4, 1), folder
    )
    return folder


def pictures(count: int = 4) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(1).integers(0, 256, (count, 4, 4), dtype=np.uint8))


def edit(bundle: Path, **changes: Any) -> None:
    """Changes the manifest, and brings its hashes up to date: an attacker, or a careless hand, would."""
    path = bundle / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    manifest["files"] = [
        {"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in sorted(bundle.iterdir())
        if p.name != "manifest.json"
    ]
    path.write_text(json.dumps(manifest))


def test_the_same_inputs_give_the_same_bytes(
    text_bundle: Path, embedder_onnx: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    again = write_text_bundle(embedder_onnx, tokenizer_file, tmp_path / "deep-er")
    names = sorted(p.name for p in text_bundle.iterdir())
    assert names == sorted(p.name for p in again.iterdir())
    assert names == [
        "README.md",
        "bom.cdx.json",
        "golden.npz",
        "golden_texts.json",
        "manifest.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (text_bundle / name).read_bytes() == (again / name).read_bytes(), name
        assert str(tmp_path).encode() not in (again / name).read_bytes(), name


def test_a_certificate_is_in_the_bundle_and_is_its_models(
    embedder_onnx: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "student.onnx"
    shutil.copyfile(embedder_onnx, model)
    found = certificate(sha256_file(model), 3, (), ())
    certificate_beside(model).write_bytes(dump_certificate(found))
    bundle = write_text_bundle(model, tokenizer_file, tmp_path / "bundle")
    assert read_certificate(bundle / CERTIFICATE) == found
    assert verify_bundle(bundle).same_everywhere == summary(found)
    assert inspect_path(bundle)["integer products"] == summary(found)
    (bundle / CERTIFICATE).write_bytes(dump_certificate(replace(found, model_sha256="0" * 64)))
    edit(bundle)
    with pytest.raises(BundleError, match=r"it certifies another model than model\.onnx"):
        verify_bundle(bundle)


def test_a_good_bundle_passes_wherever_it_lies(text_bundle: Path, image_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(text_bundle, tmp_path / "elsewhere")
    check = verify_bundle(tmp_path / "elsewhere")
    assert (check.cases, check.files) == (len(TEXTS), 7)
    assert check.min_cosine == pytest.approx(1, abs=1e-6)
    assert check.max_abs_error == 0
    assert verify_bundle(image_bundle).cases == 4


def test_the_manifest_reads_back_as_it_was_written(text_bundle: Path) -> None:
    opened = open_bundle(text_bundle)
    assert dump_manifest(opened.manifest) == (text_bundle / "manifest.json").read_bytes()
    assert opened.manifest.lineage == LINEAGE
    card = (text_bundle / "README.md").read_text()
    assert 'license: "MIT"' in card
    assert "0.9000 (95% interval 0.8800 to 0.9200)" in card


def test_inspect_shows_what_was_found(text_bundle: Path) -> None:
    lines = inspection_lines(inspect_path(text_bundle))
    begin = lines.index("  quality:")
    assert lines[begin : begin + 7] == [
        "  quality:",
        "    agreement: 0.97",
        "    examples: 100",
        "    kept:",
        "      high: 1.0",
        "      low: 0.98",
        "      value: 0.99",
    ]


@pytest.mark.parametrize(
    "license_", ["Acme: internal use", "mit\nlibrary_name: evil\n---\n# x", 'a "b" #c', "- x", "ünï"]
)
def test_whatever_the_licence_the_front_matter_of_the_card_holds_it(embedder_onnx: Path, license_: str) -> None:
    model = describe_onnx(embedder_onnx, "student", "float32")
    evidence = {"teacher_bytes": None, "quality": asdict(QUALITY)}
    lineage = replace(LINEAGE, license=license_, terms="https://a/b\n\n# Heading", source="big\n# Heading")
    card = model_card(model, "text-classification", evidence, lineage, {})
    _, front, text = card.split("---\n", 2)
    assert YAML(typ="safe").load(front) == {
        "license": " ".join(license_.split()),
        "pipeline_tag": "text-classification",
        "library_name": "onnx",
    }
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        "# text-classification model distilled from big # Heading"
    ]


FILES = [
    "README.md",
    "bom.cdx.json",
    "golden.npz",
    "golden_texts.json",
    "model.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "missing", "link", "folder"])
def test_every_damage_to_every_file_is_found(text_bundle: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = text_bundle / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "grow":
        path.write_bytes(content + b"\n")
    elif damage == "missing":
        path.unlink()
    elif damage == "link":
        path.rename(tmp_path / "aside")
        path.symlink_to(tmp_path / "aside")
    else:
        path.unlink()
        path.mkdir()
    for use in (verify_bundle, golden_cases, load):
        with pytest.raises(BundleError, match=name):
            use(text_bundle)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "model.onnx.data", "deep/er.txt"])
def test_what_is_not_listed_is_refused(text_bundle: Path, name: str) -> None:
    (text_bundle / name).parent.mkdir(exist_ok=True)
    (text_bundle / name).write_text("x")
    with pytest.raises(BundleError, match="is not in the manifest"):
        check_files(open_bundle(text_bundle))


def test_a_linked_folder_is_refused(text_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (text_bundle / "link").symlink_to(tmp_path / "other")
    with pytest.raises(BundleError, match="holds no links"):
        check_files(open_bundle(text_bundle))


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "./model.onnx", ""])
def test_a_file_outside_the_bundle_cannot_be_listed(text_bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.txt").write_text("x")
    path = text_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"].append({"name": name, "bytes": 1, "sha256": "0" * 64})
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="is no name for a file of a bundle"):
        check_files(open_bundle(text_bundle))


def test_the_model_must_be_a_listed_file(text_bundle: Path, embedder_onnx: Path, tmp_path: Path) -> None:
    """Hashes vouch for listed files alone: a model beside the bundle would run unchecked."""
    shutil.copy(embedder_onnx, tmp_path / "other.onnx")
    edit(text_bundle, model="../other.onnx")
    for use in (verify_bundle, load):
        with pytest.raises(BundleError):
            use(text_bundle)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "expected bundle format 2, got None"),
        (b"3", "expected bundle format 2, got None"),
        (b"{}", "expected bundle format 2, got None"),
        (b'{"format_version": 3}', "expected bundle format 2, got 3; use the version that wrote it"),
        (b'{"format_version": 2}', "task"),
        (b'{"format_version": 2, "format_version": 2}', "each key once"),
        (b"[" * 100_000, "not valid JSON"),
        (b" " * (9 << 20), "expected at most"),
    ],
)
def test_manifests_that_are_none(text_bundle: Path, content: bytes, words: str) -> None:
    (text_bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError) as raised:
        open_bundle(text_bundle)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"more": 1}, "more"), ({"files": "all"}, "files"), ({"opset": "many"}, "opset"), ({"golden": {}}, "golden")],
)
def test_a_manifest_with_another_content(text_bundle: Path, changes: dict[str, Any], words: str) -> None:
    path = text_bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BundleError, match=words):
        open_bundle(text_bundle)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match="found none"):
            open_bundle(folder)


def swap(
    bundle: Path, make_onnx: MakeOnnx, node: str, inputs: tuple[str, ...], outputs: tuple[str, ...], size: int
) -> None:
    """Another valid model in the bundle, its hash in the manifest."""
    nodes = [
        helper.make_node("Cast", [inputs[0]], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["values", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "row"], ["scaled"]),
        *(helper.make_node(node, ["scaled"], [output]) for output in outputs),
    ]
    make_onnx(
        bundle / "model.onnx",
        nodes,
        {name: (TensorProto.INT64, ["batch", "sequence"]) for name in inputs},
        {name: (TensorProto.FLOAT, ["batch", size]) for name in outputs},
        {"axis": np.array([1], np.int64), "row": np.linspace(1, 2, size, dtype=np.float32)[None]},
    )
    edit(bundle)


BOTH, ONE = ("input_ids", "attention_mask"), ("sentence_embedding",)


@pytest.mark.parametrize(
    ("node", "inputs", "outputs", "size"),
    [
        ("Tanh", BOTH, ONE, 8),
        ("Log", BOTH, ONE, 8),
        ("Tanh", BOTH, ONE, 9),
        ("Tanh", BOTH, ("sentence_embedding", "more"), 8),
        ("Tanh", ("input_ids", "other"), ONE, 8),
    ],
    ids=["other answers", "other values", "other width", "other outputs", "other inputs"],
)
def test_a_swapped_model_is_found_by_its_answers(
    text_bundle: Path, make_onnx: MakeOnnx, node: str, inputs: tuple[str, ...], outputs: tuple[str, ...], size: int
) -> None:
    swap(text_bundle, make_onnx, node, inputs, outputs, size)
    check_files(open_bundle(text_bundle))
    with pytest.raises(BundleError) as raised:
        verify_bundle(text_bundle)
    assert "\n" not in str(raised.value)


def test_a_swapped_tokenizer_is_found(text_bundle: Path) -> None:
    definition = json.loads((text_bundle / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (text_bundle / "tokenizer.json").write_text(json.dumps(definition))
    edit(text_bundle)
    with pytest.raises(BundleError, match="encodes golden text 0 otherwise"):
        verify_bundle(text_bundle)


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip"])
def test_golden_cases_that_cannot_be_read(text_bundle: Path, content: bytes) -> None:
    (text_bundle / "golden.npz").write_bytes(content)
    edit(text_bundle)
    with pytest.raises(BundleError, match=r"golden\.npz"):
        verify_bundle(text_bundle)


def test_golden_cases_that_lack_an_array(text_bundle: Path) -> None:
    with np.load(text_bundle / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files if name != "1.in.input_ids"}
    np.savez(text_bundle / "golden.npz", **arrays)
    edit(text_bundle)
    with pytest.raises(BundleError, match=r"lacks 1\.in\.input_ids"):
        verify_bundle(text_bundle)


def test_a_bundle_without_golden_cases_proves_nothing(text_bundle: Path) -> None:
    golden = json.loads((text_bundle / "manifest.json").read_text())["golden"]
    (text_bundle / "golden_texts.json").write_text("[]")
    edit(text_bundle, golden={**golden, "cases": 0})
    with pytest.raises(BundleError, match="golden cases, got 2, 1 and 0"):
        verify_bundle(text_bundle)


def test_embeddings_are_those_of_onnxruntime(text_bundle: Path) -> None:
    predictor = compressor.load(text_bundle)
    session = onnxruntime.InferenceSession(text_bundle / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(text_bundle / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    texts = ["the green house", "", "cat " * 40]
    found = predictor.embed(texts)
    assert found.shape == (3, 8)
    for text, row in zip(texts, found, strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        expected = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(predictor.embed(text), expected)
        np.testing.assert_array_equal(predictor(text), expected)
    assert predictor.embed([]).shape == (0, 8)


def test_classes_are_those_of_onnxruntime(image_bundle: Path) -> None:
    predictor = load(image_bundle)
    session = onnxruntime.InferenceSession(image_bundle / "model.onnx", providers=["CPUExecutionProvider"])
    images = pictures(6)
    for image, found in zip(images, predictor.classify(images), strict=True):
        probabilities = session.run(["probabilities"], {"pixels": image[None, ..., None]})[0][0]
        assert found.label == CLASSES[int(probabilities.argmax())]
        assert found.probability == pytest.approx(float(probabilities.max()))
        assert list(found.probabilities.values()) == pytest.approx(probabilities.tolist())
        assert predictor(image) == found
    assert predictor.classify([]) == []
    with pytest.raises(DataError, match="takes a list"):
        predictor.classify("one text")


def test_calls_of_another_task_say_so(text_bundle: Path, image_bundle: Path) -> None:
    with pytest.raises(BundleError, match="task is sentence-embedding; this call needs text-classification or image"):
        load(text_bundle).classify(["x"])
    with pytest.raises(BundleError, match="needs sentence-embedding"):
        load(image_bundle).embed("x")


@pytest.mark.parametrize("wrong", [3, [3], [None], ["a", b"b"]])
def test_inputs_of_another_kind_are_refused(text_bundle: Path, wrong: Any) -> None:
    predictor: Predictor = load(text_bundle)
    with pytest.raises((DataError, TypeError)):
        predictor.embed(wrong)


def test_a_file_that_is_no_image_is_refused(image_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat\.png"):
        load(image_bundle).classify([tmp_path / "cat.png"])


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_image_files_are_brought_to_size_as_the_bundle_says(make_onnx: MakeOnnx, tmp_path: Path, resize: str) -> None:
    """The same answer as for the array that the pixels come to: each pixel eight by eight, or margins at the sides."""
    folder = write_image_bundle(make_onnx, tmp_path, resize=resize)
    image = np.arange(16, dtype=np.uint8).reshape(4, 4) * 15
    large = np.kron(image, np.ones((8, 8), np.uint8)) if resize == "stretch" else np.pad(image, ((0, 0), (3, 3)))
    Image.fromarray(large).save(tmp_path / "a.png")
    predictor = load(folder)
    (from_file,) = predictor.classify([tmp_path / "a.png"])
    expected = Image.fromarray(large).resize((4, 4), Image.Resampling.BILINEAR) if resize == "stretch" else image
    assert from_file == predictor.classify([np.asarray(expected)])[0]


def test_a_bundle_that_does_not_say_takes_files_of_its_size_alone(image_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"wide\.png: 4 x 5 pixels, expected 4 x 4"):
        load(image_bundle).classify([tmp_path / "wide.png"])


def test_a_way_to_resize_that_is_none_is_refused(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not say how to prepare inputs"):
        load(write_image_bundle(make_onnx, tmp_path, resize="lanczos"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_in_place_of_a_file_does_not_block(text_bundle: Path) -> None:
    path = text_bundle / "README.md"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError):
        check_files(open_bundle(text_bundle))


def test_a_tokenizer_that_panics_is_an_error_like_any_other(tmp_path: Path) -> None:
    """A pattern that needs too many steps: what the library then raises is no Exception."""
    split = {"type": "Split", "pattern": {"Regex": "^(?:(.|..)+)+$(?<=ZZZ)"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "pre_tokenizer": split, "model": model}))
    preprocessor = TextPreprocessor(path, 16)
    assert preprocessor.encode(["a"])[0].tolist() == [0]
    with pytest.raises(DataError, match=r"tokenizer\.json: its library gives up on a text"):
        preprocessor.encode(["a" * 40])
