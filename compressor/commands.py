"""One function per verb of the command line. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import BenchmarkError, UsageError, printable
from compressor.progress import Progress

if TYPE_CHECKING:
    from compressor.benchmark import BenchResult
    from compressor.error_attribution import ErrorAttribution


def init(options: argparse.Namespace) -> None:
    """`compressor init --task sentence-embedding > recipe.yaml`"""
    from compressor.recipe_template import recipe_template

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
    from compressor.distill import team
    from compressor.pipeline import assist
    from compressor.pipeline import compress as run

    if not team.leads():
        assist(recipe)
        return
    result = run(recipe, fresh=options.fresh, rerun_from=options.rerun_from, progress=progress)
    if options.json:
        sys.stdout.write((recipe.out / "result.json").read_text(encoding="utf-8"))
        return
    from compressor.report.table import print_table

    print_table(result, sys.stdout)
    print(f"\nreport: {recipe.out / 'report.html'}\nbundle: {recipe.out / 'bundle'}")


def quantize(options: argparse.Namespace) -> None:
    """`compressor quantize MODEL --inputs FILE --out FOLDER`"""
    from compressor.quantizing import quantize_file, quantized_lines
    from compressor.recipe_file import quantization_from

    found = quantize_file(
        Path(options.model),
        Path(options.inputs),
        quantization_from(options.set),
        Path(options.out),
        Progress(quiet=options.quiet),
        min_agreement=options.min_agreement,
        threads=options.threads,
    )
    _print_json(asdict(found)) if options.json else print("\n".join(quantized_lines(found)))


def inspect(options: argparse.Namespace) -> None:
    """`compressor inspect MODEL_OR_BUNDLE`, or `compressor inspect --plan RECIPE`"""
    if (options.against is None) != (options.inputs is None):
        raise UsageError("--against FLOAT32 needs --inputs FILE, and the other way round")
    if options.plan is not None:
        if options.against is not None:
            raise UsageError("--against: a recipe has no model yet to hold against another")
        _inspect_plan(options)
        return
    if options.set:
        raise UsageError("--set: a model or a bundle has no recipe to override; it goes with --plan")
    from compressor.bundle.archive import as_folder
    from compressor.inspection import error_lines, inspect_path, inspection_lines

    path = Path(options.path)
    with as_folder(path) as readable:
        found = inspect_path(readable)
    lines = inspection_lines(found)
    if options.against is not None:
        errors, untold = _errors(path, options)
        found["errors"] = {**asdict(errors), "untold": untold}
        lines = [*lines, *error_lines(errors, untold)]
    _print_json(found) if options.json else print("\n".join(lines))


def _errors(path: Path, options: argparse.Namespace) -> tuple[ErrorAttribution, tuple[str, ...]]:
    if path.is_dir():
        raise UsageError(f"{path}: --against needs the .onnx file in a bundle, not the bundle")
    from compressor.quantizing import errors_of

    return errors_of(path, Path(options.against), Path(options.inputs))


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
    from compressor.bundle.archive import as_folder
    from compressor.bundle.verify import verify_bundle

    public_key = Path(options.public_key) if options.public_key else None
    with as_folder(Path(options.bundle), public_key) as folder:
        check = verify_bundle(folder, public_key)
    if options.json:
        _print_json({**asdict(check), "folder": options.bundle})
        return
    print(
        f"{options.bundle}: whole and answers as built: {check.files} files, {check.cases} golden cases,"
        f" lowest cosine {check.min_cosine:.6f}, largest difference {check.max_abs_error:.2g}"
    )
    if check.signed is not None:
        print(f"  signed as {check.signed.product} version {check.signed.version}, by the key {options.public_key}")
    for processor, holds in check.same_everywhere.items():
        print(printable(f"  integer products on {processor}: {holds}"))


def bench(options: argparse.Namespace) -> None:
    """`compressor bench MODEL...`"""
    from compressor.bench_options import candidates_of, json_file, settings_of
    from compressor.benchmark import bench as measure_all
    from compressor.benchmark import device_of

    kept = _Kept(json_file(options.json))
    device = device_of(options.device) if options.device else None
    wanted, candidates = settings_of(options), candidates_of(options)
    try:
        result = measure_all(candidates, wanted, Progress(quiet=options.quiet), kept.keep, device)
    finally:  # where a later run fails, the earlier ones are shown all the same
        kept.show(as_json=options.json == "-")
    kept.check_written()
    if not result.complete:
        raise KeyboardInterrupt("what was measured until then is kept")
    if result.problems:
        raise BenchmarkError("; ".join(result.problems))
    disturbed = [reason for run in result.runs if run.validity for reason in run.validity.reasons]
    if options.strict and disturbed:
        raise BenchmarkError(f"the measurement is invalid: {'; '.join(disturbed)}; free the machine and try again")


@dataclass
class _Kept:
    """The newest result of a measurement that goes on, and in `file`, where there is one."""

    file: Path | None
    newest: BenchResult | None = None
    unwritten: OSError | None = None

    def keep(self, result: BenchResult) -> None:
        from compressor.benchmark import bench_json
        from compressor.store import write_atomic

        self.newest, self.unwritten = result, None
        if self.file is not None:
            try:
                write_atomic(self.file, bench_json(result))
            except OSError as error:  # no reason to lose what is measured: it is told after the table
                self.unwritten = error

    def show(self, as_json: bool) -> None:
        """Prints what there is."""
        from compressor.benchmark import bench_json
        from compressor.benchmark.table import print_bench

        if self.newest is None:
            return
        if as_json:
            sys.stdout.write(bench_json(self.newest).decode())
        else:
            print_bench(self.newest)

    def check_written(self) -> None:
        """Raises StorageError where the file does not hold the newest result."""
        from compressor.bench_options import unwritten

        if self.file is not None and self.unwritten is not None:
            raise unwritten(self.file, self.unwritten)


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
        **{f"quantize.search.{name}": value for name, value in _search(options).items()},
        "out": options.out,
        "cache": options.cache,
    }
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None]
    return given + list(options.set)


def _search(options: argparse.Namespace) -> dict[str, float]:
    """What flags ask of a search for precisions; nothing: no search."""
    flags = {"max_mb": options.max_mb, "max_ms": options.max_ms, "hours": options.hours}
    return {name: value for name, value in flags.items() if value is not None}


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
    if search := _search(options):
        values["quantize"] = {"search": search}
    folders = {"out": options.out, "cache": options.cache}
    return values | {key: folder for key, folder in folders.items() if folder is not None}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))
