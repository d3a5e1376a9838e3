"""The golden cases in a child process that may use so much memory and time: what crashes or hangs there ends there.

    python -P -m compressor.device.selftest FOLDER SECONDS BYTES

prints what it saw as JSON, or one line on stderr with an exit code of errors.py.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import Signals
from typing import Any

from compressor.device.golden import check_output, golden_array, read_golden
from compressor.device.manifest import MANIFEST, MAX_CASES, DeviceManifest, read_manifest
from compressor.errors import BundleError, CompressorError, DeviceError, first_line

SELF_TEST_S = 60.0
# Of address space, beside what the model needs: the interpreter, numpy, ONNX Runtime and the stacks of threads.
RUNTIME_BYTES = 2 << 30
_ERRORS = "compressor.device.selftest: "


@dataclass(frozen=True)
class SelfTest:
    """What a self-test saw. `peak_ram_bytes`: the most that the child had resident."""

    cases: int
    min_cosine: float
    max_abs_error: float
    seconds: float
    peak_ram_bytes: int


def self_test(folder: Path, manifest: DeviceManifest, limit_s: float = SELF_TEST_S) -> SelfTest:
    """Runs the golden cases of the bundle in a folder, in a child process. Raises DeviceError when it fails there."""
    memory = manifest.requires.ram_bytes + RUNTIME_BYTES
    command = [sys.executable, "-P", "-m", "compressor.device.selftest", str(folder), str(limit_s), str(memory)]
    # One thread each, or their stacks would count. The address space is what is limited.
    settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    try:
        child = subprocess.run(
            command,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"the self-test did not end within {limit_s:g} s") from None
    if child.returncode < 0:
        raise DeviceError(f"the self-test was ended by {Signals(-child.returncode).name}")
    if child.returncode:
        said = [line.strip() for line in child.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise DeviceError(f"the self-test fails: {said[-1].removeprefix(_ERRORS)}")
    return SelfTest(**json.loads(child.stdout))


def run_cases(folder: Path) -> SelfTest:
    """The golden cases of a bundle in this process. Raises BundleError where it answers otherwise than when built."""
    import onnxruntime

    started = time.monotonic()
    manifest = read_manifest((folder / MANIFEST).read_bytes())
    arrays = read_golden(folder)
    if not 0 < manifest.golden.cases <= MAX_CASES:
        raise BundleError(
            f"the bundle has {manifest.golden.cases} golden cases, so nothing shows that it answers right"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(folder / manifest.model), options, providers=list(manifest.requires.providers)
    )
    check_interface(session, manifest)
    seen = [
        check_output(
            got, golden_array(arrays, f"{case}.out.{name}", folder), f"golden case {case}, {name}", manifest.golden
        )
        for case in range(manifest.golden.cases)
        for name, got in zip(
            manifest.outputs,
            session.run(None, {name: golden_array(arrays, f"{case}.in.{name}", folder) for name in manifest.inputs}),
            strict=True,
        )
    ]
    return SelfTest(
        manifest.golden.cases,
        min(cosine for cosine, _ in seen),
        max(error for _, error in seen),
        round(time.monotonic() - started, 3),
        _peak_ram_bytes(),
    )


def _peak_ram_bytes() -> int:
    # Not getrusage, which counts what the parent had when it forked.
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def check_interface(session: Any, manifest: DeviceManifest) -> None:
    """The model of a session has the inputs and outputs of the manifest. Raises BundleError."""
    got = [[value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]]
    expected = [list(manifest.inputs), list(manifest.outputs)]
    if got != expected:
        raise BundleError(f"expected a model with inputs and outputs {expected}, got {got}")


def _limit(kind: int, most: float) -> None:
    _, hard = resource.getrlimit(kind)
    limit = int(most) if hard == resource.RLIM_INFINITY else min(int(most), hard)
    resource.setrlimit(kind, (limit, limit))


def main(arguments: list[str]) -> int:
    """The child. Returns its exit code."""
    folder, seconds, memory = arguments
    _limit(resource.RLIMIT_CPU, float(seconds) + 1)  # where the parent is killed, nobody else stops it
    _limit(resource.RLIMIT_AS, float(memory))
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    try:
        print(json.dumps(asdict(run_cases(Path(folder)))))
    except CompressorError as error:
        print(f"{_ERRORS}{error}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print(f"{_ERRORS}{int(memory) / 1e6:.4g} MB of address space are not enough", file=sys.stderr)
        return DeviceError.exit_code
    except Exception as error:  # of ONNX Runtime, which has a class of its own for everything that can be wrong
        print(f"{_ERRORS}{type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return DeviceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
