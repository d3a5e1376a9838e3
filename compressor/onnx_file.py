"""What an ONNX file says of itself: its interface, its size. Needs the package `onnx`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.errors import CompressorError, first_line
from compressor.intake.onnx_tensor import Tensor as Claim
from compressor.store import write_atomic

# The domain of onnxruntime's own operators, which its builds for CPUs have.
CONTRIB = "com.microsoft"
# The most that protobuf writes into one file.
MOST_BYTES = 2**31 - 1
# The version of the format from which on an initialiser need not be an input.
_CONSTANTS_ARE_NO_INPUTS = 4


def read_onnx(path: Path, error: type[CompressorError]) -> onnx.ModelProto:
    """The model with its external data. Raises `error` for what is none."""
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in tensors_of(model):
            if "length" not in (where := outside(tensor)) and where:  # onnx would take all that follows
                size = Claim(dims=list(tensor.dims), kind=tensor.data_type).bytes
                tensor.external_data.add(key="length", value=str(size))
        onnx.load_external_data_for_model(model, str(path.parent))
        return model
    except (DecodeError, onnx.checker.ValidationError, OSError) as found:
        raise error(f"{path}: expected an ONNX model: {first_line(found)}") from None


def in_one_file(path: Path, whole: Path, error: type[CompressorError]) -> Path:
    """The file itself, or where others beside it hold some of its tensors, `whole`, a copy that has them inside."""
    if not outside_files(path, onnx.load(path, load_external_data=False)):
        return path
    write_atomic(whole, read_onnx(path, error).SerializeToString())
    return whole


def bytes_of(path: Path) -> int:
    """Of the file and of those beside it that hold tensors of the model."""
    bare = onnx.load(path, load_external_data=False)
    return path.stat().st_size + sum(outside_files(path, bare).values())


def outside_files(path: Path, model: onnx.ModelProto) -> dict[str, int]:
    """The files beside `path` that hold tensors of the model, which was loaded without them, and their bytes."""
    names = {where["location"] for tensor in tensors_of(model) if (where := outside(tensor))}
    return {name: (path.parent / name).stat().st_size for name in sorted(names)}


def outside(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where another file holds the tensor: its `location`, and `offset` and `length` as far as told; else nothing."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return {}
    return {entry.key: entry.value for entry in tensor.external_data}


def nodes_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of the bodies that they hold, of If, Loop and Scan."""
    for node in nodes:
        yield node
        for body in bodies_of(node):
            yield from nodes_in(body.node)


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, the bodies that it holds included."""
    yield from node.input
    for body in bodies_of(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from reads(inner)


def reads_of(graph: onnx.GraphProto) -> Counter[str]:
    """How often each value is read: by nodes, in the bodies that they hold, and as an output of the graph."""
    return Counter([*(name for node in graph.node for name in reads(node)), *(value.name for value in graph.output)])


def sort_nodes(model: onnx.ModelProto) -> None:
    """Puts the nodes of the graph into an order in which each stands behind what it, and the bodies that it holds,
    read; one that is in such an order stays as it is."""
    nodes = list(model.graph.node)
    places = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    before = {place: {places[name] for name in reads(node) if name in places} for place, node in enumerate(nodes)}
    if any(place <= max(needed, default=-1) for place, needed in before.items()):
        order = list(TopologicalSorter(before).static_order())
        del model.graph.node[:]
        model.graph.node.extend(nodes[place] for place in order)


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that the model holds: initialisers and attributes, of the graph, of bodies and of functions."""
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes_in(nodes):
            for body in bodies_of(node):
                yield from body.initializer
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def without_constant_inputs(model: onnx.ModelProto) -> None:
    """Takes from the graph's inputs those that are initialisers too, as every weight is up to version 3 of the format:
    they are constants.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _CONSTANTS_ARE_NO_INPUTS)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 where the model uses none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def import_contrib(model: onnx.ModelProto) -> None:
    """Lets the model have onnxruntime's own operators."""
    if all(entry.domain != CONTRIB for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))


def ir_version_of(path: Path) -> int:
    """The version of ONNX's file format that a model is written in."""
    return int(onnx.load(path, load_external_data=False).ir_version)


def with_outputs(model: onnx.ModelProto, outputs: Iterable[str | onnx.ValueInfoProto]) -> onnx.ModelProto:
    """A copy of the model with other outputs; of those that are names alone, onnxruntime finds the type, also where
    onnx does not know the operator.
    """
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.output[:]
    other.graph.output.extend(onnx.ValueInfoProto(name=one) if isinstance(one, str) else one for one in outputs)
    return other


def describe_onnx(path: Path, name: str, precision: str, parameters: int | None = None) -> OnnxModel:
    """What an ONNX file says of itself, its bytes with those of the files that hold tensors of it; `parameters` counts
    its initialisers unless given. Those are constants, also where they are among the graph's inputs.
    """
    model = onnx.load(path, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    return OnnxModel(
        name=name,
        precision=precision,
        path=path,
        bytes=path.stat().st_size + sum(outside_files(path, model).values()),
        parameters=parameters if parameters is not None else sum(_size(i) for i in model.graph.initializer),
        opset=opset_of(model),
        inputs=tuple(_spec(value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_spec(value) for value in model.graph.output),
    )


def _size(tensor: onnx.TensorProto) -> int:
    count = 1
    for dimension in tensor.dims:
        count *= dimension
    return count


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Of what is no tensor, its kind stands for the dtype: sequence, map, optional."""
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        return TensorSpec(value.name, kind.removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))
