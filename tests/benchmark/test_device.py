"""Measuring over ssh: a real sshd on loopback, the real command, and that nothing is left there afterwards."""

import getpass
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import needed
import numpy as np
import onnx
import pytest
from loopback_sshd import LIMIT_S, free_port, make_key, require_sshd, start_sshd, wait_until
from made_models import save

from compressor import native
from compressor.benchmark import BenchmarkSettings, Candidate, Tolerance, device_of, measure
from compressor.benchmark.measure import problems_of
from compressor.errors import UsageError
from compressor.progress import SILENT

QUICK = ("--samples", "20", "--budget", "0.05s")
LONG = ("--samples", "100000000", "--budget", "100s", "--quiet")
FLOAT = onnx.TensorProto.FLOAT
# What a client's key may be bound to in place of the user's own shell. {links}: a folder whose sh is that shell.
FORCED = {
    "bash": 'PATH="{links}:$PATH" exec bash -c "$SSH_ORIGINAL_COMMAND"',
    "busybox": 'exec env PATH="{links}" sh -c "$SSH_ORIGINAL_COMMAND"',
    "closed": "echo This account is currently not available.; exit 1",
    "stalled": 'PATH="{links}:$PATH" exec sh -c "$SSH_ORIGINAL_COMMAND"',
}


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""  # it has ended


def children_of(pid):
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def processes_of(folder):
    """The processes in whose environment TMPDIR is the folder, or one in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or is another user's
        if any(variable.startswith(os.fsencode(f"TMPDIR={folder}")) for variable in variables):
            found.append(int(path.parent.name))
    return found


def signal_all(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


@dataclass(frozen=True)
class Sshd:
    """A running sshd: its process, its port, and the folder of the client's keys."""

    process: subprocess.Popen
    port: int
    folder: Path

    def sessions(self):
        """The sshd processes of the open connections."""
        found = []
        for child in children_of(self.process.pid):
            found += [child, *(pid for pid in children_of(child) if name_of(pid).startswith("sshd"))]
        return found


def make_links(folder):
    """Folders whose sh is another shell, busybox's with nothing but busybox; and one whose tar is in no hurry."""
    for shell in ("bash", "busybox"):
        program = shutil.which(shell)
        links = folder / shell
        links.mkdir(parents=True)
        if program is None:
            continue
        names = ["sh"]
        if shell == "busybox":
            names = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for name in names:
            (links / name).symlink_to(program)
    tar = folder / "stalled" / "tar"
    tar.parent.mkdir()
    tar.write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("tar")} "$@"\n')
    tar.chmod(0o755)


