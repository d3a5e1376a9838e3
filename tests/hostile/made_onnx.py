"""Hostile ONNX files, made where they are needed, and honest ones that resemble them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Make = Callable[[Path], Path]
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
X = helper.make_tensor_value_info("x", FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", FLOAT, ["n", 4])
ANY = helper.make_tensor_value_info("y", FLOAT, None)
SECRET = "secret of the machine"


def number(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[TensorProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (X,),
    output: onnx.ValueInfoProto = Y,
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 20,
    ir: int = 10,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, [output], list(weights))
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=domains, ir_version=ir, functions=functions)
    return made


def product(weight: TensorProto | None = None, **changes: Any) -> onnx.ModelProto:
    """y = x w, the smallest honest model."""
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight or number("w", 4, 4)], **changes)


def saved(folder: Path, made: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


# Weights elsewhere.


def outside_tensor(location: str, name: str = "w", shape: tuple[int, ...] = (4, 4), **said: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=shape, data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **said}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_outside(folder: Path, location: str, **said: str) -> Path:
    return saved(folder, product(outside_tensor(location, **said)))


def weights_file(path: Path, size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.ones(size // 4, np.float32).tobytes())
    return path


def _elsewhere(folder: Path) -> Path:
    """A file that the model's folder does not hold."""
    return weights_file(folder.parent / f"{folder.name}-elsewhere" / "weights.bin")


def absolute(folder: Path) -> Path:
    return with_outside(folder, str(_elsewhere(folder)))


def parent(folder: Path) -> Path:
    return with_outside(folder, f"../{_elsewhere(folder).parent.name}/weights.bin")


def parent_within(folder: Path) -> Path:
    weights_file(folder / "weights.bin")
    (folder / "sub").mkdir()
    return with_outside(folder, "sub/../weights.bin")


def symbolic_link(folder: Path) -> Path:
    (folder / "weights.bin").symlink_to(_elsewhere(folder))
    return with_outside(folder, "weights.bin")


def link_to_folder(folder: Path) -> Path:
    (folder / "sub").symlink_to(_elsewhere(folder).parent)
    return with_outside(folder, "sub/weights.bin")


def hard_link(folder: Path) -> Path:
    os.link(_elsewhere(folder), folder / "weights.bin")
    return with_outside(folder, "weights.bin")


def false_hub_cache(folder: Path) -> Path:
    """Laid out as the hub's cache, but its blobs are another folder of the machine."""
    elsewhere = _elsewhere(folder)
    (folder / "blobs").symlink_to(elsewhere.parent)
    snapshot = folder / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "weights.bin").symlink_to("../../blobs/weights.bin")
    return with_outside(snapshot, "weights.bin")


def beyond_the_end(folder: Path) -> Path:
    weights_file(folder / "weights.bin", 60)
    return with_outside(folder, "weights.bin")


def offset_beyond_the_end(folder: Path) -> Path:
    weights_file(folder / "weights.bin")
    return with_outside(folder, "weights.bin", offset="18446744073709551600", length="64")


def negative_offset(folder: Path) -> Path:
    weights_file(folder / "weights.bin")
    return with_outside(folder, "weights.bin", offset="-64", length="64")


def length_of_less(folder: Path) -> Path:
    weights_file(folder / "weights.bin")
    return with_outside(folder, "weights.bin", offset="0", length="4")


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "weights.bin")
    return with_outside(folder, "weights.bin")


def memory_address(folder: Path) -> Path:
    """The name by which ONNX Runtime means an address of its own process."""
    return with_outside(folder, "*/_ORT_MEM_ADDR_/*", offset="4096", length="64")


def two_locations(folder: Path) -> Path:
    weights_file(folder / "weights.bin")
    tensor = outside_tensor("weights.bin")
    tensor.external_data.add(key="location", value=str(_elsewhere(folder)))
    return saved(folder, product(tensor))


def in_a_constant(folder: Path) -> Path:
    constant = helper.make_node("Constant", [], ["w"], value=outside_tensor(str(_elsewhere(folder))))
    return saved(folder, model([constant, helper.make_node("MatMul", ["x", "w"], ["y"])]))


def in_a_branch(folder: Path) -> Path:
    outside = outside_tensor(str(_elsewhere(folder)), "b", (4,))
    branch = helper.make_graph([helper.make_node("Add", ["x", "b"], ["z"])], "b", [], [_like(Y, "z")], [outside])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return saved(folder, model([choice], [numpy_helper.from_array(np.array(True), "c")]))


