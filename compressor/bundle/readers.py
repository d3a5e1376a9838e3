"""What readers in the manner of Hugging Face look for beside a text model: tokenizer_config.json and config.json.

Nothing in them is made up: the first says what tokenizer.json leaves open, the second is the student's own config,
where it has one. Their text depends on what they say alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compressor.tokenizer_file import open_tokenizer

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"

# Where it came from, what wrote it, the type of its weights in torch, and code that is not in the bundle.
_LEFT_OUT = ("_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version")
_SPECIAL = ("bos", "cls", "eos", "mask", "pad", "sep", "unk")


def reader_files(tokenizer: Path, config: Path | None, answer: dict[str, Any]) -> dict[str, bytes]:
    """Names and contents, of a student with this tokenizer.json and config.json and the manifest's `answer`."""
    told = _config(json.loads(config.read_text("utf-8")), answer) if config is not None else {}
    found = {TOKENIZER_CONFIG: _text(_tokenizer_config(open_tokenizer(tokenizer), told, answer))}
    return found | ({CONFIG: _text(told)} if told else {})


def _config(stated: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in stated.items() if name not in _LEFT_OUT}
    if (classes := answer.get("classes")) is not None:
        told["id2label"] = {str(number): name for number, name in enumerate(classes)}
        told["label2id"] = {name: number for number, name in enumerate(classes)}
    if stops := answer.get("stop_ids"):
        told["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    return told


def _tokenizer_config(tokenizer: Tokenizer, config: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    # A reader cuts these out of any text. An id in a config may lead to another token: naming that one would change
    # what the model is given.
    special = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = {kind: _first(config.get(f"{kind}_token_id")) for kind in _SPECIAL}
    if (unknown := getattr(tokenizer.model, "unk_token", None)) is not None:
        ids["unk"] = tokenizer.token_to_id(unknown)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": answer["max_length"],
        "clean_up_tokenization_spaces": False,
        **{f"{kind}_token": special[number] for kind, number in ids.items() if number in special},
    }


def _first(stated: Any) -> Any:
    """The id, or the first of several."""
    return next(iter(stated), None) if isinstance(stated, list) else stated


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