def check_login(server, folder):
    board = Board(server, folder)
    command = [*shlex.split(board.ssh), "-p", str(server.port), "-o", "BatchMode=yes", "127.0.0.1", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S)
    if tried.returncode:
        needed.lacking(f"needs an sshd that lets {getpass.getuser()} run commands: {tried.stdout}{tried.stderr}")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """Ends the tests, naming what is missing, where there cannot be one."""
    program, folder = require_sshd(), tmp_path_factory.mktemp("sshd")
    make_key(folder / "host")
    make_links(folder / "links")
    authorized = make_key(folder / "plain")
    for name, command in FORCED.items():
        words = command.format(links=folder / "links" / name).replace('"', '\\"')
        authorized += f'command="{words}" {make_key(folder / name)}'
    (folder / "authorized").write_text(authorized)
    process, port, said = start_sshd(program, folder)
    if process is None:
        needed.lacking(f"needs an sshd that starts: {said}")
    server = Sshd(process, port, folder)
    try:
        check_login(server, folder)
        yield server
    finally:
        sessions = server.sessions()
        process.terminate()
        process.wait(LIMIT_S)
        signal_all(sessions, signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str

    def line(self, code):
        """The one line of an error, after it is checked that it is one, with this exit code."""
        assert self.code == code, self.stderr
        said = [line for line in self.stderr.splitlines() if line.startswith("compressor: ")]
        assert len(said) == 1, self.stderr
        assert said == self.stderr.splitlines()[-1:]
        assert "internal error" not in said[0]
        return said[0]


class Board:
    """A device at the other end of a connection to the sshd, with a folder of its own for what is temporary."""

    def __init__(self, server, folder):
        self.server = server
        self.folder = folder
        self.temporary = folder / "temporary, o'clock"
        self.temporary.mkdir()
        self.here = folder / "here"  # where the command has what is temporary
        self.here.mkdir()
        self.url = f"ssh://{getpass.getuser()}@127.0.0.1:{server.port}"
        self.json = folder / "result.json"
        self.started = []
        self.use("plain")

    def use(self, key, **settings):
        """Logs in with this key from now on, where its shell is not lacking. `settings` are of the client."""
        if key in ("bash", "busybox"):
            needed.require(key, key)
        settings = {
            "IdentityFile": self.server.folder / key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "accept-new",
            "SetEnv": f'"TMPDIR={self.temporary}"',
            **settings,
        }
        config = self.folder / "ssh_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self.ssh = shlex.join(["ssh", "-F", str(config)])

    def start(self, *arguments, url=None):
        process = subprocess.Popen(
            [sys.executable, "-m", "compressor", "bench", *map(str, arguments), "--device", url or self.url],
            cwd=self.folder,
            env={**os.environ, "COMPRESSOR_SSH": self.ssh, "TMPDIR": str(self.here)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def end(self, process):
        stdout, stderr = process.communicate(timeout=LIMIT_S)
        return Ended(process.returncode, stdout, stderr)

    def bench(self, *arguments, url=None):
        return self.end(self.start(*arguments, url=url))

    def start_long(self, model):
        """A run of minutes, after it has told a first partial result."""
        process = self.start(model, *LONG, "--json", self.json)
        wait_until(lambda: self.json.exists() or process.poll() is not None, "a partial result")
        assert process.poll() is None, self.end(process).stderr
        return process

    def result(self):
        return json.loads(self.json.read_text())

    def runners(self):
        return [pid for pid in processes_of(self.temporary) if name_of(pid) == "compressor-runn"]

    def left(self):
        return [path.name for path in self.temporary.iterdir()] + [name_of(p) for p in processes_of(self.temporary)]

    def wait_until_nothing_is_left(self):
        wait_until(lambda: not self.left(), "nothing is left there")


@pytest.fixture
def board(sshd, tmp_path):
    """Nothing may be left on it after a test."""
    board = Board(sshd, tmp_path)
    try:
        yield board
        board.wait_until_nothing_is_left()
        assert not list(board.here.glob("compressor-*"))
    finally:
        for process in board.started:
            process.kill()
            process.communicate()
        signal_all(processes_of(board.temporary), signal.SIGKILL)


# Whole runs.


@pytest.mark.parametrize("shell", ["plain", "bash", "busybox"])
def test_two_models_on_made_up_inputs(shell, board, models):
    board.use(shell)
    ended = board.bench(models["mlp"][0], models["mlp-int8"][0], *QUICK, "--json", board.json)
    assert ended.code == 0, ended.stderr
    assert "mlp-int8" in ended.stdout
    result = board.result()
    assert (result["complete"], result["problems"]) == (True, [])
    (run,) = result["runs"]
    assert run["complete"]
    assert [model["name"] for model in run["models"]] == ["mlp", "mlp-int8"]
    assert [comparison["model"] for comparison in run["comparisons"]] == ["mlp-int8"]
    assert run["target"]["architecture"] == platform.machine()
    assert run["models"][1]["answers"]["against"] == "mlp"
    board.wait_until_nothing_is_left()


@pytest.mark.parametrize(("change", "problems"), [(0.0, 0), (1.0, 1)])
def test_answers_are_compared_with_the_expected_ones(change, problems, board, models, monkeypatch):
    import onnxruntime

    path, make_feed = models["cnn"]
    generator = np.random.default_rng(0)
    feeds = tuple(make_feed(generator) for _ in range(2))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = tuple({"y": session.run(["y"], feed)[0] + np.float32(change)} for feed in feeds)
    asked = [Candidate("cnn", path, feeds, expected, Tolerance(0.99, 0.5))]
    monkeypatch.setenv("COMPRESSOR_SSH", board.ssh)
    run = measure(asked, BenchmarkSettings(min_samples=20, budget_s=0.3), SILENT, device=device_of(board.url))
    (model,) = run.models
    assert run.complete
    assert (model.answers.against, model.answers.cases) == ("expected", 2)
    assert model.answers.max_abs_error == pytest.approx(change, abs=1e-6)
    assert model.answers.equal == (change == 0)
    assert len(problems_of(run, asked)) == problems


def test_the_profile_comes_back(board, models):
    ended = board.bench(models["mlp"][0], models["cnn"][0], *QUICK, "--profile", "--json", board.json)
    assert ended.code == 0, ended.stderr
    mlp, cnn = board.result()["runs"][0]["models"]
    assert [shown["operator"] for shown in mlp["profile"]].count("MatMul") == 1
    assert "Conv" in "".join(shown["operator"] for shown in cnn["profile"])


@pytest.mark.parametrize("shell", ["plain", "busybox"])
def test_names_are_names(shell, board):
    board.use(shell)
    folder = board.folder / "some $(touch pwned) place"
    folder.mkdir()
    dimension = "ba'tch; touch pwned $(touch pwned)"
    plain = folder / "a'b; touch pwned $(touch pwned).onnx"
    # Longer than what the oldest kind of archive can name, with weights in a file of their own.
    long = folder / f'{"ä" * 60}{"x" * 60} "quoted" `touch pwned`.onnx'
    for path in (plain, long):
        save(
            path,
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            [("x", FLOAT, [dimension, 32])],
            [("y", FLOAT, [dimension, 8])],
            [("w", np.ones((32, 8), np.float32))],
        )
    onnx.save(onnx.load(long), long, save_as_external_data=True, location=f"{long.name}.data", size_threshold=0)
    assert Path(f"{long}.data").is_file()
    ended = board.bench(plain, long, *QUICK, "--shape", f"{dimension}=3", "--json", board.json)
    assert ended.code == 0, ended.stderr
    (run,) = board.result()["runs"]
    assert [model["name"] for model in run["models"]] == [plain.stem, long.stem]
    assert run["conditions"]["shapes"] == {dimension: 3}
    assert run["models"][1]["answers"]["equal"]
    assert not list(board.folder.rglob("pwned*"))
    assert not (Path.home() / "pwned").exists()


# What the device says no to.


def test_a_runtime_that_is_too_old(board, models, tmp_path):
    compiler = needed.require("cc", "gcc")
    (tmp_path / "old.c").write_text(
        "struct Base { const void* (*table)(unsigned); const char* (*version)(void); };\n"
        "static const void* table(unsigned version) { (void)version; return 0; }\n"
        'static const char* version(void) { return "1.17.0"; }\n'
        "const struct Base* OrtGetApiBase(void) { static const struct Base base = {table, version}; return &base; }\n"
    )
    old = tmp_path / "libonnxruntime.so.1.17.0"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", old, tmp_path / "old.c"], check=True)
    line = board.bench(models["mlp"][0], *QUICK, "--ort", old).line(12)
    assert "ONNX Runtime 1.19 or a later 1.x is needed, got 1.17.0" in line


@pytest.fixture
def mounted(board):
    """Mounts a file system in memory, with these options, as the board's folder for what is temporary."""
    here = []

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", board.temporary]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs to mount a file system: {(getattr(error, 'stderr', '') or str(error)).splitlines()[0]}")
        here.append(board.temporary)

    yield mount
    for path in here:
        board.wait_until_nothing_is_left()
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("shell", ["plain", "busybox"])
def test_a_disk_that_is_too_small(shell, board, models, mounted):
    board.use(shell)
    mounted("size=4m")
    line = board.bench(models["mlp"][0], *QUICK).line(12)
    assert f"cannot be unpacked in {board.temporary} on the device: " in line
    assert "No space left on device; free space there" in line


def test_a_folder_where_programs_may_not_run(board, models, mounted):
    mounted("noexec")
    line = board.bench(models["mlp"][0], *QUICK).line(12)
    assert "the measuring program does not run on the device" in line
    assert "Permission denied" in line


def test_a_folder_that_is_not_there(board, models):
    board.use("plain", SetEnv=f"TMPDIR={board.folder}/none")
    line = board.bench(models["mlp"][0], *QUICK).line(12)
    assert f"no folder can be made in {board.folder}/none on the device" in line
    assert "set TMPDIR there" in line


def of_another_machine(path, copy):
    """A copy whose header says so, and the machine's name."""
    shutil.copy(path, copy)
    name, number = ("x86_64", 0x3E) if platform.machine() == "aarch64" else ("aarch64", 0xB7)
    with copy.open("r+b") as file:
        file.seek(18)
        file.write(number.to_bytes(2, "little"))
    return copy, name


def test_another_machine(board, models, tmp_path):
    runner, other = of_another_machine(native.runner(), tmp_path / "compressor-runner")
    library, _ = of_another_machine(native.onnxruntime_library(), tmp_path / "libonnxruntime.so")
    line = board.bench(models["mlp"][0], *QUICK, "--runner", runner, "--ort", library).line(12)
    assert f"the device is a {platform.machine()}, and the measuring program is for {other}" in line
    assert "give --runner and --ort" in line


def test_a_library_of_another_machine_than_the_program(board, models, tmp_path):
    runner, other = of_another_machine(native.runner(), tmp_path / "compressor-runner")
    line = board.bench(models["mlp"][0], *QUICK, "--runner", runner).line(12)
    assert f"must be for one machine, got {other} and {platform.machine()}; give --runner and --ort" in line


def test_a_model_that_crashes_the_runtime(board, models, crashing_model):
    line = board.bench(models["mlp"][0], crashing_model, *QUICK).line(12)
    assert "compressor: crash: the measuring process was ended by SIGSEGV" in line


def test_a_measuring_program_that_is_killed(board, models):
    process = board.start(models["cnn"][0], *LONG)
    runners = wait_until(board.runners, "the program runs")
    signal_all(runners[:1], signal.SIGKILL)  # the first is the parent of the others
    assert "the measuring program was ended by SIGKILL" in board.end(process).line(12)


# No connection.


def test_no_such_host(board, models):
    line = board.bench(models["mlp"][0], url="ssh://me@no-such-host.invalid").line(12)
    assert "the device me@no-such-host.invalid cannot be reached: ssh: Could not resolve hostname" in line
    assert "`ssh me@no-such-host.invalid` must work without any question" in line


def test_nobody_listens(board, models):
    port = free_port()
    line = board.bench(models["mlp"][0], url=f"ssh://127.0.0.1:{port}").line(12)
    assert (
        f"the device 127.0.0.1 cannot be reached: ssh: connect to host 127.0.0.1 port {port}: Connection refused"
        in line
    )
    assert f"`ssh -p {port} 127.0.0.1` must work without any question" in line


def test_a_key_that_the_device_does_not_know(board, models, tmp_path):
    make_key(tmp_path / "unknown")
    board.use(tmp_path / "unknown")
    line = board.bench(models["mlp"][0]).line(12)
    assert "cannot be reached" in line
    assert "Permission denied (publickey" in line


def test_a_device_that_was_never_met(board, models):
    board.use("plain", StrictHostKeyChecking="ask")
    assert "cannot be reached: Host key verification failed;" in board.bench(models["mlp"][0]).line(12)


def test_an_account_without_a_shell(board, models):
    board.use("closed")
    line = board.bench(models["mlp"][0]).line(12)
    assert "must run commands over ssh, but ended with exit code 1" in line


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("no-such-ssh -v", 14, "a device needs OpenSSH's client, got no program no-such-ssh"),
        ("ssh 'unclosed", 2, "COMPRESSOR_SSH must be a command"),
    ],
)
def test_a_client_that_is_none(command, code, message, board, models):
    board.ssh = command
    assert message in board.bench(models["mlp"][0]).line(code)


