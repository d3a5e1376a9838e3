"""Small, seeded, offline material: a WordPiece tokenizer, encoders of a few thousand weights, recipes, tiny models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from made_hub import write_repository
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from compressor.recipe import Recipe
from compressor.recipe_file import recipe_from_values
from compressor.teachers import hub

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "runs", "house", "green", "river", "walk", "##ing", "##ed"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = [chr(c) for c in range(33, 127) if not chr(c).isupper()]


def wordpiece(vocabulary: list[str]) -> Tokenizer:
    """As BERT's: lower case, split at spaces and punctuation, [CLS] text [SEP]."""
    tokenizer = Tokenizer(models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    """Special tokens spread as in a real file (not all at the front), rare words that a trimmed vocabulary drops."""
    rare = [f"rare{i}" for i in range(300)]
    pieces = [f"##{c}" for c in CHARACTERS]
    return ["[PAD]", *rare[:50], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *pieces, *WORDS, *rare[50:]]


@pytest.fixture(scope="session")
def tokenizer_file(vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    wordpiece(vocabulary).save(str(path))
    return path


def tiny_bert_config(vocabulary_size: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


@pytest.fixture(scope="session")
def bert(vocabulary: list[str]) -> BertModel:
    torch.manual_seed(0)
    model = BertModel(tiny_bert_config(len(vocabulary)))
    assert isinstance(model, BertModel)
    return model.eval()


@pytest.fixture
def teacher_folder(bert: BertModel, tokenizer_file: Path, tmp_path: Path) -> Path:
    """The encoder in Hugging Face layout."""
    folder = tmp_path / "teacher"
    bert.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return folder


@pytest.fixture
def put_on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Makes a folder the repository `org/tiny` on the hub, which is offline; returns the cache that it is in."""

    def put(folder: Path) -> Path:
        root = tmp_path / "hub"
        write_repository(folder, root)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        hub._snapshot.cache_clear()
        return root

    return put


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], Path]:
    """Writes rows to a .jsonl file of that name."""
    return lambda name, rows: write_rows(tmp_path / name, rows)


@pytest.fixture
def text_recipe(teacher_folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A sentence-embedding recipe on the tiny teacher; keyword arguments replace or add groups of settings."""

    def make(task: str = "sentence-embedding", **groups: dict[str, Any]) -> Recipe:
        values: dict[str, Any] = {
            "task": task,
            "teacher": {"path": teacher_folder, "permission": "own-model"},
            "data": {"train": tmp_path / "train.jsonl", "eval": tmp_path / "eval.jsonl"},
            "student": {"max_length": 16},
            "distill": {"batch_size": 2},
            "out": tmp_path / "out",
        }
        for name, settings in groups.items():
            values[name] = {**values.get(name, {}), **settings}
        return recipe_from_values(values, "test")

    return make


NETWORK = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

def fails():
    raise RuntimeError("no such luck")

def returns_a_list():
    return [1]

number = 3
"""


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture
def image_recipe(network_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """An image recipe of 4 by 4 pixels, one channel, three classes."""

    def make(**groups: dict[str, Any]) -> Recipe:
        values: dict[str, Any] = {
            "task": "image-classification",
            "teacher": {
                "module": f"{network_file}:make",
                "weights": tmp_path / "weights.safetensors",
                "permission": "own-model",
            },
            "data": {
                "train": tmp_path / "train.npz",
                "eval": tmp_path / "eval.npz",
                "size": [4, 4],
                "classes": ["a", "b", "c"],
            },
            "distill": {"batch_size": 2},
            "out": tmp_path / "out",
        }
        for name, settings in groups.items():
            values[name] = {**values.get(name, {}), **settings}
        return recipe_from_values(values, "test")

    return make


def save_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    weights: dict[str, NDArray[Any]],
) -> Path:
    """An ONNX file of hand-made nodes, checked by the onnx checker."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def embedder_onnx(vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """input_ids, attention_mask -> sentence_embedding [batch, 8]: a Gather, a MatMul, a masked sum. Hand-made."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["tokens", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["sentence_embedding"], axis=-1, p=2),
    ]
    tokens: list[int | str] = ["batch", "sequence"]
    return save_onnx(
        tmp_path_factory.mktemp("onnx") / "student.onnx",
        nodes,
        {"input_ids": (TensorProto.INT64, tokens), "attention_mask": (TensorProto.INT64, tokens)},
        {"sentence_embedding": (TensorProto.FLOAT, ["batch", 8])},
        {
            "table": generator.standard_normal((len(vocabulary), 64)).astype(np.float32),
            "weight": generator.standard_normal((64, 8)).astype(np.float32),
            "last": np.array([2], dtype=np.int64),
            "middle": np.array([1], dtype=np.int64),
        },
    )


@pytest.fixture
def make_cnn(tmp_path: Path) -> Callable[[Callable[..., NDArray[np.float32]]], Path]:
    """image -> a convolution, a mean, a product with a bias; with weights that `draw(*shape)` gives."""

    def make(draw: Callable[..., NDArray[np.float32]]) -> Path:
        nodes = [
            helper.make_node("Conv", ["image", "kernel"], ["features"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["features"], ["active"]),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["out"], transB=1),
        ]
        arrays = {"kernel": draw(64, 16, 3, 3), "weight": draw(10, 64), "bias": draw(10)}
        interface = {"image": (TensorProto.FLOAT, ["batch", 16, 8, 8])}, {"out": (TensorProto.FLOAT, ["batch", 10])}
        return save_onnx(tmp_path / "image.onnx", nodes, *interface, arrays)

    return make


@pytest.fixture
def make_onnx() -> Callable[..., Path]:
    return save_onnx
