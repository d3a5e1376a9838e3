"""Rewritten graphs: the same answers from fewer nodes, and only where that is provable."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from made_transformers import FAMILIES, FFN, HEADS, HIDDEN, LAYERS, VOCAB
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers import optimizer
from onnxscript.rewriter import pattern
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.errors import ExportError
from compressor.export import export_onnx, rewrite_onnx
from compressor.export.rewrites import REWRITES, Rewrite
from compressor.onnx_file import describe_onnx
from compressor.preprocess import Feed
from compressor.progress import SILENT
from compressor.quantize import Mixer, quantize
from compressor.recipe_quantize import Quantization
from compressor.tasks.decoder import CausalLanguageModel
from compressor.tasks.sentence_embedding import SentenceEncoder
from compressor.teachers.sentence import SentenceHead
from compressor.xray import by_role, xray

TEXT = [
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch", "sequence")),
]
PIXELS = [TensorSpec("pixel_values", "float32", ("batch", 3, 16, 16))]
SHAPES = ((1, 1), (1, 7), (2, 2), (3, 17))


class Images(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.model(pixel_values=pixel_values).logits,)


def text(batch: int, length: int, holes: str = "none") -> Feed:
    """Random tokens; `holes` of the attention mask: none, right, left, or anywhere but at the first token."""
    generator = np.random.default_rng(batch * 100 + length)
    mask = np.ones((batch, length), np.int64)
    for row in range(batch):
        empty = min(row + 1, length - 1)
        if holes == "right":
            mask[row, length - empty :] = 0
        elif holes == "left":
            mask[row, :empty] = 0
        elif holes == "anywhere":
            mask[row, 1:] = generator.integers(0, 2, length - 1)
    return {"input_ids": generator.integers(3, VOCAB, (batch, length)), "attention_mask": mask}


def images(batch: int) -> Feed:
    return {"pixel_values": np.random.default_rng(batch).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


def embedder(model: PreTrainedModel) -> nn.Module:
    return SentenceEncoder(model, SentenceHead()).eval()


def export_text(model: PreTrainedModel, folder: Path, opset: int = 20) -> OnnxModel:
    outputs = [TensorSpec("sentence_embedding", "float32", ("batch", HIDDEN))]
    feeds = [text(*shape) for shape in SHAPES]
    return export_onnx(embedder(model), "student", TEXT, outputs, feeds, opset, folder / "student.onnx")


@dataclass(frozen=True)
class Case:
    family: str
    module: nn.Module
    feeds: list[Feed]
    exported: OnnxModel
    rewritten: OnnxModel


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "vit"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    model = FAMILIES[request.param].model()
    (folder / "out").mkdir()
    if request.param == "vit":
        feeds, module = [images(batch) for batch in (1, 2, 5)], Images(model).eval()
        outputs = [TensorSpec("class_logits", "float32", ("batch", 5))]
        exported = export_onnx(module, "student", PIXELS, outputs, feeds, 20, folder / "student.onnx")
        return Case("vit", module, feeds, exported, rewrite_onnx(exported, feeds, folder / "out"))
    exported = export_text(model, folder)
    rewritten = rewrite_onnx(exported, [text(*shape) for shape in SHAPES], folder / "out")
    kinds = ("none", "right", "left", "anywhere")
    feeds = [text(*shape, kind) for shape in (*SHAPES, (4, 33)) for kind in kinds]
    return Case(request.param, embedder(model), feeds, exported, rewritten)


def run(model: Path | bytes, feed: Feed) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, feed)
    return outputs


def operators(path: Path) -> Counter[str]:
    """Constants are no work: they are written as nodes or as initializers."""
    return Counter(node.op_type for node in onnx.load(path).graph.node if node.op_type != "Constant")


def test_the_answers_are_those_of_torch(case: Case) -> None:
    assert case.rewritten.open_path is not None
    for path in (case.rewritten.path, case.rewritten.open_path):
        for feed in case.feeds:
            with torch.inference_mode():
                expected = case.module(**{name: torch.from_numpy(array) for name, array in feed.items()})[0].numpy()
            np.testing.assert_allclose(run(path, feed)[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_an_encoder_is_what_onnxruntime_has_operators_for(case: Case) -> None:
    found = operators(case.rewritten.path)
    assert found["Attention"] == found["BiasGelu"] == LAYERS
    assert found["SkipLayerNormalization"] == 2 * LAYERS
    # RoBERTa counts its positions from the first token that is no padding.
    assert found["EmbedLayerNormalization"] == (case.family in ("bert", "distilbert"))
    assert found["MatMul"] == 3 * LAYERS, "query, key and value have none of their own"
    assert not found.keys() & {"Softmax", "Range", "GatherND", "Where", "IsNaN"}


def test_quantizers_find_products_and_tables_in_the_open(case: Case) -> None:
    assert case.rewritten.open_path is not None
    found = operators(case.rewritten.open_path)
    assert not found.keys() & {"Attention", "EmbedLayerNormalization"}
    assert found["MatMul"] == 4 * LAYERS, "one product for query, key and value"
    assert found["Gather"] == (1 if case.family == "vit" else 2)


def test_what_was_done_is_told(case: Case) -> None:
    nodes = [len(onnx.load(case.exported.path).graph.node), *(one.nodes for one in case.rewritten.rewrites)]
    assert nodes == sorted(nodes, reverse=True)
    assert nodes[-1] == len(onnx.load(case.rewritten.path).graph.node)
    assert {one.name: one.times for one in case.rewritten.rewrites}["attention"] == LAYERS


def test_nothing_else_changes(case: Case) -> None:
    assert (case.rewritten.inputs, case.rewritten.outputs) == (case.exported.inputs, case.exported.outputs)
    assert (case.rewritten.opset, case.rewritten.name) == (case.exported.opset, case.exported.name)
    assert case.rewritten.bytes < case.exported.bytes
    content = case.rewritten.path.read_bytes()
    assert b"onnxscript" not in content
    assert b".py" not in content


def trace(case: Case, path: Path) -> None:
    """By torch's older exporter, in the form that onnxruntime's optimizer was written for."""
    case.module.get_submodule("model" if case.family == "vit" else "encoder").set_attn_implementation("eager")
    feed = case.feeds[-1]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is called old, and its tracing uncertain
        torch.onnx.export(
            case.module,
            tuple(torch.from_numpy(array) for array in feed.values()),
            str(path),
            dynamo=False,
            input_names=list(feed),
            output_names=["answer"],
            dynamic_axes={name: {0: "batch"} if case.family == "vit" else {0: "batch", 1: "sequence"} for name in feed},
            opset_version=17,
        )


def test_there_are_no_more_nodes_than_in_a_traced_graph_that_onnxruntime_fused(case: Case, tmp_path: Path) -> None:
    trace(case, tmp_path / "traced.onnx")
    kind = "vit" if case.family == "vit" else "bert"
    fused = optimizer.optimize_model(str(tmp_path / "traced.onnx"), kind, HEADS, HIDDEN, opt_level=0)
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    assert operators(case.rewritten.path).total() <= operators(tmp_path / "fused.onnx").total()


class Rows:
    """Examples are rows of tokens."""

    def encode(self, inputs: Any) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Any) -> Feed:
        return {"input_ids": np.stack(examples), "attention_mask": np.ones((len(examples), len(examples[0])), np.int64)}


def test_int8_leaves_no_weight_in_float32(case: Case, tmp_path: Path) -> None:
    if case.family == "vit":
        pytest.skip("its examples are images")
    settings = Quantization.model_validate({"precisions": ["dynamic-int8", "static-int8"], "calibration_samples": 8})
    rows = list(np.random.default_rng(0).integers(3, VOCAB, (8, 9)))
    mixer = Mixer.of(case.rewritten, rows, Rows(), settings)
    found = quantize(case.rewritten, mixer, tmp_path, SILENT)
    feed = Rows().collate(rows)
    expected = run(case.exported.path, feed)[0]
    for model in found.models:
        large = [t for t in onnx.load(model.path).graph.initializer if np.prod(t.dims) >= HIDDEN * HIDDEN]
        assert {t.data_type for t in large} <= {TensorProto.INT8, TensorProto.UINT8}, model.precision
        assert (run(model.path, feed)[0] * expected).sum(axis=1).min() > 0.98
    dynamic, static = (operators(model.path) for model in found.models)
    # Query, key and value in one, what they become, and two of the feed-forward network: each rounds its input once.
    assert dynamic["MatMulIntegerToFloat"] == 4 * LAYERS
    assert dynamic["MultiHeadAttention"] == static["MultiHeadAttention"] == LAYERS
    assert not static.keys() & {"Attention", "EmbedLayerNormalization", "MatMulInteger", "MatMulIntegerToFloat"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A BERT as it is exported, for tests that change it."""
    return onnx.load(export_text(FAMILIES["bert"].model(), tmp_path_factory.mktemp("bert")).path)


