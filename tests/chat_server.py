"""A chat/completions server on this machine that answers by a function, and fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """Status, body and headers; `cut` closes the connection after so many bytes of the body, `delay_s` waits first."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay_s: float = 0.0


def completion(text: str, top: list[list[tuple[str, float]]] | None = None) -> Reply:
    """An answer as OpenAI documents it; `top` are each token's alternatives, the token that was chosen first."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top is not None:
        choice["logprobs"] = {
            "content": [
                {
                    "token": alternatives[0][0],
                    "logprob": alternatives[0][1],
                    "bytes": None,
                    "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in alternatives],
                }
                for alternatives in top
            ]
        }
    return Reply(body=json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode())


@dataclass
class Server:
    """`faults` are served first, one for each request; `seen` are the requests: path, headers, body, when."""

    url: str
    answer: Callable[[dict[str, Any]], Reply]
    faults: deque[Reply] = field(default_factory=deque)
    seen: list[tuple[str, dict[str, str], dict[str, Any], float]] = field(default_factory=list)
    most_at_once: int = 0

    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for _, _, body, _ in self.seen]


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[Server]:
    server = Server("", answer)
    lock, under_way = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                under_way[0] += 1
                server.most_at_once = max(server.most_at_once, under_way[0])
                server.seen.append((self.path, dict(self.headers), body, time.monotonic()))
                reply = server.faults.popleft() if server.faults else None
            try:
                self._send(reply or server.answer(body))
            finally:
                with lock:
                    under_way[0] -= 1

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.delay_s)
            if reply.status == 0:  # no answer at all
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut])
            if reply.cut is not None:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that gave up is what some tests are about."""

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
