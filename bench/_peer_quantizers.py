"""A quantizer of `bench quantization`, run by the Python of its own virtual environment:

    python _peer_quantizers.py PEER WAY MODEL CALIBRATION OUT

PEER and WAY are names in WAYS. CALIBRATION is an .npz with an array for each input of each example, `NUMBER/INPUT`.
Writes the quantized model to OUT, whose folder is scratch. This file needs numpy and that one peer, nothing of this
program.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]
Way = Callable[[Path, list[Feed], Path], None]


def _onnxruntime(model: Path, folder: Path) -> Path:
    """The model as onnxruntime's guide prepares it, but for the step that fails on exported encoders."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    return prepared


def _onnxruntime_dynamic(model: Path, _: list[Feed], out: Path, *, per_channel: bool) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_onnxruntime(model, out.parent), out, per_channel=per_channel)


def _onnxruntime_static(model: Path, feeds: list[Feed], out: Path, *, method: str, per_channel: bool) -> None:
    from onnxruntime.quantization import CalibrationMethod, quantize_static

    quantize_static(
        _onnxruntime(model, out.parent),
        out,
        _reader(feeds),
        per_channel=per_channel,
        calibrate_method=CalibrationMethod[method],
    )


def _optimum(model: Path, feeds: list[Feed], out: Path, *, static: bool) -> None:
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=static)
    ranges = None
    if static:
        # As ORTQuantizer.fit, which takes a data set of equally long rows alone.
        calibration = CalibrationConfig("", "", "", len(feeds), CalibrationMethod.MinMax)
        augmented = str(out.parent / "augmented.onnx")
        calibrator = calibration.create_calibrator(model, config.operators_to_quantize, augmented_model_name=augmented)
        calibrator.collect_data(_reader(feeds))
        ranges = calibrator.compute_data()
    ORTQuantizer(model).quantize(config, out.parent, file_suffix="", calibration_tensors_range=ranges)
    (out.parent / model.name).rename(out)


def _olive(model: Path, feeds: list[Feed], out: Path, *, kind: str, **settings: object) -> None:
    """`kind` is dynamic, static or rtn."""
    import torch
    from olive.data.component.dataset import BaseDataset
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxDynamicQuantization, OnnxStaticQuantization
    from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization

    @Registry.register_dataset()  # type: ignore[untyped-decorator]
    def examples(**_: object) -> Any:
        return BaseDataset([{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds])

    kinds = {"dynamic": OnnxDynamicQuantization, "static": OnnxStaticQuantization, "rtn": OnnxBlockWiseRtnQuantization}
    if kind == "static":
        settings["data_config"] = DataConfig(
            name="calibration",
            load_dataset_config=DataComponentConfig(type="examples"),
            dataloader_config=DataComponentConfig(type="no_auto_batch_dataloader"),
        )
    made = create_pass_from_dict(kinds[kind], settings, disable_search=True).run(
        ONNXModelHandler(str(model)), str(out.parent / "olive")
    )
    Path(made.model_path).rename(out)


def _nncf(model: Path, feeds: list[Feed], out: Path, *, preset: str, smooth: bool = True) -> None:
    import nncf
    import onnx

    network = onnx.load(model)
    transformer = any(node.op_type == "Softmax" for node in network.graph.node)
    # SmoothQuant, which it does by itself to transformers, fails where a weight is shared and transposed.
    unsmoothed = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    )
    quantized = nncf.quantize(
        network,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        preset=nncf.QuantizationPreset[preset],
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        advanced_parameters=None if smooth else unsmoothed,
    )
    onnx.save(quantized, out)


def _reader(feeds: list[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    return Reader()


# Each peer's own defaults, beside what its guides say to try.
WAYS: dict[str, dict[str, Way]] = {
    "onnxruntime": {
        "dynamic": partial(_onnxruntime_dynamic, per_channel=False),
        "dynamic per-channel": partial(_onnxruntime_dynamic, per_channel=True),
        "static": partial(_onnxruntime_static, method="MinMax", per_channel=False),
        "static per-channel": partial(_onnxruntime_static, method="MinMax", per_channel=True),
        "static per-channel entropy": partial(_onnxruntime_static, method="Entropy", per_channel=True),
        "static per-channel percentile": partial(_onnxruntime_static, method="Percentile", per_channel=True),
    },
    "optimum-onnx": {
        "avx512_vnni dynamic": partial(_optimum, static=False),
        "avx512_vnni static": partial(_optimum, static=True),
    },
    "olive": {
        "dynamic": partial(_olive, kind="dynamic"),
        "static": partial(_olive, kind="static"),
        "static per-channel": partial(_olive, kind="static", per_channel=True),
        "rtn int4": partial(_olive, kind="rtn"),
    },
    "nncf": {
        "performance": partial(_nncf, preset="PERFORMANCE"),
        "mixed": partial(_nncf, preset="MIXED"),
        "mixed, no SmoothQuant": partial(_nncf, preset="MIXED", smooth=False),
    },
}


def main(peer: str, way: str, model: str, calibration: str, out: str) -> None:
    with np.load(calibration) as archive:
        feeds: dict[int, Feed] = {}
        for name in archive.files:
            number, _, value = name.partition("/")
            feeds.setdefault(int(number), {})[value] = archive[name]
    WAYS[peer][way](Path(model), [feeds[number] for number in sorted(feeds)], Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
