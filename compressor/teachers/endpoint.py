"""A teacher behind an OpenAI-compatible chat/completions API: a black box that answers over HTTP.

Nothing is asked twice (`answer_cache`), and no faster or more often than allowed (`pacing`). The key is read from an
environment variable, sent in a header, and written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import requests

from compressor.errors import TeacherError, first_line, one_line
from compressor.recipe_teacher import EndpointTeacher
from compressor.teachers.answer_cache import AnswerCache
from compressor.teachers.completion import (
    BrokenOff,
    Completion,
    NoCompletion,
    from_json,
    message_of,
    read_completion,
    to_json,
)
from compressor.teachers.pacing import LONGEST_ASKED_WAIT_S, Pace, Stopped, asked_wait_s, backoff_s

_LARGEST_ANSWER = 4 << 20
_SECRET_LENGTH = 16  # characters
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}  # OpenSSL's reasons: the bytes are none
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class _Passing(Exception):  # noqa: N818 (a user never meets it)
    """A failure that another try may not meet; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Endpoint:
    """Asks prompts, several at once. One for a run: it holds the cache, the pace and the connections."""

    def __init__(self, teacher: EndpointTeacher, cache: AnswerCache, top_logprobs: int = 0) -> None:
        """Raises TeacherError where the key cannot be one."""
        self.teacher, self.cache, self.top_logprobs = teacher, cache, top_logprobs
        self.pace = Pace(teacher.requests_per_minute, teacher.max_requests)
        self._key = os.environ.get(teacher.key_env, "")
        if not (self._key.isascii() and self._key.isprintable()):
            raise TeacherError(
                f"{teacher.key_env}: holds characters that no HTTP header may have; set it to the key alone"
            )
        # A short one, such as EMPTY for a local server, is no secret, but may well be a word of an answer.
        self._secret = self._key if len(self._key) >= _SECRET_LENGTH else ""

        self._session = requests.Session()
        self._session.auth = self._authorise  # else a key in the user's .netrc would take its place
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=teacher.concurrency)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def complete(self, prompts: Sequence[str]) -> list[Completion]:
        """One completion for each prompt, in order. Raises TeacherError.

        A Ctrl-C, a spent budget or an error waits for the requests under way, whose answers are kept.
        """
        bodies = [self._body(prompt) for prompt in prompts]
        keys = [self._cache_key(body) for body in bodies]
        if any(key not in self.cache for key in keys):
            with self.cache.held():  # another run that asks the same is waited for, and what it was told is known then
                asked = zip(keys, bodies, strict=True)
                self._ask_all({key: body for key, body in asked if key not in self.cache})
        return [from_json(self.cache.get(key)) for key in keys]

    def _ask_all(self, bodies: dict[str, dict[str, Any]]) -> None:
        with ThreadPoolExecutor(self.teacher.concurrency) as pool:
            futures = [pool.submit(self._ask, key, body) for key, body in bodies.items()]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [error for future in done if (error := future.exception()) is not None]
            finally:
                for future in futures:
                    future.cancel()
                if any(not future.done() for future in futures):
                    self.pace.stop()
        for error in failed:
            if not isinstance(error, Stopped):
                raise error

    def _body(self, prompt: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.teacher.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "max_tokens": self.teacher.max_tokens,
        }
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body

    def _cache_key(self, body: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self.teacher.endpoint, body], sort_keys=True).encode()).hexdigest()

    def _ask(self, key: str, body: dict[str, Any]) -> None:
        for tries in range(1, self.teacher.retries + 2):
            self.pace.take_turn()
            try:
                completion = self._post(body)
            except _Passing as failure:
                if tries > self.teacher.retries:
                    raise TeacherError(
                        f"{self.teacher.endpoint}: {failure}, {tries} times in a row; what was answered is kept: run"
                        " the same command again later"
                    ) from None
                self._hold_back(failure, tries)
            else:
                self.cache.put(key, to_json(self._without_key(completion)))
                return

    def _hold_back(self, failure: _Passing, tries: int) -> None:
        if failure.wait_s is None:
            self.pace.wait(backoff_s(tries))
            return
        if failure.wait_s > LONGEST_ASKED_WAIT_S:
            raise TeacherError(
                f"{self.teacher.endpoint}: {failure}, and asks to wait {failure.wait_s:.0f} s; what was answered is"
                " kept: run the same command again then"
            ) from None
        self.pace.slow_down(failure.wait_s)  # it is the server that is busy: all requests wait
        self.pace.wait(failure.wait_s + backoff_s(1))

    def _post(self, body: dict[str, Any]) -> Completion:
        """The answer to one request. Raises TeacherError, _Passing."""
        try:
            with self._session.post(
                f"{self.teacher.endpoint}/chat/completions",
                json=body,
                timeout=self.teacher.timeout_s,
                allow_redirects=False,  # the key is for this host
                stream=True,
            ) as response:
                content = _read(response, self.teacher.timeout_s)
        except (requests.exceptions.Timeout, TimeoutError):
            raise _Passing(f"no answer within {self.teacher.timeout_s:g} s") from None
        except requests.exceptions.RequestException as error:
            raise self._no_connection(_cause(error)) from None
        if response.status_code != 200:
            raise self._refusal(response, content)
        return self._parsed(content)

    def _no_connection(self, cause: BaseException) -> Exception:
        said = self._safe(one_line(first_line(cause)))[:200]
        if isinstance(cause, ssl.SSLCertVerificationError):
            return TeacherError(f"{self.teacher.endpoint}: its certificate is not trusted: {said}")
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return TeacherError(
                f"{self.teacher.endpoint}: does not speak https there: {said}; check the port, or set teacher.endpoint"
                " to http://"
            )
        return _Passing(f"the connection fails: {said}")

    def _refusal(self, response: requests.Response, content: bytes) -> Exception:
        status, where = response.status_code, self.teacher.endpoint
        if status in _PASSING:
            return _Passing(f"answers with status {status}", asked_wait_s(response.headers.get("Retry-After")))
        said = self._said(content)
        if status in (401, 403):
            state = "is refused" if self._key else "is not set"
            return TeacherError(f"{where}: status {status}: the key in the variable {self.teacher.key_env} {state}")
        if status == 404:
            return TeacherError(
                f"{where}: status 404: no chat/completions there, or no model {self.teacher.model!r}: {said};"
                " check teacher.endpoint and teacher.model"
            )
        if 300 <= status < 400:
            return TeacherError(
                f"{where}: redirects elsewhere, which is not followed; set teacher.endpoint to that URL"
            )
        return TeacherError(f"{where}: refuses the request with status {status}: {said}")

    def _parsed(self, content: bytes) -> Completion:
        try:
            return read_completion(content, with_tokens=self.top_logprobs > 0)
        except BrokenOff:
            raise _Passing("its answer breaks off") from None
        except NoCompletion as other:
            raise TeacherError(f"{self.teacher.endpoint}: {self._safe(str(other))[:300]}") from None

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _safe(self, text: str) -> str:
        """A message without the key."""
        return text.replace(self._secret, "[key]") if self._secret else text

    def _said(self, content: bytes) -> str:
        """What a body says, in one short line; cut after the key is out of it, or a part of it would stay."""
        return self._safe(message_of(content))[:200] or "nothing"

    def _without_key(self, completion: Completion) -> Completion:
        """The same. Raises TeacherError where a server echoes what it was sent: the key must not reach the disk."""
        texts = [completion.text, *(text for token in completion.tokens for text in (token.text, *dict(token.top)))]
        if self._secret and any(self._secret in text for text in texts):
            raise TeacherError(
                f"{self.teacher.endpoint}: answers with the key of {self.teacher.key_env}, so nothing of that is kept;"
                " ask whoever runs it, and change the key"
            )
        return completion


