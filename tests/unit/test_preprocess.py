"""Text and images to feeds, against the tokenizers library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from compressor.errors import DataError
from compressor.preprocess import ImagePreprocessor, TextPreprocessor

TEXTS = ["", "the cat", "The dog runs, walking on green mats!", "\U0001f600 数", "cat " * 50]


def test_ids_are_those_of_the_tokenizers_library(tokenizer_file: Path) -> None:
    reference = Tokenizer.from_file(str(tokenizer_file))
    for text, ids in zip(TEXTS, TextPreprocessor(tokenizer_file, 64).encode(TEXTS), strict=True):
        assert ids.dtype == np.int64
        assert ids.tolist() == reference.encode(text).ids


@pytest.mark.parametrize("max_length", [3, 8, 16])
def test_truncation_keeps_the_ends(tokenizer_file: Path, max_length: int) -> None:
    reference = Tokenizer.from_file(str(tokenizer_file))
    ids = TextPreprocessor(tokenizer_file, max_length).encode(["cat " * 50])[0]
    assert len(ids) == max_length
    assert [reference.id_to_token(i) for i in (ids[0], ids[-1])] == ["[CLS]", "[SEP]"]


def test_collate_pads_with_the_padding_token_and_masks_it(tokenizer_file: Path) -> None:
    preprocessor = TextPreprocessor(tokenizer_file, 64)
    examples = preprocessor.encode(TEXTS)
    feed = preprocessor.collate(examples)
    pad = Tokenizer.from_file(str(tokenizer_file)).token_to_id("[PAD]")
    assert set(feed) == {"input_ids", "attention_mask"}
    for row, ids in enumerate(examples):
        assert feed["input_ids"][row, : len(ids)].tolist() == ids.tolist()
        assert (feed["input_ids"][row, len(ids) :] == pad).all()
        assert feed["attention_mask"][row].sum() == len(ids)
    assert feed["input_ids"].shape[1] == max(map(len, examples))
    assert feed["input_ids"].dtype == feed["attention_mask"].dtype == np.int64


def test_padding_and_truncation_of_the_file_do_not_count(tokenizer_file: Path, tmp_path: Path) -> None:
    """Files from the hub often pad to 128 and truncate there; the recipe's max_length must win."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_padding(length=12, pad_id=tokenizer.token_to_id("[MASK]"), pad_token="[MASK]")
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    preprocessor = TextPreprocessor(tmp_path / "tokenizer.json", 32)
    short, long = preprocessor.encode(["cat", "cat " * 20])
    assert (len(short), len(long)) == (3, 22)
    padded = preprocessor.collate([short, long])["input_ids"][0]
    assert padded[-1] == tokenizer.token_to_id("[MASK]"), "its padding token is the one that it pads with"


@pytest.mark.parametrize("wrong", [[3], [None], ["a", 1.0], [b"bytes"], [["nested"]]])
def test_what_is_no_text_is_refused(tokenizer_file: Path, wrong: list[Any]) -> None:
    with pytest.raises(DataError, match="expected text, got"):
        TextPreprocessor(tokenizer_file, 8).encode(wrong)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b"[1]"])
def test_a_tokenizer_that_does_not_load(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"expected a tokenizer\.json|not valid JSON"):
        TextPreprocessor(path, 8)


def test_images_gain_their_channel_and_their_batch() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    preprocessor = ImagePreprocessor(3, 4, 1)
    feed = preprocessor.collate(preprocessor.encode([image, image[..., None]]))
    assert feed["pixels"].shape == (2, 3, 4, 1)
    assert feed["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(feed["pixels"][0], feed["pixels"][1])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((3, 4), np.int64),
        np.zeros((4, 3), np.uint8),
        np.zeros((3, 4, 3), np.uint8),
        np.zeros((1, 3, 4, 1), np.uint8),
        np.zeros(12, np.uint8),
        "cat.png",
    ],
)
def test_images_of_another_kind_are_refused(image: Any) -> None:
    with pytest.raises(DataError, match=r"expected an image of uint8 \(3, 4, 1\)"):
        ImagePreprocessor(3, 4, 1).encode([image])
