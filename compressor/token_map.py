"""A student's tokens among its teacher's, where its vocabulary is a part of the teacher's. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import StudentError
from compressor.preprocess import TextPreprocessor

_BYTES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@dataclass(frozen=True)
class TokenMap:
    """`ids` int64 [student's tokens]: which token of the teacher has the same text. `first` int64 [teacher's tokens]:
    which of its tokens the student begins with to write that one, the same where it has it; -1 where there is none.
    `my_bytes` and `their_bytes`: what each of them writes, as `token_bytes` gives it.
    """

    ids: NDArray[np.int64]
    first: NDArray[np.int64]
    my_bytes: tuple[bytes, ...]
    their_bytes: tuple[bytes, ...]


def map_tokens(mine: TextPreprocessor, theirs: TextPreprocessor) -> TokenMap:
    """By the tokens' texts. Raises StudentError where the student has one that its teacher has not."""
    my_tokens, their_tokens = mine.tokens().tolist(), theirs.tokens().tolist()
    number = {token: i for i, token in enumerate(their_tokens) if token}
    unknown = [token for token in my_tokens if token not in number]
    if unknown:
        raise StudentError(
            f"{len(unknown):,} of the student's {len(my_tokens):,} tokens are none of its teacher's, such as"
            f" {unknown[0]!r}; to learn what the next token is it must read the teacher's: expected its tokenizer.json,"
            " whole or trimmed"
        )
    own = {token: i for i, token in enumerate(my_tokens)}
    first = [own[t] if t in own else mine.first_piece(t) if t else -1 for t in their_tokens]
    ids = np.array([number[token] for token in my_tokens], dtype=np.int64)
    return TokenMap(ids, np.array(first, dtype=np.int64), token_bytes(my_tokens), token_bytes(their_tokens))


def token_bytes(tokens: Sequence[str]) -> tuple[bytes, ...]:
    """Of every token the bytes that it writes: all tokens of a text, one after the other, are the same bytes however it
    is cut. Of a vocabulary that falls back to bytes, `<0x0A>` is one.
    """
    single = _BYTES if _BYTES.keys() <= set(tokens) else {}
    return tuple(single.get(text, text.encode()) for text in tokens)


def begins(pieces: Sequence[bytes]) -> NDArray[np.int64]:
    """At which byte of a text each of its pieces begins: int64 [pieces]."""
    return np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
