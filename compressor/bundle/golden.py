"""A bundle's golden cases: what its model is fed and should answer. Needs neither onnxruntime nor a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts import TensorSpec
from compressor.bundle.manifest import check_files, open_bundle
from compressor.device.golden import Arrays, golden_array, read_golden
from compressor.device.manifest import GoldenCheck


@dataclass(frozen=True)
class GoldenCases:
    """A bundle's model, what it is fed and should answer in each golden case (by tensor name), and how close."""

    model: Path
    inputs: tuple[Arrays, ...]
    outputs: tuple[Arrays, ...]
    check: GoldenCheck


def golden_cases(folder: Path) -> GoldenCases:
    """The golden cases of a bundle; hashes are checked first. Raises BundleError."""
    bundle = open_bundle(folder)
    check_files(bundle)
    arrays, manifest = read_golden(folder), bundle.manifest

    def cases(kind: str, specs: tuple[TensorSpec, ...]) -> tuple[Arrays, ...]:
        numbers = range(manifest.golden.cases)
        return tuple(
            {s.name: golden_array(arrays, f"{case}.{kind}.{s.name}", folder) for s in specs} for case in numbers
        )

    return GoldenCases(
        folder / manifest.model, cases("in", manifest.inputs), cases("out", manifest.outputs), manifest.golden
    )
