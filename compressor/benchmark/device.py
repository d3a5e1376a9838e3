"""The measuring program on a device: over one connection of the system's ssh all goes there, runs, and comes back.

On standard input go a script for the device's shell, the files as a tar archive, and later perhaps a line, which asks
the program to end with what it has. The script unpacks into a new folder, runs the program, and removes the folder
whatever happens. The end of standard input means that nobody listens any more: the program is killed.
"""

from __future__ import annotations

import os
import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import IO

from compressor.benchmark.local import Event, OnEvent, checked, events_of, interrupts_passed_on
from compressor.errors import BenchmarkError, UsageError
from compressor.ssh import SSH_FAILED, Device, device_and_path, last_said, running_script, write

# Of the ELF header, and the patterns of what `uname -m` says where such a program may run.
_MACHINES = {
    0x3E: ("x86_64", "x86_64"),
    0xB7: ("aarch64", "aarch64|arm64"),
    0x28: ("armv7l", "arm*|aarch64"),  # kernels of 64 bits mostly run these too
    0xF3: ("riscv64", "riscv64"),
}
PROGRAM = "compressor-runner"  # its name on a device
_PIECE = 1 << 17
_SIGNAL_CODES = {128 + number: number for number in Signals}  # of a shell whose command a signal ended

# Only what POSIX and busybox have, and tar. In braces, so that nothing is run of a script that is cut off. {size}: the
# archive's bytes. The program is deaf to SIGINT as it begins; a line comes only after it has told something. ONNX
# Runtime's telemetry would leave files in the home folder, and disturb. A killed program's own child may write a moment
# longer, so the folder is removed once more where the first time left something.
_SCRIPT = r"""{{
fail() {{
  printf '\n{{"event":"failed","message":"%s"}}\n' "$(printf '%s' "$1" | tr -d '\001-\037"\\')"
  exit 1
}}
first_line() {{ printf '%s\n' "$1" | head -n 1; }}
printf '\n{{"event":"reached"}}\n'
case $(uname -m) in
{machines}) ;;
*) fail "the device is a $(uname -m), and the measuring program is for {machine}; give --runner and --ort for it" ;;
esac
parent=${{TMPDIR:-/tmp}}
folder=$(mktemp -d "$parent/compressor-XXXXXX" 2>&1) || fail "no folder can be made in $parent on the device: \
$(first_line "$folder"); set TMPDIR there to a folder that can be written"
program= watch=
trap '{{ kill $watch; [ -z "$program" ] || {{ kill -KILL $program; wait $program; }}; }} 2>/dev/null
  cd / && {{ rm -rf "$folder" || {{ sleep 1; rm -rf "$folder"; }}; }} 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM PIPE
said=$( {{ head -c {size} | LC_ALL=C tar -x -o -f - -C "$folder"; }} 2>&1 ) || {{
  full=$(printf '%s\n' "$said" | grep 'No space')
  fail "the files, {megabytes} MB, cannot be unpacked in $parent on the device: $(first_line "${{full:-$said}}"); \
free space there, or set TMPDIR there to another folder"
}}
cd "$folder" || exit 1
said=$( {{ ./compressor-runner --version >/dev/null; }} 2>&1 </dev/null ) || fail "the measuring program does not run \
on the device: $(first_line "$said"); give --runner and --ort that are built for it, or set TMPDIR there to a folder \
where programs may run"
export TMPDIR="$folder" ORT_DISABLE_TELEMETRY=1
exec 3<&0
{command} 2>stderr.txt </dev/null 3<&- &
program=$!
{{ read -r line <&3 && {{ kill -INT $program; cat <&3; }}; kill -KILL $program; }} >/dev/null 2>&1 &
watch=$!
wait $program
code=$?
program=
tail -n 3 stderr.txt >&2
for file in {profile}*; do
  [ -f "$file" ] && printf '\n{{"event":"file","name":"%s","bytes":%d}}\n' "$file" "$(wc -c <"$file")" && cat "$file"
done
exit $code
}}
"""


def device_of(text: str) -> Device:
    """The device of a URL. Raises UsageError on another form."""
    found = device_and_path(text)
    if found is None or found[1] not in ("", "/"):
        raise UsageError(f"--device {text}: expected ssh://[user@]host[:port], such as ssh://pi@board")
    return found[0]


def machine_of(path: Path) -> str:
    """What `uname -m` says where this program or library is at home. Raises BenchmarkError where it is neither."""
    return _machine(path)[0]


