"""The candidates beside float32: each a precision for every site of the graph, written and held against its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from compressor.artifacts import OnnxModel, QuantizedModels, RefusedModel
from compressor.errors import BundleError, QuantizationError
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session
from compressor.preprocess import Preprocessor
from compressor.progress import Progress
from compressor.quantize.int8 import to_dynamic_int8, to_static
from compressor.quantize.sites import Site, applicable_operators, assign, find_sites, load_float_model
from compressor.quantize.weight_only import quantize_weights
from compressor.recipe import NodePrecision, Precision, Quantization
from compressor.store import write_atomic


def quantize(
    student: OnnxModel,
    calibration: Sequence[NDArray[Any]],
    preprocessor: Preprocessor,
    settings: Quantization,
    folder: Path,
    progress: Progress,
) -> QuantizedModels:
    """Every candidate of the settings, written into `folder`; one that is not smaller than float32 is refused here.

    `calibration` holds encoded training examples. Raises QuantizationError for a model that cannot be quantized, an
    override that names nothing in it, or a result that onnxruntime does not open.
    """
    models: list[OnnxModel] = []
    refused: list[RefusedModel] = []
    source = load_float_model(student.path)
    sites = find_sites(source)
    for precision in settings.precisions:
        name = f"{student.name}-{_short(precision, settings)}"
        chosen = assign(sites, precision, settings.overrides)
        if all(one == "float32" for one in chosen.values()):
            operators = ", ".join(applicable_operators(precision))
            refused.append(RefusedModel(name, f"{precision} applies to {operators} with constant weights; there are none"))
            continue
        progress.log(f"  {name}: {precision}")
        path = folder / f"{name}.onnx"
        examples = calibration[: settings.calibration_samples]
        write_mixture(source, sites, chosen, examples, preprocessor, settings, path)
        model = describe_onnx(path, name, precision, student.parameters)
        if model.bytes >= student.bytes:
            refused.append(RefusedModel(name, f"larger than float32: {model.bytes:,} bytes against {student.bytes:,}"))
        else:
            models.append(model)
    return QuantizedModels(tuple(models), tuple(refused))


def write_mixture(
    source: onnx.ModelProto,
    sites: tuple[Site, ...],
    chosen: Mapping[str, NodePrecision],
    calibration: Sequence[NDArray[Any]],
    preprocessor: Preprocessor,
    settings: Quantization,
    path: Path,
) -> None:
    """`source` with every site in the precision that is `chosen` for its node, at `path`, whole or not at all.

    Raises QuantizationError.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source)
    for precision in ("static-int8", "static-int16"):
        if nodes := [node for node, one in chosen.items() if one == precision]:
            model = to_static(model, nodes, precision, calibration, preprocessor)
    if nodes := [node for node, one in chosen.items() if one == "dynamic-int8"]:
        model = to_dynamic_int8(model, nodes)
    quantize_weights(model, sites, chosen, settings.block)
    write_atomic(path, model.SerializeToString())
    try:
        open_session(path)
    except BundleError as error:
        path.unlink()
        raise QuantizationError(str(error)) from None


def _short(precision: Precision, settings: Quantization) -> str:
    return "int8" if precision in ("dynamic-int8", "static-int8") and precision == settings.precisions[0] else precision
