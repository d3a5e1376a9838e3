"""The device's verbs over one ssh connection each. docs/delivery.md has what the device must have.

On standard input go a script for the device's shell, the sources of `compressor.device` as a tar archive, and the
bundle. The sources come along because they are small, need no installation, and are then those that this program was
tested with; whoever may log in there may run anything anyway. Which bundles count is decided by the keys on the device.
"""

from __future__ import annotations

import io
import json
import shlex
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from signal import Signals
from typing import Any

from compressor import errors
from compressor.device import SOURCES
from compressor.device.signature import public_pem
from compressor.errors import CompressorError, DeviceError
from compressor.ssh import SSH_FAILED, Device, last_said, running_script, write

_PACKAGE = Path(__file__).resolve().parents[1]
_KEY = "release.pub"
_PREFIX = "compressor: "  # of the line that says what went wrong
ANSWER = "-- compressor's answer --"  # after which stdout is the answer: a login may greet before

# Only what POSIX and busybox have, and tar. In braces, so that nothing is run of a script that is cut off.
_SCRIPT = r"""{{
fail() {{
  printf 'compressor: %s\n' "$1" | tr -d '\001-\011\013-\037' >&2
  exit 16
}}
parent=${{TMPDIR:-/tmp}}
folder=$(mktemp -d "$parent/compressor-XXXXXX" 2>&1) || fail "no folder can be made in $parent on the device; \
set TMPDIR there to a folder that can be written"
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM PIPE
head -c {size} | LC_ALL=C tar -x -o -f - -C "$folder" || fail "the installer cannot be unpacked in \
$parent on the device"
command -v {python} >/dev/null || fail "the device needs Python 3.11 or newer, and has no "{python}"; \
name another with --python"
export PYTHONPATH="$folder" PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
printf '\n%s\n' {answer}
{command}
}}
"""


@dataclass(frozen=True)
class RemoteDevice:
    """A device that is reached over ssh: where, in which folder its versions are, and which Python it has."""

    device: Device
    root: str
    python: str = "python3"

    @property
    def name(self) -> str:
        return f"{self.device.destination}:{self.root}"

    def run(
        self, verb: str, flags: Sequence[str] = (), bundle: Iterable[bytes] = (), public_key: Path | None = None
    ) -> dict[str, Any]:
        """What a verb of `compressor.device` says as JSON; `bundle` goes to its standard input, the key beside it.

        Raises the error that the device had, with its name; DeviceError where it cannot be reached or used;
        SignatureError where the key is no public one.
        """
        root = self.root.removeprefix("/~/")  # in the home folder, where ssh begins
        command = [self.python, "-P", "-m", "compressor.device", verb, *flags, f"--root={root}", "--json"]
        line = shlex.join(command) + (f' --public-key "$folder/{_KEY}"' if public_key else "")
        sources = _packed({**_sources(), **({_KEY: public_pem(public_key)} if public_key else {})})
        script = _SCRIPT.format(
            size=len(sources), python=shlex.quote(self.python), command=line, answer=shlex.quote(ANSWER)
        ).encode()
        with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
            stderr_path = Path(folder) / "stderr.txt"
            with running_script(self.device, script, stderr_path) as running:
                pipe = running.stdin.fileno()
                if write(pipe, script) and write(pipe, sources):
                    for piece in bundle:
                        if not write(pipe, piece):
                            break
                running.stdin.close()
                stdout = running.stdout.read()
                code = running.child.wait()
            said = last_said(stderr_path.read_text(errors="replace"))
        if code:
            raise self._error(code, said)
        try:
            return dict(json.loads(stdout.partition(f"\n{ANSWER}\n".encode())[2]))
        except ValueError:
            raise DeviceError(
                f"{self.name}: its answer cannot be read, and it may have been updated;"
                f" `{self.device.login} true` must print nothing"
            ) from None

    def _error(self, code: int, said: str) -> CompressorError:
        if code < 0:
            return DeviceError(f"{self.name}: ssh was ended by {Signals(-code).name}")
        if code == SSH_FAILED:
            return DeviceError(
                f"{self.name}: the device cannot be reached: {said};"
                f" `{self.device.login}` must work without any question"
            )
        if said.startswith(_PREFIX):
            kind = next((kind for kind in _KINDS if kind.exit_code == code), DeviceError)
            return kind(f"{self.name}: {said.removeprefix(_PREFIX)}")
        return DeviceError(
            f"{self.name}: the device must run commands over ssh, but ended with exit code {code}: {said};"
            f" try `{self.device.login} true`"
        )


_KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CompressorError)]


@cache
def _sources() -> dict[str, bytes]:
    """The package `compressor` as a device needs it."""
    files = [file for name in SOURCES for file in (sorted((_PACKAGE / name).glob("*.py")) or [_PACKAGE / name])]
    return {f"compressor/{file.relative_to(_PACKAGE)}": file.read_bytes() for file in files}


def _packed(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    # GNU's format, as busybox knows it.
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1  # in nobody's future, whatever the device's clock says
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
