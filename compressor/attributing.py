"""What a quantized model lost, held together: which of its layers err, what each is worth, and the cheapest remedy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from compressor.artifacts import OnnxModel
from compressor.error_attribution import Closeness, ErrorAttribution, NoisyLayer, Remedy
from compressor.errors import BundleError, QuantizationError
from compressor.onnx_file import read_onnx
from compressor.quantize import Mixer
from compressor.quantize.layer_errors import noises, restored
from compressor.quantize.sites import Site, applies, assign, sharing
from compressor.recipe_quantize import NodePrecision
from compressor.searching import Judging, Mixture
from compressor.store import write_atomic

# How many layers are told, how many are tried in float32, and on how many inputs their noise is measured.
_TOLD, _TRIED, _FEEDS = 8, 3, 16
# A layer is worth a remedy where float32 there takes so much of the whole error away; a remedy is what takes this share
# of that away.
_WORTH, _ENOUGH = 0.05, 0.5
_REMEDIES: tuple[NodePrecision, ...] = (
    "weight-int4", "dynamic-int8", "weight-int8", "static-int8", "static-int16", "float16"
)  # fmt: skip


def asked_for(mixer: Mixer, models: Sequence[OnnxModel]) -> tuple[Mixture, ...]:
    """The candidates of the mixer's settings with the precision of each node."""
    precisions = {str(precision): precision for precision in mixer.settings.precisions}
    overrides = mixer.settings.overrides
    return tuple((model, assign(mixer.sites, precisions[model.precision], overrides)) for model in models)


def attributions(mixer: Mixer, mixtures: Sequence[Mixture], judging: Judging) -> tuple[ErrorAttribution, ...]:
    """Of each mixture that the mixer wrote; a remedy is any precision that does enough.

    Raises BundleError where onnxruntime does not run a mixture, or one of its layers in float32.
    """
    found = []
    for model, chosen in mixtures:
        # Not the mixer's source: scales may have been moved between layers before it was quantized.
        one = attribution(mixer.start(chosen).model, mixer.sites, model, judging)
        if one.remedy is not None:
            one = replace(one, remedy=_cheapest(one, one.remedy, mixer, chosen, judging))
        found.append(one)
    return tuple(found)


def attribution(
    source: onnx.ModelProto, sites: tuple[Site, ...], model: OnnxModel, judging: Judging
) -> ErrorAttribution:
    """Of any model that has nodes of `source` in fewer bits, with float32 for a remedy."""
    quantized = read_onnx(model.path, BundleError)
    now = judging.closeness(model.path)
    layers: list[NoisyLayer] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for one in noises(source, quantized, sites, judging.feeds[:_FEEDS])[:_TOLD]:
            then = None
            if len(layers) < _TRIED:
                shared = sharing(sites, one.site)
                write_atomic(path, restored(source, quantized, shared).SerializeToString())
                then = judging.closeness(path)
            layers.append(NoisyLayer(one.site.node, one.site.operator, one.snr_db, then))
    tried = [Remedy(layer.node, "float32", layer.in_float32) for layer in layers if layer.in_float32]
    best = max(tried, key=lambda remedy: _regained(now, remedy.then), default=None)
    worth = best is not None and _regained(now, best.then) >= _WORTH * now.error
    return ErrorAttribution(model.name, now, tuple(layers), best if worth else None)


def _cheapest(
    found: ErrorAttribution,
    in_float32: Remedy,
    mixer: Mixer,
    chosen: Mapping[str, NodePrecision],
    judging: Judging,
) -> Remedy:
    """The smallest of all precisions for that node that takes away enough of what float32 does."""
    needed = _ENOUGH * _regained(found.now, in_float32.then)
    tried = [in_float32, *_others(in_float32.node, mixer, chosen, judging)]
    return min(
        (one for one in tried if _regained(found.now, one.then) >= needed),
        key=lambda one: (one.then.bytes, one.then.error),
    )


def _others(node: str, mixer: Mixer, chosen: Mapping[str, NodePrecision], judging: Judging) -> Iterator[Remedy]:
    site = next(site for site in mixer.sites if site.node == node)
    shared = [one.node for one in sharing(mixer.sites, site)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for precision in _REMEDIES:
            # Ranges cost a sweep: they are not looked for where no candidate has any.
            unknown = precision.startswith("static") and not any(one.startswith("static") for one in chosen.values())
            if precision == chosen[node] or unknown or not applies(precision, site):
                continue
            try:
                mixer.write({**chosen, **dict.fromkeys(shared, precision)}, path)
                then = judging.closeness(path)
            except (QuantizationError, BundleError):  # a weight beyond float16, or what onnxruntime does not run
                continue
            yield Remedy(node, precision, then)


def _regained(now: Closeness, then: Closeness) -> float:
    return now.error - then.error
