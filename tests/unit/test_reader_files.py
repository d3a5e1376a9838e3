"""config.json and tokenizer_config.json of a bundle: transformers reads them, and they say nothing that is not so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from compressor.bundle.readers import reader_files

TEXTS = ["the cat sat", "a dog", "", "[PAD] the [UNK]", "the cat sat on the mat and on the mat and on the mat"]


@pytest.fixture
def tokenizer(tokenizer_file: Path, tmp_path: Path) -> Path:
    made = Tokenizer.from_file(str(tokenizer_file))
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.enable_truncation(8)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def written(folder: Path, tokenizer: Path, config: dict[str, Any] | None, answer: dict[str, Any]) -> dict[str, Any]:
    """What the files say, which then lie beside the tokenizer."""
    stated = folder / "stated.json"
    stated.write_text(json.dumps(config))
    files = reader_files(tokenizer, None if config is None else stated, answer)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: json.loads(content) for name, content in files.items()}


def test_a_config_without_where_it_came_from(tokenizer: Path, tmp_path: Path) -> None:
    config = {
        "_name_or_path": "somewhere/teacher",
        "auto_map": {"AutoModel": "modeling_theirs.TheirModel"},
        "dtype": "float32",
        "hidden_size": 8,
        "label2id": None,
        "model_type": "bert",
        "torch_dtype": "float32",
        "transformers_version": "9.9",
    }
    found = written(tmp_path, tokenizer, config, {"max_length": 8, "classes": ["no", "yes"]})["config.json"]
    assert found == {
        "hidden_size": 8,
        "model_type": "bert",
        "id2label": {"0": "no", "1": "yes"},
        "label2id": {"no": 0, "yes": 1},
    }
    assert AutoConfig.from_pretrained(tmp_path).id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize(("stops", "stated"), [([2], 2), ([2, 5], [2, 5]), ([], 7)])
def test_a_text_ends_where_the_manifest_says(
    stops: list[int], stated: int | list[int], tokenizer: Path, tmp_path: Path
) -> None:
    config = LlamaConfig(num_hidden_layers=2, eos_token_id=7).to_dict()
    found = written(tmp_path, tokenizer, config, {"max_length": 8, "start_id": 2, "stop_ids": stops})
    assert found["config.json"]["eos_token_id"] == stated


def test_transformers_reads_texts_as_the_tokenizer_does(tokenizer: Path, tmp_path: Path) -> None:
    found = written(tmp_path, tokenizer, {"model_type": "bert", "pad_token_id": 0}, {"max_length": 8})
    assert found["tokenizer_config.json"]["pad_token"] == "[PAD]"
    assert found["tokenizer_config.json"]["unk_token"] == "[UNK]"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_file(str(tokenizer))
    assert theirs(TEXTS, truncation=True)["input_ids"] == [encoding.ids for encoding in ours.encode_batch(TEXTS)]
    padded = theirs(TEXTS, truncation=True, padding=True)
    assert sorted(padded) == ["attention_mask", "input_ids"]
    assert padded["input_ids"][1][-1] == 0


def test_an_ordinary_token_is_not_named_as_a_special_one(tmp_path: Path) -> None:
    """What a config names by default, 1 and 2 of Llama, may be any token: named, it would be cut out of every text."""
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "abab": 3, "Ġ": 4}, [("a", "b"), ("ab", "ab")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    found = written(
        tmp_path, tmp_path / "tokenizer.json", LlamaConfig(num_hidden_layers=2).to_dict(), {"max_length": 8}
    )
    assert (found["config.json"]["bos_token_id"], found["config.json"]["eos_token_id"]) == (1, 2)
    assert not [name for name in found["tokenizer_config.json"] if name.endswith("_token")]
    assert AutoTokenizer.from_pretrained(tmp_path)("abab b")["input_ids"] == made.encode("abab b").ids == [3, 4, 1]


def test_a_student_without_a_config_gets_none(tokenizer: Path, tmp_path: Path) -> None:
    assert sorted(written(tmp_path, tokenizer, None, {"max_length": 8})) == ["tokenizer_config.json"]
