"""Which layers of a quantized model err: of each the noise that it adds itself, and the model with it alone in float32.

Either way the layer's float32 twin is put into the quantized graph, where it reads what the layer reads there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import helper, numpy_helper

from compressor.metrics import snr_db
from compressor.onnx_file import MOST_BYTES, with_outputs
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import Feed
from compressor.quantize.products import Graph
from compressor.quantize.rescaled import PLAIN, Scales, scales_of
from compressor.quantize.sites import Site, turned_weights

_TWIN = "float32/"


@dataclass(frozen=True)
class Noise:
    """How far a site's output is above the noise that the site adds, over all feeds."""

    site: Site
    snr_db: float


def noises(
    source: onnx.ModelProto, quantized: onnx.ModelProto, sites: Iterable[Site], feeds: Sequence[Feed]
) -> tuple[Noise, ...]:
    """Of every site that adds noise, the noisiest first: 10 log10(Σ y² / Σ (y' - y)²), y' what the quantized graph
    computes there and y what float32 makes of the same input.

    Where scales were moved between layers before the graph was quantized, float32's weights are scaled alike. Sites
    whose input or output the quantized graph does not know by its name are left out, and those that are `untold`; all
    are, where both graphs together are beyond 2 GiB. Raises BundleError where onnxruntime does not run the graph.
    """
    sites = tuple(sites)
    if source.ByteSize() + quantized.ByteSize() > MOST_BYTES:  # nor does onnxruntime take more as bytes
        return ()
    twins = _Twins(source, quantized)
    left_out = {*untold(source, quantized, sites, twins), *(site.node for site in sites if not twins.adds_noise(site))}
    compared = [site for site in sites if twins.fits(site) and site.node not in left_out]
    energies = [f"{twins.output(site)}/{kind}" for site in compared for kind in ("noise", "signal")]
    model = with_outputs(quantized, energies)
    for site in compared:
        output = twins.output(site)
        twins.put(site, model.graph, len(model.graph.node), f"{_TWIN}{output}")
        model.graph.node.extend(_energies(output))
    if not compared:
        return ()
    session = open_session(model.SerializeToString())
    sums = np.zeros((len(compared), 2))
    for feed in feeds:
        sums += np.array([float(value.reshape(())) for value in run_one(session, feed)]).reshape(-1, 2)
    found = zip(compared, (snr_db(signal, noise) for noise, signal in sums), strict=True)
    return tuple(sorted((Noise(site, snr) for site, snr in found if snr is not None), key=lambda one: one.snr_db))


def untold(
    source: onnx.ModelProto, quantized: onnx.ModelProto, sites: Sequence[Site], twins: _Twins | None = None
) -> tuple[str, ...]:
    """The nodes of which nothing can be told: others in the quantized graph have weights that were scaled before they
    were rounded, and whether these do cannot be seen.
    """
    twins = twins or _Twins(source, quantized)
    fit = [site for site in sites if twins.fits(site)]
    if not any((scales := twins.scales(site)) is not None and scales.scaled for site in fit):
        return ()
    return tuple(site.node for site in fit if twins.scales(site) is None)


