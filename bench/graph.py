"""What do the rewrites of an exported encoder gain, beside a traced graph that onnxruntime's own optimizer fused?

An encoder of MiniLM's size (random weights) with mean pooling, at batch 1 and 16 tokens, three ways: `exported` by
torch.export; `rewritten` from that, as a run of `compressor compress` ships it; `fused`, traced by torch's older
exporter and fused by onnxruntime.transformers. Each in float32 and, by this program's quantizer, in dynamic int8,
static int8, and with weights in blocks of eight and of four bits; of the fused graph onnxruntime makes dynamic int8
alone. First all must answer alike. Then the ways of a precision take turns in the harness of `compressor bench`;
`speedup` is over the first of them. The last rows apply the rewrites one after the other; their `speedup` is over what
was exported.

Nodes are those of the file without constants, and those that onnxruntime runs after its own optimizations, by its
profile. An inference reads every weight once, and of an embedding table one row a token: `read_mb`. `gb_per_s` is that
over the median time; `of_triad` the share of what one thread streams from memory (a triad on 192 MB). Weights that fit
the processor's cache are read faster than that, so it may be above 1.

What a node costs beside its work is the slope, between 50 and 450 nodes, of chains that negate one number.
`overhead_share` is that times the nodes that run, over the median time: an estimate.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.transformers import optimizer
from torch import nn
from transformers import BertConfig, BertModel

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.benchmark import BenchmarkSettings, Candidate, RunFound, measure
from compressor.errors import BenchmarkError
from compressor.export import export_onnx, rewrite_onnx
from compressor.export.rewrite import apply
from compressor.export.rewrites import REWRITES
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session
from compressor.preprocess import Feed
from compressor.progress import SILENT, without_chatter
from compressor.quantize import Mixer, quantize
from compressor.recipe_quantize import Quantization
from compressor.tasks.sentence_embedding import SentenceEncoder
from compressor.teachers.sentence import SentenceHead

TOKENS = 16
WAYS = {
    "float32": ("fused", "exported", "rewritten"),
    "dynamic-int8": ("fused", "exported", "rewritten"),
    "static-int8": ("exported", "rewritten"),
    "weight-int8": ("exported", "rewritten"),
    "weight-int4": ("exported", "rewritten"),
}
LEAST_COSINE = {"float32": 1 - 1e-5, "dynamic-int8": 0.98, "static-int8": 0.98, "weight-int8": 0.98, "weight-int4": 0.9}
_TABLES = ("Gather", "GatherBlockQuantized", "EmbedLayerNormalization", "QEmbedLayerNormalization")


@dataclass(frozen=True)
class Sizes:
    layers: int
    vocabulary: int
    budget_s: float


FULL, QUICK = Sizes(6, 30522, 40.0), Sizes(1, 2000, 4.0)


def run(quick: bool) -> dict[str, Any]:
    """Bars: no more nodes than the first of the ways, in the file and at run time; not slower: in each precision."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = _models(sizes, folder)
        _require_equal(models, sizes)
        node_us, triad = _node_us(folder, sizes), _triad_gb_per_s()
        rows: list[dict[str, Any]] = []
        bars: dict[str, Any] = {}
        for precision, ways in WAYS.items():
            found = _timed({way: models[way, precision].path for way in ways}, sizes, profile=True)
            timed = [_row(models[way, precision], way, found, node_us, triad) for way in ways]
            rows += timed
            bars |= _bars(precision, timed[0], timed[-1])
        for precision in ("float32", "dynamic-int8"):
            rows += _steps(models["exported", "float32"], precision, sizes, folder)
    return {"rows": rows, "bars": bars, "node_overhead_us": node_us, "triad_gb_per_s": triad}


