"""The bill of materials of a bundle: CycloneDX 1.6, an ML-BOM (ECMA-424, https://cyclonedx.org/docs/1.6/json/).

The model is the described component, with its hashes, data and figures; the teacher is its ancestor; the other files
stand beside it. No date and no random serial number: the same bundle has the same bill.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from compressor.artifacts import OnnxModel, Provenance
from compressor.device.manifest import FileEntry

BOM = "bom.cdx.json"
# CycloneDX takes an SPDX identifier in SPDX's own spelling only; any other licence goes by its name.
_SPDX = (
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unlicense",
)
Component = dict[str, Any]


def dump_bom(bom: dict[str, Any]) -> bytes:
    """The canonical text of a bill: the same content gives the same bytes."""
    return (json.dumps(bom, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def ml_bom(
    model: OnnxModel,
    task: str,
    evidence: dict[str, Any],
    lineage: Provenance,
    data: dict[str, str],
    files: Sequence[FileEntry],
) -> dict[str, Any]:
    """The bill of a bundle; `files` are all but the bill and the manifest, `model.onnx` the model among them."""
    quality = evidence["quality"]
    described = next(entry for entry in files if entry.name == "model.onnx")
    card = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": task,
            "inputs": [{"format": f"{spec.name}: {spec.dtype} {list(spec.shape)}"} for spec in model.inputs],
            "outputs": [{"format": f"{spec.name}: {spec.dtype} {list(spec.shape)}"} for spec in model.outputs],
            "datasets": [{"type": "dataset", "name": name, "description": text} for name, text in data.items()],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": quality["metric"],
                    "value": str(quality["quality"]["value"]),
                    "slice": "held-out data",
                    "confidenceInterval": {
                        "lowerBound": str(quality["quality"]["low"]),
                        "upperBound": str(quality["quality"]["high"]),
                    },
                }
            ]
        },
    }
    component = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": f"{model.name} ({task})",
        "description": f"a student in {model.precision}, distilled from {lineage.source}",
        "hashes": _hashes(described.sha256),
        "modelCard": card,
        "pedigree": {"ancestors": [_ancestor(lineage)], "notes": "knowledge distillation: taught by the ancestor"},
    }
    others = [
        {"type": "file", "bom-ref": f"file:{entry.name}", "name": entry.name, "hashes": _hashes(entry.sha256)}
        for entry in files
        if entry is not described
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component},
        "components": others,
        "dependencies": [{"ref": "model", "dependsOn": [one["bom-ref"] for one in others]}],
    }


def _ancestor(lineage: Provenance) -> Component:
    # A folder's SHA-256 covers names and contents of all its files: no hash of one file, which `hashes` would mean.
    declared = {
        "compressor:sha256": lineage.sha256,
        "compressor:permission": lineage.permission,
        "compressor:reference": lineage.reference,
        "compressor:terms": lineage.terms,
        "compressor:remote_code": str(lineage.remote_code).lower(),
    }
    ancestor: Component = {
        "type": "machine-learning-model",
        "bom-ref": "teacher",
        "name": lineage.source,
        "properties": [{"name": name, "value": value} for name, value in declared.items() if value is not None],
    }
    if lineage.license is not None:
        ancestor["licenses"] = [{"license": _license(lineage.license)}]
    return ancestor


def _license(name: str) -> dict[str, str]:
    spelled = next((spdx for spdx in _SPDX if spdx.lower() == name.lower()), None)
    return {"id": spelled} if spelled else {"name": name}


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
