"""Secrets are planted, and then looked for in all that is written and shown: keys of services, and the signing key."""

from __future__ import annotations

import base64
import html
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow_copy
import pytest
from chat_server import Reply, completion, serving
from command_runs import LIMIT_S, environment
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from endpoint_runs import endpoint_recipe, keywords
from made_inputs import Inputs
from ruamel.yaml import YAML

# Each with characters that another form writes otherwise.
KEYS = {
    "COMPRESSOR_TEACHER_KEY": 'sk-planted/+"7f3a=teacher\\key',
    "HF_TOKEN": "hf_planted5b7c9d1e3f5a7b9c1d3e5f7a9b",
    "MLFLOW_TRACKING_TOKEN": 'planted/+"2b4d=tracking\\token',
}
IN_A_URL = "planted8d0f2b4c6e8a0c2e"
# Several commands in one interpreter: what is imported once need not be imported again.
_COMMANDS = """
import json, sys
from compressor.__main__ import main
sys.path.append(sys.argv[1])
for arguments in json.load(sys.stdin):
    code = main(arguments)
    sys.stdout.flush()
    print("ended:", code, file=sys.stderr, flush=True)
"""


def run_all(*commands: tuple[str | Path, ...], cwd: Path) -> tuple[list[int], str]:
    """The commands, one after the other with --debug: their exit codes, and all that they showed."""
    given = json.dumps([[*map(str, command), "--debug"] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, mlflow_copy.folder()],
        cwd=cwd,
        env=environment(),
        input=given,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    codes = [int(line.removeprefix("ended: ")) for line in done.stderr.splitlines() if line.startswith("ended: ")]
    assert len(codes) == len(commands), done.stderr
    return codes, done.stdout + done.stderr


def forms(secret: bytes) -> Iterator[bytes]:
    """A secret as it is, and as others would write it."""
    yield secret
    yield secret.hex().encode()
    yield repr(secret)[2:-1].encode()
    for cut in range(3):  # where it stands among other bytes decides how Base64 writes it
        inner = base64.b64encode(bytes(cut) + secret)[4 if cut else 0 :]
        yield inner[: len(inner) - 4]
        yield inner[: len(inner) - 4].replace(b"+", b"-").replace(b"/", b"_")
    if secret.isascii():
        yield quote(secret.decode()).encode()
        yield quote(secret.decode(), safe="").encode()
        yield json.dumps(secret.decode())[1:-1].encode()
        yield html.escape(secret.decode()).encode()


def leaks(secrets: list[bytes], folder: Path, shown: str) -> list[str]:
    """Where one of the secrets stands, in some form."""
    sought = {form for secret in secrets for form in forms(secret)}
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places |= {f"the name of {path}": str(path).encode() for path in folder.rglob("*")}
    places["the screen"] = shown.encode()
    return [f"{form!r} in {place}" for place, content in places.items() for form in sought if form in content]


@pytest.mark.parametrize("form", ["plain", "in JSON", "in a URL", "in HTML", "in Base64"])
def test_a_leak_would_be_found(form: str, tmp_path: Path) -> None:
    key = KEYS["COMPRESSOR_TEACHER_KEY"]
    written = {
        "plain": key,
        "in JSON": json.dumps({"key": key}),
        "in a URL": "https://host/?key=" + quote(key, safe=""),
        "in HTML": f"<td>{html.escape(key)}</td>",
        "in Base64": base64.b64encode(f"Bearer {key}".encode()).decode(),
    }
    (tmp_path / "file").write_text("before " + written[form] + " after")
    assert leaks([key.encode()], tmp_path, "")
    assert leaks([key.encode()], tmp_path / "nothing", written[form])


def with_changes(recipe: Path, path: Path, **changes: object) -> Path:
    """The recipe with another teacher."""
    values = YAML(typ="safe").load(recipe)
    values["teacher"] |= changes
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return path


# What a server that repeats what it was sent may answer, by the model that is asked for.
ECHOES = {
    "401": lambda said: Reply(status=401, body=said, headers={"WWW-Authenticate": f"Bearer realm={quote(said)}"}),
    "500": lambda said: Reply(status=500, body=said),
    "400": lambda said: Reply(status=400, body=said),
    "302": lambda said: Reply(status=302, headers={"Location": f"http://127.0.0.1:9/?key={quote(said)}"}),
    "200": lambda said: completion(f"sport {json.loads(said)['error']['message']}"),
    "no JSON": lambda said: Reply(body=said),
}


def echoing_or(answer: Callable[[dict[str, Any]], Reply]) -> Callable[[dict[str, Any]], Reply]:
    """A server that repeats the key to those who ask for a model of `ECHOES`."""
    said = json.dumps({"error": {"message": f"Authorization: Bearer {KEYS['COMPRESSOR_TEACHER_KEY']}"}}).encode()
    return lambda body: ECHOES[body["model"]](said) if body["model"] in ECHOES else answer(body)


def test_secrets_are_written_and_shown_nowhere(
    inputs: dict[str, Inputs], small_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{IN_A_URL}@127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "work" / "hub"))
    work, given, key = tmp_path / "work", tmp_path / "given", KEYS["COMPRESSOR_TEACHER_KEY"]
    for folder in (given, work / "device"):
        folder.mkdir(parents=True)
    out = work / "out"
    with serving(echoing_or(keywords)) as server:
        recipe = endpoint_recipe(inputs["text-classification"], out, server.url, small_classifier)
        short = ("--set", "distill.epochs=1", "--set", "quantize.precisions=[]", "--set", "benchmark.budget_s=1")
        in_url = server.url.replace("://", f"://user:{IN_A_URL}@")
        refused = {"user": {"endpoint": in_url}, "query": {"endpoint": f"{server.url}?key={IN_A_URL}"}}
        failing = {model: {"model": model, "retries": 0} for model in ECHOES}
        changed = {**refused, **failing}
        recipes = [with_changes(recipe, given / f"{name}.yaml", **changes) for name, changes in changed.items()]
        bundle, packed, device = out / "bundle", work / "bundle.tar", work / "device"
        codes, shown = run_all(
            *(("compress", one) for one in recipes),
            ("compress", recipe, *short),
            ("report", out),
            ("keys", given / "release"),
            ("sign", bundle, "--key", given / "release.key"),
            ("sign", bundle, "--key", given / "release.pub"),
            ("pack", bundle, "--out", packed),
            ("ship", packed, device, "--public-key", given / "release.key"),  # the wrong one of the two
            ("ship", packed, device, "--public-key", given / "release.pub"),
            ("verify", bundle, "--public-key", given / "release.pub"),
            ("inspect", bundle),
            cwd=work,
        )
        asked = {body["model"]: headers["Authorization"] for _, headers, body, _ in server.seen}
        assert asked == dict.fromkeys(("big", *ECHOES), f"Bearer {key}")
    assert codes == [3, 3, *[5] * len(ECHOES), 0, 0, 0, 0, 15, 0, 15, 0, 0, 0], shown
    assert "the training goes on without MLflow" in shown
    assert list(out.rglob("events.out.tfevents*"))
    pem = (given / "release.key").read_bytes()
    private = load_pem_private_key(pem, None).private_bytes_raw()  # type: ignore[union-attr]
    body = b"".join(pem.splitlines()[1:-1])
    secrets = [private, base64.b64encode(private), body, *(value.encode() for value in (*KEYS.values(), IN_A_URL))]
    assert not leaks(secrets, work, shown)
    assert (given / "release.key").stat().st_mode & 0o077 == 0