def restored(source: onnx.ModelProto, quantized: onnx.ModelProto, sites: Iterable[Site]) -> onnx.ModelProto:
    """The quantized model with these sites in float32, as far as it knows them."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    twins = _Twins(source, quantized)
    for site in filter(twins.fits, sites):
        output = twins.output(site)
        place, node = next((place, node) for place, node in enumerate(model.graph.node) if output in node.output)
        node.output[list(node.output).index(output)] = f"{_TWIN}replaced/{output}"
        twins.put(site, model.graph, place, output)
    bare = ir.serde.deserialize_model(model)
    passes.RemoveUnusedNodesPass()(bare)
    return ir.serde.serialize_model(bare)


class _Twins:
    """The float32 nodes of `source`, as they can be put into a graph that was made from it."""

    def __init__(self, source: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        self._nodes = {node.name: node for node in source.graph.node}
        self._constants = {tensor.name: tensor for tensor in source.graph.initializer}
        self._turned = turned_weights(source)
        self._turners = {node.output[0]: node for node in source.graph.node if node.output[0] in self._turned}
        graph = quantized.graph
        self._graphs = Graph(source), Graph(quantized)
        self._scales: dict[str, Scales | None] = {}
        self._known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
        self._put: set[str] = set()

    def output(self, site: Site) -> str:
        return str(self._nodes[site.node].output[0])

    def fits(self, site: Site) -> bool:
        """Whether the site's input and output are in the quantized graph."""
        node = self._nodes[site.node]
        read = [name for name in node.input if name and name not in self._constants and name not in self._turned]
        return node.output[0] in self._known and self._known.issuperset(read)

    def scales(self, site: Site) -> Scales | None:
        """Beside the quantized weights; None where they do not tell. Tables, and what shares one, are never scaled."""
        node = self._nodes[site.node]
        if site.operator == "Gather" or node.input[1] in self._turned:
            return PLAIN
        if site.node not in self._scales:
            self._scales[site.node] = scales_of(node, *self._graphs)
        return self._scales[site.node]

    def adds_noise(self, site: Site) -> bool:
        scales = self.scales(site) if self.fits(site) else None
        return scales is None or scales.adds_noise

    def put(self, site: Site, graph: onnx.GraphProto, place: int, output: str) -> None:
        """Inserts the site's node at `place`, with what it needs, its constants under names of their own."""
        twin = onnx.NodeProto()
        twin.CopyFrom(self._nodes[site.node])
        twin.name = f"{_TWIN}{twin.name}"
        twin.output[0] = output
        for position, name in enumerate(twin.input):
            if name in self._turned and self._new(name):
                turner = onnx.NodeProto()
                turner.CopyFrom(self._turners[name])
                turner.name = f"{_TWIN}{turner.name}"
                turner.input[0] = self._constant(graph, turner.input[0])
                turner.output[0] = f"{_TWIN}{name}"
                graph.node.insert(place, turner)
                place += 1
            if name in self._turned:
                twin.input[position] = f"{_TWIN}{name}"
            elif name in self._constants:
                twin.input[position] = self._constant(graph, name)
        self._scale(site, twin, graph)
        graph.node.insert(place, twin)

    def _scale(self, site: Site, twin: onnx.NodeProto, graph: onnx.GraphProto) -> None:
        """Gives the twin weights and a bias of its own, where those in few bits were scaled."""
        scales, node = self.scales(site), self._nodes[site.node]
        if scales is None or not scales.scaled:
            return
        numbers = {1: scales.weights(node, numpy_helper.to_array(self._constants[node.input[1]]))}
        if len(node.input) > 2 and node.input[2] in self._constants:
            numbers[2] = scales.bias(numpy_helper.to_array(self._constants[node.input[2]]))
        for position, array in numbers.items():
            twin.input[position] = f"{_TWIN}scaled/{node.name}/{position}"
            graph.initializer.append(numpy_helper.from_array(array, twin.input[position]))

    def _constant(self, graph: onnx.GraphProto, name: str) -> str:
        if self._new(name):
            graph.initializer.add().CopyFrom(self._constants[name])
            graph.initializer[-1].name = f"{_TWIN}{name}"
        return f"{_TWIN}{name}"

    def _new(self, name: str) -> bool:
        new = name not in self._put
        self._put.add(name)
        return new


def _energies(output: str) -> list[onnx.NodeProto]:
    """Of the noise, and of what float32 computes."""
    return [
        helper.make_node("Sub", [output, f"{_TWIN}{output}"], [f"{output}/difference"]),
        helper.make_node("ReduceSumSquare", [f"{output}/difference"], [f"{output}/noise"]),
        helper.make_node("ReduceSumSquare", [f"{_TWIN}{output}"], [f"{output}/signal"]),
    ]
