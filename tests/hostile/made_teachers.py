"""Teachers whose config.json describes another model than their weights are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

Make = Callable[[Path], Path]


def honest_bert(folder: Path) -> Path:
    """A classifier of one layer; its config.json."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder / "config.json"


def _says(text: str) -> Make:
    """With other settings, as JSON."""

    def make(folder: Path) -> Path:
        path = honest_bert(folder)
        said: dict[str, Any] = json.loads(path.read_text())
        path.write_text(json.dumps({**said, **json.loads(text)}))
        return path

    return make


LARGER: dict[str, Make] = {
    "200,000 layers": _says('{"num_hidden_layers": 200000}'),
    "2,000,000,000 layers": _says('{"num_hidden_layers": 2000000000}'),
    "infinite layers": _says('{"num_hidden_layers": Infinity}'),
    "a billion classes": _says('{"num_labels": 1000000000}'),
    "8,192 wide": _says('{"hidden_size": 8192}'),
    "20,000,000 words": _says('{"vocab_size": 20000000}'),
    "10,000,000 wide inside": _says('{"intermediate_size": 10000000}'),
    "100,000,000 positions": _says('{"max_position_embeddings": 100000000}'),
}
DAMAGED: dict[str, Make] = {
    "no heads": _says('{"num_attention_heads": 0}'),
    "a width that is a text": _says('{"hidden_size": "a"}'),
    "a width of 400 digits": _says('{"hidden_size": 1%s}' % ("0" * 400)),
    "a negative width": _says('{"hidden_size": -16}'),
}