def changed(
    bert: onnx.ModelProto, folder: Path, change: Callable[[onnx.ModelProto], None]
) -> tuple[Counter[str], OnnxModel]:
    """Operators after the rewrites of a changed graph, which must answer as it did before them."""
    model = onnx.ModelProto()
    model.CopyFrom(bert)
    change(model)
    onnx.save(model, folder / "student.onnx")
    (folder / "out").mkdir()
    exported = describe_onnx(folder / "student.onnx", "student", "float32")
    rewritten = rewrite_onnx(exported, [text(*shape) for shape in SHAPES], folder / "out")
    for kind in ("none", "right", "anywhere"):
        feed = text(3, 9, kind)
        np.testing.assert_allclose(run(rewritten.path, feed)[0], run(exported.path, feed)[0], rtol=1e-4, atol=1e-5)
    return operators(rewritten.path), rewritten


def nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def give(model: onnx.ModelProto, node: onnx.NodeProto, place: int, array: NDArray[Any]) -> None:
    """The node alone gets this constant as an input."""
    name = f"{node.output[0]}_given_{place}"
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    node.input[place] = name


def attribute(path: Path, operator: str, name: str) -> list[float]:
    found = [node for node in onnx.load(path).graph.node if node.op_type == operator]
    return [onnx.helper.get_attribute_value(a) for node in found for a in node.attribute if a.name == name]


