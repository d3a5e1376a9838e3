"""The candidates beside float32: each a precision for every site of the graph, written and held against its source."""

from __future__ import annotations

from pathlib import Path

from compressor.artifacts import OnnxModel, QuantizedModels, RefusedModel
from compressor.certificate import summary
from compressor.errors import QuantizationError
from compressor.onnx_file import describe_onnx
from compressor.progress import Progress
from compressor.quantize.mixer import Mixer
from compressor.quantize.sites import assign, inapplicable
from compressor.recipe_quantize import Precision, Quantization


def quantize(student: OnnxModel, mixer: Mixer, folder: Path, progress: Progress) -> QuantizedModels:
    """Every candidate of the mixer's settings, written into `folder` with its certificate beside it; refused is here
    what this graph cannot be, and what is not smaller than float32.

    Raises QuantizationError for an override that names nothing in the graph, or that cannot be, and where more examples
    than permitted cannot be calibrated on.
    """
    models: list[OnnxModel] = []
    refused: list[RefusedModel] = []
    settings = mixer.settings
    if settings.overrides:  # asked for by name, not tried
        alone = folder / "overrides.onnx"
        mixer.write(assign(mixer.sites, "float32", settings.overrides), alone)
        alone.unlink()
    for precision in settings.precisions:
        name = f"{student.name}-{_short(precision, settings)}"
        chosen = assign(mixer.sites, precision, settings.overrides)
        if all(one == "float32" for one in chosen.values()):
            refused.append(RefusedModel(name, inapplicable(precision, mixer.source, mixer.sites)))
            continue
        progress.log(f"  {name}: {precision}")
        path = folder / f"{name}.onnx"
        for line in mixer.start(chosen).said:
            progress.log(f"    {line}")
        try:
            certificate = mixer.ship(chosen, path)
        except QuantizationError as error:
            path.unlink(missing_ok=True)
            refused.append(RefusedModel(name, str(error).removeprefix(f"{path}: ")))
            continue
        for processor, holds in summary(certificate).items():
            progress.log(f"    integer products on {processor}: {holds}")
        model = describe_onnx(path, name, precision, student.parameters)
        if model.bytes >= student.bytes:
            refused.append(RefusedModel(name, f"larger than float32: {model.bytes:,} bytes against {student.bytes:,}"))
        else:
            models.append(model)
    return QuantizedModels(tuple(models), tuple(refused))


def _short(precision: Precision, settings: Quantization) -> str:
    return "int8" if precision in ("dynamic-int8", "static-int8") and precision == settings.precisions[0] else precision
