"""Trimming a WordPiece vocabulary, judged by the tokenizers library on the rewritten file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from compressor.errors import StudentError
from compressor.students.vocabulary import TrimmedVocabulary, trim_vocabulary

TRAINING = ["the cat sat on the mat", "the dog runs", "a green house", "walking on the river", "cats walked"] * 3
SIZE = 180

Trim = Callable[..., tuple[Tokenizer, Tokenizer, TrimmedVocabulary]]


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[NDArray[np.int64]]:
    return [np.asarray(tokenizer.encode(text).ids) for text in texts]


@pytest.fixture
def trim(tokenizer_file: Path) -> Trim:
    def trimmed(size: int = SIZE, file: Path = tokenizer_file) -> tuple[Tokenizer, Tokenizer, TrimmedVocabulary]:
        old = Tokenizer.from_file(str(file))
        found = trim_vocabulary(file, ids_of(old, TRAINING), size)
        return old, Tokenizer.from_str(found.tokenizer), found

    return trimmed


@pytest.mark.parametrize("size", [150, SIZE])
def test_the_size_is_the_one_asked_for(trim: Trim, size: int) -> None:
    """Fewer than the training text uses, and more."""
    _, new, found = trim(size)
    assert len(found.kept_ids) == new.get_vocab_size() == size
    assert new.get_vocab_size() == max(new.get_vocab().values()) + 1, "no id is skipped"


def test_spare_room_goes_to_single_characters_first(
    vocabulary: list[str], tokenizer_file: Path, tmp_path: Path, trim: Trim
) -> None:
    """The training text has neither dash nor sharp s: with room for them no text that has is unknown. What is left goes
    to the words that come first, and never to what stands for no text.
    """
    definition = json.loads(tokenizer_file.read_text())
    for token in ("[unused7]", "\u2014", "##\u2014", "\u00df", "##\u00df"):
        definition["model"]["vocab"][token] = len(definition["model"]["vocab"])
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(definition))
    used = sum(not token.startswith("rare") for token in vocabulary)
    for room, known, words in ((0, False, []), (4, True, []), (6, True, ["rare0", "rare1"])):
        _, new, found = trim(used + room, file)
        assert len(found.kept_ids) == used + room
        assert ("[UNK]" not in new.encode("cat\u2014dog stra\u00dfe \u00df").tokens) == known
        assert sorted(token for token in new.get_vocab() if token.startswith("rare")) == words
        assert new.token_to_id("[unused7]") is None


@pytest.mark.parametrize("text", TRAINING[:5])
def test_the_training_text_is_encoded_as_before(trim: Trim, text: str) -> None:
    old, new, _ = trim()
    assert new.encode(text).tokens == old.encode(text).tokens


def test_kept_ids_say_which_old_row_each_new_one_is(trim: Trim) -> None:
    old, new, found = trim()
    for token, number in new.get_vocab().items():
        assert found.kept_ids[number] == old.token_to_id(token)
    assert found.kept_ids.dtype == np.int64


def test_nothing_in_ascii_becomes_unknown(trim: Trim) -> None:
    _, new, _ = trim(150)
    everything = "".join(chr(c) for c in range(32, 127))
    for text in (everything, "rare17", "xylophone", "the2cats", "zz9"):
        assert "[UNK]" not in new.encode(text).tokens
    assert new.encode("rare17").tokens == ["[CLS]", "r", "##a", "##r", "##e", "##1", "##7", "[SEP]"]


def test_special_tokens_are_renumbered_everywhere(trim: Trim) -> None:
    old, new, found = trim()
    encoded = new.encode("cat", "dog")
    assert encoded.tokens == ["[CLS]", "cat", "[SEP]", "dog", "[SEP]"]
    assert encoded.ids == [new.token_to_id(token) for token in encoded.tokens]
    assert new.token_to_id("[CLS]") != old.token_to_id("[CLS]")
    assert new.encode("數").ids[1] == new.token_to_id("[UNK]")
    added = json.loads(found.tokenizer)["added_tokens"]
    assert {entry["content"]: entry["id"] for entry in added} == {
        token: new.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    }


def test_the_older_post_processor_and_padding_are_renumbered_too(
    tokenizer_file: Path, tmp_path: Path, trim: Trim
) -> None:
    definition = json.loads(tokenizer_file.read_text())
    number = Tokenizer.from_file(str(tokenizer_file)).token_to_id
    definition["post_processor"] = {
        "type": "BertProcessing",
        "sep": ["[SEP]", number("[SEP]")],
        "cls": ["[CLS]", number("[CLS]")],
    }
    definition["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": number("[PAD]"),
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(definition))
    _, new, _ = trim(file=file)
    assert new.encode("cat").ids[:3] == [new.token_to_id(t) for t in ("[CLS]", "cat", "[SEP]")]
    assert new.encode("cat").ids[-1] == new.token_to_id("[PAD]")


def test_the_most_frequent_words_stay(trim: Trim) -> None:
    _, small, _ = trim(143)
    assert small.token_to_id("the") is not None
    assert small.token_to_id("house") is None


@pytest.mark.parametrize("extra", [0, 1, 1000])
def test_a_vocabulary_that_is_already_small_stays_whole(trim: Trim, tokenizer_file: Path, extra: int) -> None:
    size = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size() + extra
    old, new, found = trim(size)
    assert new.get_vocab() == old.get_vocab()
    assert found.kept_ids.tolist() == list(range(old.get_vocab_size()))


@pytest.mark.parametrize("size", [150, 10_000])
def test_tokens_added_behind_the_vocabulary_keep_their_rows(
    tokenizer_file: Path, tmp_path: Path, trim: Trim, size: int
) -> None:
    """A tokenizer that was extended has ids past its model's vocabulary; they have embeddings too."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_special_tokens(["[NEW]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    old, new, found = trim(size, tmp_path / "tokenizer.json")
    assert len(found.kept_ids) == new.get_vocab_size()
    assert found.kept_ids[new.token_to_id("[NEW]")] == old.token_to_id("[NEW]")
    assert new.encode("[NEW] cat").tokens == ["[CLS]", "[NEW]", "cat", "[SEP]"]


