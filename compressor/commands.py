"""One function per verb of the command line. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifacts import Latency
from compressor.errors import UsageError
from compressor.progress import Progress

if TYPE_CHECKING:
    from compressor.benchmark import BenchmarkSettings, Candidate
    from compressor.preprocess import Feed


def init(options: argparse.Namespace) -> None:
    """`compressor init --task sentence-embedding > recipe.yaml`"""
    from compressor.recipe_file import recipe_template

    sys.stdout.write(recipe_template(options.task))


def compress(options: argparse.Namespace) -> None:
    """`compressor compress recipe.yaml`, or the same from flags alone."""
    from compressor.recipe_file import read_recipe, recipe_from_values

    recipe = (
        read_recipe(Path(options.recipe), _overrides(options))
        if options.recipe
        else recipe_from_values(_values_from_flags(options), "command line", options.set)
    )
    progress = Progress(quiet=options.quiet)
    if options.dry_run:
        from compressor.plan import make_plan, plan_lines

        plan = make_plan(recipe, progress)
        _print_json(asdict(plan)) if options.json else print("\n".join(plan_lines(plan)))
        return
    from compressor.pipeline import compress as run

    result = run(recipe, fresh=options.fresh, rerun_from=options.rerun_from, progress=progress)
    if options.json:
        sys.stdout.write((recipe.out / "result.json").read_text(encoding="utf-8"))
        return
    from compressor.report.table import print_table

    print_table(result, sys.stdout)
    print(f"\nreport: {recipe.out / 'report.html'}\nbundle: {recipe.out / 'bundle'}")


def inspect(options: argparse.Namespace) -> None:
    """`compressor inspect MODEL_OR_BUNDLE`"""
    from compressor.inspection import inspect_path, inspection_lines

    found = inspect_path(Path(options.path))
    _print_json(found) if options.json else print("\n".join(inspection_lines(found)))


def verify(options: argparse.Namespace) -> None:
    """`compressor verify BUNDLE`"""
    from compressor.bundle.verify import verify_bundle

    check = verify_bundle(Path(options.bundle))
    if options.json:
        _print_json({**asdict(check), "folder": str(check.folder)})
    else:
        print(
            f"{check.folder}: whole and answers as built: {check.files} files, {check.cases} golden cases,"
            f" lowest cosine {check.min_cosine:.6f}, largest difference {check.max_abs_error:.2g}"
        )


def bench(options: argparse.Namespace) -> None:
    """`compressor bench MODEL...`"""
    from compressor.benchmark import BenchmarkSettings, measure

    if options.json not in (None, "-") and options.json.endswith(".onnx"):
        raise UsageError(f"--json {options.json}: that is a model; put --json after the models")
    if options.samples < 459:
        raise UsageError(f"--samples {options.samples}: a p99 needs at least 459 samples")
    if options.json not in (None, "-") and not Path(options.json).parent.is_dir():
        raise UsageError(f"--json {options.json}: its folder does not exist; make it first")
    settings = BenchmarkSettings(
        threads=options.threads,
        min_samples=options.samples,
        budget_s=_seconds(options.budget),
        batch=_shapes(options.shape).get("batch", 1),
    )
    candidates = _candidates(options, settings)
    latencies = measure(candidates, settings, Progress(quiet=options.quiet))
    if options.json == "-":
        _print_json([asdict(latency) for latency in latencies])
        return
    if options.json:
        from compressor.store import write_atomic

        write_atomic(
            Path(options.json), (json.dumps([asdict(latency) for latency in latencies], indent=1) + "\n").encode()
        )
    _print_latencies(latencies)


def report(options: argparse.Namespace) -> None:
    """`compressor report RUN`"""
    from compressor.report.html import write_report
    from compressor.report.schema import read_result
    from compressor.report.table import print_table

    path = Path(options.run)
    source = path / "result.json" if path.is_dir() else path
    result = read_result(source)
    destination = Path(options.out) if options.out else source.with_name("report.html")
    write_report(result, destination)
    if options.json:
        sys.stdout.write(source.read_text(encoding="utf-8"))
        return
    print_table(result, sys.stdout)
    print(f"\nreport: {destination}")


def _overrides(options: argparse.Namespace) -> list[str]:
    """What flags say beside a recipe file, as overrides of it."""
    flags = {
        "task": options.task,
        "teacher.path": options.teacher,
        "teacher.license": options.license,
        "teacher.permission": _permission(options),
        "data.train": options.data,
        "data.eval": options.eval,
        "gate.max_drop": options.max_drop,
        "out": options.out,
    }
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None]
    return given + list(options.set)


def _permission(options: argparse.Namespace) -> str | None:
    if options.own_model:
        return "own-model"
    return "license-permits" if options.license else None


def _values_from_flags(options: argparse.Namespace) -> dict[str, Any]:
    needed = {"--teacher": options.teacher, "--task": options.task, "--data": options.data, "--eval": options.eval}
    if missing := [flag for flag, value in needed.items() if value is None]:
        raise UsageError(f"compress needs a recipe file, or all of {', '.join(needed)}; missing {', '.join(missing)}")
    values: dict[str, Any] = {
        "task": options.task,
        "teacher": {"path": options.teacher, "license": options.license, "permission": _permission(options)},
        "data": {"train": options.data, "eval": options.eval},
        "gate": {} if options.max_drop is None else {"max_drop": options.max_drop},
    }
    return values if options.out is None else {**values, "out": options.out}


def _candidates(options: argparse.Namespace, settings: BenchmarkSettings) -> list[Candidate]:
    """The baseline comes first. Bundles are timed on their golden inputs, and ONNX files beside a bundle on the same
    (the first bundle's), so that the comparison is of models; ONNX files alone on made-up ones.
    """
    from compressor.benchmark import Candidate, made_up_candidates
    from compressor.bundle.manifest import MANIFEST
    from compressor.bundle.verify import golden_feeds

    paths = [Path(model) for model in options.models]
    if options.baseline is not None:
        baseline = Path(options.baseline)
        paths = [baseline, *(path for path in paths if path != baseline)]
    bundles = {path: golden_feeds(path) for path in paths if (path / MANIFEST).is_file()}
    raw = [path for path in paths if path not in bundles]
    if bundles and options.shape:
        raise UsageError("--shape: bundles are timed on their golden inputs; name their model.onnx to choose a shape")
    made_up = dict(zip(raw, made_up_candidates(raw, _shapes(options.shape), settings), strict=True)) if raw else {}
    if bundles:
        _, feeds = next(iter(bundles.values()))
        made_up = {path: replace(one, inputs=_feeds_for(one, feeds, path)) for path, one in made_up.items()}
    names = distinct_names([path.resolve() for path in paths])
    return [
        Candidate(name, *bundles[path]) if path in bundles else replace(made_up[path], name=name)
        for path, name in zip(paths, names, strict=True)
    ]


def _feeds_for(candidate: Candidate, feeds: tuple[Feed, ...], path: Path) -> tuple[Feed, ...]:
    if set(candidate.inputs[0]) != set(feeds[0]):
        raise UsageError(
            f"{path}: takes {', '.join(candidate.inputs[0])}, the bundle {', '.join(feeds[0])}: time them apart"
        )
    return feeds


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many more as it takes to tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-parts:])).removesuffix(".onnx") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UsageError("the same model is named twice")


def _shapes(given: Sequence[str]) -> dict[str, int]:
    shapes = {}
    for item in given:
        name, _, size = item.partition("=")
        if not name or not size.isdigit():
            raise UsageError(f"--shape {item}: expected NAME=SIZE, such as sequence=32")
        shapes[name] = int(size)
    return shapes


def _seconds(text: str) -> float:
    unit = {"s": 1, "m": 60}.get(text[-1:])
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UsageError(f"--budget {text}: expected a time such as 60s or 2m")
    return value


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def _print_latencies(latencies: Sequence[Latency]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in (
        "model",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "inf/s",
        "CPU ms",
        "session ms",
        "memory MiB",
        "speed-up [95%]",
    ):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in latencies:
        numbers = (
            row.p50_ms,
            row.p90_ms,
            row.p99_ms,
            row.throughput_per_s,
            row.cpu_ms,
            row.session_ms,
            row.peak_memory_mib,
        )
        speed = f"{row.speedup.value:.2f} [{row.speedup.low:.2f}, {row.speedup.high:.2f}]"
        table.add_row(row.name, *(f"{number:.4g}" for number in numbers), speed if row is not latencies[0] else "1")
    width = None if sys.stdout.isatty() else 120
    Console(width=width, highlight=False).print(table)
    first = latencies[0]
    print(f"{first.samples} samples and more, {first.threads} thread(s), batch {first.batch}, {first.runtime}")
