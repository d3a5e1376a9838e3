"""A torch module of the user's own: file.py:callable or package.module:callable, with a safetensors state dict."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from compressor.errors import CompressorError, TeacherError, first_line
from compressor.intake.safetensors import check_safetensors


def build_module(reference: str, error: type[CompressorError]) -> nn.Module:
    """Calls the callable that a reference names. `error` is raised, with one line, for whatever goes wrong."""
    built = called(reference, error)
    if not isinstance(built, nn.Module):
        raise error(f"{reference}: expected it to return a torch.nn.Module, got {type(built).__name__}")
    return built


def called(reference: str, error: type[CompressorError]) -> object:
    """What the callable that a reference names returns. `error` is raised, with one line, for whatever goes wrong."""
    make = _callable(reference, error)
    try:
        return make()
    except (Exception, SystemExit) as failure:  # the user's own code may raise anything
        raise error(f"{reference}: calling it failed: {type(failure).__name__}: {first_line(failure)}") from failure


def source_file(reference: str, error: type[CompressorError]) -> Path:
    """The file that defines the callable: part of what the teacher is."""
    make = _callable(reference, error)
    try:
        file = inspect.getsourcefile(make)
    except TypeError:  # an object with __call__, a partial: where its module lies is the nearest there is
        file = _import(reference.rpartition(":")[0], error).__file__
    if file is None:
        raise error(f"{reference}: expected it to be defined in a Python file")
    return Path(file)


def load_module(reference: str, weights: Path) -> nn.Module:
    """The teacher with its weights, in evaluation mode. Raises TeacherError."""
    model = build_module(reference, TeacherError)
    if not weights.is_file():
        raise TeacherError(f"{weights}: expected the teacher's weights (safetensors), found none")
    check_safetensors(weights, TeacherError)
    try:
        state = safetensors.torch.load_file(weights)
        model.load_state_dict(state)
    except SafetensorError as error:
        raise TeacherError(f"{weights}: not a safetensors file: {error}") from None
    except RuntimeError as error:
        raise TeacherError(f"{weights}: does not fit {reference}: {' '.join(str(error).split())[:200]}") from None
    return model.eval()


def _callable(reference: str, error: type[CompressorError]) -> Callable[[], object]:
    source, _, name = reference.rpartition(":")
    found: object = getattr(_import(source, error), name, None)
    if not callable(found):
        raise error(f"{reference}: expected a callable {name!r} in {source}, found {type(found).__name__}")
    return found


def _import(source: str, error: type[CompressorError]) -> ModuleType:
    try:
        if source.endswith(".py"):
            return _import_file(Path(source))
        # As `python -m` does it: the user's own package lies in the working directory.
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(source)
    except (Exception, SystemExit) as failure:  # the user's own code may raise anything
        raise error(f"{source}: cannot be imported: {type(failure).__name__}: {failure}") from failure


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"compressor_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
