"""Which tokens of a subword model stay, and the model with them alone: WordPiece, byte-level BPE, Unigram.

Each kind has a function that chooses and one that rewrites. What is chosen can write every text that the training
text's characters (or all bytes) can write, and segments text as before wherever all tokens of the former segmentation
are kept. Room goes to the tokens of the training text, the most frequent ones first; then, of the `others`, to those of
a single character, which without it is unknown; then to the rest by their numbers, which follow their frequency in the
text that the tokenizer was made from.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from compressor.errors import StudentError

Definition = dict[str, Any]
NewIds = dict[int, int]
_PRINTABLE = {chr(code) for code in range(33, 127)}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PLACEHOLDER = re.compile(r"\[.+\]")  # [unused7]: a row of the table that no text is cut into


def keep_wordpiece(
    definition: Definition, frequent: list[int], others: list[int], special: set[int], size: int
) -> set[int]:
    """WordPiece matches the longest piece first, so a word whose token is gone falls apart into pieces that are kept;
    with every character of the frequent tokens among them, nothing written in those characters becomes unknown.
    """
    model = definition["model"]
    vocabulary: dict[str, int] = model["vocab"]
    prefix = model.get("continuing_subword_prefix", "##")
    text_of = {i: token.removeprefix(prefix) for token, i in vocabulary.items()}
    characters = {c for i in frequent for c in text_of[i]} | _PRINTABLE
    pieces = {vocabulary[p] for c in characters for p in (c, prefix + c) if p in vocabulary}
    written = [i for i in others if i in text_of and not _PLACEHOLDER.fullmatch(text_of[i])]
    wanted = [*frequent, *_single_first(written, text_of)]
    return _filled(special | {vocabulary[model["unk_token"]]} | pieces, ((i, {i}) for i in wanted), size)


def rewrite_wordpiece(model: Definition, new_id: NewIds) -> None:
    """The vocabulary with new ids."""
    in_order = sorted(model["vocab"].items(), key=lambda item: item[1])
    model["vocab"] = {token: new_id[i] for token, i in in_order if i in new_id}


def keep_bpe(definition: Definition, frequent: list[int], others: list[int], special: set[int], size: int) -> set[int]:
    """BPE builds a token by merges, so with a token stays every token on the way to it, and all bytes stay.

    The merge that comes first among all of them also comes first among those that are kept, step by step: a word whose
    merges are all kept is segmented as before. Raises StudentError for BPE that is neither byte-level nor falls back
    to bytes: there, a text could become unknown.
    """
    model = definition["model"]
    vocabulary: dict[str, int] = model["vocab"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise StudentError("student.vocab cannot trim BPE with marks for a word's parts; set student.vocab to null")
    if _has_type(definition.get("pre_tokenizer"), "ByteLevel"):
        base = ByteLevel.alphabet()
    elif model.get("byte_fallback"):
        base = _BYTES
    else:
        raise StudentError("student.vocab needs byte-level BPE, or one that falls back to bytes; set it to null")
    ranks = {pair: rank for rank, pair in enumerate(_pairs(model))}
    token_of = {i: token for token, i in vocabulary.items()}
    whole = bool(model.get("ignore_merges"))  # then a word that is a token needs no merges

    def needs(token: str) -> set[int] | None:
        path = merge_path(token, ranks)
        if path is None or not path <= vocabulary.keys():
            return {vocabulary[token]} if whole else None
        return {vocabulary[part] for part in path}

    kept = special | {vocabulary[token] for token in base if token in vocabulary}
    if model.get("unk_token") in vocabulary:
        kept.add(vocabulary[model["unk_token"]])
    return _filled(kept, ((i, needs(token_of[i])) for i in [*frequent, *others]), size)


def rewrite_bpe(model: Definition, new_id: NewIds) -> None:
    """The vocabulary with new ids, and the merges whose parts and result are kept, in their order."""
    merges = model["merges"]
    rewrite_wordpiece(model, new_id)
    kept = model["vocab"].keys()
    pairs = zip(merges, _pairs({"merges": merges}), strict=True)
    model["merges"] = [merge for merge, (a, b) in pairs if a in kept and b in kept and a + b in kept]


def merge_path(token: str, ranks: dict[tuple[str, str], int]) -> set[str] | None:
    """Every token on the way from the characters of `token` to itself; None when merges do not lead there."""
    parts, seen = list(token), set(token)
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts)))
        if rank == len(ranks):
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        seen.add(parts[at])
    return seen


def keep_unigram(
    definition: Definition, frequent: list[int], others: list[int], special: set[int], size: int
) -> set[int]:
    """Unigram takes the segmentation of highest probability, so one whose tokens are all kept stays the best; with
    every character of the frequent tokens (and bytes, if it falls back to them) kept, those characters stay known.
    """
    model = definition["model"]
    pieces = [piece for piece, _ in model["vocab"]]
    number = {piece: i for i, piece in enumerate(pieces)}
    characters = {c for i in frequent for c in pieces[i]} | _PRINTABLE | {"\u2581"}
    kept = special | {number[c] for c in characters if c in number}
    if model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    if model.get("byte_fallback"):
        kept |= {number[byte] for byte in _BYTES if byte in number}
    wanted = [*frequent, *_single_first(others, dict(enumerate(pieces)))]
    return _filled(kept, ((i, {i}) for i in wanted), size)


def rewrite_unigram(model: Definition, new_id: NewIds) -> None:
    """The pieces with their scores in the order of the new ids, which is the old one."""
    model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new_id]
    if model.get("unk_id") is not None:
        model["unk_id"] = new_id[model["unk_id"]]


Keep = Callable[[Definition, list[int], list[int], set[int], int], set[int]]
Rewrite = Callable[[Definition, NewIds], None]
KINDS: dict[str, tuple[Keep, Rewrite]] = {
    "WordPiece": (keep_wordpiece, rewrite_wordpiece),
    "BPE": (keep_bpe, rewrite_bpe),
    "Unigram": (keep_unigram, rewrite_unigram),
}


def _single_first(tokens: list[int], text_of: dict[int, str]) -> list[int]:
    return sorted(tokens, key=lambda i: len(text_of[i]) > 1)


def _filled(kept: set[int], wanted: Iterable[tuple[int, set[int] | None]], size: int) -> set[int]:
    """`kept`, and of the wanted tokens with what they need as many as there is room for, the first ones first."""
    if len(kept) > size:
        raise StudentError(
            f"student.vocab: {size} is too few: special tokens and single characters alone need {len(kept)}; raise it"
        )
    for token, needed in wanted:
        if len(kept) == size:
            break
        if token not in kept and needed is not None and len(kept | needed) <= size:
            kept |= needed
    return kept


def _pairs(model: Definition) -> list[tuple[str, str]]:
    """Merges are pairs, in older files one string with a space."""
    split = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in split]


def _has_type(part: Any, kind: str) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == kind or any(_has_type(inner, kind) for inner in part.get("pretokenizers", []))
