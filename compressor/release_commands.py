"""One function per verb that makes releases and brings them to devices. Results go to stdout, all else to stderr."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from compressor.errors import UsageError
from compressor.progress import Progress

_MOST_DAYS = 36_500


def keys(options: argparse.Namespace) -> None:
    """`compressor keys NAME`"""
    from compressor.bundle.keys import make_keys

    made = make_keys(Path(options.name))
    print(f"key {made.key}\nprivate: {made.private} (keep it secret)\npublic: {made.public}")


def sign(options: argparse.Namespace) -> None:
    """`compressor sign BUNDLE --key FILE`"""
    from compressor.bundle.keys import read_private_key, sign_bundle
    from compressor.bundle.manifest import open_bundle
    from compressor.device.signature import SIGNATURE, Statement

    folder, now = Path(options.bundle), int(time.time())
    statement = Statement(
        options.product or open_bundle(folder).manifest.task,
        now if options.release is None else options.release,
        None if options.expires_days is None else now + int(_days(options.expires_days) * 86400),
    )
    signature = sign_bundle(folder, read_private_key(Path(options.key)), statement)
    print(f"{folder / SIGNATURE}: {statement.product} version {statement.version}, key {signature.key[:16]}")


def _days(days: float) -> float:
    if not 0 < days <= _MOST_DAYS:  # NaN is not either
        raise UsageError(f"--expires-days {days}: expected days from now, above 0 and at most {_MOST_DAYS:,}")
    return days


def pack(options: argparse.Namespace) -> None:
    """`compressor pack BUNDLE --out FILE`"""
    from compressor.bundle.archive import pack as pack_bundle

    packed = pack_bundle(Path(options.bundle), Path(options.out))
    print(f"{packed.path}: {packed.bytes:,} bytes, SHA-256 {packed.sha256}")


def unpack(options: argparse.Namespace) -> None:
    """`compressor unpack FILE --out FOLDER`"""
    from compressor.bundle.archive import unpack as unpack_bundle

    unpack_bundle(Path(options.file), Path(options.out))
    print(options.out)


def ship(options: argparse.Namespace) -> None:
    """`compressor ship BUNDLE TARGET...`"""
    from compressor.bundle.archive import as_folder
    from compressor.delivery.ship import ship as ship_to
    from compressor.delivery.ship import shipped_line, target_of

    targets = [target_of(text, options.python) for text in options.targets]
    public_key = Path(options.public_key) if options.public_key else None
    with ExitStack() as opened:
        bundle = opened.enter_context(as_folder(Path(options.bundle), public_key))
        base = opened.enter_context(as_folder(Path(options.base))) if options.base else None
        shipped = ship_to(bundle, targets, Progress(quiet=options.quiet), public_key, base)
    if options.json:
        print(json.dumps([asdict(one) for one in shipped], indent=1))
        return
    for one in shipped:
        print(shipped_line(one))


def device(options: argparse.Namespace) -> None:
    """`compressor device install|status|rollback`"""
    from compressor.device.command import run

    run(options)