def _like(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    other = onnx.ValueInfoProto()
    other.CopyFrom(value)
    other.name = name
    return other


# Claims that the bytes do not bear out.


def _claims(shape: Sequence[int], content: bytes = bytes(64), kind: int = FLOAT) -> Make:
    return lambda folder: saved(folder, product(TensorProto(name="w", dims=shape, data_type=kind, raw_data=content)))


def written_twice(folder: Path) -> Path:
    """Two halves of one tensor: a library puts together what neither half shows."""
    head = TensorProto(name="w", dims=[4, 4], data_type=FLOAT, raw_data=bytes(64))
    tail = outside_tensor("/etc/hostname", "")
    tail.ClearField("dims")
    both = b"".join(b"\x2a" + _length(one) + one for one in (head.SerializeToString(), tail.SerializeToString()))
    constant = onnx.NodeProto(op_type="Constant", output=["w"])
    attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR).SerializeToString() + both
    node = constant.SerializeToString() + b"\x2a" + _length(attribute) + attribute
    plain = model([helper.make_node("MatMul", ["x", "w"], ["y"])])
    graph = b"\x0a" + _length(node) + node + plain.graph.SerializeToString()
    plain.ClearField("graph")
    return saved(folder, plain.SerializeToString() + b"\x3a" + _length(graph) + graph)


def _length(content: bytes) -> bytes:
    return _length_of(len(content))


def _length_of(size: int) -> bytes:
    digits = bytearray()
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([*digits, size])


# Bombs.


def text_of_a_gb(folder: Path) -> Path:
    """A documentation of 1.2 GB in a sparse file."""
    size = 1_200_000_000
    path = saved(folder, product())
    with path.open("ab") as file:
        file.write(b"\x32" + _length_of(size))
        file.truncate(file.tell() + size)
    return path


def empty_strings(folder: Path) -> Path:
    """A tensor of 15 million strings in 30 MB."""
    count = 15_000_000
    tensor = onnx.TensorProto(name="s", data_type=onnx.TensorProto.STRING, dims=[count]).SerializeToString()
    strings = tensor + b"\x32\0" * count
    graph = b"\x2a" + _length_of(len(strings)) + strings
    return saved(folder, b"\x3a" + _length_of(len(graph)) + graph)


def packed_dims(folder: Path) -> Path:
    """A tensor of 100 million dimensions."""
    dims = b"\1" * 100_000_000
    tensor = b"\x0a" + _length_of(len(dims)) + dims
    graph = b"\x2a" + _length_of(len(tensor)) + tensor
    return saved(folder, b"\x3a" + _length_of(len(graph)) + graph)


def constant_of_64_gb(folder: Path) -> Path:
    made = helper.make_node("ConstantOfShape", ["s"], ["y"])
    return saved(folder, model([made], [numpy_helper.from_array(np.array([1 << 34]), "s")], inputs=[], output=ANY))


def expand_to_4_gb(folder: Path) -> Path:
    shape = numpy_helper.from_array(np.array([1 << 14, 1 << 14, 4]), "s")
    return saved(folder, model([helper.make_node("Expand", ["x", "s"], ["y"])], [shape], output=ANY))


def endless_loop(folder: Path) -> Path:
    loop = helper.make_node("Loop", ["", "t", "x"], ["y"], body=looping_body(4))
    return saved(folder, model([loop], [numpy_helper.from_array(np.array(True), "t")]))


def looping_body(width: int) -> onnx.GraphProto:
    """Goes on where it began to."""
    shapes: list[tuple[str, int, list[Any]]] = [
        ("i", INT64, []), ("c", BOOL, []), ("v", FLOAT, ["n", width]), ("c2", BOOL, []), ("v2", FLOAT, ["n", width]),
    ]  # fmt: skip
    values = [helper.make_tensor_value_info(*value) for value in shapes]
    steps = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])]
    return helper.make_graph(steps, "body", values[:3], values[3:])


