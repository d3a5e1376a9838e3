"""A smaller vocabulary, chosen on the training text, with the tokenizer rewritten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import StudentError
from compressor.students.subwords import KINDS


@dataclass(frozen=True)
class TrimmedVocabulary:
    """`tokenizer` is the text of the new tokenizer.json; `kept_ids` int64 [new size]: the old id of each new one."""

    tokenizer: str
    kept_ids: NDArray[np.int64]


def trim_vocabulary(
    tokenizer_file: Path,
    training_ids: Sequence[NDArray[np.int64]],
    size: int,
    needed: frozenset[int] = frozenset(),
) -> TrimmedVocabulary:
    """Keeps special tokens, what the training text's characters (or all bytes) can be written with, the tokens most
    frequent in the training text, and where there is room others: `subwords` says which, of each kind of tokenizer.

    `training_ids` are the training text's ids under the old tokenizer; ids in `needed` are kept as special ones are.
    Raises StudentError for other kinds, and when `size` is too small for what has to stay.
    """
    definition: dict[str, Any] = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    kind = definition["model"].get("type")
    if kind not in KINDS:
        raise StudentError(
            f"{tokenizer_file}: student.vocab needs one of {', '.join(KINDS)} as its tokenizer, got {kind};"
            " set student.vocab to null"
        )
    choose, rewrite = KINDS[kind]
    old = _model_ids(definition) | {entry["id"] for entry in definition.get("added_tokens", [])}
    special = {entry["id"] for entry in definition.get("added_tokens", [])} | (needed & old)
    if size >= len(old):
        kept = sorted(old)
    else:
        frequent = [i for i in _by_frequency(training_ids) if i in old and i not in special]
        others = sorted(old - special - set(frequent))
        kept = sorted(choose(definition, frequent, others, special, size))
    # Ascending, so that special tokens stay where the configuration expects them first.
    new_id = {old_id: index for index, old_id in enumerate(kept)}
    rewrite(definition["model"], new_id)
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


def _model_ids(definition: dict[str, Any]) -> set[int]:
    vocabulary = definition["model"]["vocab"]
    return set(range(len(vocabulary))) if isinstance(vocabulary, list) else set(vocabulary.values())


def _by_frequency(training_ids: Sequence[NDArray[np.int64]]) -> list[int]:
    """Every id of the training text, the most frequent first, of equally frequent ones the smaller."""
    ids, counts = np.unique(np.concatenate(training_ids), return_counts=True)
    return [int(i) for i in ids[np.lexsort((ids, -counts))]]


def _renumber(definition: dict[str, Any], new_id: dict[int, int]) -> None:
    for entry in definition.get("added_tokens", []):
        entry["id"] = new_id[entry["id"]]
    if definition.get("padding"):
        definition["padding"]["pad_id"] = new_id[definition["padding"]["pad_id"]]
    if definition.get("post_processor"):
        _renumber_processor(definition["post_processor"], new_id)


def _renumber_processor(processor: dict[str, Any], new_id: dict[int, int]) -> None:
    kind = processor.get("type")
    if kind == "Sequence":
        for inner in processor["processors"]:
            _renumber_processor(inner, new_id)
    elif kind == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new_id[i] for i in token["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for end in ("sep", "cls"):
            processor[end][1] = new_id[processor[end][1]]
    elif kind != "ByteLevel":
        raise StudentError(f"student.vocab cannot rewrite a {kind} post-processor; set student.vocab to null")
