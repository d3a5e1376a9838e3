"""The way to the C++ module and to ONNX Runtime's library. Nothing else imports `_native`."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from compressor.errors import MissingDependencyError

if TYPE_CHECKING:
    from compressor._native import Feed, Library, Matrix, Session, TensorInfo

__all__ = [
    "Feed",
    "Library",
    "Matrix",
    "Session",
    "TensorInfo",
    "available",
    "load",
    "onnxruntime_library",
    "runner",
]


@cache
def _import() -> ModuleType | ImportError:
    try:
        from compressor import _native
    except ImportError as error:
        return error
    return _native


def available() -> bool:
    """Whether `load` would succeed."""
    return isinstance(_import(), ModuleType)


def load() -> ModuleType:
    """The C++ module, as `_native.pyi` describes it. Raises MissingDependencyError where it does not load."""
    found = _import()
    if isinstance(found, ImportError):
        raise MissingDependencyError(
            f"the native module compressor._native does not load ({found}); "
            "build it with a C++17 compiler: pip install ."
        )
    return found


def runner(override: Path | None = None) -> Path:
    """The measuring program, which is installed beside the C++ module. `override` is taken instead when given.

    Raises MissingDependencyError where it is not.
    """
    if override is not None:
        if not override.is_file():
            raise MissingDependencyError(f"no measuring program at {override}; give the path of a compressor-runner")
        return override
    path = Path(str(load().__file__)).with_name("compressor-runner")
    if not path.is_file():
        raise MissingDependencyError(f"the measuring program {path} is not there; run: pip install .")
    return path


def onnxruntime_library(override: Path | None = None) -> Path:
    """The shared library of the installed onnxruntime package, found without importing the package.

    `override` is taken instead when given. Raises MissingDependencyError when there is no such file.
    """
    if override is not None:
        if not override.is_file():
            raise MissingDependencyError(f"no ONNX Runtime library at {override}; give the path of a libonnxruntime.so")
        return override
    spec = importlib.util.find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder, "capi").glob("libonnxruntime.so*")):
            return library
    raise MissingDependencyError(
        "the package onnxruntime, 1.19.2 or later, with capi/libonnxruntime.so is not installed; "
        "run: pip install 'onnxruntime>=1.20'"
    )
