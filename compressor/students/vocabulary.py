"""A smaller vocabulary for a WordPiece tokenizer, chosen on the training text, with the tokenizer rewritten."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import StudentError


@dataclass(frozen=True)
class TrimmedVocabulary:
    """`tokenizer` is the text of the new tokenizer.json; `kept_ids` int64 [new size]: the old id of each new one."""

    tokenizer: str
    kept_ids: NDArray[np.int64]


def trim_vocabulary(tokenizer_file: Path, training_ids: Sequence[NDArray[np.int64]], size: int) -> TrimmedVocabulary:
    """Keeps special tokens, the single characters of kept tokens, and the tokens most frequent in the training text.

    WordPiece matches the longest piece first, so a word whose token is gone falls apart into pieces that are kept;
    with every character of the kept tokens among them, nothing written in those characters becomes unknown.
    `training_ids` are the training text's ids under the old tokenizer. Raises StudentError.
    """
    definition: dict[str, Any] = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    model = definition["model"]
    if model.get("type") != "WordPiece":
        raise StudentError(
            f"{tokenizer_file}: student.vocab needs a WordPiece tokenizer, got {model.get('type')};"
            " set student.vocab to null"
        )
    old: dict[str, int] = model["vocab"]
    whole = len(old.keys() | {entry["content"] for entry in definition.get("added_tokens", [])})
    if size >= whole:
        return TrimmedVocabulary(json.dumps(definition, ensure_ascii=False), np.arange(whole))
    kept = _choose(old, _special_ids(definition), training_ids, model.get("continuing_subword_prefix", "##"), size)
    new_id = {old_id: index for index, old_id in enumerate(kept)}
    model["vocab"] = {token: new_id[i] for token, i in sorted(old.items(), key=lambda item: item[1]) if i in new_id}
    _renumber(definition, new_id)
    return TrimmedVocabulary(json.dumps(definition, ensure_ascii=False), np.asarray(kept, dtype=np.int64))


def for_device(tokenizer: str, max_length: int) -> str:
    """The same tokenizer, truncating at `max_length` and not padding, so that any reader of it encodes as we do.

    Teachers often ship one that pads every text to a fixed length: with a mask of ones that is another embedding.
    """
    definition: dict[str, Any] = json.loads(tokenizer)
    definition["padding"] = None
    definition["truncation"] = {"max_length": max_length, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    return json.dumps(definition, ensure_ascii=False)


def _special_ids(definition: dict[str, Any]) -> set[int]:
    special = {entry["id"] for entry in definition.get("added_tokens", [])}
    special.add(definition["model"]["vocab"][definition["model"]["unk_token"]])
    return special


def _choose(
    vocabulary: dict[str, int],
    special: set[int],
    training_ids: Sequence[NDArray[np.int64]],
    prefix: str,
    size: int,
) -> list[int]:
    """Old ids to keep, ascending, so that special tokens stay where the configuration expects them first."""
    counts = Counter(
        {int(i): int(n) for i, n in zip(*np.unique(np.concatenate(training_ids), return_counts=True), strict=True)}
    )
    token_of = {i: token for token, i in vocabulary.items()}
    frequent = [i for i, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if i not in special]
    characters = {c for i in frequent for c in token_of[i].removeprefix(prefix)} | {chr(c) for c in range(33, 127)}
    pieces = {vocabulary[p] for c in characters for p in (c, prefix + c) if p in vocabulary}
    kept = special | pieces
    if len(kept) > size:
        raise StudentError(
            f"student.vocab: {size} is too few: special tokens and single characters alone need {len(kept)}; raise it"
        )
    kept |= set([i for i in frequent if i not in kept][: size - len(kept)])
    return sorted(kept)


def _renumber(definition: dict[str, Any], new_id: dict[int, int]) -> None:
    for entry in definition.get("added_tokens", []):
        entry["id"] = new_id[entry["id"]]
    processor = definition.get("post_processor") or {}
    if processor.get("type") == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new_id[i] for i in token["ids"]]
    elif processor.get("type") in ("BertProcessing", "RobertaProcessing"):
        for end in ("sep", "cls"):
            processor[end][1] = new_id[processor[end][1]]
    elif processor:
        raise StudentError(
            f"student.vocab cannot rewrite a {processor.get('type')} post-processor; set student.vocab to null"
        )
