"""What readers in the manner of Hugging Face look for beside a text model: config.json and tokenizer_config.json.

Nothing in them is made up: the first is the student's own config, the second says of its tokenizer.json what that file
leaves open. Their text depends on what they say alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"

# Where it came from, what wrote it, the type of its weights in torch, and code that is not in the bundle.
_LEFT_OUT = ("_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version")
_SPECIAL = ("bos", "cls", "eos", "mask", "pad", "sep", "unk")


def reader_files(config: Path, tokenizer: Path, answer: dict[str, Any]) -> dict[str, bytes]:
    """Names and contents, of a student with this config.json and tokenizer.json and the manifest's `answer`."""
    stated: dict[str, Any] = json.loads(config.read_text("utf-8"))
    told = {name: value for name, value in stated.items() if name not in _LEFT_OUT}
    if (classes := answer.get("classes")) is not None:
        told["id2label"] = {str(number): name for number, name in enumerate(classes)}
        told["label2id"] = {name: number for number, name in enumerate(classes)}
    if stops := answer.get("stop_ids"):
        told["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    return {CONFIG: _text(told), TOKENIZER_CONFIG: _text(_tokenizer_config(told, tokenizer, answer["max_length"]))}


def _tokenizer_config(config: dict[str, Any], tokenizer: Path, max_length: int) -> dict[str, Any]:
    read = Tokenizer.from_file(str(tokenizer))
    special = {f"{kind}_token": _token(read, config.get(f"{kind}_token_id")) for kind in _SPECIAL}
    special["unk_token"] = special["unk_token"] or getattr(read.model, "unk_token", None)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in special.items() if token is not None},
    }


def _token(tokenizer: Tokenizer, stated: object) -> str | None:
    """The token that a config means by an id, or first means by several."""
    first = stated[0] if isinstance(stated, list) and stated else stated
    return tokenizer.id_to_token(first) if isinstance(first, int) and first >= 0 else None


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