@pytest.mark.parametrize(
    ("url", "destination", "port"),
    [
        ("ssh://board", "board", None),
        ("ssh://pi@Board.local:2222", "pi@Board.local", 2222),
        ("ssh://pi@10.0.0.7/", "pi@10.0.0.7", None),
        ("ssh://first.last-2@[fe80::1%eth0]:22", "first.last-2@fe80::1%eth0", 22),
    ],
)
def test_urls(url, destination, port):
    device = device_of(url)
    assert (device.destination, device.port) == (destination, port)


@pytest.mark.parametrize(
    "url",
    [
        "board",
        "pi@board",
        "http://board",
        "ssh://",
        "ssh://pi@",
        "ssh://board/folder",
        "ssh://board?x=1",
        "ssh://pi:secret@board",
        "ssh://board:0",
        "ssh://board:65536",
        "ssh://board:port",
        "ssh://-oProxyCommand=touch pwned",
        "ssh://-l@board",
        "ssh://pi@-board",
        "ssh://$(touch pwned)@board",
        "ssh://board\n",
    ],
)
def test_what_is_no_url_of_a_device(url):
    with pytest.raises(UsageError, match=r"expected ssh://\[user@\]host\[:port\], such as ssh://pi@board"):
        device_of(url)


def test_a_wrong_url_is_a_usage_error(models, sshd, tmp_path):
    board = Board(sshd, tmp_path)
    assert "--device http://board: expected ssh://" in board.bench(models["mlp"][0], url="http://board").line(2)


