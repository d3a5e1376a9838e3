"""Signatures and archives: what was changed, added, removed, renamed or swapped is noticed, every time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from made_bundles import PRODUCT, WIDTH, Signer, make_bundle, make_signer

import compressor
from compressor.__main__ import main
from compressor.bundle.archive import as_folder, pack, unpack
from compressor.bundle.keys import make_keys, read_private_key
from compressor.bundle.verify import verify_bundle
from compressor.device.archive import member_header
from compressor.device.manifest import read_manifest
from compressor.device.signature import (
    Statement,
    check_expiry,
    dump_signature,
    read_public_key,
    read_signature,
    signed_message,
    verify_signature,
)
from compressor.device.source import Source, archive_of, archive_source, check_folder, folder_source, open_source
from compressor.errors import BundleError, SignatureError, UsageError

EDITS, PACKED_EDITS, FOLDER_EDITS = 10_000, 2_000, 1_000
HEADER_BYTES = 6  # of a Zstandard frame, as docs/bundle-format.md has it


def believed(source: Source, signer: Signer) -> bytes:
    """The archive of a bundle whose signature and every file were checked."""
    verify_signature(source.signature, source.manifest, {signer.key: signer.private.public_key()})
    return b"".join(archive_of(source, read_manifest(source.manifest).files))


def archive(bundle: Path) -> bytes:
    with folder_source(bundle) as source:
        return b"".join(archive_of(source, read_manifest(source.manifest).files))


# Keys.


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    previous = os.umask(0)
    try:
        assert main(["keys", str(tmp_path / "release")]) == 0
    finally:
        os.umask(previous)
    private = tmp_path / "release.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    said = capsys.readouterr()
    secret = private.read_text().splitlines()[1]
    assert secret not in said.out + said.err
    assert secret not in (tmp_path / "release.pub").read_text()
    public = read_public_key(tmp_path / "release.pub")
    assert read_private_key(private).public_key() == public
    assert hashlib.sha256(public.public_bytes_raw()).hexdigest() in said.out
    private.chmod(0o640)
    with pytest.raises(SignatureError, match="others may read"):
        read_private_key(private)


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    first = make_keys(tmp_path / "release").private.read_bytes()
    with pytest.raises(UsageError, match="no key is overwritten"):
        make_keys(tmp_path / "release")
    assert (tmp_path / "release.key").read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(content)
    for read in (read_private_key, read_public_key):
        with pytest.raises(SignatureError, match="expected an Ed25519"):
            read(path)
        with pytest.raises(SignatureError, match="no such file"):
            read(tmp_path / "absent")


@pytest.mark.parametrize(("name", "code"), [("", 2), (".", 2), ("..", 2), ("absent/release", 13)])
def test_names_that_keys_cannot_have(name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["keys", name]) == code
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("days", ["nan", "inf", "-1", "0", "1e300"])
def test_days_that_nothing_expires_in(days: str, old: Path, tmp_path: Path) -> None:
    before, pair = (old / "signature.json").read_bytes(), make_keys(tmp_path / "release")
    assert main(["sign", str(old), "--key", str(pair.private), f"--expires-days={days}"]) == 2
    assert (old / "signature.json").read_bytes() == before


def test_a_key_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    for read in (read_private_key, read_public_key):
        with pytest.raises(SignatureError, match="expected a regular file, got a pipe"):
            read(tmp_path / "key")


def test_a_private_key_is_nowhere_in_what_it_signs(tmp_path: Path, old: Path) -> None:
    pair = make_keys(tmp_path / "release")
    assert main(["sign", str(old), "--key", str(pair.private)]) == 0
    pack(old, tmp_path / "old.tar")
    secret = pair.private.read_text().splitlines()[1].encode()
    raw = read_private_key(pair.private).private_bytes_raw()
    packed = (tmp_path / "old.tar").read_bytes()
    assert secret not in packed
    assert raw not in packed
    assert raw.hex().encode() not in packed


# Signatures.


def test_the_signature_is_ed25519_over_four_lines_and_the_manifest(old: Path, signer: Signer) -> None:
    """As docs/bundle-format.md describes it, checked by cryptography alone."""
    said = json.loads((old / "signature.json").read_text())
    message = f"compressor bundle signature 1\n{PRODUCT}\n1\n-\n".encode() + (old / "manifest.json").read_bytes()
    key = Ed25519PublicKey.from_public_bytes(signer.private.public_key().public_bytes_raw())
    key.verify(bytes.fromhex(said["signature"]), message)
    assert said["key"] == hashlib.sha256(key.public_bytes_raw()).hexdigest()


def test_the_command_signs_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle", 3)
    pair = make_keys(tmp_path / "release")
    before = int(time.time())
    assert main(["sign", str(bundle), "--key", str(pair.private)]) == 0
    said = read_signature((bundle / "signature.json").read_bytes()).statement
    assert said.product == "own"
    assert before <= said.version <= time.time()
    packed = tmp_path / "bundle.tar.zst"
    assert main(["pack", str(bundle), "--out", str(packed)]) == 0
    capsys.readouterr()
    for path in (bundle, packed):
        assert main(["verify", str(path), "--public-key", str(pair.public)]) == 0
        assert f"signed as own version {said.version}" in capsys.readouterr().out
    assert main(["verify", str(packed), "--public-key", str(make_signer(tmp_path, "other").public)]) == 15
    assert "expected a bundle signed by a trusted key" in capsys.readouterr().err
    assert main(["inspect", str(packed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == "bundle"
    (bundle / "signature.json").unlink()
    assert main(["verify", str(bundle)]) == 0
    assert main(["verify", str(bundle), "--public-key", str(pair.public)]) == 15


@pytest.mark.parametrize(
    ("product", "version", "expires"), [("", 1, None), ("a\n2", 1, None), ("A", 1, None), ("a", 0, None), ("a", 1, -1)]
)
def test_statements_that_cannot_be_signed(old: Path, signer: Signer, product: str, version: int, expires: int) -> None:
    before = (old / "signature.json").read_bytes()
    with pytest.raises(SignatureError):
        signer.sign(old, version, product, expires)
    assert (old / "signature.json").read_bytes() == before


def test_a_damaged_bundle_is_not_signed(old: Path, signer: Signer) -> None:
    (old / "README.md").write_text("better")
    with pytest.raises(BundleError, match=r"README\.md"):
        signer.sign(old, 2)


def test_every_part_of_the_statement_is_signed(old: Path, signer: Signer) -> None:
    keys = {signer.key: signer.private.public_key()}
    manifest = (old / "manifest.json").read_bytes()
    signature = read_signature((old / "signature.json").read_bytes())
    assert verify_signature(dump_signature(signature), manifest, keys) == signature
    for statement in (Statement("other", 1, None), Statement(PRODUCT, 2, None), Statement(PRODUCT, 1, 4_000_000_000)):
        forged = dump_signature(type(signature)(statement, signature.key, signature.value))
        with pytest.raises(SignatureError, match="was changed after it was signed"):
            verify_signature(forged, manifest, keys)
    assert len({signed_message(Statement(p, v, None), b"") for p, v in (("a", 11), ("a1", 1), ("a", 1))}) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(": 1,", ":  1,", 1),
        lambda text: text.upper(),
        lambda text: text + "\n",
        lambda text: text.replace('"version": 1', '"version": true'),
        lambda text: text.replace('"version": 1', '"version": 1, "version": 1'),
        lambda text: text.replace('"expires": null', '"expires": NaN'),
        lambda text: text.replace('"expires"', '"expired"'),
        lambda _: "[" * 4000,
        lambda text: text.ljust(5000),
        lambda _: "[]",
    ],
)
def test_a_signature_has_one_spelling(old: Path, change: Callable[[str], str]) -> None:
    with pytest.raises((SignatureError, BundleError)):
        read_signature(change((old / "signature.json").read_text()).encode())


def test_a_signature_may_expire() -> None:
    check_expiry(Statement(PRODUCT, 1, None))
    check_expiry(Statement(PRODUCT, 1, int(time.time()) + 1000))
    with pytest.raises(SignatureError, match="expired"):
        check_expiry(Statement(PRODUCT, 1, int(time.time()) - 1000))


def test_single_bytes_of_an_archive_are_all_noticed(old: Path, signer: Signer) -> None:
    """Headers, padding and end included, since there is only one archive of a bundle."""
    whole = archive(old)
    assert believed(archive_source(io.BytesIO(whole)), signer) == whole
    generator = random.Random(7)
    for _ in range(EDITS):
        edited = bytearray(whole)
        edited[generator.randrange(len(whole))] ^= generator.randrange(1, 256)
        with pytest.raises((BundleError, SignatureError)):
            believed(archive_source(io.BytesIO(bytes(edited))), signer)


def test_single_bytes_of_a_packed_bundle_are_noticed_or_change_nothing(
    old: Path, signer: Signer, tmp_path: Path
) -> None:
    """All of its first bytes, the frame's header, are noticed. The same archive can be compressed in several ways, so
    of the others an edit may change nothing of what is believed.
    """
    path, same = pack(old, tmp_path / "old.tar.zst").path, archive(old)
    whole, generator = path.read_bytes(), random.Random(9)
    edits = [(place, 1 << bit) for place in range(HEADER_BYTES) for bit in range(8)]
    edits += [(generator.randrange(len(whole)), generator.randrange(1, 256)) for _ in range(PACKED_EDITS)]
    believed_all_the_same = []
    for place, change in edits:
        edited = bytearray(whole)
        edited[place] ^= change
        path.write_bytes(edited)
        try:
            with open_source(path) as source:
                assert believed(source, signer) == same
        except (BundleError, SignatureError):
            continue
        believed_all_the_same.append(place)
    assert all(place >= HEADER_BYTES for place in believed_all_the_same)
    assert len(believed_all_the_same) < len(edits) // 100


def test_single_bytes_of_a_folder_are_all_noticed(old: Path, signer: Signer) -> None:
    generator, files = random.Random(8), sorted(old.iterdir())
    for _ in range(FOLDER_EDITS):
        path = generator.choice(files)
        before = path.read_bytes()
        edited = bytearray(before)
        edited[generator.randrange(len(before))] ^= generator.randrange(1, 256)
        path.write_bytes(edited)
        with pytest.raises((BundleError, SignatureError)), folder_source(old) as source:
            believed(source, signer)
        path.write_bytes(before)
    with folder_source(old) as source:
        believed(source, signer)


def added(bundle: Path) -> None:
    (bundle / "more.txt").write_text("more")


def hidden(bundle: Path) -> None:
    (bundle / ".git").mkdir()
    (bundle / ".git" / "config").write_text("[core]")


def emptied(bundle: Path) -> None:
    (bundle / "folder").mkdir()


def removed(bundle: Path) -> None:
    (bundle / "README.md").unlink()


def renamed(bundle: Path) -> None:
    (bundle / "README.md").rename(bundle / "readme.md")


def swapped(bundle: Path) -> None:
    readme, bom = bundle / "README.md", bundle / "bom.cdx.json"
    first, second = readme.read_bytes(), bom.read_bytes()
    readme.write_bytes(second)
    bom.write_bytes(first)


def linked(bundle: Path) -> None:
    path = bundle / "README.md"
    path.rename(bundle.parent / "README.md")
    path.symlink_to(bundle.parent / "README.md")


def linked_folder(bundle: Path) -> None:
    (bundle / "folder").symlink_to(bundle.parent)


def linked_manifest(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.rename(bundle.parent / "manifest.json")
    path.symlink_to(bundle.parent / "manifest.json")


def piped(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    os.mkfifo(bundle / "README.md")


def truncated(bundle: Path) -> None:
    os.truncate(bundle / "model.onnx", 100)


def lengthened(bundle: Path) -> None:
    os.truncate(bundle / "model.onnx", 10_000)


@pytest.mark.parametrize(
    "change",
    [
        added, hidden, emptied, removed, renamed, swapped, linked, linked_folder, linked_manifest, piped, truncated,
        lengthened,
    ],
)  # fmt: skip
def test_other_files_than_the_signed_ones_are_refused(
    old: Path, signer: Signer, change: Callable[[Path], None]
) -> None:
    change(old)
    with pytest.raises(BundleError), folder_source(old) as source:
        believed(source, signer)
    with pytest.raises(BundleError), folder_source(old) as source:
        check_folder(old, read_manifest(source.manifest).files)


def test_a_manifest_of_another_bundle_is_refused(old: Path, new: Path, signer: Signer) -> None:
    """Each file is signed, but not together."""
    for name in ("manifest.json", "signature.json", "model.onnx"):
        mixed = {path.name: path.read_bytes() for path in old.iterdir()} | {name: (new / name).read_bytes()}
        folder = old.parent / f"mixed-{name}"
        folder.mkdir()
        for file, content in mixed.items():
            (folder / file).write_bytes(content)
        with pytest.raises((BundleError, SignatureError)), folder_source(folder) as source:
            believed(source, signer)


# Archives.


def test_the_same_bundle_gives_the_same_file(tmp_path: Path) -> None:
    """In two folders, two processes, at two times."""
    program = "import sys; from compressor.__main__ import main; sys.exit(main(sys.argv[1:]))"
    hashes = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        bundle = make_bundle(folder / "bundle", 5)
        os.utime(bundle / "model.onnx", (1, 1 if name == "one" else 10**9))
        (bundle / "model.onnx").chmod(0o600 if name == "one" else 0o755)
        packed = folder / "b.tar.zst"
        subprocess.run(
            [sys.executable, "-c", program, "pack", bundle, "--out", packed], check=True, capture_output=True
        )
        hashes.add(hashlib.sha256(packed.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_other_programs_read_the_archive(old: Path, tmp_path: Path) -> None:
    pack(old, tmp_path / "old.tar.zst")
    content = zstandard.ZstdDecompressor().stream_reader((tmp_path / "old.tar.zst").read_bytes()).read()
    assert content == archive(old)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:2]] == ["manifest.json", "signature.json"]
        assert sorted(m.name for m in members) == sorted(p.name for p in old.iterdir())
        assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname, m.type) for m in members} == {
            (0, 0o644, 0, 0, "", "", tarfile.REGTYPE)
        }
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == (old / member.name).read_bytes()


@pytest.mark.parametrize("suffix", [".tar", ".tar.zst"])
def test_what_was_packed_is_unpacked(old: Path, tmp_path: Path, suffix: str) -> None:
    packed = pack(old, tmp_path / f"old{suffix}")
    assert packed.bytes == packed.path.stat().st_size
    assert packed.sha256 == hashlib.sha256(packed.path.read_bytes()).hexdigest()
    unpack(packed.path, tmp_path / "again")
    assert archive(tmp_path / "again") == archive(old)
    assert verify_bundle(tmp_path / "again").cases == 3
    with pytest.raises(UsageError, match="it is there already"):
        unpack(packed.path, tmp_path / "again")
    with as_folder(packed.path) as folder:
        assert archive(folder) == archive(old)
    assert not folder.exists()
    ones = np.ones((1, WIDTH), np.float32)
    assert (compressor.load(packed.path)(ones) == compressor.load(old)(ones)).all()


def test_a_damaged_bundle_is_not_packed(old: Path, tmp_path: Path) -> None:
    (old / "model.onnx").write_bytes(bytes((old / "model.onnx").stat().st_size))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        pack(old, tmp_path / "old.tar.zst")
    with pytest.raises(UsageError, match="ends in"):
        pack(old, tmp_path / "old.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_where_there_is_no_room_the_archive_is_named(old: Path, tmp_path: Path) -> None:
    """A limit of 1 KiB on files stands for a full disk."""
    packed = tmp_path / "old.tar"
    command = f"ulimit -f 1; exec {sys.executable} -m compressor pack {old} --out {packed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 13
    assert done.stderr.startswith(f"compressor: {packed}: file too large; ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for field, value in fields.items():
        setattr(info, field, value)
    return info


HOSTILE = {
    "symbolic link": entry("README.md", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": entry("README.md", tarfile.LNKTYPE, "/etc/passwd"),
    "device": entry("README.md", tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": entry("README.md", tarfile.FIFOTYPE),
    "folder": entry("README.md", tarfile.DIRTYPE),
    "absolute": entry("/tmp/README.md"),
    "upwards": entry("../README.md"),
    "long name": entry("a" * 300),
    "set user id": entry("README.md", mode=0o4755),
    "owner": entry("README.md", uid=1000),
    "dated": entry("README.md", mtime=1),
    "another file": entry("other.md"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_members_that_a_bundle_has_not(old: Path, tmp_path: Path, name: str, place: int) -> None:
    """In the place of a file, and before what is signed. Written by Python's tarfile."""
    plain = [
        *("manifest.json", "signature.json"),
        *(e.name for e in read_manifest((old / "manifest.json").read_bytes()).files),
    ]
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for index, file in enumerate(plain):
            if index == place:
                tar.addfile(HOSTILE[name])
                continue
            content = (old / file).read_bytes()
            tar.addfile(entry(file, size=len(content)), io.BytesIO(content))
    with pytest.raises(BundleError):
        unpack(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hostile.tar", "old"]


def test_a_header_that_asks_for_memory_gets_none(tmp_path: Path) -> None:
    """A pax header of 8 GiB, which tarfile would read as a whole."""
    path = tmp_path / "bomb.tar"
    head = bytearray(member_header("manifest.json", (1 << 33) - 1))
    head[156:157] = b"x"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(head)
    for content in (bytes(head), member_header("manifest.json", (1 << 33) - 1), member_header("manifest.json", 9)):
        path.write_bytes(content)
        with pytest.raises(BundleError):
            unpack(path, tmp_path / "out")


@pytest.mark.parametrize("left", [0, 1, 511, 512, 600, 3000, -512, -1024, -1])
def test_an_archive_that_is_cut_off_is_refused(old: Path, tmp_path: Path, left: int) -> None:
    (tmp_path / "cut.tar").write_bytes(archive(old)[:left])
    with pytest.raises(BundleError):
        unpack(tmp_path / "cut.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_than_the_manifest_names_is_refused(old: Path, tmp_path: Path) -> None:
    whole = archive(old)
    more = whole[:-1024] + member_header("zzz", 0) + whole[-1024:]
    for content in (more, whole + b"\0", whole + whole):
        (tmp_path / "more.tar").write_bytes(content)
        with pytest.raises(BundleError):
            unpack(tmp_path / "more.tar", tmp_path / "out")


def test_compressed_rubbish_is_refused(old: Path, tmp_path: Path) -> None:
    packed = pack(old, tmp_path / "old.tar.zst").path
    whole = packed.read_bytes()
    other = zstandard.ZstdCompressor(level=19).compress(archive(old))
    for content in (whole[:-1], whole[:40], whole + b"junk", whole + whole, other):
        packed.write_bytes(content)
        with pytest.raises(BundleError):
            unpack(packed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stolen_name_is_not_enough(old: Path, signer: Signer) -> None:
    """A signature by another key that calls itself the trusted one."""
    other = Ed25519PrivateKey.generate()
    signature = read_signature((old / "signature.json").read_bytes())
    manifest = (old / "manifest.json").read_bytes()
    value = other.sign(signed_message(signature.statement, manifest))
    forged = dump_signature(type(signature)(signature.statement, signer.key, value))
    with pytest.raises(SignatureError):
        verify_signature(forged, manifest, {signer.key: signer.private.public_key()})
