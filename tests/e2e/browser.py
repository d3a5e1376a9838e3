"""Pages in a headless Chromium, with a server of its own, one after the other."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 60.0  # for a page; the first one waits for the browser too
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
_ALONE = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions")

_START = "/start.html"
# Shows each page in a frame until `answer` or `outputs` has a text, and sends both back.
_SHOW = """<!doctype html><script type="module">
for (const page of PAGES) {
  const frame = document.createElement("iframe");
  frame.src = page;
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; });
  const said = () => ["answer", "outputs"].map((id) => frame.contentDocument.getElementById(id).textContent);
  while (said().join("") === "") await new Promise((done) => setTimeout(done, 10));
  await fetch("START", { method: "POST", body: JSON.stringify(said()) });
  frame.remove();
}
</script>"""


def texts_of(chromium: str, folder: Path, pages: Sequence[str]) -> list[tuple[str, str]]:
    """What stands in the elements `answer` and `outputs` of these pages, whose files lie in `folder`."""
    answers: queue.Queue[list[str]] = queue.Queue()
    show = _SHOW.replace("PAGES", json.dumps(pages)).replace("START", _START).encode()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != _START:
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(show)))
            self.end_headers()
            self.wfile.write(show)

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start = f"http://127.0.0.1:{server.server_port}{_START}"
        command = [chromium, *_FLAGS, *_ALONE, f"--user-data-dir={folder / 'profile'}", start]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            found: list[tuple[str, str]] = []
            try:
                while len(found) < len(pages):
                    said, outputs = answers.get(timeout=LIMIT_S)
                    found.append((said, outputs))
                return found
            except queue.Empty:
                pytest.fail(f"{pages[len(found)]} has said nothing in {LIMIT_S:.0f} s")
            finally:
                browser.kill()
                server.shutdown()
