"""Writing a bundle: model, tokenizer, golden cases, model card, bill of materials, and the manifest over all of it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts import Bundle, OnnxModel, Provenance, Quality
from compressor.bundle.bom import BOM, dump_bom, ml_bom
from compressor.bundle.card import model_card
from compressor.bundle.manifest import Manifest, dump_manifest
from compressor.bundle.readers import reader_files
from compressor.certificate import CERTIFICATE, certificate_beside
from compressor.device.golden import GOLDEN
from compressor.device.manifest import FORMAT_VERSION, MANIFEST, FileEntry, GoldenCheck, Requirements
from compressor.onnx_file import ir_version_of
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Preprocessor
from compressor.store import sha256_file, write_atomic

GOLDEN_CASES = 8
_OLDEST_ONNXRUNTIME, _OLDEST_OPSET, _OLDEST_IR_VERSION = "1.20.0", 21, 10
_RUNTIME_RAM_BYTES = 96 << 20
_BUILT_WITH = ("compressor", "onnx", "onnxruntime", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle beside the model.

    `config` is the student's config.json, where it is text and has one; `licenses` are texts by their names in the
    bundle.
    """

    task: str
    teacher: OnnxModel | None
    answer: dict[str, Any]
    golden_inputs: Sequence[Any]
    tokenizer: Path | None
    lineage: Provenance
    data: dict[str, str]
    recipe: dict[str, Any]
    quality: Quality
    config: Path | None = None
    licenses: Mapping[str, bytes] = field(default_factory=dict)


def write_bundle(model: OnnxModel, contents: Contents, preprocessor: Preprocessor, folder: Path) -> Bundle:
    """Writes every file of the bundle into `folder`. The same inputs give the same bytes."""
    shutil.copyfile(model.path, folder / "model.onnx")
    if contents.tokenizer is not None:
        shutil.copyfile(contents.tokenizer, folder / "tokenizer.json")
        for name, content in reader_files(contents.tokenizer, contents.config, contents.answer).items():
            write_atomic(folder / name, content)
    for name, content in contents.licenses.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomic(folder / name, content)
    if certificate_beside(model.path).is_file():
        shutil.copyfile(certificate_beside(model.path), folder / CERTIFICATE)
    write_atomic(folder / GOLDEN, _golden(model, contents.golden_inputs, preprocessor))
    if contents.tokenizer is not None:
        texts = json.dumps(list(contents.golden_inputs), ensure_ascii=False, indent=1)
        write_atomic(folder / "golden_texts.json", texts.encode())
    evidence = _evidence(model, contents)
    card = model_card(model, contents.task, evidence, contents.lineage, contents.data, tuple(contents.licenses))
    write_atomic(folder / "README.md", card.encode())
    bom = ml_bom(model, contents.task, evidence, contents.lineage, contents.data, _entries(folder))
    write_atomic(folder / BOM, dump_bom(bom))
    exact = model.precision == "float32"
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        task=contents.task,
        model="model.onnx",
        precision=model.precision,
        opset=model.opset,
        inputs=model.inputs,
        outputs=model.outputs,
        answer=contents.answer,
        # Another instruction set may round int8 products otherwise; float32 only sums in another order.
        golden=GoldenCheck(len(contents.golden_inputs), 0.999999 if exact else 0.99, 1e-4 if exact else None),
        requires=_requirements(model),
        lineage=contents.lineage,
        recipe=contents.recipe,
        evidence=evidence,
        built_with={name: version(name) for name in _BUILT_WITH},
        files=_entries(folder),
    )
    text = dump_manifest(manifest)
    write_atomic(folder / MANIFEST, text)
    return Bundle(folder, model.name, sum(entry.bytes for entry in manifest.files), hashlib.sha256(text).hexdigest())


def _requirements(model: OnnxModel) -> Requirements:
    """What a device must have for this model, where no more is known of it than the file."""
    # Up to these every supported ONNX Runtime reads the file; beyond, the one that answered here is known to.
    ir_version = ir_version_of(model.path)
    old = model.opset <= _OLDEST_OPSET and ir_version <= _OLDEST_IR_VERSION
    return Requirements(
        ir_version=ir_version,
        onnxruntime_min=_OLDEST_ONNXRUNTIME if old else version("onnxruntime"),
        onnxruntime_max=None,  # later ones run what earlier ones ran
        providers=("CPUExecutionProvider",),
        instruction_sets={},
        # The file, the weights read from it, and those laid out once more for the processor; and the runtime itself.
        ram_bytes=3 * model.bytes + _RUNTIME_RAM_BYTES,
    )


def _entries(folder: Path) -> tuple[FileEntry, ...]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return tuple(
        FileEntry(name, path.stat().st_size, sha256_file(path))
        for name, path in sorted(files.items())
        if name != MANIFEST
    )


def _golden(model: OnnxModel, inputs: Sequence[Any], preprocessor: Preprocessor) -> bytes:
    """An .npz: `<case>.in.<name>` and `<case>.out.<name>` with a batch of one each."""
    session = open_session(model.path)
    arrays: dict[str, Any] = {}
    for case, example in enumerate(preprocessor.encode(inputs)):
        feed = preprocessor.collate([example])
        arrays |= {f"{case}.in.{name}": array for name, array in feed.items()}
        arrays |= {
            f"{case}.out.{spec.name}": out for spec, out in zip(model.outputs, run_one(session, feed), strict=True)
        }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _evidence(model: OnnxModel, contents: Contents) -> dict[str, Any]:
    """The figures of the shipped model and its teacher that the card and `compressor inspect` show."""
    return {
        "parameters": model.parameters,
        "bytes": model.bytes,
        "teacher_bytes": contents.teacher.bytes if contents.teacher else None,
        "teacher_parameters": contents.teacher.parameters if contents.teacher else None,
        "quality": asdict(contents.quality),
    }
