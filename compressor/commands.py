"""One function per verb of the command line. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import BenchmarkError, UsageError
from compressor.progress import Progress

if TYPE_CHECKING:
    from compressor.benchmark import BenchmarkSettings, Candidate


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
    """`compressor inspect MODEL_OR_BUNDLE`, or `compressor inspect --plan RECIPE`"""
    if options.plan is not None:
        _inspect_plan(options)
        return
    if options.set:
        raise UsageError("--set: a model or a bundle has no recipe to override; it goes with --plan")
    from compressor.inspection import inspect_path, inspection_lines

    found = inspect_path(Path(options.path))
    _print_json(found) if options.json else print("\n".join(inspection_lines(found)))


def _inspect_plan(options: argparse.Namespace) -> None:
    from compressor.materials import Materials
    from compressor.prediction import choice_lines, compare_choices
    from compressor.recipe_file import read_recipe

    at = Materials(read_recipe(Path(options.plan), options.set), Progress(quiet=options.quiet))
    at.fingerprints  # noqa: B018 (missing files are found before anything is loaded)
    choices = compare_choices(at)
    if options.json:
        _print_json({"task": at.recipe.task, "choices": [asdict(choice) for choice in choices]})
    else:
        print("\n".join(choice_lines(choices)))


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
    from compressor.benchmark import BenchResult, bench_json, device_of
    from compressor.benchmark import bench as measure_all
    from compressor.benchmark.table import print_bench

    if options.json not in (None, "-") and options.json.endswith(".onnx"):
        raise UsageError(f"--json {options.json}: that is a model; put --json after the models")
    if options.json not in (None, "-") and not Path(options.json).parent.is_dir():
        raise UsageError(f"--json {options.json}: its folder does not exist; make it first")
    device = device_of(options.device) if options.device else None
    wanted = _bench_settings(options)
    candidates = _candidates(options)

    def keep(result: BenchResult) -> None:
        if options.json not in (None, "-"):
            from compressor.store import write_atomic

            write_atomic(Path(options.json), bench_json(result))

    result = measure_all(candidates, wanted, Progress(quiet=options.quiet), keep, device)
    if options.json == "-":
        sys.stdout.write(bench_json(result).decode())
    else:
        print_bench(result)
    if not result.complete:
        raise KeyboardInterrupt("what was measured until then is kept")
    if result.problems:
        raise BenchmarkError("; ".join(result.problems))
    disturbed = [reason for run in result.runs if run.validity for reason in run.validity.reasons]
    if options.strict and disturbed:
        raise BenchmarkError(f"the measurement is invalid: {'; '.join(disturbed)}; free the machine and try again")


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


def _bench_settings(options: argparse.Namespace) -> list[BenchmarkSettings]:
    """One for each combination of the axes; the first axis named changes slowest."""
    from compressor.benchmark import BenchmarkSettings

    spins = {"off": False, "on": True}
    for word in _words(options.spin, "--spin"):
        if word not in spins:
            raise UsageError(f"--spin {options.spin}: expected off, on, or both with a comma between them")
    axes = itertools.product(
        _words(options.optimization, "--optimization"),
        _words(options.provider, "--provider"),
        _words(options.spin, "--spin"),
        _shape_sets(options.shape),
        _whole_numbers(options.threads, "--threads"),
    )
    return [
        BenchmarkSettings(
            scenario=options.scenario,
            threads=threads,
            optimization=optimization,  # type: ignore[arg-type]  # checked by the settings
            spin=spins[spin],
            provider=provider,
            min_samples=options.samples,
            budget_s=_seconds(options.budget, "--budget"),
            batch=shapes.get("batch", 1),
            shapes=shapes,
            period_ms=options.period_ms,
            sessions=options.sessions,
            callers=options.callers,
            duration_s=_seconds(options.duration, "--duration"),
            processes=options.processes,
            least_effect=_share(options.min_effect, "--min-effect"),
            library=Path(options.ort) if options.ort else None,
            runner=Path(options.runner) if options.runner else None,
            memory_limit_mib=options.memory_limit,
            silence_s=_seconds(options.silence, "--silence"),
            profile=options.profile,
        )
        for optimization, provider, spin, shapes, threads in axes
    ]


def _candidates(options: argparse.Namespace) -> list[Candidate]:
    """The baseline comes first. Bundles are timed on their golden inputs, and ONNX files beside a bundle on the same
    (the first bundle's), so that the comparison is of models; ONNX files alone on made-up ones.
    """
    from compressor.benchmark import Candidate, Tolerance
    from compressor.bundle.manifest import MANIFEST
    from compressor.bundle.verify import golden_cases

    paths = [Path(model) for model in options.models]
    if options.baseline is not None:
        baseline = Path(options.baseline)
        paths = [baseline, *(path for path in paths if path != baseline)]
    bundles = {path: golden_cases(path) for path in paths if (path / MANIFEST).is_file()}
    if bundles and options.shape:
        raise UsageError("--shape: bundles are timed on their golden inputs; name their model.onnx to choose a shape")
    shared = next(iter(bundles.values())).inputs if bundles else ()
    candidates = []
    for path, name in zip(paths, distinct_names([path.resolve() for path in paths]), strict=True):
        golden = bundles.get(path)
        if golden is None:
            candidates.append(Candidate(name, path, shared))
        else:
            tolerance = Tolerance(golden.check.min_cosine, golden.check.max_abs_error)
            candidates.append(Candidate(name, golden.model, golden.inputs, golden.outputs, tolerance))
    return candidates


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many more as it takes to tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-parts:])).removesuffix(".onnx") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UsageError("the same model is named twice")


def _shape_sets(given: Sequence[str]) -> list[dict[str, int]]:
    """Every combination of the sizes that are given for each dimension."""
    sizes: dict[str, list[int]] = {}
    for item in given:
        name, _, text = item.rpartition("=")
        if not name:
            raise UsageError(f"--shape {item}: expected NAME=SIZE, such as sequence=32")
        sizes[name] = _whole_numbers(text, f"--shape {name}")
    return [dict(zip(sizes, chosen, strict=True)) for chosen in itertools.product(*sizes.values())]


def _words(text: str, flag: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if "" in words:
        raise UsageError(f"{flag} {text}: expected a value, or several with commas between them")
    return words


def _whole_numbers(text: str, flag: str) -> list[int]:
    words = _words(text, flag)
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"{flag} {text}: expected whole numbers of 1 or more, with commas between them")
    return [int(word) for word in words]


def _share(text: str, flag: str) -> float:
    """2% or 0.02."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} {text}: expected a share such as 2% or 0.02")
    return value


def _seconds(text: str, flag: str) -> float:
    unit = {"s": 1, "m": 60}.get(text[-1:])
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"{flag} {text}: expected a time such as 60s or 2m")
    return value


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))
