"""The golden cases in a child process that may use so much memory and time: what crashes or hangs there ends there.

    python -P -m compressor.device.selftest CPU_SECONDS BYTES FOLDER

prints what it saw as JSON, or one line on stderr with an exit code of errors.py.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.device.golden import check_output, golden_array, read_golden
from compressor.device.manifest import MANIFEST, DeviceManifest, read_manifest
from compressor.errors import BundleError, DeviceError
from compressor.limited import RUNTIME_BYTES, Limits, limited_main, run_limited

SELF_TEST_S = 60.0


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
    # The processor time ends it where the parent is killed, and nobody else does.
    limits = Limits(limit_s, limit_s + 1, manifest.requires.ram_bytes + RUNTIME_BYTES)
    ended = run_limited("compressor.device.selftest", [str(folder)], limits)
    if ended.failure:
        raise DeviceError(f"the self-test {ended.failure}")
    # Before the last line onnxruntime may print something of its own.
    return SelfTest(**json.loads(ended.stdout.splitlines()[-1]))


def run_cases(folder: Path) -> SelfTest:
    """The golden cases of a bundle in this process. Raises BundleError where it answers otherwise than when built."""
    import onnxruntime

    started = time.monotonic()
    manifest = read_manifest((folder / MANIFEST).read_bytes())
    arrays = read_golden(folder)
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


if __name__ == "__main__":
    sys.exit(limited_main(lambda arguments: json.dumps(asdict(run_cases(Path(arguments[0])))), sys.argv[1:]))
