"""The certificate of a quantized model, normative in docs/certificate.md: on which processors its integer products are
equal, bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from compressor.errors import BundleError
from compressor.intake.files import read_bounded
from compressor.intake.json_text import strict_json

CERTIFICATE = "certificate.json"
CERTIFICATE_VERSION = 1
_MOST_BYTES = 16 << 20
_STRICT = ConfigDict(extra="forbid")

Equality = Literal["proven", "seen", "differs", "unknown"]

# 255 is the largest activation, and every pair of products whose weights add up to no more than this fits in 16 bits.
SAFE_WEIGHT_SUM = 128


@checked_dataclass(frozen=True, config=_STRICT)
class Layer:
    """One integer product with constant weights, and what its sums of two products can be and were.

    `largest_weight_sum`: of any two weights that are multiplied into one sum, the positive ones added or the negative
    ones, whichever is larger; times 255 the largest sum that any input gives. 0 where no processor adds in 16 bits.
    `sums`, `saturated`, `outputs`, `wrong`: on the certificate's inputs, how many sums of two there were and how many
    lay outside of 16 bits, how many accumulators there were and how many of them saturation changed. `narrowed`: output
    channels whose weights were given a wider step to stay within 16 bits.
    `lowest_weights`: the most weights of -128 in one output channel.
    """

    node: str
    operator: str
    weights: str
    depth: int
    columns: int
    largest_weight_sum: int
    lowest_weights: int
    sums: int
    saturated: int
    outputs: int
    wrong: int
    narrowed: int


@checked_dataclass(frozen=True, config=_STRICT)
class InstructionSet:
    """What holds on one kind of processor: its integer products are those of exact arithmetic for all inputs
    ("proven"), for those of the certificate ("seen"), not for them ("differs"), or nothing is known of the products
    in `layers` ("unknown")."""

    name: str
    bit_equal: Equality
    layers: tuple[str, ...]


@checked_dataclass(frozen=True, config=_STRICT)
class Certificate:
    """`model_sha256` is the ONNX file's; `inputs` counts those that were tried; `unexamined` names the nodes that
    multiply integers in a way that is not emulated."""

    format_version: int
    model_sha256: str
    inputs: int
    instruction_sets: tuple[InstructionSet, ...]
    layers: tuple[Layer, ...]
    unexamined: tuple[str, ...]


@dataclass(frozen=True)
class _Kind:
    name: str
    saturates: bool
    # A kernel of Arm's adds two products of signed bytes in 16 bits: only -128 * -128 twice does not fit.
    adds_lowest: bool


_KINDS = (
    _Kind("x86-64 without VNNI", saturates=True, adds_lowest=False),
    _Kind("x86-64 with VNNI", saturates=False, adds_lowest=False),
    _Kind("aarch64", saturates=False, adds_lowest=True),
)


def certificate(model_sha256: str, inputs: int, layers: tuple[Layer, ...], unexamined: tuple[str, ...]) -> Certificate:
    """What the layers say of each kind of processor."""
    sets = tuple(_claim(kind, layers, unexamined) for kind in _KINDS)
    return Certificate(CERTIFICATE_VERSION, model_sha256, inputs, sets, layers, unexamined)


def _claim(kind: _Kind, layers: tuple[Layer, ...], unexamined: tuple[str, ...]) -> InstructionSet:
    unknown = (*unexamined, *(layer.node for layer in layers if kind.adds_lowest and layer.lowest_weights > 1))
    if kind.saturates and (differing := tuple(layer.node for layer in layers if layer.wrong)):
        return InstructionSet(kind.name, "differs", differing)
    if unknown:
        return InstructionSet(kind.name, "unknown", unknown)
    unproven = tuple(layer.node for layer in layers if layer.largest_weight_sum > SAFE_WEIGHT_SUM)
    if kind.saturates and unproven:
        return InstructionSet(kind.name, "seen", unproven)
    return InstructionSet(kind.name, "proven", ())


def certificate_beside(model: Path) -> Path:
    """Where the certificate of a model file lies until both are in a bundle."""
    return model.with_suffix(".certificate.json")


def dump_certificate(found: Certificate) -> bytes:
    """The canonical text: the same content gives the same bytes."""
    content = TypeAdapter(Certificate).dump_python(found, mode="json")
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_certificate(path: Path) -> Certificate:
    """Raises BundleError: not readable, another version."""
    content = strict_json(read_bounded(path, _MOST_BYTES, BundleError), str(path), BundleError)
    try:
        found = TypeAdapter(Certificate).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BundleError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
    if found.format_version != CERTIFICATE_VERSION:
        raise BundleError(f"{path}: expected certificate format {CERTIFICATE_VERSION}, got {found.format_version}")
    return found


def summary(found: Certificate) -> dict[str, str]:
    """Each kind of processor, and in words what holds on it."""
    words: dict[Equality, str] = {
        "proven": "equal bits for every input",
        "seen": f"equal bits on {found.inputs} inputs; others may saturate in {{}} of {len(found.layers)} products",
        "differs": f"other bits: {{}} of {len(found.layers)} products saturate on {found.inputs} inputs",
        "unknown": "not known: {} products are not examined",
    }
    return {one.name: words[one.bit_equal].format(len(one.layers)) for one in found.instruction_sets}
