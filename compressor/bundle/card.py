"""The model card of a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from compressor.artifacts import OnnxModel, Provenance


def model_card(
    model: OnnxModel,
    task: str,
    evidence: dict[str, Any],
    lineage: Provenance,
    data: dict[str, str],
    licenses: Sequence[str] = (),
) -> str:
    """Markdown with the front matter that model hubs read. Holds only what was measured or declared. `licenses` are
    names of files in the bundle.
    """
    quality = evidence["quality"]
    value, kept = quality["quality"], quality["kept"]
    large = evidence["teacher_bytes"]
    compared = (
        f"{large / model.bytes:.1f} times smaller\nthan its teacher's ONNX ({large / 1e6:.1f} MB)"
        if large is not None
        else "its teacher out of reach:\nhow large and how fast that is, is unknown"
    )
    inputs = "\n".join(f"- input `{spec.name}`: {spec.dtype} {list(spec.shape)}" for spec in model.inputs)
    outputs = "\n".join(f"- output `{spec.name}`: {spec.dtype} {list(spec.shape)}" for spec in model.outputs)
    described = "\n".join(f"- {name}: {text}" for name, text in data.items())
    texts = f"\n- its licence texts: {', '.join(f'[{name}]({name})' for name in licenses)}" if licenses else ""
    return f"""---
license: {json.dumps(_in_a_line(lineage.license) or "other")}
pipeline_tag: {"feature-extraction" if task == "sentence-embedding" else task}
library_name: onnx
---

# {task} model distilled from {_in_a_line(lineage.source)}

A student in {model.precision}, {model.bytes / 1e6:.2f} MB of ONNX (opset {model.opset}), {compared}.

{quality["metric"]} {value["value"]:.4f} (95% interval {value["low"]:.4f} to {value["high"]:.4f})
on {quality["examples"]:,} held-out examples:
{kept["value"]:.1%} of the teacher's (95% interval {kept["low"]:.1%} to {kept["high"]:.1%}).

## Interface

{inputs}
{outputs}

## Data

{described}

## Teacher

- source: {_in_a_line(lineage.source)}
- SHA-256: {lineage.sha256 or "unknown: it was reached by its outputs alone"}
- licence of the weights: {_in_a_line(lineage.license) or "not stated"}{texts}
- permission to distil: {lineage.permission}{f" ({_in_a_line(lineage.reference)})" if lineage.reference else ""}
- terms of service: {_in_a_line(lineage.terms) or "none stated"}
- code of the teacher's own: {"allowed to run" if lineage.remote_code else "not run"}

## Limits

The golden cases that come with the model are held-out inputs of the data above, under that data's terms.

Measured on the data above and on nothing else: other languages, domains and input lengths were not measured. What the
teacher gets wrong, this model was taught.
"""


def _in_a_line(declared: str | None) -> str:
    """What a user wrote, where a line break would begin something else."""
    return " ".join((declared or "").split())
