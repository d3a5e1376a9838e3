"""A real sshd on loopback: its keys, its start, waiting for it."""

import os
import socket
import subprocess
import time
from pathlib import Path

import needed

LIMIT_S = 60.0  # of everything that is waited for; nothing should take a tenth of it


def wait_until(seen, what):
    deadline = time.monotonic() + LIMIT_S
    while not (found := seen()):
        assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}"
        time.sleep(0.05)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_sshd():
    """The program; ends the tests, naming what is missing, where there is none, or no client."""
    program = needed.require("sshd", "openssh-server")
    for client in ("ssh", "ssh-keygen"):
        needed.require(client, "openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what starts sshd otherwise makes it
    return program


def make_key(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_name(path.name + ".pub").read_text()


def start_sshd(program, folder):
    """The process and its port, or what it said when it did not start."""
    said = ""
    for attempt in range(5):
        port, log = free_port(), folder / f"sshd-{attempt}.log"
        settings = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host",
            "PidFile": "none",
            "AuthorizedKeysFile": folder / "authorized",
            "StrictModes": "no",
            "UsePAM": "no",
            "AcceptEnv": "TMPDIR",
        }
        config = folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        command = [program, "-f", config]
        # Newer ones turn away for a while whose connections broke.
        lenient = [*command, "-o", "PerSourcePenalties=no"]
        if subprocess.run([*lenient, "-t"], capture_output=True).returncode == 0:
            command = lenient
        process = subprocess.Popen([*command, "-D", "-E", log], stdin=subprocess.DEVNULL)
        wait_until(lambda log=log, process=process: process.poll() is not None or "listening" in read(log), "sshd")
        said = read(log).strip()
        if process.poll() is None:
            return process, port, said
        if "in use" not in said:  # by another test process that found the same port free
            break
    return None, 0, said


def read(path):
    return path.read_text() if path.exists() else ""