# Broken off.


@pytest.mark.slow
def test_a_connection_that_breaks(board, models):
    process = board.start_long(models["cnn"][0])
    signal_all(board.server.sessions(), signal.SIGKILL)
    line = board.end(process).line(12)
    assert "was lost during the measurement: " in line
    assert "; try again" in line
    kept = board.result()
    assert not kept["complete"]
    assert kept["runs"][0]["models"][0]["latency"]["samples"] > 0


def test_a_killed_client(board, models):
    process = board.start(models["cnn"][0], *LONG)
    wait_until(board.runners, "the program runs")
    signal_all([pid for pid in children_of(process.pid) if name_of(pid) == "ssh"], signal.SIGKILL)
    assert "was lost" in (line := board.end(process).line(12))
    assert "ssh was ended by SIGKILL" in line


def test_nothing_outlives_a_killed_command(board, models):
    process = board.start(models["cnn"][0], *LONG)
    wait_until(board.runners, "the program runs")
    process.kill()
    assert board.end(process).code == -signal.SIGKILL
    shutil.rmtree(board.here)
    board.here.mkdir()


@pytest.mark.slow
def test_a_connection_that_falls_silent(board, models):
    process = board.start(models["cnn"][0], *LONG)
    wait_until(board.runners, "the program runs")
    stopped = board.server.sessions()
    signal_all(stopped, signal.SIGSTOP)
    try:
        assert "was lost" in (line := board.end(process).line(12))
        assert "not responding" in line
    finally:
        signal_all(stopped, signal.SIGKILL)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(board, models):
    process = board.start_long(models["cnn"][0])
    process.send_signal(signal.SIGINT)
    ended = board.end(process)
    assert "interrupted" in ended.line(130)
    assert "cnn" in ended.stdout
    assert "interrupted: this is what was measured until then" in ended.stdout
    kept = board.result()
    assert not kept["complete"]
    assert not kept["runs"][0]["complete"]
    assert kept["runs"][0]["models"][0]["latency"]["samples"] > 0


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(board, models):
    process = board.start_long(models["cnn"][0])
    signal_all(board.runners(), signal.SIGSTOP)  # so that it cannot end as it is asked to
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in board.end(process).line(130)
    assert not board.result()["complete"]
    board.wait_until_nothing_is_left()


@pytest.fixture
def stalled(board, models):
    """A run whose files are on their way, which does not end soon."""
    board.use("stalled")
    process = board.start(models["mlp"][0], *QUICK)
    wait_until(lambda: list(board.temporary.iterdir()), "a folder for the files")
    time.sleep(0.3)  # until all that lies between is full
    return process


def test_ctrl_c_while_the_files_go_there(board, stalled):
    stalled.send_signal(signal.SIGINT)
    assert "interrupted; this measurement has no result" in board.end(stalled).line(130)


def test_a_connection_that_breaks_while_the_files_go_there(board, stalled):
    signal_all(board.server.sessions(), signal.SIGKILL)
    assert "was lost while the files went there: " in board.end(stalled).line(12)
