"""Where two models part: the first tensor that is another, found by running both with every tensor as an output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.onnx_file import with_outputs
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed

Same = Callable[[NDArray[Any], NDArray[Any]], bool]


def first_node(model: Path, reference: Path, feed: Feed, same: Same) -> str | None:
    """The first node of `model`, in its order, that gives another value than the tensor of that name in `reference`.

    None where every tensor that both know by name is the same. Raises BundleError where onnxruntime does not run one.
    """
    expected = _tensors(reference, feed)
    got = _tensors(model, feed)
    for node in onnx.load(model, load_external_data=False).graph.node:
        for name in node.output:
            if name in got and name in expected and not _alike(got[name], expected[name], same):
                return f"{node.op_type} {node.name or name}"
    return None


def first_module(module: nn.Module, model: Path, feed: Feed, same: Same) -> str | None:
    """In the order in which the modules within `module` end, the one after the last whose output is a tensor of the
    graph, whatever its shape there: rewrites may have merged some before it, and the outputs of those are nowhere.

    None where the last one's is. Raises BundleError where onnxruntime does not run the graph.
    """
    outputs: list[tuple[str, NDArray[Any]]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.is_floating_point():
                outputs.append((name, first.detach().float().numpy().copy()))

        return hook

    hooks = [one.register_forward_hook(keep(name)) for name, one in module.named_modules() if name]
    try:
        with torch.inference_mode():
            module(**{name: torch.from_numpy(array) for name, array in feed.items()})
    finally:
        for hook in hooks:
            hook.remove()
    by_size: dict[int, list[NDArray[Any]]] = {}
    for tensor in _tensors(model, feed).values():
        by_size.setdefault(tensor.size, []).append(tensor.ravel())
    departs_at = None
    for name, output in reversed(outputs):
        if any(_alike(tensor, output.ravel(), same) for tensor in by_size.get(output.size, [])):
            break
        departs_at = name
    return departs_at


def _tensors(path: Path, feed: Feed) -> dict[str, NDArray[Any]]:
    """Every float tensor that the graph computes, as it stands there."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    session = open_session(with_outputs(model, names).SerializeToString(), optimized=False)
    found = zip(names, run_one(session, feed), strict=True)
    return {name: value for name, value in found if isinstance(value, np.ndarray) and value.dtype == np.float32}


def _alike(got: NDArray[Any], expected: NDArray[Any], same: Same) -> bool:
    return got.shape == expected.shape and same(got, expected)
