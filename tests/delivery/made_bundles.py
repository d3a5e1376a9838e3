"""Small bundles, made as the program makes them, and keys to sign them with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from onnx import TensorProto, helper, numpy_helper

from compressor.artifacts import Interval, Provenance, Quality
from compressor.bundle.build import Contents, write_bundle
from compressor.bundle.keys import sign_bundle
from compressor.device.manifest import MANIFEST
from compressor.device.signature import SIGNATURE, Statement, key_id
from compressor.onnx_file import describe_onnx
from compressor.preprocess import ArrayPreprocessor
from compressor.store import sha256_file

PRODUCT = "thermometer"
WIDTH = 8


@dataclass(frozen=True)
class Signer:
    """A key, and its public half in a file."""

    private: Ed25519PrivateKey
    public: Path

    @property
    def key(self) -> str:
        return key_id(self.private.public_key())

    def sign(self, bundle: Path, version: int, product: str = PRODUCT, expires: int | None = None) -> Path:
        sign_bundle(bundle, self.private, Statement(product, version, expires))
        return bundle


def make_signer(folder: Path, name: str = "release") -> Signer:
    private = Ed25519PrivateKey.generate()
    public = folder / f"{name}.pub"
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return Signer(private, public)


def make_bundle(folder: Path, seed: int, width: int = WIDTH) -> Path:
    """An unsigned bundle with weights by the seed."""
    weight = np.random.default_rng(seed).standard_normal((width, width), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = folder.with_name(f"{folder.name}.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    model = describe_onnx(path, "student", "float32")
    folder.mkdir()
    write_bundle(model, contents(width), ArrayPreprocessor("x", "float32", (width,)), folder)
    path.unlink()
    return folder


def contents(width: int) -> Contents:
    inputs = list(np.random.default_rng(0).standard_normal((3, width), dtype=np.float32))
    return Contents(
        task="own",
        teacher=None,
        answer={"array": {"name": "x", "dtype": "float32", "shape": [width]}},
        golden_inputs=inputs,
        tokenizer=None,
        lineage=Provenance("a teacher", "f" * 64, "MIT", "license-permits"),
        data={"training": "9 rows"},
        recipe={"task": "own"},
        quality=Quality("student", "cosine", Interval(0.9, 0.8, 1.0), Interval(0.9, 0.8, 1.0), 0.9, 9),
    )


def edit_manifest(bundle: Path, **changes: object) -> None:
    """Changes the manifest and brings its listing up to date, as its maker could; a signature is then another's."""
    path = bundle / MANIFEST
    manifest = {**json.loads(path.read_text()), **changes}
    manifest["files"] = [
        {"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in sorted(bundle.iterdir())
        if p.name not in (MANIFEST, SIGNATURE)
    ]
    path.write_text(json.dumps(manifest))


def answers(bundle: Path) -> bytes:
    """What the model in a folder says to the same input, by onnxruntime alone."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": np.ones((1, WIDTH), np.float32)})
    return bytes(output.tobytes())