def _models(sizes: Sizes, folder: Path) -> dict[tuple[str, str], OnnxModel]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=384,
        num_hidden_layers=sizes.layers,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    module = SentenceEncoder(BertModel(config), SentenceHead()).eval()
    inputs = [TensorSpec(name, "int64", ("batch", "sequence")) for name in _feed(1, 1, sizes)]
    outputs = [TensorSpec("sentence_embedding", "float32", ("batch", 384))]
    feeds = [_feed(batch, tokens, sizes) for batch, tokens in ((1, 1), (2, 7), (3, TOKENS))]
    exported = export_onnx(module, "exported", inputs, outputs, feeds, 20, folder / "exported.onnx")
    (folder / "rewritten").mkdir()
    whole = {
        "exported": exported,
        "rewritten": rewrite_onnx(exported, feeds, folder / "rewritten"),
        "fused": _fused(module, feeds[-1], folder),
    }
    found = {}
    for way, model in whole.items():
        found[way, "float32"] = model
        precisions = [precision for precision, ways in WAYS.items() if way in ways and precision != "float32"]
        found |= {(way, one.precision): one for one in _int8(model, precisions, way, sizes, folder)}
    return found


def _fused(module: nn.Module, feed: Feed, folder: Path) -> OnnxModel:
    traced, path = folder / "traced.onnx", folder / "fused.onnx"
    module.get_submodule("encoder").set_attn_implementation("eager")  # type: ignore[operator]
    with without_chatter(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(array) for array in feed.values()),
            str(traced),
            dynamo=False,
            input_names=list(feed),
            output_names=["sentence_embedding"],
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in feed},
            opset_version=17,
        )
        optimizer.optimize_model(str(traced), "bert", 12, 384, opt_level=0).save_model_to_file(str(path))
    return describe_onnx(path, "fused", "float32")


class _Rows:
    """Examples are rows of tokens."""

    def encode(self, inputs: Any) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Any) -> Feed:
        ids = np.stack(examples)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _int8(model: OnnxModel, precisions: list[str], way: str, sizes: Sizes, folder: Path) -> list[OnnxModel]:
    settings = Quantization.model_validate({"precisions": precisions, "calibration_samples": 16})
    rows = list(np.random.default_rng(1).integers(1000, sizes.vocabulary, (16, TOKENS)))
    target = folder / f"int8-{way}"
    target.mkdir()
    mixer = Mixer.of(model, rows, _Rows(), settings)
    return list(quantize(replace(model, name=way), mixer, target, SILENT).models)


