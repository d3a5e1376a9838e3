"""A bundle's golden cases: what its model is fed and should answer. Needs neither onnxruntime nor a tokenizer."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts import TensorSpec
from compressor.bundle.manifest import GoldenCheck, OpenedBundle, check_files, open_bundle
from compressor.errors import BundleError

Arrays = dict[str, NDArray[Any]]


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
    arrays, manifest = golden_arrays(bundle), bundle.manifest

    def cases(kind: str, specs: tuple[TensorSpec, ...]) -> tuple[Arrays, ...]:
        numbers = range(manifest.golden.cases)
        return tuple(
            {s.name: golden_array(arrays, f"{case}.{kind}.{s.name}", folder) for s in specs} for case in numbers
        )

    return GoldenCases(
        folder / manifest.model, cases("in", manifest.inputs), cases("out", manifest.outputs), manifest.golden
    )


def golden_arrays(bundle: OpenedBundle) -> Arrays:
    """All that golden.npz holds, under names such as `0.in.input_ids`. Raises BundleError where it cannot be read."""
    path = bundle.folder / "golden.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (FileNotFoundError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise BundleError(f"{path}: the golden cases cannot be read: {error}") from None


def golden_array(arrays: Arrays, name: str, folder: Path) -> NDArray[Any]:
    """The array of that name. Raises BundleError where the bundle in `folder` lacks it."""
    if name not in arrays:
        raise BundleError(f"{folder}: golden.npz lacks {name}")
    return arrays[name]
