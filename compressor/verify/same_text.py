"""Two models that cut a text into different tokens, judged on the same text.

What is said of a passage's tokens adds up to what is said of its text, so the sums can be compared where both are of
the same bytes, each given all those before. Both are judged from the first byte on, after their first token, at which
both begin a token: before it, one would be given what the other has to predict. Where texts begin with a token of their
own, that is all of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import StudentError
from compressor.preprocess import TextPreprocessor
from compressor.token_map import TokenMap, begins


@dataclass(frozen=True)
class SameText:
    """Which judged rows count, of those that each model has for every token of a passage but its first.

    `theirs` int64 [rows] are the teacher's, `truth` int64 [passages] how many of them each passage has, those left out
    that have none. `mine` int64 [tokens] are the student's; each begins within the token of the row `under` among
    `theirs`, int64 [tokens], and with it where `together`, bool [tokens]. `tokens_of_mine`: how many the student reads.
    """

    tokens: TokenMap
    theirs: NDArray[np.int64]
    truth: NDArray[np.int64]
    mine: NDArray[np.int64]
    under: NDArray[np.int64]
    together: NDArray[np.bool_]
    tokens_of_mine: int

    def rows(self, outputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Judged rows by model, "teacher" among them, float32 [tokens, 2] each (log-probability, most probable token),
        to rows of the teacher's tokens that count. A student's have the sum of what lies within each, and the most
        probable token as the teacher numbers it; -1 where the student does not begin one with it.
        """
        return {
            name: given[self.theirs] if name == "teacher" else self._as_theirs(given) for name, given in outputs.items()
        }

    def _as_theirs(self, given: NDArray[np.float32]) -> NDArray[np.float32]:
        sums, best = np.zeros(len(self.theirs)), np.full(len(self.theirs), -1)
        np.add.at(sums, self.under, given[self.mine, 0].astype(np.float64))
        best[self.under[self.together]] = self.tokens.ids[given[self.mine[self.together], 1].astype(np.int64)]
        return np.stack([sums, best], axis=-1).astype(np.float32)


def same_text(
    passages: Sequence[Any] | NDArray[Any], mine: TextPreprocessor, theirs: TextPreprocessor, tokens: TokenMap
) -> SameText:
    """How a student's reading of passages lies to its teacher's.

    Raises StudentError where the student does not read all of a passage, or where there is nothing to compare.
    """
    parts, my_row, their_row = [], 0, 0
    for number, (my_ids, their_ids) in enumerate(zip(mine.encode(passages), theirs.encode(passages), strict=True), 1):
        my_pieces, their_pieces = [tokens.my_bytes[i] for i in my_ids], [tokens.their_bytes[i] for i in their_ids]
        if b"".join(my_pieces) != b"".join(their_pieces):
            raise _not_whole(number, len(my_ids), len(their_ids), mine.max_length)
        parts.append(_passage(begins(my_pieces), begins(their_pieces), my_row, their_row))
        my_row, their_row = my_row + len(my_ids) - 1, their_row + len(their_ids) - 1
    rows, counted, under, together = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not len(rows):
        raise StudentError(
            "student.vocab: teacher and student begin no token at the same place of any held-out passage; raise it"
        )
    truth = np.array([len(theirs_counted) for theirs_counted, *_ in parts], dtype=np.int64)
    place = np.searchsorted(rows, under)
    return SameText(tokens, rows, truth[truth > 0], counted, place, together, my_row + len(passages))


_Passage = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]


def _passage(mine: NDArray[np.int64], theirs: NDArray[np.int64], my_row: int, their_row: int) -> _Passage:
    """Of where the tokens of one passage begin: the teacher's rows that count, the student's, within which of the
    teacher's each of these lies, and whether it begins there. The passage's first rows are `my_row` and `their_row`.
    """
    common = np.intersect1d(mine[1:], theirs[1:])
    begin = common[0] if len(common) else np.inf
    my_tokens, their_tokens = np.flatnonzero(mine >= begin), np.flatnonzero(theirs >= begin)
    within = np.searchsorted(theirs, mine[my_tokens], side="right") - 1
    together = theirs[within] == mine[my_tokens]
    return their_row + their_tokens - 1, my_row + my_tokens - 1, their_row + within - 1, together


def _not_whole(number: int, mine: int, theirs: int, most: int) -> StudentError:
    if mine >= most:
        return StudentError(
            f"student.vocab: held-out passage {number} has {theirs} of the teacher's tokens and more than {most} of the"
            " student's, which is all that it reads; models are judged on the same text: raise student.vocab, or lower"
            " student.max_length"
        )
    return StudentError(
        f"student.vocab: of held-out passage {number} the trimmed tokenizer loses text that the teacher's keeps; raise"
        " it, or set it to null"
    )