def deep_branches(folder: Path) -> Path:
    depth = 200
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [_like(Y, "z")])
    content = branch.SerializeToString()
    # By hand: protobuf's own writer refuses to nest so deeply.
    for _ in range(depth):
        arms = b""
        for name in (b"then_branch", b"else_branch"):
            arm = b"\x0a" + _length(name) + name + b"\x32" + _length(content) + content + b"\xa0\x01\x05"
            arms += b"\x2a" + _length(arm) + arm
            content = b"" if name == b"else_branch" else branch.SerializeToString()
        node = b"\x0a\x01c\x12\x01z\x22\x02If" + arms
        content = b"\x0a" + _length(node) + node + b"\x12\x01g" + b"\x62\x03\x0a\x01z"
    shell = product()
    shell.ClearField("graph")
    return saved(folder, shell.SerializeToString() + b"\x3a" + _length(content) + content)


def deep_type(folder: Path) -> Path:
    kind = helper.make_tensor_type_proto(FLOAT, [1]).SerializeToString()
    for _ in range(300):
        element = b"\x0a" + _length(kind) + kind
        kind = b"\x22" + _length(element) + element
    value = b"\x0a\x01x\x12" + _length(kind) + kind
    graph = b"\x5a" + _length(value) + value
    shell = product()
    graph += shell.graph.SerializeToString()
    shell.ClearField("graph")
    return saved(folder, shell.SerializeToString() + b"\x3a" + _length(graph) + graph)


def many_nodes(folder: Path) -> Path:
    graph = b"\x0a\x00" * 3_000_000
    return saved(folder, b"\x08\x0a\x3a" + _length(graph) + graph)


def doubling_functions(folder: Path) -> Path:
    """Each calls the next one twice: 2^24 nodes when they are written out."""
    depth = 24
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function("own", f"F{depth}", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], opsets)
    ]
    for i in range(depth):
        twice = [helper.make_node(f"F{i + 1}", [a], [b], domain="own") for a, b in (("a", "m"), ("m", "b"))]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], twice, opsets))
    return saved(folder, model([helper.make_node("F0", ["x"], ["y"], domain="own")], functions=functions))


def function_of_itself(folder: Path) -> Path:
    again = [helper.make_node("F", ["a"], ["b"], domain="own")]
    function = helper.make_function("own", "F", ["a"], ["b"], again, [helper.make_opsetid("own", 1)])
    return saved(folder, model([helper.make_node("F", ["x"], ["y"], domain="own")], functions=[function]))


def circle(folder: Path) -> Path:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    return saved(folder, model([*nodes, helper.make_node("Neg", ["a"], ["y"])]))


# What onnx's checker passes and ONNX Runtime dies of.


def norm_without_bias(folder: Path) -> Path:
    return saved(folder, model([helper.make_node("LayerNormalization", ["x", "s", ""], ["y"])], [number("s", 4)]))


def attention_without_bias(folder: Path) -> Path:
    sequence = helper.make_tensor_value_info("x", FLOAT, [1, 2, 4])
    node = helper.make_node("Attention", ["x", "w", ""], ["y"], domain="com.microsoft", num_heads=2)
    return saved(folder, model([node], [number("w", 4, 12)], inputs=[sequence], output=_like(sequence, "y")))


def _bytes(content: bytes) -> Make:
    return lambda folder: saved(folder, content)


def cut(part: float) -> Make:
    def make(folder: Path) -> Path:
        content = product().SerializeToString()
        return saved(folder, content[: int(len(content) * part)])

    return make


