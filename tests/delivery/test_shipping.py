"""`compressor ship`: to a folder, over a real sshd on loopback, as a difference, to a fleet, as an OCI layout."""

from __future__ import annotations

import bz2
import getpass
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import bsdiff4
import needed
import numpy as np
import onnx
import pytest
from loopback_sshd import LIMIT_S, free_port, make_key, require_sshd, start_sshd, wait_until
from made_bundles import Signer, answers, edit_manifest, make_bundle, make_signer

from compressor.bundle.archive import pack, unpack
from compressor.bundle.keys import make_keys
from compressor.delivery.difference import difference
from compressor.delivery.oci import write_layout
from compressor.delivery.over_ssh import ANSWER
from compressor.delivery.ship import OciLayout, Registry, RemoteDevice, ship, target_of
from compressor.device.archive import archive_bytes
from compressor.device.delta import delta_source, patched
from compressor.device.manifest import read_manifest
from compressor.device.source import archive_of
from compressor.errors import BundleError, DeviceError, SignatureError, StorageError, UsageError
from compressor.progress import SILENT
from compressor.ssh import Device

Servers = tuple[list[tuple[subprocess.Popen[bytes], int]], Path]
LARGE = 256  # a model of 256 KiB, so that it is what is sent


@dataclass
class Board:
    """A device with an sshd of its own."""

    process: subprocess.Popen[bytes]
    port: int
    root: Path

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.root}"


