"""The endpoint's client against a real server on this machine that drops, refuses, delays and talks nonsense."""

from __future__ import annotations

import json
import math
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import needed
import numpy as np
import pytest
import requests
from chat_server import Reply, Server, completion, serving
from pydantic import ValidationError

from compressor.errors import TeacherError
from compressor.recipe_teacher import EndpointClassifier
from compressor.teachers.answer_cache import AnswerCache
from compressor.teachers.completion import Completion, Token
from compressor.teachers.endpoint import Endpoint
from compressor.teachers.labels import EndpointClassifierModel, class_log_probabilities, matched_class, open_endpoint
from compressor.teachers.pacing import Pace, asked_wait_s, backoff_s

KEY = "sk-planted-0123456789"
Make = Callable[..., EndpointClassifier]


def sport_or_food(body: dict[str, Any]) -> Reply:
    return completion("sport" if "goal" in body["messages"][-1]["content"] else "food")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(sport_or_food) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits after failures a hundredth as long."""
    monkeypatch.setattr("compressor.teachers.pacing._FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("COMPRESSOR_TEACHER_KEY", KEY)


@pytest.fixture
def teacher(server: Server) -> Make:
    def make(**settings: Any) -> EndpointClassifier:
        values = {"endpoint": server.url, "model": "big", "classes": ["sport", "food"], "permission": "own-model"}
        return EndpointClassifier.model_validate({**values, **settings})

    return make


@pytest.fixture
def cache_file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "endpoint.jsonl"


def test_what_is_asked(server: Server, teacher: Make, cache_file: Path) -> None:
    one = teacher(prompt="Of {classes}: {text}", max_tokens=3)
    found = open_endpoint(one, cache_file).answers(["a goal {classes}", "soup"])
    np.testing.assert_allclose(np.exp(found), [[0.9, 0.1], [0.1, 0.9]], rtol=1e-5)
    assert found.dtype == np.float32
    assert sorted(server.prompts()) == ["Of sport, food: a goal {classes}", "Of sport, food: soup"]
    path, headers, body, _ = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert {key: body[key] for key in body if key != "messages"} == {"model": "big", "temperature": 0, "max_tokens": 3}


def test_nothing_is_asked_twice(server: Server, teacher: Make, cache_file: Path) -> None:
    texts = ["goal", "soup", "goal"]
    first = open_endpoint(teacher(), cache_file).answers(texts)
    assert len(server.seen) == 2, "also within one call"
    np.testing.assert_array_equal(open_endpoint(teacher(concurrency=1), cache_file).answers(texts), first)
    assert len(server.seen) == 2, "another process finds the answers on disk"
    for changed in ({"model": "other"}, {"prompt": "Well? {text}"}, {"max_tokens": 2}):
        open_endpoint(teacher(**changed), cache_file).answers(["goal"])
    assert len(server.seen) == 5, "what an answer depends on is part of its key"


def test_runs_at_once_ask_nothing_twice(server: Server, teacher: Make, cache_file: Path) -> None:
    """Three, each with a file of its own open, as processes have; some answers are torn by a crash before."""
    server.answer = lambda body: replace(sport_or_food(body), delay_s=0.02)
    texts = [f"{word} {number}" for number in range(8) for word in ("goal", "soup")]
    open_endpoint(teacher(), cache_file).answers(texts[:4])
    cache_file.write_bytes(cache_file.read_bytes()[:-9])
    found, told = dict[int, Any](), list[str]()

    def run(number: int) -> None:
        one = open_endpoint(teacher(), cache_file, told.append)
        found[number] = np.concatenate([one.answers(texts[begin : begin + 4]) for begin in range(0, 16, 4)])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.seen) == 16 + 1, "the torn one again"
    again = AnswerCache(cache_file)
    assert (len(again), again.damaged) == (16, 0)
    for rows in found.values():
        assert rows.argmax(1).tolist() == [0, 1] * 8
    assert sum("waits for another compressor" in line for line in told) <= 3, "each says so once"


FAULTS = {
    "no answer": Reply(status=0),
    "cut": Reply(body=completion("sport").body, cut=20),
    "half a JSON": Reply(body=completion("sport").body[:40]),
    "429": Reply(status=429, headers={"Retry-After": "0"}),
    "500": Reply(status=500, body=b"oops"),
    "503": Reply(status=503, body=b"<html>later</html>"),
    "too slow": Reply(body=completion("sport").body, delay_s=0.6),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_passing_failure_is_tried_again(server: Server, teacher: Make, cache_file: Path, fault: Reply) -> None:
    server.faults.extend([fault, fault])
    found = open_endpoint(teacher(timeout_s=0.3), cache_file).answers(["a goal"])
    assert found.argmax() == 0
    assert len(server.seen) == 3


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_failure_that_stays_is_one_line(server: Server, teacher: Make, cache_file: Path, fault: Reply) -> None:
    server.faults.extend([fault] * 3)
    with pytest.raises(TeacherError, match=r"3 times in a row; what was answered is kept") as raised:
        open_endpoint(teacher(timeout_s=0.3, retries=2), cache_file).answers(["a goal"])
    assert "\n" not in str(raised.value)
    assert len(server.seen) == 3


def test_a_server_that_is_not_there(teacher: Make, cache_file: Path) -> None:
    one = teacher(endpoint="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(TeacherError, match="the connection fails") as raised:
        open_endpoint(one, cache_file).answers(["a goal"])
    assert "\n" not in str(raised.value)


def test_https_to_a_server_without_it(server: Server, teacher: Make, cache_file: Path) -> None:
    one = teacher(endpoint=server.url.replace("http:", "https:"))
    with pytest.raises(TeacherError, match=r"does not speak https there.* set teacher.endpoint to http://") as raised:
        open_endpoint(one, cache_file).answers(["a goal"])
    assert "\n" not in str(raised.value)


@contextmanager
def tls(folder: Path, *, spoken: bool) -> Iterator[int]:
    """The port of a server with a certificate of its own; else of one that hangs up on every handshake."""
    openssl = needed.require("openssl", "openssl")
    named = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    made = (openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem")
    subprocess.run([*made, *named], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    def answer() -> None:
        with suppress(OSError):  # it is closed
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    if spoken:
                        context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, daemon=True).start()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("spoken", "words"),
    [(True, "its certificate is not trusted: .*self.signed"), (False, "the connection fails: .*, 3 times in a row")],
)
def test_a_certificate_of_ones_own_and_a_broken_handshake(
    teacher: Make, cache_file: Path, tmp_path: Path, spoken: bool, words: str
) -> None:
    with tls(tmp_path, spoken=spoken) as port, pytest.raises(TeacherError, match=words):
        open_endpoint(teacher(endpoint=f"https://127.0.0.1:{port}/v1", retries=2), cache_file).answers(["a goal"])


def test_a_failure_without_words_is_named(teacher: Make, cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any, **__: Any) -> Any:
        raise requests.exceptions.ChunkedEncodingError

    monkeypatch.setattr(requests.Session, "post", silent)
    with pytest.raises(TeacherError, match="the connection fails: ChunkedEncodingError"):
        open_endpoint(teacher(retries=0), cache_file).answers(["a goal"])


def test_retry_after_is_waited_for_by_all(server: Server, teacher: Make, cache_file: Path) -> None:
    server.faults.append(Reply(status=429, headers={"Retry-After": "1"}))
    open_endpoint(teacher(concurrency=1), cache_file).answers(["a goal", "soup"])
    times = [when for *_, when in server.seen]
    assert times[1] - times[0] >= 1.0


def test_an_endpoint_that_asks_to_come_back_later_ends_the_run(server: Server, teacher: Make, cache_file: Path) -> None:
    server.faults.append(Reply(status=429, headers={"Retry-After": "86400"}))
    with pytest.raises(TeacherError, match="asks to wait 86400 s; what was answered is kept"):
        open_endpoint(teacher(), cache_file).answers(["a goal"])


def test_dates_and_nonsense_in_retry_after() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = asked_wait_s(soon)
    assert found is not None
    assert 28 <= found <= 30
    assert asked_wait_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert asked_wait_s("12") == 12
    assert asked_wait_s("soon") is None
    assert asked_wait_s(None) is None


def test_waits_double_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.teachers.pacing._FIRST_WAIT_S", 1.0)
    for tries, longest in ((1, 1), (2, 2), (5, 16), (12, 60)):
        waits = [backoff_s(tries) for _ in range(300)]
        assert 0 <= min(waits) < 0.2 * longest
        assert 0.8 * longest < max(waits) <= longest


NONSENSE = {
    "no JSON": (Reply(body=b"hello"), "expected a chat completion, got no JSON"),
    "HTML": (Reply(body=b"\n<!DOCTYPE html><p>Welcome"), "got an HTML page; check teacher.endpoint"),
    "a list": (Reply(body=b"[1]"), "expected a chat completion with choices"),
    "no choices": (Reply(body=b'{"choices": []}'), "expected a chat completion with choices"),
    "an error with status 200": (Reply(body=b'{"error": {"message": "out of\\n luck"}}'), "got out of luck"),
    "no text": (Reply(body=b'{"choices": [{"message": {"content": null}}]}'), "expected one of sport, food, got ''"),
    "a number": (Reply(body=b'{"choices": [{"message": {"content": 7}}]}'), "with choices"),
    "no class": (completion("I would rather not say"), "expected one of sport, food, got 'I would rather not say'"),
    "both classes": (completion("sport or food"), "expected one of sport, food"),
    "401": (Reply(status=401, body=b"{}"), "the key in the variable COMPRESSOR_TEACHER_KEY is refused"),
    "404": (Reply(status=404, body=b'{"error": "no model big"}'), "no model 'big': no model big; check"),
    "400": (Reply(status=400, body=b'{"error": {"message": "too long"}}'), "with status 400: too long"),
    "redirect": (Reply(status=302, headers={"Location": "http://127.0.0.1:9/"}), "redirects elsewhere"),
    "deep": (Reply(body=b'{"a":' * 100_000), "breaks off"),
    "huge": (Reply(body=b" " * (5 << 20)), "more than 4 MiB"),
}


@pytest.mark.parametrize(("reply", "words"), NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_one_clear_line(server: Server, teacher: Make, cache_file: Path, reply: Reply, words: str) -> None:
    server.faults.append(reply)
    with pytest.raises(TeacherError) as raised:
        open_endpoint(teacher(retries=0), cache_file).answers(["a goal"])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert len(server.seen) == 1


def test_so_many_answers_may_be_no_class(server: Server, teacher: Make, cache_file: Path) -> None:
    server.answer = lambda body: completion("no" if "?" in body["messages"][-1]["content"] else "food")
    told: list[str] = []
    found = open_endpoint(teacher(max_unmatched=2), cache_file, told.append).answers(["a", "b?", "c", "d?"])
    np.testing.assert_allclose(np.exp(found), [[0.1, 0.9], [0.5, 0.5], [0.1, 0.9], [0.5, 0.5]], rtol=1e-5)
    assert len(told) == 2
    assert "2 of at most 2" in told[-1]
    with pytest.raises(TeacherError, match="expected one of sport, food, got 'no'"):
        open_endpoint(teacher(max_unmatched=1), cache_file).answers(["a", "b?", "c", "d?"])
    assert len(server.seen) == 4


def test_without_a_key_none_is_sent(
    server: Server, teacher: Make, cache_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMPRESSOR_TEACHER_KEY")
    server.faults.append(Reply(status=401))
    with pytest.raises(TeacherError, match="COMPRESSOR_TEACHER_KEY is not set"):
        open_endpoint(teacher(), cache_file).answers(["a goal"])
    assert "Authorization" not in server.seen[0][1]


def test_a_key_of_netrc_is_not_sent(
    server: Server, teacher: Make, cache_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    open_endpoint(teacher(), cache_file).answers(["a goal"])
    assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"


def test_the_budget_ends_the_run_and_keeps_what_it_has(server: Server, teacher: Make, cache_file: Path) -> None:
    texts = [f"soup {number}" for number in range(10)]
    for so_far in (4, 8):
        with pytest.raises(TeacherError, match="the budget of 4 requests is spent"):
            open_endpoint(teacher(max_requests=4), cache_file).answers(texts)
        assert len(server.seen) == so_far
        assert len(AnswerCache(cache_file)) == so_far
    assert open_endpoint(teacher(max_requests=4), cache_file).answers(texts).shape == (10, 2)
    assert len(set(server.prompts())) == len(server.seen) == 10


def test_so_many_requests_are_under_way_as_asked_for(server: Server, teacher: Make, cache_file: Path) -> None:
    """Each answer waits until three are asked for; a fourth at once would be counted."""
    together = threading.Barrier(3)

    def with_two_others(_: Any) -> Reply:
        together.wait(timeout=60)
        return completion("food")

    server.answer = with_two_others
    open_endpoint(teacher(concurrency=3), cache_file).answers([f"soup {number}" for number in range(12)])
    assert server.most_at_once == 3


@dataclass
class NotedPace(Pace):
    """Notes how long it would wait."""

    waits_s: list[float] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        self.waits_s.append(seconds)


def test_turns_are_apart_by_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr("compressor.teachers.pacing.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    pace = NotedPace(requests_per_minute=1200.0, budget=None)
    for _ in range(3):
        pace.take_turn()
    clock.now_s = 101.0  # a pause earns no burst
    pace.take_turn()
    pace.take_turn()
    pace.slow_down(7.0)
    pace.take_turn()
    assert pace.waits_s == pytest.approx([0, 0.05, 0.1, 0, 0.05, 7.0])


def test_a_ctrl_c_keeps_what_was_answered(
    server: Server, teacher: Make, cache_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests under way are waited for, those that wait for their turn are not."""
    server.answer = lambda _: Reply(body=completion("food").body, delay_s=0.2)

    def interrupted(*_: Any, **__: Any) -> Any:
        time.sleep(0.1)
        raise KeyboardInterrupt

    texts = [f"soup {number}" for number in range(20)]
    with monkeypatch.context() as patched:
        patched.setattr("compressor.teachers.endpoint.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_endpoint(teacher(concurrency=2), cache_file).answers(texts)
    kept = len(AnswerCache(cache_file))
    assert kept == len(server.seen)
    assert 2 <= kept <= 4
    server.answer = sport_or_food
    open_endpoint(teacher(), cache_file).answers(texts)
    assert len(server.seen) == 20


def test_the_key_is_written_nowhere(
    server: Server, teacher: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a server echoes it in."""
    caplog.set_level("DEBUG")
    echo = f"sport {KEY}"
    said = []
    replies = [
        Reply(status=400, body=json.dumps({"error": {"message": echo}}).encode()),
        Reply(status=404, body=echo.encode()),
        Reply(status=401, body=echo.encode()),
        Reply(status=500, body=echo.encode()),
        Reply(body=json.dumps({"error": echo}).encode()),
        completion(echo),
        completion(f"neither {KEY}"),
        completion(echo, [[(echo, -0.1)]]),
        Reply(status=400, body=("x" * (200 - len(KEY) // 2) + KEY).encode()),
    ]
    for number, reply in enumerate(replies):
        server.faults.append(reply)
        one = teacher(retries=0, top_logprobs=2 if number == 7 else 0)
        try:
            open_endpoint(one, tmp_path / f"{number}.jsonl").answers(["a goal"])
        except TeacherError as error:
            said.append(f"{error!r} {error.__cause__!r}")
        assert KEY in server.seen[-1][1]["Authorization"]
    assert said
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    out, err = capfd.readouterr()
    assert all(KEY[:8] not in place for place in said), "nor a part of it"
    shown = repr(Endpoint(teacher(), AnswerCache(tmp_path / "e.jsonl")))
    for place in (*said, written.decode(), out, err, caplog.text, shown):
        assert KEY not in place


@pytest.mark.parametrize("key", ["o", "EMPTY", "none"])
def test_a_key_that_is_a_word_alters_no_answer(
    server: Server, teacher: Make, cache_file: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("COMPRESSOR_TEACHER_KEY", key)
    said = f"food: none of the pots is {key}, {key}."
    server.answer = lambda _: completion(said, [[("food", -0.1), (key, -3.0)]])
    endpoint = Endpoint(teacher(), AnswerCache(cache_file), top_logprobs=2)
    for _ in range(2):  # asked, and from the cache
        (found,) = endpoint.complete(["soup"])
        assert found.text == said
        assert found.tokens == (Token("food", (("food", -0.1), (key, -3.0))),)


@pytest.mark.parametrize(
    "echo",
    [completion(f"food {KEY}", [[("food", -0.1)]]), completion("food", [[("food", -0.1), (KEY, -3.0)]])],
    ids=["text", "token"],
)
def test_an_answer_with_the_key_in_it_is_refused(server: Server, teacher: Make, cache_file: Path, echo: Reply) -> None:
    server.answer = lambda _: echo
    with pytest.raises(TeacherError, match=r"answers with the key of COMPRESSOR_TEACHER_KEY.* change the key"):
        Endpoint(teacher(), AnswerCache(cache_file), top_logprobs=2).complete(["soup"])
    assert len(AnswerCache(cache_file)) == 0


def test_a_key_that_no_header_can_hold(teacher: Make, cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_TEACHER_KEY", f"{KEY}\n")
    with pytest.raises(TeacherError, match="COMPRESSOR_TEACHER_KEY: holds characters") as raised:
        open_endpoint(teacher(), cache_file)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_asked_again(cache_file: Path, cut: int) -> None:
    cache = AnswerCache(cache_file)
    for key in ("a", "b"):
        cache.put(key, {"text": "ünï"})
    whole = cache_file.read_bytes()
    cache_file.write_bytes(whole[:-cut])
    again = AnswerCache(cache_file)
    assert again.get("a") == {"text": "ünï"}
    assert "b" not in again
    assert again.damaged == 1
    again.put("b", {"text": "ünï"})
    assert cache_file.read_bytes() == whole


def test_a_rotten_line_is_asked_again(cache_file: Path) -> None:
    cache = AnswerCache(cache_file)
    for number in range(3):
        cache.put(f"key {number}", {"text": f"answer {number}"})
    cache_file.write_bytes(cache_file.read_bytes().replace(b"answer 1", b"answer 7"))
    again = AnswerCache(cache_file)
    assert [f"key {number}" in again for number in range(3)] == [True, False, True]
    assert again.get("key 2") == {"text": "answer 2"}
    cache_file.write_bytes(b"\xff\xfe\nnull\n{}\n" + cache_file.read_bytes())
    assert AnswerCache(cache_file).damaged == 4


def test_rot_while_in_use_is_seen(cache_file: Path) -> None:
    cache = AnswerCache(cache_file)
    cache.put("a", {"text": "x"})
    cache_file.write_bytes(cache_file.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(TeacherError, match="damaged while in use"):
        cache.get("a")


def test_many_threads_write_whole_lines(cache_file: Path) -> None:
    cache = AnswerCache(cache_file)
    threads = [
        threading.Thread(target=lambda n=n: [cache.put(f"{n}-{i}", {"text": "x" * 500}) for i in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = AnswerCache(cache_file)
    assert (len(again), again.damaged) == (80, 0)
    for reader in (cache, again):
        assert all(reader.get(f"{n}-{i}") == {"text": "x" * 500} for n in range(4) for i in range(20))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("sport", 0),
        (" Food.\n", 1),
        ('"FOOD"', 1),
        ("**sport**", 0),
        ("It is about food, I think", 1),
        ("sports", None),
        ("sport, not food", None),
        ("", None),
    ],
)
def test_an_answer_is_matched_to_a_class(answer: str, expected: int | None) -> None:
    assert matched_class(("sport", "food"), answer) == expected


def test_soft_labels_follow_the_formula(server: Server, teacher: Make, cache_file: Path) -> None:
    """Tokens that begin a class add up; what begins none is left out; an unseen class shares what is left."""
    top = [("sp", math.log(0.5)), (" Sport", math.log(0.2)), ("fo", math.log(0.1)), ("The", math.log(0.15))]
    server.answer = lambda _: completion(" sport", [[(" ", 0.0)], top])
    three = teacher(classes=["sport", "food", "art"], top_logprobs=4)
    found = open_endpoint(three, cache_file).answers(["a goal"])
    # 0.7 and 0.1 were seen; of the whole 0.05 is left for the one class that was not, and it is below the least token.
    np.testing.assert_allclose(np.exp(found[0]), np.array([0.7, 0.1, 0.05]) / 0.85, rtol=1e-5)
    assert server.seen[0][2]["logprobs"] is True
    assert server.seen[0][2]["top_logprobs"] == 4
    np.testing.assert_array_equal(open_endpoint(three, cache_file).answers(["a goal"]), found)
    assert len(server.seen) == 1, "log-probabilities are kept too"


def test_soft_labels_that_cannot_be_had(server: Server, teacher: Make, cache_file: Path) -> None:
    for reply, words in [
        (completion("sport"), "gives no log-probabilities; set teacher.top_logprobs to 0"),
        (completion("sport", [[("The", -0.1)]]), "none of the first tokens ['The'] begins the class 'sport'"),
        (completion("sport", [[("sport", float("nan"))]]), "expected a chat completion with choices"),
        (completion("sport", [[("sport", 5.0)]]), "expected a chat completion with choices"),
        (completion("sport", [[("sport", 10**400)]]), "expected a chat completion with choices"),
        (completion("sport", [[("sport", -(10**400))]]), "expected a chat completion with choices"),
    ]:
        server.faults.append(reply)
        with pytest.raises(TeacherError) as raised:
            open_endpoint(teacher(top_logprobs=2), cache_file.with_name("other.jsonl")).answers([f"goal {words}"])
        assert words in str(raised.value)
    alike = teacher(classes=["sport", "spoken word"], top_logprobs=2)
    server.faults.append(completion("sport", [[("sp", -0.1)]]))
    with pytest.raises(TeacherError, match="first letters differ"):
        open_endpoint(alike, cache_file).answers(["goal"])


def test_every_answer_is_a_distribution(teacher: Make) -> None:
    generator = np.random.default_rng(0)
    classes = ["alpha", "beta", "gamma", "delta"]
    one = teacher(classes=classes, top_logprobs=5)
    for _ in range(200):
        p = generator.dirichlet(np.full(6, 0.3))
        words = generator.permutation([*classes, "x", "y"])
        top = sorted(zip(words, np.log(np.maximum(p, 1e-300)), strict=True), key=lambda pair: -pair[1])[:5]
        named = [word for word, _ in top if word in classes]
        tokens = (Token(str(top[0][0]), tuple((str(word), float(logprob)) for word, logprob in top)),)
        log_p = class_log_probabilities(one, Completion(str(named[0]), tokens))
        assert np.isfinite(log_p).all()
        assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)
        assert log_p.argmax() == classes.index(named[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoint": "ftp://x/v1"}, "such as https://host/v1"),
        ({"endpoint": "https://me:secret@host/v1"}, "without user, password or query"),
        ({"endpoint": "https://host/v1?key=secret"}, "without user, password or query"),
        ({"prompt": "What is it?"}, "expected {text}"),
        ({"classes": ["Sport", "sport"]}, "differ in more than case"),
        ({"permission": "license-permits", "license": "MIT"}, "set teacher.terms"),
        ({"permission": "license-permits", "license": "MIT", "terms": " "}, "set teacher.terms"),
        ({"permission": "license-permits", "license": " "}, "set teacher.license"),
        ({"permission": "written-permission", "reference": " "}, "set teacher.reference"),
        ({"key_env": "sk-123"}, "key_env"),
    ],
)
def test_settings_that_are_refused(teacher: Make, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace("{", r"\{").replace("?", r"\?")):
        teacher(**settings)


def test_answers_come_in_the_order_of_the_texts(server: Server, teacher: Make, cache_file: Path) -> None:
    def slow_first(body: dict[str, Any]) -> Reply:
        reply = sport_or_food(body)
        return Reply(body=reply.body, delay_s=0.2 if "goal" in body["messages"][-1]["content"] else 0)

    server.answer = slow_first
    model: EndpointClassifierModel = open_endpoint(teacher(), cache_file)
    assert model.answers(["goal", "soup", "bread", "goal!"]).argmax(1).tolist() == [0, 1, 1, 0]