def _machine(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        head = file.read(20)
    if head[:4] != b"\x7fELF" or (found := int.from_bytes(head[18:20], "little")) not in _MACHINES:
        known = ", ".join(name for name, _ in _MACHINES.values())
        raise BenchmarkError(f"{path} must be built for Linux on one of {known}; got another kind of file")
    return _MACHINES[found]


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
    `on_event`, and the result is returned. Ctrl-C asks the program to end with what it has; a second one, or one before
    it has told anything, ends it at once. Raises BenchmarkError when the device cannot be reached or used, and when the
    program fails; MissingDependencyError without ssh; KeyboardInterrupt after a Ctrl-C without a result.
    """
    archive = folder / "there.tar"
    _pack(files, archive)
    script = _script(files, flags, profile, archive.stat().st_size)
    stderr_path = folder / "stderr.txt"
    last: Event = {}
    reached = False
    with running_script(device, script, stderr_path) as running:
        pipe = running.stdin.fileno()

        def interrupt(again: bool) -> None:
            if again or not last:
                running.child.kill()
            else:
                write(pipe, b"\n")

        with interrupts_passed_on(interrupt) as interruption:
            write(pipe, script)
            _send(archive, pipe)
            for event in events_of(running.stdout):
                if event["event"] == "reached":
                    reached = True
                elif event["event"] == "file":
                    _receive(event, running.stdout, folder, profile)
                else:
                    last = event
                    on_event(event)
            code = running.child.wait()
    said = stderr_path.read_text(errors="replace")
    if not _is_whole(last, folder):
        if interruption.seen:
            last = {}
        else:
            _check_connection(device, code, said, reached=reached, begun=bool(last))
    return checked(last, -_SIGNAL_CODES[code] if code in _SIGNAL_CODES else code, said, interruption.seen)


def _script(files: Sequence[tuple[Path, str]], flags: Sequence[str], profile: str, size: int) -> bytes:
    program = next(path for path, name in files if name == PROGRAM)
    machine, patterns = _machine(program)
    script = _SCRIPT.format(
        machine=machine,
        machines=patterns,
        size=size,
        megabytes=f"{size / 1e6:.3g}",
        command=shlex.join([f"./{PROGRAM}", *flags]),
        profile=shlex.quote(profile),
    )
    return os.fsencode(script)


def _pack(files: Sequence[tuple[Path, str]], archive: Path) -> None:
    # GNU's format, since busybox does not know the other way to write long names.
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for path, name in files:
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = 0o755 if name == PROGRAM else 0o644
            entry.mtime = 1  # in nobody's future, whatever the device's clock says
            with path.open("rb") as content:
                tar.addfile(entry, content)


def _send(archive: Path, pipe: int) -> None:
    with archive.open("rb") as content:
        while (piece := content.read(_PIECE)) and write(pipe, piece):
            pass


def _receive(event: Event, stream: IO[bytes], folder: Path, profile: str) -> None:
    content = stream.read(event["bytes"])
    if len(content) == event["bytes"] and event["name"].startswith(profile) and "/" not in event["name"]:
        (folder / event["name"]).write_bytes(content)


def _is_whole(last: Event, folder: Path) -> bool:
    """Whether the device said how it went, and all that belongs to a result has come."""
    if last.get("event") != "result":
        return last.get("event") == "failed"
    profiles = [Path(model["profile"]).name for model in last["result"]["models"] if "profile" in model]
    return all((folder / name).is_file() for name in profiles)


def _check_connection(device: Device, code: int, said: str, *, reached: bool, begun: bool) -> None:
    """Raises BenchmarkError where the connection is the reason that there is no result."""
    reason, where = last_said(said), device.destination
    if code < 0:
        code, reason = SSH_FAILED, f"ssh was ended by {Signals(-code).name}"
    if code != SSH_FAILED:
        if not reached:
            raise BenchmarkError(
                f"the device {where} must run commands over ssh, but ended with exit code {code}: {reason}; "
                f"try `{device.login} true`"
            )
        return
    if begun:
        raise BenchmarkError(f"the device {where} was lost during the measurement: {reason}; try again")
    if reached:
        raise BenchmarkError(f"the device {where} was lost while the files went there: {reason}; try again")
    raise BenchmarkError(
        f"the device {where} cannot be reached: {reason}; `{device.login}` must work without any question"
    )