def opened(teacher: EndpointTeacher, cache_file: Path, tell: Callable[[str], None], top_logprobs: int = 0) -> Endpoint:
    """An endpoint that is asked nothing yet; `tell` hears what of its cache is damaged, and that another run is waited
    for. Raises TeacherError where the key cannot be one.
    """

    @cache  # to say so once is enough
    def waits() -> None:
        tell(f"  waits for another compressor, which is asking {teacher.endpoint}")

    kept = AnswerCache(cache_file, waits)
    if kept.damaged:
        tell(f"  {cache_file.name}: {kept.damaged} damaged lines, which are asked for again")
    return Endpoint(teacher, kept, top_logprobs)


def _read(response: requests.Response, timeout_s: float) -> bytes:
    """The body, within the time and size that an answer may take. `timeout` alone bounds the gaps between bytes."""
    deadline, content = time.monotonic() + timeout_s, bytearray()
    for piece in response.iter_content(1 << 14):
        content += piece
        if len(content) > _LARGEST_ANSWER:
            raise TeacherError(
                f"{response.url}: answers with more than {_LARGEST_ANSWER >> 20} MiB; is this a chat API?"
            )
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)


def _cause(error: BaseException) -> BaseException:
    """The innermost reason: requests and urllib3 wrap it several times, with the whole URL."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        reason = getattr(error, "reason", None)
        inner = next((cause for cause in (reason, *error.args) if isinstance(cause, BaseException)), None)
    return error
