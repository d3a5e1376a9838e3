"""Checking a bundle where it lies: hashes, then the golden cases through onnxruntime, from raw input to output.

    python -P -m compressor.bundle.verify CPU_SECONDS BYTES FOLDER

is the child process that runs the golden cases, so that what crashes, hangs or exhausts memory ends there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from compressor.bundle.manifest import OpenedBundle, check_files, check_one_file, open_bundle
from compressor.bundle.predictor import bundle_preprocessor
from compressor.certificate import CERTIFICATE, read_certificate, summary
from compressor.device.golden import golden_array, read_golden
from compressor.device.selftest import SelfTest, run_cases
from compressor.device.signature import Statement, verify_by
from compressor.device.source import folder_source
from compressor.errors import BundleError
from compressor.intake.files import read_bounded
from compressor.intake.json_text import strict_json
from compressor.intake.onnx_model import check_onnx
from compressor.intake.trial import tried
from compressor.limited import limited_main

_MOST_TEXT_BYTES = 8 << 20


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
    facts = check_onnx(folder / manifest.model, BundleError)
    check_one_file(folder / manifest.model, facts)
    said, found = (manifest.requires.ir_version, manifest.opset), (facts.ir_version, facts.opset)
    if said != found:
        raise BundleError(f"{folder}: its manifest says IR version and opset {said}, its model {found}; build it again")
    tested = SelfTest(
        **json.loads(tried("compressor.bundle.verify", folder, facts.bytes, BundleError, "build it again"))
    )
    return BundleCheck(
        folder,
        manifest.task,
        manifest.precision,
        len(manifest.files),
        tested.cases,
        tested.min_cosine,
        tested.max_abs_error,
        signed,
        certified(bundle),
    )


def _signed(folder: Path, public_key: Path) -> Statement:
    with folder_source(folder) as source:
        return verify_by(public_key, source.signature, source.manifest).statement


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


def _try_cases(folder: Path) -> str:
    """The child's work: the golden cases from raw input to output, and what it saw as JSON."""
    bundle = open_bundle(folder)
    if (texts := folder / "golden_texts.json").is_file():
        _check_encoding(bundle, texts)
    return json.dumps(asdict(run_cases(folder)))


def _check_encoding(bundle: OpenedBundle, path: Path) -> None:
    """The tokenizer of the bundle must still turn the golden texts into the golden inputs."""
    texts = strict_json(read_bounded(path, _MOST_TEXT_BYTES, BundleError), str(path), BundleError)
    cases = bundle.manifest.golden.cases
    if not isinstance(texts, list) or len(texts) != cases or not all(map(_is_text, texts)):
        raise BundleError(f"{path}: expected a list of {cases} texts, one for each golden case")
    preprocessor, arrays = bundle_preprocessor(bundle), read_golden(bundle.folder)
    for case, example in enumerate(preprocessor.encode(texts)):
        for name, array in preprocessor.collate([example]).items():
            if not np.array_equal(array, golden_array(arrays, f"{case}.in.{name}", bundle.folder)):
                raise BundleError(f"the tokenizer encodes golden text {case} otherwise than when it was built")


def _is_text(value: object) -> bool:
    """A text, or its words."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(word, str) for word in value))


if __name__ == "__main__":
    sys.exit(limited_main(lambda given: _try_cases(Path(given[0])), sys.argv[1:]))
