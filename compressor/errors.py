"""Every error that a user can meet, in one tree. Each ends the command with its own exit code.

    CompressorError
    |- UsageError             2   the command line asks for something that does not exist
    |- RecipeError            3   the recipe is not valid, or asks for an impossible combination
    |- DataError              4   a data file is missing, empty, malformed, or lacks a column
    |- TeacherError           5   the teacher cannot be loaded, or may not be used
    |- StudentError           6   the student cannot be derived or built
    |- TrainingError          7   the loss is not finite, or memory is exhausted
    |- ExportError            8   the ONNX model is not valid, or departs from the torch model
    |- QuantizationError      9   no quantized model could be written
    |- GateError             10   nothing within the permitted drop was found: no bundle is kept
    |- BundleError           11   a bundle is damaged, incomplete, or answers differently
    |- BenchmarkError        12   the target could not be measured
    |- StorageError          13   disk full, read-only folder, permission denied
    |- MissingDependencyError     14   an optional package or the native module is not installed
    |- SignatureError        15   no trusted signature, or of an older version or another product than permitted
    '- DeviceError           16   a target cannot be used, lacks what a bundle needs, or fails its self-test

Ctrl-C ends with 130. Anything else is a defect of this program and ends with 1.

A message is one line and says what was expected, what came, and what to do.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence

INTERNAL_ERROR_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130

_SPACE = "free some space there and run the same command again"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
    errno.EROFS: "mount it so that it can be written, or choose another place",
    errno.EACCES: "check the permissions there, or choose another place",
    errno.EPERM: "check the permissions there, or choose another place",
    errno.EXDEV: "put the whole folder on one file system",
    errno.EIO: "check the disk",
}
# Of a name that the user gave: without one, something else is meant.
_NAME_REMEDIES = {
    errno.ENOENT: "name one that is there",
    errno.ENOTDIR: "name a folder",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "name the file itself",
}


class CompressorError(Exception):
    """An expected failure: `str(error)` is one line for the user, `exit_code` is for the shell."""

    exit_code = INTERNAL_ERROR_EXIT_CODE


class UsageError(CompressorError):
    exit_code = 2


class RecipeError(CompressorError):
    exit_code = 3


class DataError(CompressorError):
    """`missing`: columns or arrays that are not there, where that is what is wrong."""

    exit_code = 4

    def __init__(self, message: str, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class TeacherError(CompressorError):
    exit_code = 5


class StudentError(CompressorError):
    exit_code = 6


class TrainingError(CompressorError):
    exit_code = 7


class ExportError(CompressorError):
    exit_code = 8


class QuantizationError(CompressorError):
    exit_code = 9


class GateError(CompressorError):
    """`objections`: (model, reason) for every candidate."""

    exit_code = 10

    def __init__(self, message: str, objections: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.objections = objections


class BundleError(CompressorError):
    exit_code = 11


class BenchmarkError(CompressorError):
    exit_code = 12


class StorageError(CompressorError):
    exit_code = 13


class MissingDependencyError(CompressorError):
    exit_code = 14


class SignatureError(CompressorError):
    exit_code = 15


class DeviceError(CompressorError):
    exit_code = 16


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line; its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()


def printable(text: str) -> str:
    """With `?` for every character that a terminal would act on, line feeds too."""
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(text: str) -> str:
    """`printable` on one line, with single spaces."""
    return printable(" ".join(text.split()))


def storage_error(error: OSError) -> StorageError | None:
    """The user's error for a failed read or write of the file system; None where it is something else."""
    if isinstance(error, shutil.Error):  # copytree gathers what failed, in words
        _, destination, reason = error.args[0][0]
        return StorageError(f"{destination}: {reason}; check the space and the permissions there")
    remedies = _REMEDIES | _NAME_REMEDIES if error.filename else _REMEDIES
    if error.errno not in remedies:
        return None
    name = f"{error.filename}: " if error.filename else ""
    return StorageError(f"{name}{os.strerror(error.errno).lower()}; {remedies[error.errno]}")


def missing_extra(package: str) -> MissingDependencyError:
    """The error for an absent optional package."""
    return MissingDependencyError(
        f"this needs the package {package!r}, which is not installed; run: pip install 'compressor[train]'"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory is exhausted. On the CPU torch raises a plain RuntimeError for it."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