def no_file(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


HOSTILE: dict[str, Make] = {
    "external: absolute path": absolute,
    "external: ..": parent,
    "external: .. and back": parent_within,
    "external: symbolic link": symbolic_link,
    "external: linked folder": link_to_folder,
    "external: hard link": hard_link,
    "external: false hub cache": false_hub_cache,
    "external: beyond the end": beyond_the_end,
    "external: offset beyond the end": offset_beyond_the_end,
    "external: negative offset": negative_offset,
    "external: length of less": length_of_less,
    "external: FIFO": fifo,
    "external: folder": lambda folder: with_outside(folder, "."),
    "external: no name": lambda folder: with_outside(folder, ""),
    "external: name with NUL": lambda folder: with_outside(folder, "weights.bin\0"),
    "external: memory address": memory_address,
    "external: two places": two_locations,
    "external: in a Constant": in_a_constant,
    "external: in a branch": in_a_branch,
    "empty": _bytes(b""),
    "text": _bytes(b"no model at all\n"),
    "zeros": _bytes(bytes(1000)),
    "folder": no_file,
    "FIFO": pipe,
    "cut after a third": cut(1 / 3),
    "cut in the middle": cut(1 / 2),
    "cut before the end": cut(0.95),
    "dimensions: too few bytes": _claims([4, 5]),
    "dimensions: too many bytes": _claims([4, 3]),
    "dimensions: negative": _claims([-4, -4]),
    "dimensions: one negative": _claims([4, -4]),
    "dimensions: 2^62": _claims([1 << 62, 4]),
    "dimensions: product of 2^64": _claims([1 << 32, 1 << 32], b""),
    "dimensions: very many": _claims([1] * 5000, bytes(4)),
    "type: unknown": _claims([4, 4], kind=99),
    "type: none": _claims([4, 4], kind=0),
    "tensor written twice": written_twice,
    "bomb: 64 GB constant": constant_of_64_gb,
    "bomb: 4 GB Expand": expand_to_4_gb,
    "bomb: a text of 1.2 GB": text_of_a_gb,
    "bomb: 15 million empty strings": empty_strings,
    "bomb: 100 million dimensions": packed_dims,
    "bomb: endless Loop": endless_loop,
    "bomb: branches in branches": deep_branches,
    "bomb: sequences of sequences": deep_type,
    "bomb: three million nodes": many_nodes,
    "bomb: doubling functions": doubling_functions,
    "bomb: function of itself": function_of_itself,
    "circle of nodes": circle,
    "a name that is no text": lambda folder: saved(
        folder, product().SerializeToString().replace(b"\x12\x01n", b"\x12\x01\xb3")
    ),
    "version: opset 99": lambda folder: saved(folder, product(opset=99)),
    "version: IR 99": lambda folder: saved(folder, product(ir=99)),
    "version: operator of a later opset": lambda folder: saved(
        folder, model([helper.make_node("Gelu", ["x"], ["y"])], opset=13)
    ),
    "crash: LayerNormalization without bias": norm_without_bias,
    "crash: Attention without bias": attention_without_bias,
}


# Honest.


def beside(folder: Path) -> Path:
    weights_file(folder / "model.onnx_data")
    return with_outside(folder, "model.onnx_data", offset="0", length="64")


def below(folder: Path) -> Path:
    weights_file(folder / "weights" / "w.bin")
    return with_outside(folder, "./weights/w.bin")


def hub_cache(folder: Path) -> Path:
    """Links into its own blobs, as huggingface_hub makes them."""
    snapshot = folder / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    weights_file(snapshot.parent.parent / "blobs" / "1234")
    with_outside(snapshot, "model.onnx_data").rename(snapshot.parent.parent / "blobs" / "5678")
    for name, blob in (("model.onnx", "5678"), ("model.onnx_data", "1234")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot / "model.onnx"


def every_type(folder: Path) -> Path:
    """A weight of each type, as bytes and, where onnx writes such, as numbers."""
    tensors = []
    for kind in set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}:
        name = TensorProto.DataType.Name(kind)
        values = [1.0] * 5
        tensors += [helper.make_tensor(f"numbers {name}", kind, [5], values)]
        raw = numpy_helper.from_array(numpy_helper.to_array(tensors[-1]), f"bytes {name}")
        assert raw.raw_data
        tensors.append(raw)
    tensors.append(helper.make_tensor("texts", TensorProto.STRING, [2], [b"a", b"b"]))
    tensors.append(number("none", 0, 4))
    tensors.append(number("scalar"))
    return saved(folder, model([helper.make_node("Neg", ["x"], ["y"])], tensors, ir=13))


def short_loop(folder: Path) -> Path:
    path = endless_loop(folder)
    made = onnx.load(path)
    made.graph.initializer.append(numpy_helper.from_array(np.array(3), "times"))
    made.graph.node[0].input[0] = "times"
    return saved(folder, made)


def called_twice(folder: Path) -> Path:
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    nodes = [helper.make_node("F", [a], [b], domain="own") for a, b in (("x", "m"), ("m", "y"))]
    return saved(folder, model(nodes, functions=[function]))


HONEST: dict[str, Make] = {
    "product": lambda folder: saved(folder, product()),
    "weights beside it": beside,
    "weights below it": below,
    "hub cache": hub_cache,
    "Loop that ends": short_loop,
    "functions": called_twice,
}
