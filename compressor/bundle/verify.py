"""Checking a bundle where it lies: hashes, then the golden cases through onnxruntime, from raw input to output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.bundle.manifest import Manifest, OpenedBundle, check_files, open_bundle
from compressor.bundle.predictor import bundle_preprocessor
from compressor.certificate import CERTIFICATE, read_certificate, summary
from compressor.device.golden import check_output, golden_array, read_golden
from compressor.device.signature import Statement, key_id, read_public_key, verify_signature
from compressor.device.source import folder_source
from compressor.errors import BundleError
from compressor.intake.trial import admit_onnx
from compressor.onnxrt import open_session, run_one


@dataclass(frozen=True)
class BundleCheck:
    """What `compressor verify` saw."""

    folder: Path
    task: str
    precision: str
    files: int
    cases: int
    min_cosine: float
    max_abs_error: float
    signed: Statement | None  # None where nobody asked for a signature
    same_everywhere: dict[str, str]  # kinds of processors, and what holds on them; nothing without a certificate


def verify_bundle(folder: Path, public_key: Path | None = None) -> BundleCheck:
    """The signature by this key, where one is given; hashes of every file; then every golden case: encoding of the raw
    text, and the outputs. Raises SignatureError, BundleError."""
    signed = None if public_key is None else _signed(folder, public_key)
    bundle = open_bundle(folder)
    check_files(bundle)
    manifest = bundle.manifest
    arrays = read_golden(folder)
    _check_encoding(bundle, arrays)
    feeds = [
        {spec.name: golden_array(arrays, f"{case}.in.{spec.name}", folder) for spec in manifest.inputs}
        for case in range(manifest.golden.cases)
    ]
    facts = admit_onnx(folder / manifest.model, BundleError, next(iter(feeds), None))
    said, found = (manifest.requires.ir_version, manifest.opset), (facts.ir_version, facts.opset)
    if said != found:
        raise BundleError(f"{folder}: its manifest says IR version and opset {said}, its model {found}; build it again")
    session = open_session(folder / manifest.model)
    _check_interface(session, manifest, folder)
    cosines, errors = [], []
    for case, feed in enumerate(feeds):
        for spec, got in zip(manifest.outputs, run_one(session, feed), strict=True):
            expected = golden_array(arrays, f"{case}.out.{spec.name}", folder)
            cosine, error = check_output(got, expected, f"{folder}: golden case {case}, {spec.name}", manifest.golden)
            cosines.append(cosine)
            errors.append(error)
    if not cosines:
        raise BundleError(f"{folder}: the bundle has no golden cases, so nothing shows that it answers right")
    return BundleCheck(
        folder,
        manifest.task,
        manifest.precision,
        len(manifest.files),
        manifest.golden.cases,
        min(cosines),
        max(errors),
        signed,
        certified(bundle),
    )


def _signed(folder: Path, public_key: Path) -> Statement:
    key = read_public_key(public_key)
    with folder_source(folder) as source:
        return verify_signature(source.signature, source.manifest, {key_id(key): key}).statement


def certified(bundle: OpenedBundle) -> dict[str, str]:
    """What the bundle's certificate says of each kind of processor, if it has one. Raises BundleError when it is not
    its model's."""
    path = bundle.folder / CERTIFICATE
    if not path.is_file():
        return {}
    found = read_certificate(path)
    model = next(entry for entry in bundle.manifest.files if entry.name == bundle.manifest.model)
    if found.model_sha256 != model.sha256:
        raise BundleError(f"{path}: it certifies another model than {model.name}; copy the bundle again")
    return summary(found)


def _check_encoding(bundle: OpenedBundle, arrays: dict[str, NDArray[Any]]) -> None:
    """The tokenizer of the bundle must still turn the golden texts into the golden inputs."""
    path = bundle.folder / "golden_texts.json"
    if not path.is_file():
        return
    preprocessor = bundle_preprocessor(bundle)
    for case, example in enumerate(preprocessor.encode(json.loads(path.read_text(encoding="utf-8")))):
        for name, array in preprocessor.collate([example]).items():
            if not np.array_equal(array, golden_array(arrays, f"{case}.in.{name}", bundle.folder)):
                raise BundleError(
                    f"{bundle.folder}: the tokenizer encodes golden text {case} otherwise than when it was built"
                )


def _check_interface(session: Any, manifest: Manifest, folder: Path) -> None:
    got = ([value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()])
    expected = ([spec.name for spec in manifest.inputs], [spec.name for spec in manifest.outputs])
    if got != expected:
        raise BundleError(f"{folder}: expected a model with inputs and outputs {expected}, got {got}")
