"""Calibrations on disk, under the SHA-256 of all that they depend on. `docs/quantization.md` describes the file."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from compressor import __version__
from compressor.errors import QuantizationError
from compressor.preprocess import Feed
from compressor.quantize.calibration import calibrate
from compressor.quantize.statistics import MERGED_BY, Calibration
from compressor.store import key_of, write_atomic

SCHEMA = "compressor-calibration/1"


def save(calibration: Calibration, path: Path) -> None:
    """Writes a calibration as a compressed .npz, whole or not at all."""
    head = {
        "schema": SCHEMA,
        "tensors": calibration.tensors,
        "batches": calibration.batches,
        "not_finite": calibration.not_finite,
        "all_zero": calibration.all_zero,
        "first_all_zero": calibration.first_all_zero,
    }
    content = io.BytesIO()
    arrays: dict[str, Any] = {"head": np.array(json.dumps(head)), **calibration.counts}
    np.savez_compressed(content, **arrays)
    write_atomic(path, content.getvalue())


def load(path: Path) -> Calibration:
    """The calibration that `save` wrote. Raises QuantizationError where a file is none, or damaged."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            if head.pop("schema", None) != SCHEMA:
                raise QuantizationError(f"{path}: expected {SCHEMA}; calibrate again")
            counts = {name: file[name] for name in MERGED_BY}
            return Calibration(tensors=tuple(head.pop("tensors")), **head, counts=counts)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise QuantizationError(f"{path}: expected a calibration, which cannot be read: {error}") from None


def kept(
    model: onnx.ModelProto, batches: Callable[[], Iterable[Feed]], operators: Sequence[str], folder: Path | None
) -> Calibration:
    """`calibrate`, kept in `folder`, if there is one, under a key of all that it depends on: the model's bytes, the
    batches, the operators, and the versions of this program and of
    onnxruntime. `batches` gives the same ones each time. A kept file that cannot
    be read is written again.
    """
    if folder is None:
        return calibrate(model, batches(), operators)
    path = folder / f"calibration-{_key(model, batches(), operators)}.npz"
    with suppress(QuantizationError):
        return load(path)
    found = calibrate(model, batches(), operators)
    folder.mkdir(parents=True, exist_ok=True)
    save(found, path)
    return found


def sha256_feeds(feeds: Iterable[Feed]) -> str:
    """Hex SHA-256 of the names, types, shapes and numbers of feeds, in their order."""
    fed = hashlib.sha256()
    for feed in feeds:
        for name, array in sorted(feed.items()):
            fed.update(f"{name} {array.dtype} {array.shape}\n".encode())
            fed.update(np.ascontiguousarray(array).data)
        fed.update(b"\n")
    return fed.hexdigest()


def _key(model: onnx.ModelProto, batches: Iterable[Feed], operators: Sequence[str]) -> str:
    bytes_of_model = hashlib.sha256(model.SerializeToString(deterministic=True))
    versions = [__version__, onnxruntime.__version__]
    return key_of(SCHEMA, versions, bytes_of_model.hexdigest(), sha256_feeds(batches), list(operators))
