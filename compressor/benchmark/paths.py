"""Measures raw ONNX files, of which nothing is known but what they say about their inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor import native
from compressor.artifacts import Latency, TensorSpec
from compressor.benchmark.child import run_worker
from compressor.benchmark.measure import SILENCE_LIMIT_S, measure
from compressor.benchmark.request import BenchmarkSettings, Candidate, Model, check_model_file, make_request
from compressor.errors import BenchmarkError
from compressor.progress import Progress

_FEEDS = 4
_DYNAMIC_SIZE = 16
_INTEGERS_BELOW = 100


def bench_paths(
    paths: Sequence[Path],
    *,
    baseline: Path | None,
    shapes: Mapping[str, int],
    settings: BenchmarkSettings,
    progress: Progress,
) -> tuple[Latency, ...]:
    """`measure` for ONNX files on made-up feeds; the baseline (else the first path) comes first.

    Raises BenchmarkError as `measure` and `made_up_candidates` do.
    """
    ordered = list(paths) if baseline is None else [baseline, *(p for p in paths if p != baseline)]
    return measure(made_up_candidates(ordered, shapes, settings), settings, progress)


def made_up_candidates(
    paths: Sequence[Path], shapes: Mapping[str, int], settings: BenchmarkSettings
) -> tuple[Candidate, ...]:
    """Candidates for ONNX files, named by file stem, with feeds made from what the models say of their inputs.

    A dynamic dimension has the size that `shapes` gives for its name, else `settings.batch` when it is the first of an
    input, else 16. Integers are drawn from 0..99, but inputs named like a mask are 1 and like token types 0; floats are
    normal. The draw is seeded.

    Raises BenchmarkError when a file is missing, does not load or kills its process, and when `shapes` names a
    dimension that no model has.
    """
    if not paths:
        raise BenchmarkError("one ONNX file or more is needed, got none")
    for path in paths:
        check_model_file(path)
    names = _unique_names(paths)
    inputs = _describe(dict(zip(names, paths, strict=True)), settings)
    _check_shapes(shapes, inputs)
    return tuple(
        Candidate(name, path, random_feeds(specs, shapes, settings))
        for name, path, specs in zip(names, paths, inputs, strict=True)
    )


def random_feeds(
    specs: Sequence[TensorSpec], shapes: Mapping[str, int], settings: BenchmarkSettings
) -> tuple[dict[str, NDArray[Any]], ...]:
    """Four feeds for inputs like `specs`, as `made_up_candidates` describes them."""
    sizes = dict(shapes)
    for spec in specs:
        for axis, dimension in enumerate(spec.shape):
            if isinstance(dimension, str) and dimension:
                sizes.setdefault(dimension, settings.batch if axis == 0 else _DYNAMIC_SIZE)
    generator = np.random.default_rng(settings.seed)
    return tuple({spec.name: _draw(spec, sizes, settings.batch, generator) for spec in specs} for _ in range(_FEEDS))


def _draw(spec: TensorSpec, sizes: Mapping[str, int], batch: int, generator: np.random.Generator) -> NDArray[Any]:
    shape = tuple(
        dimension if isinstance(dimension, int) else sizes.get(dimension, _DYNAMIC_SIZE if axis else batch)
        for axis, dimension in enumerate(spec.shape)
    )
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if "mask" in spec.name or dtype.kind == "b":
        return np.ones(shape, dtype)
    if "token_type" in spec.name:
        return np.zeros(shape, dtype)
    return generator.integers(0, _INTEGERS_BELOW, shape).astype(dtype)


def _describe(paths: Mapping[str, Path], settings: BenchmarkSettings) -> list[list[TensorSpec]]:
    """The inputs of each model; a dynamic dimension is its name, "" without one."""
    native.load()
    models = tuple(Model(name, str(path.resolve())) for name, path in paths.items())
    request = make_request("describe", native.onnxruntime_library(settings.library), models, settings)
    with tempfile.TemporaryDirectory(prefix="compressor-bench-") as scratch:
        described = run_worker(request, Path(scratch), limit_s=SILENCE_LIMIT_S)["inputs"]
    return [[_spec(**raw) for raw in model] for model in described]


def _spec(name: str, dtype: str, shape: Sequence[int], symbols: Sequence[str]) -> TensorSpec:
    dimensions = (symbol if size < 0 else size for size, symbol in zip(shape, symbols, strict=True))
    return TensorSpec(name, dtype, tuple(dimensions))


def _check_shapes(shapes: Mapping[str, int], inputs: Sequence[Sequence[TensorSpec]]) -> None:
    known = {d for specs in inputs for spec in specs for d in spec.shape if isinstance(d, str) and d}
    for name, size in shapes.items():
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise BenchmarkError(f"no model has a dynamic dimension {name!r}; there are: {there}")
        if size < 1:
            raise BenchmarkError(f"the size of {name!r} must be 1 or more, got {size}")


def _unique_names(paths: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for path in paths:
        name, copies = path.stem, 1
        while name in names:
            copies += 1
            name = f"{path.stem}-{copies}"
        names.append(name)
    return names
