"""The house rules as tests: lint, types, versions, which way imports go, what is imported when, what must not occur."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import compressor
from compressor import errors, native
from compressor.errors import CompressorError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "compressor"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A module imports from its own layer or from lower ones; stage packages not even from each other.
GROUND = (
    "native", "store", "locks", "artifacts", "result", "recipe", "recipe_base", "recipe_data", "recipe_teacher",
    "recipe_student", "recipe_distill", "recipe_quantize", "recipe_portable", "recipe_file", "recipe_template",
    "preprocess", "answered", "images", "onnx_file", "onnxrt", "metrics", "progress", "own_task", "token_map", "xray",
    "tokenizer_file", "tensor_roles", "likeness", "model_inputs", "certificate", "error_attribution", "timings", "ssh",
    "intake", "limited", "processor", "quantized_operators",
)  # fmt: skip
STAGE_PACKAGES = ("students", "distill", "export", "quantize", "verify", "benchmark", "bundle", "report")
LAYERS = (
    ("errors",),
    GROUND,
    ("tasks", "teachers", "kernels", "device"),
    STAGE_PACKAGES,
    ("materials", "searching", "attributing", "held_out", "delivery"),
    ("stages", "learning", "judging"),
    ("outcome", "qat"),
    ("pipeline", "plan", "prediction", "inspection", "bench_options", "quantizing"),
    ("commands", "release_commands"),
    ("cli",),
    ("__main__",),
)
HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "optimum",
    "datasets",
    "accelerate",
    "triton",
    "optuna",
)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def owner(module: str) -> str:
    """compressor.distill.losses -> distill."""
    return module.split(".")[1] if "." in module else ""


def layer_of(name: str) -> int:
    return next(level for level, names in enumerate(LAYERS) if name in names)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of this package, wherever in the file: a late import is an import too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from compressor import native` names a module, `from compressor import __version__` the package itself.
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] == "compressor")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: the tracked files are unknown")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("arguments", [("check", "."), ("format", "--check", ".")], ids=["lint", "format"])
def test_ruff_finds_nothing(arguments: tuple[str, ...]) -> None:
    found = run_python("-m", "ruff", *arguments)
    assert found.returncode == 0, found.stdout + found.stderr


def test_mypy_finds_nothing() -> None:
    found = run_python("-m", "mypy")
    assert found.returncode == 0, found.stdout + found.stderr


def test_versions_are_equal() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert compressor.__version__ == declared
    if native.available():
        assert native.load().__version__ == declared


def test_every_module_has_a_layer() -> None:
    known = {name for names in LAYERS for name in names}
    unknown = {owner(name_of(path)) for path in MODULES} - known - {""}
    assert not unknown, f"give {unknown} a place in LAYERS, and in ARCHITECTURE.md"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path))
def test_imports_go_down(path: Path) -> None:
    importer = owner(name_of(path))
    if not importer:
        return  # compressor/__init__.py lists the public names, from any layer, and imports none of them at once
    wrong = []
    for line, name in imports_of(path):
        imported = owner(name)
        if imported in ("", "__version__", "_native") or imported == importer:
            continue
        sideways = importer in STAGE_PACKAGES and imported in STAGE_PACKAGES
        if sideways or layer_of(imported) > layer_of(importer):
            wrong.append(f"{path}:{line}: {importer} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_only_native_imports_the_extension_module() -> None:
    importers = {name_of(p) for p in MODULES for _, name in imports_of(p) if owner(name) == "_native"}
    assert importers <= {"compressor.native"}


def modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules of a fresh process after it ran `code`."""
    found = run_python("-c", f"import sys\n{code}\nsys.stdout.write('\\n' + ' '.join(m for m in sys.modules))")
    assert found.returncode == 0, found.stderr
    return {name.partition(".")[0] for name in found.stdout.splitlines()[-1].split()}