@dataclass
class Fleet:
    """Devices, and the command that ships to them."""

    boards: list[Board]
    ssh: str
    folder: Path

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "compressor", "ship", "--python", sys.executable, *map(str, arguments)]
        here = self.folder / "here"
        here.mkdir(exist_ok=True)
        environment = {**os.environ, "COMPRESSOR_SSH": self.ssh, "TMPDIR": str(here)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300
        )
        assert not list(here.glob("compressor-*")), "nothing is left here"
        assert not list((self.folder / "there").iterdir()), "nothing is left on the devices"
        return done

    def ships(self, *arguments: object) -> list[dict[str, Any]]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def refuses(self, code: int, *arguments: object) -> str:
        done = self.run(*arguments, "--quiet")
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three sshd with one client key."""
    program, folder = require_sshd(), tmp_path_factory.mktemp("sshd")
    client = make_key(folder / "client")
    started = []
    try:
        for name in ("first", "second", "third"):
            own = folder / name
            own.mkdir()
            make_key(own / "host")
            (own / "authorized").write_text(client)
            process, port, said = start_sshd(program, own)
            if process is None:
                needed.lacking(f"needs an sshd that starts: {said}")
            started.append((process, port))
        yield started, folder
    finally:
        for process, _ in started:
            process.terminate()
            process.wait(LIMIT_S)


@pytest.fixture
def fleet(servers: Servers, tmp_path: Path) -> Fleet:
    started, folder = servers
    there = tmp_path / "there"
    there.mkdir()
    settings = {
        "IdentityFile": folder / "client",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": tmp_path / "known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "accept-new",
        "SetEnv": f'"TMPDIR={there}"',
    }
    config = tmp_path / "ssh_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    boards = [Board(process, port, tmp_path / f"board {n}, o'clock") for n, (process, port) in enumerate(started)]
    return Fleet(boards, shlex.join(["ssh", "-F", str(config)]), tmp_path)


def test_a_folder_here(fleet: Fleet, old: Path, new: Path, signer: Signer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert "expected a signed bundle" in fleet.refuses(15, make_bundle(tmp_path / "unsigned", 1), root)
    (shipped,) = fleet.ships(old, root, "--public-key", signer.public)
    assert (shipped["how"], shipped["found"]["version"]) == ("whole", 1)
    fleet.ships(pack(new, tmp_path / "new.tar.zst").path, root)
    assert answers(root / "current") == answers(new)


def test_a_device_over_ssh(fleet: Fleet, old: Path, new: Path, signer: Signer, tmp_path: Path) -> None:
    board = fleet.boards[0]
    assert "name one with --public-key" in fleet.refuses(15, old, board.url)
    (shipped,) = fleet.ships(old, board.url, "--public-key", signer.public)
    assert shipped["found"]["self_test"]["cases"] == 3
    assert answers(board.root / "current") == answers(old)
    (shipped,) = fleet.ships(pack(new, tmp_path / "new.tar.zst").path, board.url)
    assert (shipped["how"], shipped["found"]["version"], shipped["found"]["floor"]) == ("whole", 2, 2)
    assert answers(board.root / "current") == answers(new)
    (again,) = fleet.ships(new, board.url)
    assert again["how"] == "there"
    assert "expected a version above 2" in fleet.refuses(15, old, board.url)
    (new / "README.md").write_text("changed")
    assert "README.md" in fleet.refuses(11, new, fleet.boards[1].url, "--public-key", signer.public)
    assert not (fleet.boards[1].root / "current").is_symlink()


def test_a_device_that_is_not_as_it_should_be(fleet: Fleet, old: Path, signer: Signer) -> None:
    board = fleet.boards[0]
    key = ["--public-key", signer.public]
    assert "has no no-such-python" in fleet.refuses(16, old, board.url, *key, "--python", "no-such-python")
    board.root.write_text("a file")
    assert "found a file" in fleet.refuses(13, old, board.url, *key)
    away = board.url.replace(f":{board.port}", ":1")
    assert "cannot be reached" in fleet.refuses(16, old, away, *key)


def changed_slightly(bundle: Path, folder: Path) -> Path:
    """Another release: one row of the weights is another, and so are the golden outputs."""
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "model.onnx")
    (weight,) = model.graph.initializer
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] += 0.25
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / "model.onnx")
    with np.load(folder / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    for case in range(3):
        arrays[f"{case}.out.y"] = np.tanh(arrays[f"{case}.in.x"] @ values)
    np.savez_compressed(folder / "golden.npz", **arrays)
    edit_manifest(folder)
    return folder


@pytest.fixture
def large(tmp_path: Path, signer: Signer) -> tuple[Path, Path]:
    first = make_bundle(tmp_path / "large-1", 1, LARGE)
    second = changed_slightly(first, tmp_path / "large-2")
    return signer.sign(first, 1), signer.sign(second, 2)


def test_a_difference_is_sent_where_it_is_small(
    fleet: Fleet, large: tuple[Path, Path], signer: Signer, tmp_path: Path
) -> None:
    first, second = large
    with_it, without_it = fleet.boards[:2]
    fleet.ships(first, with_it.url, "--public-key", signer.public)
    shipped = fleet.ships(second, with_it.url, without_it.url, "--base", first, "--public-key", signer.public)
    assert [one["how"] for one in shipped] == ["delta", "whole"]
    assert shipped[0]["sent_bytes"] < shipped[1]["sent_bytes"] / 2
    for board in (with_it, without_it):
        files = {path.name: path.read_bytes() for path in (board.root / "current").iterdir()}
        assert files == {path.name: path.read_bytes() for path in second.iterdir()}
    other = signer.sign(make_bundle(tmp_path / "large-3", 9, LARGE), 3)
    assert difference(second, other) is None
    (shipped_whole,) = fleet.ships(other, with_it.url, "--base", second)
    assert shipped_whole["how"] == "whole"


def test_where_the_base_is_damaged_the_whole_is_sent(fleet: Fleet, large: tuple[Path, Path], signer: Signer) -> None:
    """Its model differs in a byte, which the device notices in what the patch makes of it."""
    first, second = large
    board = fleet.boards[0]
    fleet.ships(first, board.url, "--public-key", signer.public)
    model = board.root.resolve() / "current" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    (shipped,) = fleet.ships(second, board.url, "--base", first)
    assert shipped["how"] == "whole"
    assert (board.root / "current" / "model.onnx").read_bytes() == (second / "model.onnx").read_bytes()


def test_a_staged_roll_out_stops_and_goes_back(
    fleet: Fleet, old: Path, new: Path, signer: Signer, tmp_path: Path
) -> None:
    """The canary fails: nobody else is touched. A later one fails: those before go back."""
    urls = [board.url for board in fleet.boards]
    fleet.ships(old, *urls, "--public-key", signer.public)
    assert fleet.ships(new, *urls)[2]["found"]["version"] == 2
    bad = make_bundle(tmp_path / "bad", 3)
    shutil.copyfile(new / "model.onnx", bad / "model.onnx")
    edit_manifest(bad)
    signer.sign(bad, 3)
    said = fleet.refuses(16, bad, *urls)
    assert "golden case 0" in said
    assert "rolled back" not in said
    assert {answers(board.root / "current") for board in fleet.boards} == {answers(new)}
    assert {json.loads((board.root / "state.json").read_text())["floor"] for board in fleet.boards} == {2}
    # The last one trusts another key.
    stranger = make_signer(tmp_path, "stranger")
    (kept,) = (fleet.boards[2].root / "keys").iterdir()
    kept.write_bytes(stranger.public.read_bytes())
    good = signer.sign(make_bundle(tmp_path / "good", 4), 4)
    said = fleet.refuses(15, good, *urls)
    first, second = (f"127.0.0.1:{board.root}" for board in fleet.boards[:2])
    assert said.index("stopped, and rolled back") < said.index(second) < said.index(first)
    assert {answers(board.root / "current") for board in fleet.boards} == {answers(new)}
    kept.write_bytes(signer.public.read_bytes())
    assert [one["found"]["version"] for one in fleet.ships(good, *urls)] == [4, 4, 4]


# Patches.


@pytest.mark.parametrize("seed", range(20))
def test_patches_of_bsdiff_are_applied(seed: int) -> None:
    generator = random.Random(seed)
    old = generator.randbytes(generator.randrange(2000))
    pieces = [old[(i := generator.randrange(len(old) + 1)) : i + generator.randrange(300)] for _ in range(8)]
    new = bytearray(b"".join(piece + generator.randbytes(generator.randrange(20)) for piece in pieces))
    for _ in range(10 if new else 0):
        new[generator.randrange(len(new))] ^= 1
    patch = bsdiff4.diff(old, bytes(new))
    assert patched(old, patch, len(new)) == new
    with pytest.raises(BundleError):
        patched(old, patch, len(new) - 1)


def test_patches_that_are_none_are_refused() -> None:
    """Or make something else, which a hash tells; nothing else happens."""
    generator = random.Random(3)
    old = generator.randbytes(3000)
    patch = bsdiff4.diff(old, old[1000:] + b"new" + old[:1000])
    for _ in range(2000):
        edited = bytearray(patch)
        for _ in range(generator.randrange(1, 4)):
            edited[generator.randrange(len(edited))] = generator.randrange(256)
        try:
            assert len(patched(old, bytes(edited), 4000)) <= 4000
        except BundleError:
            continue
    for content in (b"", b"BSDIFF40", patch[:40], b"BSDIFF40" + b"\xff" * 24):
        with pytest.raises(BundleError):
            patched(old, content, 4000)


def test_a_patch_that_does_nothing_for_long_is_refused() -> None:
    """Of 2 idle triples for each byte that comes out a few packed bytes made hours."""

    def patch(triples: list[tuple[int, int, int]], size: int) -> bytes:
        control = bz2.compress(b"".join(struct.pack("<3q", *triple) for triple in triples))
        added = bz2.compress(b"\1\1")
        return struct.pack("<8s3q", b"BSDIFF40", len(control), len(added), size) + control + added + bz2.compress(b"")

    assert patched(b"abcd", patch([(0, 0, 1), (1, 0, 0), (0, 0, 1), (1, 0, 0)], 2), 2) == b"ce"
    with pytest.raises(BundleError):
        patched(b"abcd", patch([(0, 0, 0), (0, 0, 0), (1, 0, 0), (1, 0, 0)], 2), 2)


def test_a_difference_makes_the_bundle_and_nothing_else(large: tuple[Path, Path]) -> None:
    first, second = large
    made = difference(first, second)
    assert made is not None
    files = read_manifest((second / "manifest.json").read_bytes()).files

    def whole(content: bytes, base: Path) -> bytes:
        source = delta_source(io.BytesIO(content), base)
        return b"".join(archive_of(source, files))

    expected = archive_bytes(
        (name, len(content), [content])
        for name in ("manifest.json", "signature.json", *(entry.name for entry in files))
        for content in [(second / name).read_bytes()]
    )
    assert whole(made, first) == b"".join(expected)
    with pytest.raises(BundleError):
        whole(made, second)
    more = [("manifest.json", b"x"), ("signature.json", b"x"), ("zzz", b"x")]
    for content in (made[:-600], b"".join(archive_bytes((n, len(c), [c]) for n, c in more))):
        with pytest.raises(BundleError):
            whole(content, first)


# What goes over ssh.


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an ssh that reaches nobody leaves what was sent to it."""
    monkeypatch.setenv(
        "COMPRESSOR_SSH", made_ssh(tmp_path, f"cat > recorded; printf '\\n%s\\n{{}}' {shlex.quote(ANSWER)}")
    )
    return tmp_path / "recorded"


