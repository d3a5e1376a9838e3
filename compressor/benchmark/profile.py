"""ONNX Runtime's profile of a session, added up by operator."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from compressor.benchmark.result import OperatorShare
from compressor.errors import BenchmarkError

_SUFFIX = "_kernel_time"


def operator_shares(path: Path) -> tuple[OperatorShare, ...]:
    """The operators of a profile by falling share of all nodes' time. Raises BenchmarkError where it cannot be read."""
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path}: ONNX Runtime's profile cannot be read: {error}") from None
    nodes: dict[str, set[str]] = defaultdict(set)
    calls: Counter[str] = Counter()
    spent_us: Counter[str] = Counter()
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        operator = event.get("args", {}).get("op_name", "unknown")
        nodes[operator].add(name)
        calls[operator] += 1
        spent_us[operator] += event["dur"]
    total_us = sum(spent_us.values()) or 1
    return tuple(
        OperatorShare(operator, len(nodes[operator]), calls[operator], spent / 1e3, spent / total_us)
        for operator, spent in spent_us.most_common()
    )
