"""What an endpoint says: the body of a chat completion, read into text and tokens, and that of an error into words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from compressor.errors import one_line

_CUT_OFF = ("length", "content_filter")  # the reasons of an API for ending an answer that has not ended


@dataclass(frozen=True)
class Token:
    """One generated token: its text, and the most probable tokens at its place with their log-probabilities."""

    text: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Completion:
    """What the endpoint said: the text, and its tokens where log-probabilities were asked for. `ended`: it stopped by
    itself, and was not cut off.
    """

    text: str
    tokens: tuple[Token, ...]
    ended: bool = True


_MOST_LOGPROB = 1e-3


class BrokenOff(Exception):  # noqa: N818 (a user never meets it)
    """A body that ends too early."""


class NoCompletion(Exception):  # noqa: N818 (a user meets its words in a TeacherError)
    """A body that is no chat completion: what was expected, and what came."""


def read_completion(content: bytes, *, with_tokens: bool) -> Completion:
    """The first choice of a body. Raises NoCompletion, BrokenOff."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        if content.lstrip()[:1] == b"{":
            raise BrokenOff from None
        kind = "an HTML page" if content.lstrip()[:1] == b"<" else "no JSON"
        raise NoCompletion(f"expected a chat completion, got {kind}; check teacher.endpoint") from None
    try:
        choice = answer["choices"][0]
        text, ended = _text_of(choice["message"]["content"]), choice.get("finish_reason") not in _CUT_OFF
        return Completion(text, _tokens_of(choice) if with_tokens else (), ended)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError):
        said = message_of(content) or "nothing"
        raise NoCompletion(f"expected a chat completion with choices, got {said}") from None


def message_of(content: bytes) -> str:
    """What an error body says, in one line."""
    text = content.decode("utf-8", "replace")
    try:
        body = json.loads(text)
        error = body["error"] if "error" in body else body["detail"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return one_line(text)


def to_json(completion: Completion) -> dict[str, Any]:
    """For a cache; `from_json` gives it back."""
    tokens = [{"text": token.text, "top": [list(pair) for pair in token.top]} for token in completion.tokens]
    return {"text": completion.text, "tokens": tokens, "ended": completion.ended}


def from_json(kept: dict[str, Any]) -> Completion:
    """What `to_json` was given."""
    tokens = (
        Token(token["text"], tuple((text, logprob) for text, logprob in token["top"])) for token in kept["tokens"]
    )
    return Completion(kept["text"], tuple(tokens), kept.get("ended", True))


def _text_of(content: Any) -> str:
    """The text of a message; none is sent where nothing was said. JSON may hold halves of characters, which no file of
    text can: they become U+FFFD, which stands for what is no text.
    """
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError
    return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens_of(choice: dict[str, Any]) -> tuple[Token, ...]:
    entries = (choice.get("logprobs") or {}).get("content")
    if not entries:
        raise NoCompletion("gives no log-probabilities; set teacher.top_logprobs to 0 to take labels alone")
    return tuple(
        Token(
            _text_of(entry["token"]),
            tuple((_text_of(top["token"]), _logprob(top["logprob"])) for top in entry["top_logprobs"]),
        )
        for entry in entries
    )


def _logprob(value: Any) -> float:
    """Of a probability up to 1, but for rounding."""
    if not -math.inf < value <= _MOST_LOGPROB:
        raise ValueError(value)
    return min(float(value), 0.0)