def _feed(batch: int, tokens: int, sizes: Sizes) -> Feed:
    ids = np.random.default_rng(tokens).integers(1000, sizes.vocabulary, (batch, tokens))
    mask = np.ones_like(ids)
    mask[1:, -(tokens // 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _require_equal(models: Mapping[tuple[str, str], OnnxModel], sizes: Sizes) -> None:
    feeds = [_feed(batch, tokens, sizes) for batch, tokens in ((1, TOKENS), (3, 9))]
    answers = {key: [_answer(model, feed) for feed in feeds] for key, model in models.items()}
    for (way, precision), given in answers.items():
        for got, expected in zip(given, answers["exported", "float32"], strict=True):
            least = float((got * expected).sum(axis=1).min())
            if not least >= LEAST_COSINE[precision]:
                raise BenchmarkError(f"{way} in {precision} must answer as exported, got a cosine of {least:.6f}")


def _answer(model: OnnxModel, feed: Feed) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = open_session(model.path).run(None, feed)[0]
    return answer


def _timed(paths: Mapping[str, Path], sizes: Sizes, *, profile: bool = False) -> RunFound:
    feed = _feed(1, TOKENS, sizes)
    candidates = [Candidate(name, path, (feed,)) for name, path in paths.items()]
    return measure(candidates, BenchmarkSettings(budget_s=sizes.budget_s, profile=profile), SILENT)


def _times(found: RunFound, name: str) -> dict[str, Any]:
    model = next(one for one in found.models if one.name == name)
    against = next((one for one in found.comparisons if one.model == name), None)
    assert model.latency is not None
    assert model.latency.best.p50_ms is not None
    assert found.validity is not None
    return {
        "p50_ms": model.latency.best.p50_ms.value,
        "speedup": against.speedup.value if against else 1.0,
        "speedup_low": against.speedup.low if against else 1.0,
        "speedup_high": against.speedup.high if against else 1.0,
        "valid": found.validity.valid,
    }


def _row(model: OnnxModel, way: str, found: RunFound, node_us: float, triad: float) -> dict[str, Any]:
    timed = next(one for one in found.models if one.name == way)
    assert timed.profile is not None
    running = sum(operator.nodes for operator in timed.profile)
    times, read = _times(found, way), _bytes_read(model.path)
    gb_per_s = read / times["p50_ms"] / 1e6
    return {
        "precision": model.precision,
        "graph": way,
        "nodes": _nodes(model.path),
        "nodes_run": running,
        "mb": model.bytes / 1e6,
        **times,
        "read_mb": read / 1e6,
        "gb_per_s": gb_per_s,
        "of_triad": gb_per_s / triad,
        "overhead_share": running * node_us / 1e3 / times["p50_ms"],
    }


def _bars(precision: str, first: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    bars: dict[str, Any] = {
        f"{name}_{precision}": {"value": ours[name], "bar": first[name], "holds": ours[name] <= first[name]}
        for name in ("nodes", "nodes_run")
    }
    high = ours["speedup_high"]
    bars[f"speed_over_{first['graph']}_{precision}"] = {
        "value": ours["speedup"],
        "bar": 1.0,
        "holds": ours["speedup"] >= 1 or (high is not None and high >= 1),
    }
    return bars


def _nodes(path: Path) -> int:
    return sum(node.op_type != "Constant" for node in onnx.load(path).graph.node)


def _bytes_read(path: Path) -> int:
    graph = onnx.load(path).graph
    tables = {name for node in graph.node if node.op_type in _TABLES for name in node.input}
    # onnxruntime looks up the integers, and dequantizes the rows.
    tables |= {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] in tables}
    total = 0
    for tensor in graph.initializer:
        looked_up = tensor.name in tables and len(tensor.dims) == 2 and tensor.dims[0] > TOKENS
        total += tensor.ByteSize() * TOKENS // tensor.dims[0] if looked_up else tensor.ByteSize()
    return total


def _steps(exported: OnnxModel, precision: str, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """The rewrites one after the other, each on what the ones before it left."""
    target = folder / f"steps-{precision}"
    target.mkdir()
    model, paths = ir.serde.deserialize_model(onnx.load(exported.path)), {"exported": exported.path}
    for number, one in enumerate(REWRITES, 1):
        if apply(model, one):
            paths[f"{number} {one.name}"] = target / f"step-{number}.onnx"
            onnx.save(ir.serde.serialize_model(model), paths[f"{number} {one.name}"])
    if precision != "float32":
        for name, path in paths.items():
            step = replace(exported, path=path)
            (paths[name],) = (int8.path for int8 in _int8(step, [precision], f"{precision}-{path.stem}", sizes, folder))
    found = _timed(paths, sizes)
    return [
        {
            "precision": precision,
            "graph": name,
            "nodes": _nodes(path),
            "mb": path.stat().st_size / 1e6,
            **_times(found, name),
        }
        for name, path in paths.items()
    ]


def _node_us(folder: Path, sizes: Sizes) -> float:
    lengths = (50, 450)
    found = _timed_chains([_chain(length, folder) for length in lengths], sizes)
    short, long = (_times(found, f"chain-{length}")["p50_ms"] for length in lengths)
    return float(long - short) * 1e3 / (lengths[1] - lengths[0])


def _chain(length: int, folder: Path) -> Path:
    nodes = [helper.make_node("Neg", [f"x{i}"], [f"x{i + 1}"]) for i in range(length)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x0", f"x{length}")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    path = folder / f"chain-{length}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _timed_chains(paths: list[Path], sizes: Sizes) -> RunFound:
    # Without onnxruntime's optimizations, which would fold the chain.
    settings = BenchmarkSettings(budget_s=sizes.budget_s / 4, optimization="none")
    return measure([Candidate(path.stem, path) for path in paths], settings, SILENT)


def _triad_gb_per_s() -> float:
    """The best of ten: a = b + 2 c, 64 MB each, by one thread."""
    torch.set_num_threads(1)
    a, b, c = (torch.ones(16_000_000) for _ in range(3))
    spent = []
    for _ in range(10):
        started = time.perf_counter()
        torch.add(b, c, alpha=2.0, out=a)
        spent.append(time.perf_counter() - started)
    return 3 * a.numel() * 4 / min(spent) / 1e9