def made_ssh(folder: Path, script: str) -> str:
    """A command to take instead of ssh; the script runs in the folder, where "$*" is what ssh would run elsewhere."""
    program = folder / "ssh"
    program.write_text(
        f'#!/bin/sh\ncd {shlex.quote(str(folder))}\nwhile [ "$1" != -- ]; do shift; done\nshift 2\n{script}\n'
    )
    program.chmod(0o755)
    return shlex.quote(str(program))


def test_a_private_key_goes_nowhere(recorded: Path, tmp_path: Path) -> None:
    """Neither in place of the public one, nor behind it."""
    pair, board = make_keys(tmp_path / "release"), RemoteDevice(Device("board"), "/srv/model")
    with pytest.raises(SignatureError, match="expected an Ed25519 public key"):
        board.run("install", ["-"], [], pair.private)
    assert not recorded.exists()
    both = tmp_path / "both.pub"
    both.write_bytes(pair.public.read_bytes() + pair.private.read_bytes())
    board.run("install", ["-"], [], both)
    sent = recorded.read_bytes()
    assert pair.public.read_bytes() in sent
    assert b"PRIVATE" not in sent


def test_a_login_that_greets(old: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_SSH", made_ssh(tmp_path, 'echo "{ Welcome }"; exec sh -c "$*"'))
    board = RemoteDevice(Device("board"), str(tmp_path / "root"), sys.executable)
    (shipped,) = ship(old, [board], SILENT, signer.public)
    assert shipped.found["version"] == 1
    monkeypatch.setenv("COMPRESSOR_SSH", made_ssh(tmp_path, "cat > recorded; echo Welcome"))
    with pytest.raises(DeviceError, match="cannot be read, and it may have been updated; `ssh board true` must print"):
        board.run("status")


@pytest.mark.parametrize("there", ["signature", "manifest"])
def test_what_the_key_did_not_sign_goes_nowhere(
    there: str, old: Path, new: Path, signer: Signer, tmp_path: Path
) -> None:
    key = signer.public
    if there == "signature":
        shutil.copyfile(old / "signature.json", new / "signature.json")
    else:
        key = make_signer(tmp_path, "stranger").public
    with pytest.raises(SignatureError):
        ship(new, [OciLayout(tmp_path / "layout", "latest"), tmp_path / "root"], SILENT, key)
    assert not (tmp_path / "layout").exists()
    assert not (tmp_path / "root").exists()


def test_what_is_not_there_is_said_to_be_not_there(new: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found none"):
        ship(tmp_path / "absent", [tmp_path / "root"], SILENT)
    with pytest.raises(BundleError, match="found none"):
        ship(new, [tmp_path / "root"], SILENT, base=tmp_path / "absent")
    with pytest.raises(SignatureError, match="no such file"):
        ship(new, [RemoteDevice(Device("board"), "/srv")], SILENT, tmp_path / "absent.pub")


# Whatever stops it.


def test_what_was_updated_goes_back_when_a_file_is_in_the_way(
    old: Path, new: Path, signer: Signer, tmp_path: Path
) -> None:
    root, file = tmp_path / "root", tmp_path / "file"
    file.touch()
    ship(old, [root], SILENT, signer.public)
    with pytest.raises(StorageError, match=f"not a directory; .* rolled back: {root}"):
        ship(new, [root, OciLayout(file, "latest")], SILENT)
    assert answers(root / "current") == answers(old)


def test_what_was_put_there_anew_or_first_does_not_go_back(
    fleet: Fleet, old: Path, new: Path, signer: Signer, tmp_path: Path
) -> None:
    """A damaged current version, here and over ssh, beside an older one that must not serve again; an empty device."""
    roots, file = [tmp_path / "root", fleet.boards[0].root], tmp_path / "file"
    file.touch()
    names = [str(roots[0]), fleet.boards[0].url]
    for bundle in (old, new):
        fleet.ships(bundle, *names, "--public-key", signer.public)
    for root in roots:
        model = root / "current" / "model.onnx"
        model.write_bytes(model.read_bytes()[:-1] + b"?")
    empty = tmp_path / "empty"
    said = fleet.refuses(13, new, *names, empty, f"oci:{file}", "--public-key", signer.public)
    assert f"rolled back: none; installed where nothing was before, and stays: {empty}" in said
    assert "could not" not in said
    for root in (*roots, empty):
        assert answers(root / "current") == answers(new)
    for root in roots:
        assert json.loads((root / "state.json").read_text())["previous"], "and there is still something to go back to"


def test_what_was_updated_goes_back_after_a_ctrl_c(
    old: Path, new: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    ship(old, [root], SILENT, signer.public)
    monkeypatch.setenv("COMPRESSOR_SSH", made_ssh(tmp_path, "kill -INT $PPID; sleep 60"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
    try:
        with pytest.raises(KeyboardInterrupt, match=f"board:/srv was under way.*rolled back: {root}"):
            ship(new, [root, RemoteDevice(Device("board"), "/srv")], SILENT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert answers(root / "current") == answers(old)


# Targets.


def test_what_targets_mean() -> None:
    assert target_of("ssh://pi@board:2222/srv/model", "py") == RemoteDevice(
        Device("board", "pi", 2222), "/srv/model", "py"
    )
    assert target_of("ssh://board/~/model") == RemoteDevice(Device("board"), "/~/model")
    assert target_of("oci:layout") == OciLayout(Path("layout"), "latest")
    assert target_of("oci:a/layout:v3") == OciLayout(Path("a/layout"), "v3")
    assert target_of("oci://localhost:5000/models/a:v1") == Registry("localhost:5000", "models/a", "v1")
    assert target_of("/srv/model") == Path("/srv/model")
    assert target_of("./a:b") == Path("a:b")
    for text in (
        "ssh://board",
        "ssh://board/",
        "ssh:board",
        "http://board/x",
        "oci:",
        "oci:x:",
        "ssh://-oProxy=x/y",
        "oci://host",
        "oci://host/Name",
        "pi@board:/srv/model",
        "board:model",
        "",
    ):
        with pytest.raises(UsageError):
            target_of(text)


@pytest.mark.parametrize("index", ['{"manifests": [1]}', '{"manifests": [{"annotations": 1}]}', "[" * 100_000, "[]"])
def test_an_index_that_is_none_is_refused(index: str, old: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(StorageError):
        ship(old, [OciLayout(tmp_path, "latest")], SILENT)
    assert (tmp_path / "index.json").read_text() == index


def test_a_folder_may_begin_with_a_hyphen(recorded: Path) -> None:
    RemoteDevice(Device("board"), "/~/-x").run("status")
    assert b"--root=-x" in recorded.read_bytes()


def test_an_oci_layout_holds_the_bundle(fleet: Fleet, old: Path, new: Path, tmp_path: Path) -> None:
    """Read as the specification says, from the index down, every blob by its digest."""
    layout = tmp_path / "layout"
    fleet.ships(old, f"oci:{layout}:v1")
    fleet.ships(new, f"oci:{layout}:v2")
    fleet.ships(new, f"oci:{layout}")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_text())

    def blob(descriptor: dict[str, Any]) -> bytes:
        content = (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
        assert descriptor["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert descriptor["size"] == len(content)
        return content

    tags = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry for entry in index["manifests"]}
    assert set(tags) == {"v1", "v2", "latest"}
    assert tags["v2"]["digest"] == tags["latest"]["digest"] != tags["v1"]["digest"]
    for tag, bundle in (("v1", old), ("v2", new)):
        manifest = json.loads(blob(tags[tag]))
        assert blob(manifest["config"]) == b"{}"
        (tmp_path / f"{tag}.tar.zst").write_bytes(blob(manifest["layers"][0]))
        unpack(tmp_path / f"{tag}.tar.zst", tmp_path / tag)
        assert answers(tmp_path / tag) == answers(bundle)
    (layout / "index.json").write_text("[]")
    assert "expected an OCI image layout" in fleet.refuses(13, old, f"oci:{layout}")


def test_what_is_added_to_a_layout_at_once_is_all_in_it(old: Path, new: Path, tmp_path: Path) -> None:
    layout, tags = tmp_path / "layout", {f"v{n}": (old, new)[n % 2] for n in range(8)}
    with ThreadPoolExecutor(len(tags)) as pool:
        digests = dict(zip(tags, pool.map(lambda tag: write_layout(tags[tag], layout, tag), tags), strict=True))
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    assert {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries} == digests
    blobs = list((layout / "blobs" / "sha256").iterdir())
    assert {blob.name for blob in blobs} == {hashlib.sha256(blob.read_bytes()).hexdigest() for blob in blobs}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry of its own on loopback."""
    program = needed.require("docker-registry", "docker-registry")
    host = f"127.0.0.1:{free_port()}"
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": host},
    }
    config = tmp_path / "registry.yml"
    config.write_text(json.dumps(settings))  # which is YAML too
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
    try:
        wait_until(lambda: answered(f"http://{host}/v2/") or process.poll() is not None, "a registry")
        yield host
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def answered(url: str, accept: str = "*/*") -> bytes | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=LIMIT_S) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def test_a_registry_holds_the_bundle(fleet: Fleet, registry: str, old: Path, tmp_path: Path) -> None:
    (shipped,) = fleet.ships(old, f"oci://{registry}/models/thermometer:v1")
    place = f"http://{registry}/v2/models/thermometer"
    content = answered(f"{place}/manifests/v1", "application/vnd.oci.image.manifest.v1+json")
    assert content is not None
    assert shipped["found"]["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    layer = json.loads(content)["layers"][0]
    packed = answered(f"{place}/blobs/{layer['digest']}")
    assert packed is not None
    (tmp_path / "pulled.tar.zst").write_bytes(packed)
    unpack(tmp_path / "pulled.tar.zst", tmp_path / "pulled")
    assert answers(tmp_path / "pulled") == answers(old)
    assert "the registry cannot be used" in fleet.refuses(16, old, f"oci://127.0.0.1:{free_port()}/models/thermometer")


class _Agreeable(BaseHTTPRequestHandler):
    """Answers 200 and a page to everything, and keeps nothing."""

    def _answer(self) -> None:
        page = b"<html>welcome"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Location", "/upload")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = _answer  # noqa: N815 (as http.server has them)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_keeps_nothing_is_no_registry(old: Path) -> None:
    pytest.importorskip("oras")
    server = HTTPServer(("127.0.0.1", 0), _Agreeable)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(DeviceError, match="took the bundle, and does not have it"):
            ship(old, [Registry(f"127.0.0.1:{server.server_port}", "models/thermometer", "v1")], SILENT)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
