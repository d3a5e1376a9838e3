"""The measuring program on a device, over the system's ssh: everything goes there, runs, and comes back in one connection.

The files travel as a tar archive on the standard input of a shell on the device, which unpacks them into a new folder,
runs the program, and removes the folder whatever happened. Standard input then stays open: its end, by Ctrl-C here or by
a broken connection, asks the program to end.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from compressor.benchmark.local import Event, OnEvent, checked, events_of, interrupts_passed_on
from compressor.errors import BenchmarkError, MissingDependencyError, UsageError

_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64", 0x28: "armv7l", 0xF3: "riscv64"}  # of the ELF header
_CONNECT_S = 15
_OPTIONS = ("BatchMode=yes", f"ConnectTimeout={_CONNECT_S}", "ServerAliveInterval=5", "ServerAliveCountMax=3")

# What the device's shell does. Only what POSIX has, and tar. {size}: bytes of the archive; the rest of the standard
# input has no content. The program is told to end when that input ends.
_SCRIPT = """
fail() {{ printf '{{"event":"failed","message":"%s"}}\\n' "$1"; exit 1; }}
folder=$(mktemp -d "${{TMPDIR:-/tmp}}/compressor-XXXXXX") || fail "no folder can be made in ${{TMPDIR:-/tmp}} on the device"
trap 'rm -rf "$folder"' EXIT
trap 'kill -INT $program 2>/dev/null; exit 1' HUP INT TERM PIPE
[ "$(uname -m)" = {machine} ] || fail "the device is a $(uname -m), the program and library are for {machine}; \
give --runner and --ort for it"
said=$( {{ head -c {size} | tar -xf - -C "$folder"; }} 2>&1 ) || fail "the files do not fit on the device: \
$(printf '%s' "$said" | tail -n 1 | tr -d '"\\\\')"
cd "$folder" || exit 1
exec 3<&0
{command} 2>stderr.txt </dev/null 3<&- &
program=$!
{{ cat <&3 >/dev/null; kill -INT $program; }} >/dev/null 2>&1 &
watch=$!
wait $program
code=$?
kill $watch 2>/dev/null
tail -n 3 stderr.txt >&2
for file in {profile}*; do
  [ -f "$file" ] && printf '{{"event":"file","name":"%s","bytes":%d}}\\n' "$file" "$(wc -c <"$file")" && cat "$file"
done
exit $code
"""


@dataclass(frozen=True)
class Device:
    """Where to measure: `ssh://[user@]host[:port]`, by the ssh configuration of this user."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def destination(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host


def device_of(text: str) -> Device:
    """The device of a URL. Raises UsageError on another form."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.scheme == "ssh" and parts.hostname and not (parts.path.strip("/") or parts.query or parts.password)
    if not plain or not re.fullmatch(r"[\w.:%-]+", parts.hostname or "") or (parts.hostname or "").startswith("-"):
        raise UsageError(f"--device {text}: expected ssh://[user@]host[:port], such as ssh://pi@board")
    if parts.username is not None and not re.fullmatch(r"[\w.][\w.-]*", parts.username):
        raise UsageError(f"--device {text}: expected a plain user name, got {parts.username!r}")
    return Device(str(parts.hostname), parts.username, port)


def machine_of(program: Path) -> str:
    """What `uname -m` says where the program can run. Raises BenchmarkError where it is no program for Linux."""
    with program.open("rb") as file:
        head = file.read(20)
    machine = _MACHINES.get(int.from_bytes(head[18:20], "little")) if head[:4] == b"\x7fELF" else None
    if machine is None:
        raise BenchmarkError(f"{program} must be a program for Linux on one of {', '.join(_MACHINES.values())}")
    return machine


def run_there(
    device: Device,
    files: Sequence[tuple[Path, str]],
    flags: Sequence[str],
    profile: str,
    folder: Path,
    on_event: OnEvent,
) -> Event:
    """Runs `./compressor-runner FLAGS` on the device, in a folder that holds `files` (path here, name there).

    What the program leaves under names that begin with `profile` is brought into `folder`. Every event goes to
    `on_event`, and the result is returned. Raises BenchmarkError when the device cannot be reached or used, and when
    the program fails; MissingDependencyError without ssh.
    """
    archive = folder / "there.tar"
    _pack(files, archive)
    program = next(path for path, name in files if name == "compressor-runner")
    script = _SCRIPT.format(
        machine=machine_of(program),
        size=archive.stat().st_size,
        command=shlex.join(["./compressor-runner", *flags]),
        profile=shlex.quote(profile),
    )
    command = ["ssh", *(f"-o{option}" for option in _OPTIONS), *(["-p", str(device.port)] if device.port else [])]
    command += ["--", device.destination, f"exec sh -c {shlex.quote(script)}"]
    stderr_path = folder / "stderr.txt"
    try:
        with stderr_path.open("wb") as stderr:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            )
    except FileNotFoundError:
        raise MissingDependencyError(
            "--device needs the program ssh (OpenSSH's client), which is not installed"
        ) from None
    assert child.stdin is not None
    assert child.stdout is not None
    last: Event = {}
    try:
        with interrupts_passed_on(lambda again: child.kill() if again else _close(child.stdin)):
            _send(archive, child.stdin)
            for event in events_of(child.stdout):
                if event["event"] == "file":
                    (folder / Path(event["name"]).name).write_bytes(child.stdout.read(event["bytes"]))
                    continue
                last = event
                on_event(event)
            code = child.wait()
    finally:
        _close(child.stdin)
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close()
    said = stderr_path.read_text(errors="replace")
    if code == 255 and last.get("event") not in ("result", "failed"):  # ssh's own failures
        reason = next(
            (line.strip() for line in reversed(said.splitlines()) if line.strip()), "the connection broke off"
        )
        what = "was lost" if last else "cannot be reached"
        raise BenchmarkError(f"the device {device.destination} {what}: {reason}")
    return checked(last, code, said)


def _pack(files: Sequence[tuple[Path, str]], archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for path, name in files:
            entry = tar.gettarinfo(str(path.resolve()), name)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            with path.open("rb") as content:
                tar.addfile(entry, content)


def _send(archive: Path, pipe: IO[bytes]) -> None:
    try:
        with archive.open("rb") as content:
            while piece := content.read(io.DEFAULT_BUFFER_SIZE * 16):
                pipe.write(piece)
        pipe.flush()
    except (BrokenPipeError, ValueError):
        pass  # the other side has ended, or Ctrl-C has closed this one; what it said tells why


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:
        pass