def test_help_loads_nothing_heavy() -> None:
    loaded = modules_after(
        "from compressor.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert "compressor" in loaded
    assert not loaded & {*HEAVY, "onnxruntime", "numpy", "pydantic", "rich", "ruamel", "tokenizers"}


@pytest.mark.parametrize(
    "module",
    [
        "compressor.commands",
        "compressor.bundle.predictor",
        "compressor.bundle.verify",
        "compressor.benchmark",
        "compressor.inspection",
        "compressor.report.table",
        "compressor.recipe_file",
    ],
)
def test_what_a_board_runs_loads_no_training_package(module: str) -> None:
    assert not modules_after(f"import {module}") & set(HEAVY)


@pytest.mark.parametrize("module", ["compressor.bench_options", "compressor.benchmark.table"])
def test_what_times_models_loads_no_runtime(module: str) -> None:
    """The measuring program opens ONNX Runtime's library; this process opens no model."""
    assert not modules_after(f"import {module}") & {*HEAVY, "onnxruntime", "tokenizers"}


@pytest.mark.parametrize(
    "banned",
    [
        r"(?m)^\s*(?:import|from)\s+(?:_?pickle|dill|cloudpickle|shelve|marshal|joblib)\b(?! import UnpicklingError)",
        r"torch\.load\((?!.*weights_only=True)",
        r"weights_only\s*=\s*False",
        r"allow_pickle\s*=\s*True",
        r"trust_remote_code\s*=\s*True",
        r"yaml\.(unsafe_load|load)\(",
        r"typ=.unsafe.",
        r"(?<![\w.])eval\(",
        r"(?<![\w.])exec\(",
        r"extractall",
        r"shell\s*=\s*True",
        r"os\.system",
        r"except Exception:\s*\n\s*(pass|continue)",
    ],
)
def test_nothing_runs_code_from_data(banned: str) -> None:
    files = [*MODULES, *(ROOT / "bench").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    found = [str(path) for path in files if re.search(banned, path.read_text(encoding="utf-8"))]
    assert not found


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions of a module, and methods of its classes, whose names are public."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path))
def test_modules_and_public_functions_are_documented(path: Path) -> None:
    """Methods are left out: what a class does stands in its docstring, what a task does in the Task protocol."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"
    bare = [name for name, node in public_functions(path) if "." not in name and not ast.get_docstring(node)]
    assert not bare, f"{path}: no docstring: {', '.join(bare)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path))
def test_public_functions_are_annotated(path: Path) -> None:
    for name, node in public_functions(path):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        named = [a for a in arguments if a.arg not in ("self", "cls")]
        assert node.returns is not None, f"{path}:{node.lineno}: {name} has no return type"
        assert all(a.annotation for a in named), f"{path}:{node.lineno}: {name} has an argument without a type"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320, f"{path}: do two things live here?"


def test_tracked_files_hold_no_path_of_a_machine_and_no_unfinished_work() -> None:
    # Written apart, so that this file does not find itself.
    unwanted = re.compile(
        "|".join([r"(?<![\w.])/(?:home|Users|work)/\w", "TO" + r"DO\b", "FIX" + r"ME\b", "(?<!X)XX" + r"X\b"])
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in unwanted.finditer(text)]
    assert not found, "\n".join(found)


def error_classes() -> list[type[CompressorError]]:
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [c for c in classes if issubclass(c, CompressorError) and c is not CompressorError]


def test_exit_codes_are_distinct() -> None:
    codes = [kind.exit_code for kind in error_classes()]
    assert len(set(codes)) == len(codes)
    assert not {0, errors.INTERNAL_ERROR_EXIT_CODE, errors.INTERRUPTED_EXIT_CODE} & set(codes)
    assert max(codes) < 126, "126 and above mean something else to a shell"


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_every_error_is_drawn_in_the_docstring(kind: type[CompressorError]) -> None:
    assert errors.__doc__ is not None
    assert re.search(rf"{kind.__name__}\s+{kind.exit_code}\b", errors.__doc__)


def test_errors_are_defined_in_one_module() -> None:
    elsewhere = [
        f"{path}: {node.name}"
        for path in MODULES
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ]
    assert not elsewhere


def test_architecture_names_every_folder() -> None:
    architecture = ROOT / "ARCHITECTURE.md"
    if not architecture.is_file():
        pytest.skip("ARCHITECTURE.md does not exist yet")
    text = architecture.read_text(encoding="utf-8")
    folders = {path.parent.name for path in PACKAGE.rglob("__init__.py")} | {
        "csrc",
        "bench",
        "examples",
        "docs",
        "tests",
    }
    assert not {name for name in folders if f"{name}/" not in text}
