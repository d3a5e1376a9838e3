"""A student's tokens among its teacher's, where its vocabulary is a part of the teacher's. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import StudentError

_BYTES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@dataclass(frozen=True)
class TokenMap:
    """`ids` int64 [student's tokens]: which token of the teacher has the same text.

    So `ids[example]` of what the student reads is the same text for the teacher, if cut otherwise than it would cut it
    itself; and `logits[..., ids]` of what the teacher then says is, after a softmax, its distribution given that the
    next token is one that the student has.
    """

    ids: NDArray[np.int64]


def map_tokens(mine: NDArray[np.str_], theirs: NDArray[np.str_]) -> TokenMap:
    """By the tokens' texts by id, [student's tokens] and [teacher's tokens]. Raises StudentError where the student has
    one that its teacher has not.
    """
    number = {token: i for i, token in enumerate(theirs.tolist()) if token}
    unknown = [token for token in mine.tolist() if token not in number]
    if unknown:
        raise StudentError(
            f"{len(unknown):,} of the student's {len(mine):,} tokens are none of its teacher's, such as {unknown[0]!r};"
            " to learn what the next token is it must read the teacher's: expected its tokenizer.json, whole or trimmed"
        )
    return TokenMap(np.array([number[token] for token in mine.tolist()], dtype=np.int64))


def token_bytes(tokens: NDArray[np.str_]) -> list[bytes]:
    """Of every token, by its text [tokens], the bytes that it writes: all tokens of a text, one after the other, are
    the same bytes however it is cut. Of a vocabulary that falls back to bytes, `<0x0A>` is one.
    """
    texts = tokens.tolist()
    single = _BYTES if _BYTES.keys() <= set(texts) else {}
    return [single.get(text, text.encode()) for text in texts]
