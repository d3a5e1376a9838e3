"""From raw inputs to the arrays that the ONNX graph takes; the same code serves training and the device.

An example is one encoded input; a feed is a batch of them: {graph input name: array}. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from compressor.errors import DataError
from compressor.images import decode_image
from compressor.recipe_data import Resize
from compressor.tokenizer_file import open_tokenizer, tokenizing

_MOST_TOKENS = 1 << 24
Feed = dict[str, NDArray[Any]]
# What is kept of one example's output (without the batch's dimension): float32 [rows, width].
Keep = Callable[[NDArray[np.float32], Any], NDArray[np.float32]]


class Preprocessor(Protocol):
    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[Any]]: ...

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed: ...


@dataclass(frozen=True)
class CacheShape:
    """What a decoder keeps of the tokens that it has read: keys and values of every layer, float32 [batch, kv_heads,
    tokens, head_dim] each. Their names are those that transformers' exporters gave them.
    """

    layers: int
    kv_heads: int
    head_dim: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"past_key_values.{i}.{part}" for i in range(self.layers) for part in ("key", "value"))

    def filled(self, batch: int, tokens: int, generator: np.random.Generator | None = None) -> Feed:
        """A cache of zeros, or of normal noise."""
        shape = (batch, self.kv_heads, tokens, self.head_dim)
        if generator is None:
            return {name: np.zeros(shape, np.float32) for name in self.names}
        return {name: generator.standard_normal(shape, np.float32) for name in self.names}


@dataclass(frozen=True)
class TextPreprocessor:
    """Token ids by a `tokenizer.json`, truncated to `max_length` tokens."""

    tokenizer_file: Path
    max_length: int
    _tokenizer: Tokenizer = field(init=False, repr=False, compare=False)
    _pad_id: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tokenizer = open_tokenizer(self.tokenizer_file)
        pad_id = (tokenizer.padding or {}).get("pad_id")
        if pad_id is None:
            pad_id = next((i for token in ("[PAD]", "<pad>") if (i := tokenizer.token_to_id(token)) is not None), 0)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length)
        object.__setattr__(self, "_tokenizer", tokenizer)
        object.__setattr__(self, "_pad_id", pad_id)

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[np.int64]]:
        """Texts to int64 token ids, each [length]."""
        if not all(isinstance(text, str) for text in inputs):
            raise DataError(f"expected text, got {next(type(t).__name__ for t in inputs if not isinstance(t, str))}")
        with tokenizing(self.tokenizer_file):
            return [np.asarray(e.ids, dtype=np.int64) for e in self._tokenizer.encode_batch_fast(list(inputs))]

    def tokens(self) -> NDArray[np.str_]:
        """Every token's text by its id: [vocabulary size]; "" where no token has that id."""
        vocabulary = self._tokenizer.get_vocab()
        if (last := max(vocabulary.values())) >= _MOST_TOKENS:
            raise DataError(
                f"{self.tokenizer_file}: numbers a token {last:,}; expected at most {_MOST_TOKENS:,} tokens"
            )
        found = np.full(last + 1, "", dtype=object)
        for token, number in vocabulary.items():
            found[number] = token
        return found.astype(np.str_)

    @property
    def last_id(self) -> int:
        """The largest number of a token, added tokens included."""
        return max(self._tokenizer.get_vocab().values())

    def first_piece(self, text: str) -> int:
        """The token that the model of the tokenizer begins `text` with, which is written as its tokens are; -1 where it
        has none for it.
        """
        with tokenizing(self.tokenizer_file):
            pieces = self._tokenizer.model.tokenize(text)
        return int(pieces[0].id) if pieces else -1

    def vocabulary_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def ids(self, example: NDArray[Any]) -> NDArray[np.int64]:
        """The token ids of an encoded text: int64 [length]."""
        return example

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        """Pads to the longest: `input_ids` and `attention_mask`, int64 [batch, sequence]."""
        longest = max(len(example) for example in examples)
        input_ids = np.full((len(examples), longest), self._pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(examples), longest), dtype=np.int64)
        for row, ids in enumerate(map(self.ids, examples)):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def _tokens_in(encoding: Encoding) -> list[tuple[int, int]]:
    """Where in the text its tokens lie, without the special ones, which lie nowhere."""
    return [where for where, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special]


