"""Trimming byte-level BPE and Unigram: judged by the tokenizers library, on tokenizers that it trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compressor.errors import StudentError
from compressor.students.subwords import merge_path
from compressor.students.vocabulary import trim_vocabulary

ROOT = Path(__file__).resolve().parents[2]
PROSE = [
    line.strip()
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    if line.strip()
]
DOMAIN = [line for line in PROSE if "student" in line or "teacher" in line]
ELSEWHERE = ["Zwölf Boxkämpfer jagen Viktor", "数字 と 文字 \U0001f600", "x = {y: [1, 2]}\n\ttab", "\x00\x7f null"]


def byte_level_bpe(path: Path, *, older: bool = False) -> Path:
    """As GPT-2's: bytes as characters, a special token at the end of the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        PROSE,
        trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path))
    if older:
        definition = json.loads(path.read_text("utf-8"))
        definition["model"]["merges"] = [" ".join(pair) for pair in definition["model"]["merges"]]
        path.write_text(json.dumps(definition), "utf-8")
    return path


def fallback_bpe(path: Path) -> Path:
    """As Llama 2's: no bytes as characters, but a token for each byte for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        PROSE,
        trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False, max_token_length=12),
    )
    tokenizer.save(str(path))
    definition = json.loads(path.read_text("utf-8"))
    definition["added_tokens"] = [entry for entry in definition["added_tokens"] if entry["id"] < 3]
    path.write_text(json.dumps(definition), "utf-8")
    return path


def unigram(path: Path) -> Path:
    """As XLM-R's: pieces with scores, <s> text </s>, <mask> behind the vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        PROSE, trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.add_special_tokens(["<mask>"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(path))
    return path


MAKERS: dict[str, Any] = {
    "bpe": byte_level_bpe,
    "bpe-older-file": lambda path: byte_level_bpe(path, older=True),
    "bpe-fallback": fallback_bpe,
    "unigram": unigram,
}
SIZES = {"bpe": 420, "bpe-older-file": 420, "bpe-fallback": 480, "unigram": 300}


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, MAKERS[request.param](tmp_path_factory.mktemp("subwords") / "tokenizer.json")


def trimmed(file: Path, size: int) -> tuple[Tokenizer, Tokenizer, list[int]]:
    old = Tokenizer.from_file(str(file))
    found = trim_vocabulary(file, [np.asarray(old.encode(line).ids) for line in DOMAIN], size)
    return old, Tokenizer.from_str(found.tokenizer), found.kept_ids.tolist()


def test_the_size_is_the_one_asked_for(made: tuple[str, Path]) -> None:
    old, new, kept = trimmed(made[1], SIZES[made[0]])
    assert len(kept) == new.get_vocab_size() == SIZES[made[0]] < old.get_vocab_size()
    assert sorted(new.get_vocab().values()) == list(range(len(kept))), "no id is skipped"
    assert all(kept[number] == old.token_to_id(token) for token, number in new.get_vocab().items())


def test_where_all_tokens_are_kept_ids_map_one_to_one(made: tuple[str, Path]) -> None:
    old, new, kept = trimmed(made[1], SIZES[made[0]])
    words = {word for line in DOMAIN for word in line.split()}
    same = 0
    for text in [*DOMAIN, *words]:
        before = old.encode(text).ids
        if set(before) <= set(kept):
            assert [kept[i] for i in new.encode(text).ids] == before
            same += 1
    assert same > 100


def test_with_room_for_all_the_training_text_is_encoded_as_before(made: tuple[str, Path]) -> None:
    old, new, kept = trimmed(made[1], Tokenizer.from_file(str(made[1])).get_vocab_size() - 1)
    for line in DOMAIN:
        assert [kept[i] for i in new.encode(line).ids] == old.encode(line).ids


def test_every_text_still_encodes_and_decodes(made: tuple[str, Path]) -> None:
    """As it does before: Unigram without bytes knows no character that it was not trained on, nor loses another."""
    old, new, _ = trimmed(made[1], SIZES[made[0]])
    for text in [*PROSE, *(ELSEWHERE if made[0] != "unigram" else [])]:
        assert new.decode(new.encode(text).ids) == old.decode(old.encode(text).ids)
    if made[0].startswith("bpe"):
        assert all(new.decode(new.encode(text).ids) == text for text in ELSEWHERE)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_round_trips_through_trimmed_bytes(text: str, byte_level: Tokenizer) -> None:
    assert byte_level.decode(byte_level.encode(text).ids) == text


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return trimmed(byte_level_bpe(tmp_path_factory.mktemp("bytes") / "tokenizer.json"), 300)[1]


@pytest.mark.parametrize("kind", ["bpe", "bpe-fallback"])
def test_every_kept_token_can_be_reached(kind: str, tmp_path: Path) -> None:
    _, new, kept = trimmed(MAKERS[kind](tmp_path / "tokenizer.json"), SIZES[kind])
    bare = Tokenizer(new.model)
    definition = json.loads(new.to_str())
    tokens = [t for t in definition["model"]["vocab"] if not t.startswith("<")]
    assert len(tokens) > 100
    assert all(bare.encode(token).tokens == [token] for token in tokens)
    assert len(kept) == len(definition["model"]["vocab"]) + (kind == "bpe")


def test_special_tokens_keep_their_meaning(tmp_path: Path) -> None:
    old, new, kept = trimmed(unigram(tmp_path / "tokenizer.json"), 300)
    encoded = new.encode("the student <mask>")
    assert (encoded.tokens[0], encoded.tokens[-1]) == ("<s>", "</s>")
    assert encoded.ids == [new.token_to_id(token) for token in encoded.tokens]
    assert kept[new.token_to_id("<mask>")] == old.token_to_id("<mask>")
    assert new.token_to_id("<unk>") in new.encode("\u4e00").ids


def test_too_small_says_how_many_are_needed(made: tuple[str, Path]) -> None:
    with pytest.raises(StudentError, match=r"student\.vocab: 40 is too few: .* need (\d+)") as raised:
        trimmed(made[1], 40)
    needed = int(re.findall(r"need (\d+)", str(raised.value))[0])
    assert trimmed(made[1], needed)[1].get_vocab_size() == needed


def test_a_path_of_merges_by_hand() -> None:
    """l o w e r: "lo" first, then "er", then "low", then "lower"; "we" comes too late."""
    ranks = {pair: i for i, pair in enumerate([("l", "o"), ("e", "r"), ("lo", "w"), ("w", "e"), ("low", "er")])}
    assert merge_path("lower", ranks) == {"l", "o", "w", "e", "r", "lo", "er", "low", "lower"}
    assert merge_path("wer", ranks) is None