def test_too_small_says_how_many_are_needed(trim: Trim) -> None:
    with pytest.raises(StudentError, match=r"student\.vocab: 50 is too few: .* need (\d+)") as raised:
        trim(50)
    needed = int(str(raised.value).split("need ")[1].split(";")[0])
    assert trim(needed)[1].get_vocab_size() == needed
    with pytest.raises(StudentError):
        trim(needed - 1)


def test_other_kinds_of_tokenizer_are_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(StudentError, match="needs one of WordPiece, BPE, Unigram as its tokenizer, got WordLevel"):
        trim_vocabulary(tmp_path / "tokenizer.json", [np.array([0])], 300)


def test_bpe_in_which_a_text_could_become_unknown_is_refused(tmp_path: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(["a", "b", "ab", "c"])}
    Tokenizer(models.BPE(vocabulary, [("a", "b")])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(StudentError, match="needs byte-level BPE"):
        trim_vocabulary(tmp_path / "tokenizer.json", [np.array([0])], 3)


def test_a_post_processor_within_a_sequence_is_renumbered(tokenizer_file: Path, tmp_path: Path, trim: Trim) -> None:
    definition = json.loads(tokenizer_file.read_text())
    definition["post_processor"] = {"type": "Sequence", "processors": [definition["post_processor"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    _, new, _ = trim(file=tmp_path / "tokenizer.json")
    assert new.encode("cat").ids == [new.token_to_id(token) for token in ("[CLS]", "cat", "[SEP]")]


def test_a_post_processor_that_cannot_be_rewritten_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    definition = json.loads(tokenizer_file.read_text())
    definition["post_processor"] = {"type": "Unheard"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(StudentError, match="cannot rewrite a Unheard post-processor"):
        trim_vocabulary(tmp_path / "tokenizer.json", [np.array([0])], 200)


def test_needed_ids_are_kept(tokenizer_file: Path) -> None:
    rare = Tokenizer.from_file(str(tokenizer_file)).token_to_id("rare17")
    found = trim_vocabulary(tokenizer_file, [np.array([0])], SIZE, frozenset({rare}))
    assert Tokenizer.from_str(found.tokenizer).token_to_id("rare17") is not None
