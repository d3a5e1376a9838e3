"""Ed25519 keys, and signing a bundle with one. What is signed stands in `compressor.device.signature`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from compressor.bundle.manifest import check_files, open_bundle
from compressor.device.manifest import MANIFEST
from compressor.device.signature import (
    MAX_KEY_BYTES,
    SIGNATURE,
    Signature,
    Statement,
    check_statement,
    dump_signature,
    key_id,
    signed_message,
)
from compressor.errors import SignatureError, UsageError
from compressor.intake.files import open_regular
from compressor.store import write_atomic

_OTHERS_BITS = 0o077


@dataclass(frozen=True)
class KeyPair:
    """The files of a new key pair, and its id. The private key is in its file alone."""

    private: Path
    public: Path
    key: str


def make_keys(name: Path) -> KeyPair:
    """Writes NAME.key, which only its owner may read, and NAME.pub. Raises UsageError where one of them is there, and
    for a name that is none."""
    if name.name in ("", ".."):
        raise UsageError(f"{str(name)!r}: expected a name for the files of the keys, such as release")
    pair = KeyPair(name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub"), "")
    if found := [str(path) for path in (pair.private, pair.public) if os.path.lexists(path)]:
        raise UsageError(f"{found[0]}: it is there already, and no key is overwritten; choose another name")
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with os.fdopen(os.open(pair.private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    write_atomic(pair.public, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return KeyPair(pair.private, pair.public, key_id(public))


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key in PEM, in a file that nobody else may read. Raises SignatureError."""
    with open_regular(path, SignatureError) as file:
        if os.fstat(file.fileno()).st_mode & _OTHERS_BITS:
            raise SignatureError(f"{path}: others may read this private key; run: chmod 600 {path}")
        content = file.read(MAX_KEY_BYTES)
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path}: expected an Ed25519 private key in PEM; `compressor keys` makes one") from None
    return key


def sign_bundle(folder: Path, key: Ed25519PrivateKey, statement: Statement) -> Signature:
    """Writes signature.json into a bundle, in place of one that is there. The bundle must be whole, and be of this
    format. Raises BundleError, SignatureError."""
    check_statement(statement)
    check_files(open_bundle(folder))
    manifest = (folder / MANIFEST).read_bytes()
    value = key.sign(signed_message(statement, manifest))
    signature = Signature(statement, key_id(key.public_key()), value)
    write_atomic(folder / SIGNATURE, dump_signature(signature))
    return signature