def test_another_scale_is_kept(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        queries_and_keys = {name for node in nodes(model, "MatMul") for name in node.input}
        for node in nodes(model, "Mul"):
            if node.output[0] in queries_and_keys:
                node.input[1] = "half_scale"
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.9, np.float32), "half_scale"))

    found, rewritten = changed(bert, tmp_path, change)
    assert found["Attention"] == LAYERS
    assert attribute(rewritten.path, "Attention", "scale") == pytest.approx([0.81] * LAYERS)


def test_another_epsilon_is_kept(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in nodes(model, "LayerNormalization"):
            next(a for a in node.attribute if a.name == "epsilon").f = 0.25

    _, rewritten = changed(bert, tmp_path, change)
    for operator, count in (("SkipLayerNormalization", 2 * LAYERS), ("EmbedLayerNormalization", 1)):
        assert attribute(rewritten.path, operator, "epsilon") == [0.25] * count


def test_other_positions_are_kept(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        (cut,) = [n for n in nodes(model, "Slice") if "position_ids" in n.input[0]]
        give(model, cut, 0, np.arange(64)[None, ::-1].copy())

    found, _ = changed(bert, tmp_path, change)
    assert (found["EmbedLayerNormalization"], found["Gather"]) == (0, 2)


def test_segments_that_differ_are_looked_up(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        (picked,) = nodes(model, "GatherElements")
        give(model, picked, 0, np.arange(64)[None] % 2)

    found, _ = changed(bert, tmp_path, change)
    assert found["EmbedLayerNormalization"] == 0
    assert found["Gather"] == 3


def test_a_mask_by_query_is_no_key_mask(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        (compared,) = nodes(model, "GreaterOrEqual")  # query >= 0, which is no condition, becomes query >= 3
        give(model, compared, 1, np.array(3))

    found, _ = changed(bert, tmp_path, change)
    assert (found["Attention"], found["Softmax"]) == (0, LAYERS)
    assert found["SkipLayerNormalization"] == 2 * LAYERS


def test_keys_in_another_order_are_no_key_mask(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        counted = nodes(model, "Range")[-1]  # the keys; from -1 on, so that the last comes first
        give(model, counted, 0, np.array(-1))
        less = onnx.helper.make_node("Sub", [counted.input[1], "one"], ["one_less"])
        model.graph.initializer.append(numpy_helper.from_array(np.array(1), "one"))
        model.graph.node.insert(list(model.graph.node).index(counted), less)
        counted.input[1] = "one_less"

    found, _ = changed(bert, tmp_path, change)
    assert found["Attention"] == 0


def test_what_does_not_close_is_no_mask(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        closing = next(node for node in nodes(model, "Where") if len(node.input) == 3 and "bitwise" in node.input[0])
        give(model, closing, 2, np.array(-1.0, np.float32))

    found, _ = changed(bert, tmp_path, change)
    assert found["Attention"] == 0


def test_a_weight_that_others_read_is_not_copied(bert: onnx.ModelProto, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        """All layers share the first one's query weight."""
        biased = {node.input[0] for node in nodes(model, "Add") if node.input[1].endswith("query.bias")}
        queries = [node for node in nodes(model, "MatMul") if node.output[0] in biased]
        assert len(queries) == LAYERS
        for node in queries[1:]:
            node.input[1] = queries[0].input[1]

    found, rewritten = changed(bert, tmp_path, change)
    assert (found["MultiHeadAttention"], found["Attention"]) == (LAYERS, 0)
    assert rewritten.bytes < len(bert.SerializeToString())


def test_gelu_by_tanh_is_another_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS}
    model = BertModel(BertConfig(**sizes, num_hidden_layers=2, hidden_act="gelu_pytorch_tanh")).eval()
    (tmp_path / "out").mkdir()
    exported = export_text(model, tmp_path)
    found = operators(rewrite_onnx(exported, [text(2, 5)], tmp_path / "out").path)
    assert (found["BiasGelu"], found["Gelu"]) == (0, 2)
    assert found["Attention"] == 2, "new biases are zeros, which the exporter stores once for both layers"


def test_gelu_by_erf_is_the_same_function(tmp_path: Path) -> None:
    """Before operator set 20 there is no Gelu."""
    (tmp_path / "out").mkdir()
    exported = export_text(FAMILIES["bert"].model(), tmp_path, opset=18)
    assert operators(exported.path)["Erf"] == LAYERS
    rewritten = rewrite_onnx(exported, [text(2, 5)], tmp_path / "out")
    assert rewritten.opset == 18
    assert operators(rewritten.path)["BiasGelu"] == LAYERS


def test_a_window_is_no_key_mask(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    exported = export_text(FAMILIES["modernbert"].model(), tmp_path)
    rewritten = rewrite_onnx(exported, [text(*shape) for shape in SHAPES], tmp_path / "out")
    assert operators(rewritten.path)["Attention"] == 0
    assert rewritten.open_path is None, "nothing that hides weights: one file is enough"


def test_a_decoder_stays_causal_and_its_tied_table_is_stored_once(tmp_path: Path) -> None:
    model = FAMILIES["llama"].model()
    past = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    cache = ("batch", 2, "past_sequence", 8)
    inputs = [
        TEXT[0],
        TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
        *[TensorSpec(name, "float32", cache) for name in past],
    ]
    outputs = [
        TensorSpec("logits", "float32", ("batch", "sequence", VOCAB)),
        *[
            TensorSpec(n.replace("past_key_values", "present"), "float32", (*cache[:2], "total_sequence", 8))
            for n in past
        ],
    ]

    def feed(batch: int, length: int, before: int) -> Feed:
        generator = np.random.default_rng(length)
        ids = generator.integers(0, VOCAB, (batch, length))
        values = {name: generator.standard_normal((batch, 2, before, 8)).astype(np.float32) for name in past}
        return {"input_ids": ids, "attention_mask": np.ones((batch, before + length), np.int64)} | values

    feeds = [feed(1, 1, 0), feed(2, 7, 0), feed(1, 1, 5), feed(2, 4, 3)]
    exported = export_onnx(CausalLanguageModel(model), "student", inputs, outputs, feeds, 20, tmp_path / "student.onnx")
    (tmp_path / "out").mkdir()
    rewritten = rewrite_onnx(exported, feeds, tmp_path / "out")
    assert not operators(rewritten.path).keys() & {"Attention", "MultiHeadAttention"}
    for case in feeds:
        for got, expected in zip(run(rewritten.path, case), run(exported.path, case), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    tables = [t for t in onnx.load(rewritten.path).graph.initializer if sorted(t.dims) == [HIDDEN, VOCAB]]
    assert len(tables) == 1
    parts = by_role(xray(rewritten.path))
    assert parts["embedding tables"] == pytest.approx(4 * HIDDEN * VOCAB, rel=0.01)


def wrong_rule() -> pattern.RewriteRuleSet:
    return pattern.RewriteRuleSet(
        [pattern.RewriteRule(lambda op, x, y: op.Softmax(op.Add(x, y)), lambda op, x, y: op.Softmax(op.Sub(x, y)))]
    )


def test_a_rewrite_that_changes_the_answers_is_an_error(
    bert: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(bert, tmp_path / "student.onnx")
    (tmp_path / "out").mkdir()
    exported = describe_onnx(tmp_path / "student.onnx", "student", "float32")
    monkeypatch.setattr("compressor.export.rewrite.REWRITES", (*REWRITES[:1], Rewrite("of the test", wrong_rule())))
    with pytest.raises(ExportError, match="student: the rewrite of the test changes what the graph answers") as raised:
        rewrite_onnx(exported, [text(*shape) for shape in SHAPES], tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "out").iterdir())


def test_ir_round_trip_alone_changes_nothing(bert: onnx.ModelProto) -> None:
    feed = text(3, 9, "right")
    there_and_back = ir.serde.serialize_model(ir.serde.deserialize_model(bert))
    np.testing.assert_array_equal(
        run(there_and_back.SerializeToString(), feed)[0], run(bert.SerializeToString(), feed)[0]
    )