@dataclass(frozen=True)
class CausalPreprocessor(TextPreprocessor):
    """Tokens for a causal language model, and its empty cache of keys and values, for a text that begins."""

    cache: CacheShape
    start_id: int

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[np.int64]]:
        """As a TextPreprocessor; a text without tokens is the one token that texts start or end with."""
        return [ids if len(ids) else np.array([self.start_id]) for ids in super().encode(inputs)]

    def passages(self, text: str) -> list[str]:
        """The text in pieces that `encode` takes whole, one after the other, nothing left out."""
        with tokenizing(self.tokenizer_file):
            first = self._tokenizer.encode(text)
        parts = [_tokens_in(encoding) for encoding in (first, *first.overflowing)]
        # A character of several tokens may lie on both sides: it goes to the second.
        cuts = [min(before[-1][1], after[0][0]) for before, after in itertools.pairwise(filter(None, parts))]
        pieces = [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)]) if end > begin]
        if len(pieces) < 2:
            return pieces
        # Apart, a piece may be cut into more tokens than it was within the text.
        return [passage for piece in pieces for passage in self.passages(piece)]

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        """`input_ids`, `attention_mask` int64 [batch, sequence], and a cache of nothing."""
        return super().collate(examples) | self.cache.filled(len(examples), 0)

    def step(self, example: NDArray[Any]) -> Feed:
        """The example's last token alone, with a cache (of zeros) for those before it: one step of generation."""
        feed = super().collate([example])
        feed["input_ids"] = feed["input_ids"][:, -1:]
        return feed | self.cache.filled(1, len(example) - 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without the special ones."""
        with tokenizing(self.tokenizer_file):
            text: str = self._tokenizer.decode(list(ids))
        return text


@dataclass(frozen=True)
class WordPreprocessor(TextPreprocessor):
    """Tokens of texts that are given word by word; the first token of a word answers for it.

    An encoded text is int64 [length, 3]. Of each token: its id; the number of the word that it is the first token of,
    from 0, or -1; how many words the text has, the same for all of them. A word has no token where the text is cut off
    at `max_length` before it, or where the tokenizer leaves nothing of it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        with tokenizing(self.tokenizer_file):
            apart = self._tokenizer.encode(["one", "two"], is_pretokenized=True)
            together = self._tokenizer.encode("one two")
        if apart.ids != together.ids:
            raise DataError(
                f"{self.tokenizer_file}: cuts a word otherwise when it is given alone than within a text; of byte-level"
                " BPE its pre_tokenizer needs add_prefix_space: true"
            )

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[np.int64]]:
        """Lists of words, or texts that are split at white space."""
        texts = [text.split() if isinstance(text, str) else text for text in inputs]
        for text in texts:
            if not isinstance(text, list | tuple) or not all(isinstance(word, str) for word in text):
                raise DataError(f"expected a text or a list of words, got {str(text)[:80]}")
        with tokenizing(self.tokenizer_file):
            encodings = self._tokenizer.encode_batch(texts, is_pretokenized=True)  # the fast one forgets words
        return [self._example(e.ids, e.word_ids, len(text)) for e, text in zip(encodings, texts, strict=True)]

    def _example(self, ids: list[int], word_of: list[int | None], words: int) -> NDArray[np.int64]:
        if not ids:  # no graph takes a text of no tokens
            ids, word_of = [self._pad_id], [None]
        number = np.array([-1 if word is None else word for word in word_of], dtype=np.int64)
        first = np.where(np.diff(number, prepend=-1) != 0, number, -1)
        return np.stack([np.asarray(ids, dtype=np.int64), first, np.full_like(first, words)], axis=-1)

    def ids(self, example: NDArray[Any]) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = example[:, 0]
        return ids


def word_positions(example: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of a text that a WordPreprocessor encoded: the tokens that answer for words, and for which; int64 [words]."""
    places = np.flatnonzero(example[:, 1] >= 0)
    return places, example[places, 1]


@dataclass(frozen=True)
class ImagePreprocessor:
    """Images as they are decoded, uint8 [height, width, channels]; scaling and normalisation are in the graph."""

    height: int
    width: int
    channels: int
    resize: Resize = "refuse"  # of files alone; an array has the size of the graph

    def decode(self, source: Path | bytes) -> NDArray[np.uint8]:
        """An image file, or its content, to uint8 [height, width, channels]. Raises DataError as `decode_image`."""
        return decode_image(source, (self.height, self.width, self.channels), self.resize)

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[np.uint8]]:
        """uint8 [height, width] (one channel) or [height, width, channels] to [height, width, channels]."""
        return [self._checked(np.asarray(image)) for image in inputs]

    def _checked(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        if image.ndim == 2:
            image = image[..., None]
        expected = (self.height, self.width, self.channels)
        if image.dtype != np.uint8 or image.shape != expected:
            raise DataError(f"expected an image of uint8 {expected}, got {image.dtype} {image.shape}; resize it first")
        return image

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        """`pixels`: uint8 [batch, height, width, channels]."""
        return {"pixels": np.stack(examples)}


@dataclass(frozen=True)
class ArrayPreprocessor:
    """Arrays as they are, of one dtype and shape, for the graph's input `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[Any]]:
        """Arrays of that dtype and shape, as they are."""
        arrays = [np.asarray(array) for array in inputs]
        for array in arrays:
            if array.dtype.name != self.dtype or array.shape != self.shape:
                raise DataError(f"expected an array of {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        return arrays

    def collate(self, examples: Sequence[NDArray[Any]]) -> Feed:
        """[batch, ...]."""
        return {self.name: np.stack(examples)}


def whole_output(output: NDArray[np.float32], example: Any) -> NDArray[np.float32]:  # noqa: ARG001
    """Keeps the answer to an input as a whole, float32 [width], as its one row."""
    return output[None]


def answers_in_order(
    ask: Callable[[list[Any]], NDArray[np.float32]],
    examples: Sequence[Any],
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
    keep: Keep = whole_output,
) -> NDArray[np.float32]:
    """What is kept of the answers to batches of similar length, in the order of the examples: float32 [rows, width].

    `advance` hears the size of every batch that is answered.
    """
    rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
    for batch in by_length([len(example) for example in examples], batch_size):
        for i, row in zip(batch, ask([examples[i] for i in batch]), strict=True):
            rows[i] = keep(row, examples[i])
        advance(len(batch))
    return np.concatenate(rows)


def by_length(lengths: Sequence[int], batch_size: int) -> list[NDArray[np.int64]]:
    """All rows once, in batches of similar length: longest first, so that memory runs out early or never."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
