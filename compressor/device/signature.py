"""The signature of a bundle: Ed25519 (RFC 8032) over what its signer says of it and the exact bytes of its manifest.

The manifest holds the SHA-256 of every other file, so the signature covers the whole bundle. The version stands here
and not in the manifest: a bundle is the same bytes whenever it is built, and which release it becomes is decided by
whoever signs it. An older model goes out again, where that is wanted, by being signed again with a higher version.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import BundleError, SignatureError
from compressor.intake.files import read_bounded
from compressor.intake.json_text import strict_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE = "signature.json"
SIGNATURE_VERSION = 1
MAX_SIGNATURE_BYTES = 4096
MAX_KEY_BYTES = 4096
_PRODUCT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Statement:
    """What a signer says: which release of which product this is, and until when it may be installed.

    `expires` is in seconds since 1970 (UTC); None: it always may.
    """

    product: str
    version: int
    expires: int | None


@dataclass(frozen=True)
class Signature:
    """What signature.json holds. `key` is the signer's key id, `value` the 64 bytes of the signature."""

    statement: Statement
    key: str
    value: bytes


def check_statement(statement: Statement) -> None:
    """Raises SignatureError for a product or numbers that no signature may carry."""
    if not _PRODUCT.fullmatch(statement.product):
        raise SignatureError(
            f"{statement.product!r}: expected a product of up to 64 of a-z, 0-9, '.', '_' and '-', such as keyboard"
        )
    if not 0 < statement.version < 1 << 63 or not 0 <= (statement.expires or 0) < 1 << 63:
        raise SignatureError(f"version {statement.version}: expected a whole number above 0")


def signed_message(statement: Statement, manifest: bytes) -> bytes:
    """The bytes that are signed: four lines and the manifest."""
    expires = "-" if statement.expires is None else statement.expires
    head = f"compressor bundle signature {SIGNATURE_VERSION}\n{statement.product}\n{statement.version}\n{expires}\n"
    return head.encode() + manifest


def dump_signature(signature: Signature) -> bytes:
    """The only text of signature.json that says this; a reader refuses every other."""
    said = signature.statement
    content = {
        "format_version": SIGNATURE_VERSION,
        "product": said.product,
        "version": said.version,
        "expires": said.expires,
        "key": signature.key,
        "signature": signature.value.hex(),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def read_signature(content: bytes) -> Signature:
    """The content of a signature.json, not verified. Raises SignatureError where it is none."""
    wrong = SignatureError(f"{SIGNATURE}: expected a signature of format {SIGNATURE_VERSION}; sign the bundle again")
    if len(content) > MAX_SIGNATURE_BYTES:
        raise wrong
    found = strict_json(content, SIGNATURE, BundleError)
    try:
        statement = Statement(_of(str, found["product"]), _of(int, found["version"]), found["expires"])
        signature = Signature(statement, _of(str, found["key"]), bytes.fromhex(found["signature"]))
    except (KeyError, TypeError, ValueError):
        raise wrong from None
    if statement.expires is not None and type(statement.expires) is not int:
        raise wrong
    check_statement(statement)
    if dump_signature(signature) != content:  # so that no byte of the file can be changed
        raise wrong
    return signature


def verify_signature(content: bytes, manifest: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Signature:
    """The signature of a manifest, by one of the keys (by their ids). Raises SignatureError."""
    from cryptography.exceptions import InvalidSignature

    if not content:
        raise SignatureError(f"expected a signed bundle, got one without {SIGNATURE}; `compressor sign` signs it")
    signature = read_signature(content)
    if signature.key not in keys:
        known = ", ".join(key[:16] for key in sorted(keys)) or "none yet: name one with --public-key"
        raise SignatureError(f"expected a bundle signed by a trusted key ({known}), got key {signature.key[:16]!r}")
    try:
        keys[signature.key].verify(signature.value, signed_message(signature.statement, manifest))
    except InvalidSignature:
        raise SignatureError(
            "the signature is not of this manifest; the bundle was changed after it was signed"
        ) from None
    return signature


def verify_by(public_key: Path, content: bytes, manifest: bytes) -> Signature:
    """The signature of a manifest by the key in this file. Raises SignatureError."""
    key = read_public_key(public_key)
    return verify_signature(content, manifest, {key_id(key): key})


def check_expiry(statement: Statement) -> None:
    """Raises SignatureError where the time to install this is over by the clock of this machine."""
    if statement.expires is not None and time.time() > statement.expires:
        raise SignatureError(
            f"the signature of version {statement.version} expired {time.time() - statement.expires:.0f} s ago;"
            " sign the bundle again"
        )


def key_id(key: Ed25519PublicKey) -> str:
    """Hex SHA-256 of the 32 bytes of a public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def read_public_key(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key in PEM. Raises SignatureError where the file holds none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = read_bounded(path, MAX_KEY_BYTES, SignatureError)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path}: expected an Ed25519 public key in PEM; `compressor keys` makes one") from None
    return key


def public_pem(path: Path) -> bytes:
    """A public key as PEM, and nothing else that its file may hold. Raises SignatureError."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return read_public_key(path).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _of(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value
