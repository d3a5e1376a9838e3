"""What runs whose teacher is behind an endpoint have in common."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import Reply, completion
from made_inputs import Inputs
from ruamel.yaml import YAML
from transformers import BertConfig, BertForSequenceClassification

KEY = "sk-planted-0123456789"
_SPORT = ("goal", "match", "team", "referee")


def write_recipe(inputs: Inputs, out: Path, teacher: dict[str, Any]) -> Path:
    """The recipe of other inputs with another teacher."""
    values = YAML(typ="safe").load(inputs.write_recipe(out))
    values["teacher"] = teacher
    path = out.with_name("black-box.yaml")
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return path


def keywords(body: dict[str, Any]) -> Reply:
    """What a good classifier behind an endpoint would say, with log-probabilities."""
    text = body["messages"][-1]["content"].rpartition("Text: ")[2]
    sport = any(word in text.split() for word in _SPORT)
    said, other = ("sport", "food") if sport else ("food", "sport")
    reply = completion(said, [[(said, math.log(0.97)), (other, math.log(0.02))]])
    return replace(reply, delay_s=0.002)


@pytest.fixture(scope="session")
def small_classifier(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that exists already and knows nothing yet."""
    teacher, folder = inputs["text-classification"].folder / "teacher", tmp_path_factory.mktemp("small")
    torch.manual_seed(9)
    config = BertConfig.from_pretrained(teacher, num_hidden_layers=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((teacher / "tokenizer.json").read_bytes())
    return folder


def endpoint_recipe(inputs: Inputs, out: Path, url: str, student: Path) -> Path:
    """Of a classifier behind an endpoint, for a student in a folder."""
    path = write_recipe(
        inputs,
        out,
        {
            "endpoint": url,
            "model": "big",
            "classes": ["sport", "food"],
            "top_logprobs": 2,
            "permission": "written-permission",
            "reference": "letter",
            "terms": "https://host/terms",
        },
    )
    values = YAML(typ="safe").load(path)
    values["student"] = {"folder": str(student), "max_length": 24}
    values["distill"] |= {"epochs": 8, "learning_rate": 5e-3, "temperature": 1.0, "control": False}
    values["cache"] = str(out.with_name("shared"))
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return path
