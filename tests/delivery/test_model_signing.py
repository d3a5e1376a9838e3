"""The signature of OpenSSF's `model-signing` beside a bundle, by that program itself, as docs/delivery.md shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fetched
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from made_bundles import Signer, answers

from compressor.__main__ import main

PACKAGES = ("model-signing==1.1.1", "pyOpenSSL==26.4.0")


def model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program with its own packages, cryptography too: none of this environment's."""
    folder = fetched.by_pip("model-signing-1.1.1", *PACKAGES)
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from model_signing._cli import main; main()"
    command = [getattr(sys, "_base_executable", sys.executable), "-I", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_a_host_s_signature_beside_a_bundle(old: Path, signer: Signer, tmp_path: Path) -> None:
    """It holds for the bundle, notices a change, and neither `verify` nor a device minds it; in the bundle they do."""
    secret, public, signature = tmp_path / "host.pem", tmp_path / "host.pub", tmp_path / "old.sig"
    key = ec.generate_private_key(ec.SECP256R1())
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    check = ("verify", "key", old, "--public_key", public, "--signature", signature)
    ended = model_signing("sign", "key", old, "--private_key", secret, "--signature", signature)
    assert ended.returncode == 0, ended.stderr
    assert model_signing(*check).returncode == 0
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    install = ["device", "install", str(old), "--root", str(tmp_path / "root"), "--public-key", str(signer.public)]
    assert main(["verify", str(old)]) == 0
    assert main(install) == 0
    assert answers(tmp_path / "root" / "current") == answers(old)
    (old / "old.sig").write_bytes(signature.read_bytes())
    assert main(["verify", str(old)]) == main([*install[:3], "--root", str(tmp_path / "other"), *install[5:]]) == 11
    (old / "old.sig").unlink()
    (old / "README.md").write_text("another")
    assert model_signing(*check).returncode != 0
