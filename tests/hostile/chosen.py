"""Which cases run: with COMPRESSOR_HOSTILE=all (`make hostile`) every one, otherwise some that stand for the others."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

EVERY = os.environ.get("COMPRESSOR_HOSTILE") == "all"


def chosen(cases: Iterable[str], few: Collection[str]) -> list[str]:
    """The cases that run by the command in a process each."""
    known = list(cases)
    assert set(few) <= set(known)
    return known if EVERY else [case for case in known if case in few]
