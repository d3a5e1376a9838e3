"""Commands on a device over the system's ssh, by the ssh configuration of this user, without a question.

The environment variable COMPRESSOR_SSH, such as `ssh -F config`, is a command to take instead of `ssh`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from compressor.errors import MissingDependencyError, UsageError

SSH_FAILED = 255
# The login shell may be any, so the command for it is short and plain. dd takes the script's bytes and not one more.
_COMMAND = """exec sh -c 'eval "$(dd bs=1 count={size} 2>/dev/null)"'"""
_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=5",  # a connection that is silently dead is noticed after 15 s
    "ServerAliveCountMax=2",
    "ClearAllForwardings=yes",  # what the user's configuration may ask for, and nobody needs here
    "RemoteCommand=none",
    "RequestTTY=no",
)
_URL = re.compile(
    r"ssh://(?:(?P<user>[\w.][\w.-]*)@)?"
    r"(?:\[(?P<address>[\da-f:.]+(?:%[\w.-]+)?)\]|(?P<host>\w[\w.-]*))(?::(?P<port>\d+))?(?P<path>/.*)?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Device:
    """Where to: `ssh://[user@]host[:port]`."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def destination(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def login(self) -> str:
        """What a user types to get there."""
        return f"ssh -p {self.port} {self.destination}" if self.port else f"ssh {self.destination}"


def device_and_path(url: str) -> tuple[Device, str] | None:
    """The device of `ssh://[user@]host[:port][/path]`, and the path with its slash, or nothing; None for other text."""
    parts = _URL.fullmatch(url)
    port = int(parts["port"]) if parts and parts["port"] else None
    if parts is None or (port is not None and not 0 < port < 1 << 16):
        return None
    return Device(parts["address"] or parts["host"], parts["user"], port), parts["path"] or ""


@dataclass(frozen=True)
class Script:
    """A script that runs on a device: the ssh that holds it, and the ends of its standard input and output here."""

    child: subprocess.Popen[bytes]
    stdin: IO[bytes]
    stdout: IO[bytes]


@contextmanager
def running_script(device: Device, script: bytes, stderr_path: Path) -> Iterator[Script]:
    """A script of POSIX shell there, which has ended when this does. What follows on its standard input, of which
    nothing is written yet, the script itself among it, is the caller's to write. Raises MissingDependencyError without
    ssh; UsageError.
    """
    child = _start(device, script, stderr_path)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield Script(child, child.stdin, child.stdout)
    finally:
        child.stdin.close()
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close()


def _start(device: Device, script: bytes, stderr_path: Path) -> subprocess.Popen[bytes]:
    try:
        ssh = shlex.split(os.environ.get("COMPRESSOR_SSH") or "ssh")
    except ValueError as error:
        raise UsageError(f"COMPRESSOR_SSH must be a command such as `ssh -F config`: {str(error).lower()}") from None
    ssh += [f"-o{option}" for option in _OPTIONS]
    ssh += ["-p", str(device.port)] if device.port else []
    try:
        with stderr_path.open("wb") as stderr:
            return subprocess.Popen(
                [*ssh, "--", device.destination, _COMMAND.format(size=len(script))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is passed on, not shared
            )
    except (FileNotFoundError, PermissionError):
        raise MissingDependencyError(
            f"a device needs OpenSSH's client, got no program {ssh[0]}; install it, or name it in COMPRESSOR_SSH"
        ) from None


def write(pipe: int, content: bytes) -> bool:
    """Whether all was written; otherwise the other side has ended, and what it said tells why."""
    rest = memoryview(content)
    with suppress(BrokenPipeError):
        while rest:
            rest = rest[os.write(pipe, rest) :]
    return not rest


def last_said(stderr: str) -> str:
    """The last line of what ssh or a device said on stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it said nothing"
