"""Run folders: whole files or the old ones, stages that run again exactly when something they depend on changed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compressor import store
from compressor.artifacts import Student
from compressor.errors import DataError, StorageError, storage_error
from compressor.progress import SILENT, Progress
from compressor.recipe import Gate
from compressor.store import (
    CHECKPOINT,
    Keyed,
    Run,
    WorkAhead,
    key_of,
    replace_folder,
    sha256_file,
    sha256_tree,
    write_atomic,
)


@dataclass(frozen=True)
class Made:
    path: Path
    nested: tuple[Path, ...]
    number: int


def test_write_atomic_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new, longer")
    assert path.read_bytes() == b"new, longer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """In a process of its own, whose files may not pass 1 kB: the same errno path as a full disk."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from compressor.store import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try:\n    write_atomic(Path(sys.argv[1]), bytes(1 << 20))\nexcept OSError as error:\n    sys.exit(error.errno)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert run.returncode == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            write_atomic(tmp_path / "file", b"x")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("there_already", [True, False])
def test_replace_folder(tmp_path: Path, there_already: bool) -> None:
    new, destination = tmp_path / "new", tmp_path / "out"
    new.mkdir()
    (new / "b").write_text("new")
    if there_already:
        destination.mkdir()
        (destination / "a").write_text("old")
    replace_folder(new, destination)
    assert [(p.name, p.read_text()) for p in destination.iterdir()] == [("b", "new")]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == known
    for absent in (tmp_path, tmp_path / "no"):
        with pytest.raises(DataError, match="found none"):
            sha256_file(absent)


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    hashes = set()
    for name, content in (("a", "1"), ("a", "2"), ("b", "1"), ("deep/a", "1")):
        folder = tmp_path / str(len(hashes))
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
        hashes.add(sha256_tree(folder))
        assert sha256_tree(folder) in hashes
    assert len(hashes) == 4


def test_keys_depend_on_values_and_not_on_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of(1, 2) != key_of(2, 1)
    assert key_of("1") != key_of(1)
    assert key_of(Gate()) != key_of(Gate(max_drop=0.03))
    assert key_of(Gate()) == key_of(Gate(max_drop=0.02))
    with pytest.raises(TypeError, match="no canonical form"):
        key_of({1, 2})


class Recorder:
    """Three stages in a row, a -> b -> c, and one beside them, d; remembers which ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []

    def run(
        self,
        a: object = 0,
        b: object = 0,
        c: object = 0,
        d: object = 0,
        *,
        fresh: bool = False,
        again: str | None = None,
    ) -> list[str]:
        self.ran = []
        run = Run(self.folder, SILENT, fresh, again)
        first = run.stage("a", Made, lambda out: self.make("a", out), (), a)
        second = run.stage("b", Made, lambda out: self.make("b", out), (first,), b)
        run.stage("c", Made, lambda out: self.make("c", out), (second,), c)
        run.stage("d", Made, lambda out: self.make("d", out), (first,), d)
        assert [time.reused for time in run.times] == [name not in self.ran for name in "abcd"]
        return self.ran

    def make(self, name: str, out: Path) -> Made:
        self.ran.append(name)
        (out / "file").write_text(name)
        return Made(out / "file", (out / "file",), 7)


def test_only_what_depends_on_a_change_runs_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    assert recorder.run() == ["a", "b", "c", "d"]
    assert recorder.run() == []
    assert recorder.run(c=1) == ["c"]
    assert recorder.run(c=0) == [], "the earlier result is still there"
    assert recorder.run(b=1) == ["b", "c"]
    assert recorder.run(d=1) == ["d"]
    assert recorder.run(a=1) == ["a", "b", "c", "d"]


def test_from_a_stage_on_and_fresh(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.run()
    assert recorder.run(again="c") == ["c"]
    assert recorder.run(again="b") == ["b", "c"], "and what depends on it"
    assert recorder.run(again="a") == ["a", "b", "c", "d"]
    assert recorder.run(fresh=True) == ["a", "b", "c", "d"]
    assert recorder.run() == []


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"path": 3}', '{"path": "file", "nested": [], "number": "x"}', "\xff"]
)
def test_a_damaged_artifact_makes_its_stage_run_again(tmp_path: Path, damage: str) -> None:
    recorder = Recorder(tmp_path)
    recorder.run()
    artifact = next((tmp_path / "stages").glob("b-*/artifact.json"))
    artifact.write_bytes(damage.encode("latin-1"))
    assert recorder.run() == ["b"]
    assert recorder.run() == []


@pytest.mark.parametrize("seed", range(40))
def test_an_artifact_with_a_flipped_bit_is_not_believed(tmp_path: Path, seed: int) -> None:
    """Spaces between values aside: what is read is what was written, or the stage runs again."""
    kept = Run(tmp_path, SILENT).stage("a", Made, made, ()).value
    artifact = kept.path.with_name("artifact.json")
    whole, generator = artifact.read_bytes(), np.random.default_rng(seed)
    content = bytearray(whole)
    content[generator.integers(len(content))] ^= 1 << generator.integers(8)
    artifact.write_bytes(content)
    again = Run(tmp_path, SILENT)
    assert again.stage("a", Made, made, ()).value == kept
    (time,) = again.times
    assert not time.reused or bytes(content).split() == whole.split()


def test_a_missing_artifact_makes_its_stage_run_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.run()
    next((tmp_path / "stages").glob("d-*/artifact.json")).unlink()
    assert recorder.run() == ["d"]


def test_another_program_version_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path)
    recorder.run()
    monkeypatch.setattr("compressor.store.__version__", "0.0.0")
    assert recorder.run() == ["a", "b", "c", "d"]


def made(out: Path) -> Made:
    (out / "file").write_text("x")
    return Made(out / "file", (out / "file", out), 7)


def test_paths_point_into_the_finished_folder_and_survive_a_move(tmp_path: Path) -> None:
    first = Run(tmp_path / "old", SILENT).stage("a", Made, made, ()).value
    assert first.path.read_text() == "x"
    assert first.path.parent.name.startswith("a-")
    assert "partial" not in str(first)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Run(tmp_path / "new", SILENT).stage("a", Made, lambda _: pytest.fail("must be kept"), ()).value
    assert moved.path.read_text() == "x"
    assert moved.nested == (moved.path, moved.path.parent)
    assert str(tmp_path) not in next((tmp_path / "new").rglob("artifact.json")).read_text()


def test_a_path_outside_the_stage_stays_what_it_is(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    run = Run(tmp_path / "run", SILENT)
    assert run.stage("a", Student, lambda _: Student(outside, 1, ()), ()).value.folder == outside


def fails(out: Path) -> Made:
    (out / "half").write_text("x")
    raise RuntimeError("stopped")


@pytest.mark.parametrize("keep", [True, False])
def test_an_unfinished_folder_is_continued_or_replaced(tmp_path: Path, keep: bool) -> None:
    run = Run(tmp_path, SILENT)
    with pytest.raises(RuntimeError):
        run.stage("a", Made, fails, (), keep_partial=keep)
    assert [p.suffix for p in (tmp_path / "stages").iterdir()] == [".partial"]
    seen: list[bool] = []

    def again(out: Path) -> Made:
        seen.append((out / "half").exists())
        return made(out)

    run.stage("a", Made, again, (), keep_partial=keep)
    assert seen == [keep]
    assert not list((tmp_path / "stages").glob("*.partial"))


@pytest.mark.parametrize(("fresh", "again"), [(True, None), (False, "a")])
def test_a_forced_run_does_not_continue_a_partial_one(tmp_path: Path, fresh: bool, again: str | None) -> None:
    with pytest.raises(RuntimeError):
        Run(tmp_path, SILENT).stage("a", Made, fails, (), keep_partial=True)

    def anew(out: Path) -> Made:
        assert not (out / "half").exists()
        return made(out)

    Run(tmp_path, SILENT, fresh, again).stage("a", Made, anew, (), keep_partial=True)


def test_a_failing_stage_keeps_the_finished_one_of_before(tmp_path: Path) -> None:
    kept = Run(tmp_path, SILENT).stage("a", Made, made, ()).value
    with pytest.raises(RuntimeError):
        Run(tmp_path, SILENT, fresh=True).stage("a", Made, fails, ())
    assert kept.path.read_text() == "x"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", SILENT)
    code = (
        "import sys; from pathlib import Path; from compressor.progress import SILENT\n"
        "from compressor.errors import StorageError\nfrom compressor.store import Run\n"
        "try:\n    with Run(Path(sys.argv[1]), SILENT).held(): print('held')\n"
        "except StorageError as error: print(error)"
    )

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, run.folder], capture_output=True, text=True, check=True
        ).stdout

    with run.held():
        assert "another compressor is at work in it" in other()
    assert other() == "held\n"


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="choose another with --out"), Run(folder, SILENT).held():
            pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "mount it so that it can be written"),
        (errno.ENOENT, "no such file or directory; name one that is there"),
        (errno.ENOTDIR, "name a folder"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_what_a_failing_file_system_means(number: int, words: str) -> None:
    error = storage_error(OSError(number, os.strerror(number), "out/file"))
    assert isinstance(error, StorageError)
    assert str(error).startswith("out/file: ")
    assert words in str(error)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ECHILD, errno.EBADF])
def test_other_failures_are_not_blamed_on_the_disk(number: int) -> None:
    assert storage_error(OSError(number, "x")) is None


def test_a_copy_that_fails_inside_shutil_is_a_storage_error() -> None:
    """shutil.copytree gathers its failures into one error that has no errno of its own."""
    full = shutil.Error([("a", "b", str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))])
    assert isinstance(storage_error(full), StorageError)


def test_keyed_is_a_value_with_its_key() -> None:
    assert Keyed(3, "k") == Keyed(3, "k") != Keyed(3, "l")


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """Between writing and renaming: a file of `write_atomic`, the folders of `replace_folder` and of a new bundle."""
    (tmp_path / ".result.json.123.tmp").write_bytes(b"half")
    for name in (".bundle.123.old", ".bundle.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"x")
    (tmp_path / "result.json").write_bytes(b"whole")
    with Run(tmp_path, SILENT).held():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "result.json"]


def test_leftovers_do_not_reach_a_finished_stage(tmp_path: Path) -> None:
    run = Run(tmp_path, SILENT)

    def killed(folder: Path) -> Made:
        (folder / ".checkpoint.pt.123.tmp").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("learn", Made, killed, (), keep_partial=True)
    run.stage("learn", Made, lambda folder: Made(folder / "a", (), 1), (), keep_partial=True)
    (finished,) = (tmp_path / "stages").iterdir()
    assert [path.name for path in finished.iterdir()] == ["artifact.json"]


@pytest.mark.parametrize("window", ["write_atomic", "_finish", "replace_folder"])
def test_a_kill_while_a_stage_is_being_finished_costs_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: str
) -> None:
    """Before it is sealed the checkpoint is there to continue from; afterwards nothing is made again."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    steps: list[str] = []

    def learn(folder: Path) -> Made:
        steps.append("resumed" if (folder / CHECKPOINT).exists() else "trained")
        (folder / CHECKPOINT).write_bytes(b"all steps")
        (folder / "weights").write_bytes(b"whole")
        return Made(folder / "weights", (), 1)

    with monkeypatch.context() as patched:
        patched.setattr(store, window, killed)
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path, SILENT).stage("learn", Made, learn, (), keep_partial=True)
    assert [path.suffix for path in (tmp_path / "stages").iterdir()] == [".partial"]
    done = Run(tmp_path, SILENT).stage("learn", Made, learn, (), keep_partial=True)
    assert steps == (["trained", "resumed"] if window == "write_atomic" else ["trained"])
    assert sorted(path.name for path in done.value.path.parent.iterdir()) == ["artifact.json", "weights"]
    assert [path.suffix for path in (tmp_path / "stages").iterdir()] == [""]


@pytest.mark.parametrize("damage", [b"who", b"wholE", None], ids=["cut", "flipped", "gone"])
def test_a_stage_whose_file_is_damaged_runs_again(tmp_path: Path, damage: bytes | None) -> None:
    def make(folder: Path) -> Made:
        (folder / "weights").write_bytes(b"whole")
        return Made(folder / "weights", (), 1)

    path = Run(tmp_path, SILENT).stage("learn", Made, make, ()).value.path
    path.write_bytes(damage) if damage is not None else path.unlink()
    again = Run(tmp_path, SILENT)
    assert again.stage("learn", Made, make, ()).value.path.read_bytes() == b"whole"
    assert [time.reused for time in again.times] == [False]


def test_a_kept_stage_tells_the_time_that_it_took(tmp_path: Path) -> None:
    first, second = Run(tmp_path, SILENT), Run(tmp_path, SILENT)
    for run in (first, second):
        run.stage("learn", Made, lambda folder: Made(folder, (), 1), ())
    assert [(time.seconds, time.reused) for time in second.times] == [(first.times[0].seconds, True)]


def test_planning_makes_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> Made:
        return Made(folder, (), 1)

    Run(tmp_path, SILENT).stage("a", Made, make, ())
    before = sorted(tmp_path.rglob("*"))
    plan = Run(tmp_path, SILENT, planning=True)
    plan.stage("a", Made, make, ())
    with pytest.raises(WorkAhead):
        plan.stage("b", Made, make, ())
    assert [time.stage for time in plan.times] == ["a"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shared_stage_is_made_once_for_all_runs(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first = Run(tmp_path / "one", SILENT).stage("a", Made, made, (), shared=shared).value
    with pytest.raises(WorkAhead):
        Run(tmp_path / "two", SILENT, planning=True).stage("a", Made, made, ())
    Run(tmp_path / "two", SILENT, planning=True).stage("a", Made, fails, (), shared=shared)
    second = Run(tmp_path / "two", SILENT).stage("a", Made, fails, (), shared=shared).value
    assert second == first
    assert second.path.is_relative_to(shared)
    assert not (tmp_path / "two").exists()


def test_a_shared_stage_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process holds it; it is killed in the middle, and what it had is continued."""
    code = (
        "import sys, time; from pathlib import Path; from test_store import Made; from compressor.store import Run\n"
        "from compressor.progress import SILENT\n"
        "def slow(out):\n    (out / 'half').write_text('x'); print('begun', flush=True); time.sleep(600)\n"
        "home = Path(sys.argv[1])\n"
        "Run(home / 'one', SILENT).stage('a', Made, slow, (), keep_partial=True, shared=home / 'shared')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        seen: list[bool] = []

        def continued(out: Path) -> Made:
            seen.append((out / "half").exists())
            return made(out)

        class Killing(Progress):
            def log(self, line: str) -> None:
                super().log(line)
                if "waits for another compressor" in line:
                    other.kill()

        run = Run(tmp_path / "two", Killing())
        run.stage("a", Made, continued, (), keep_partial=True, shared=tmp_path / "shared")
        other.wait()
    assert seen == [True]
    assert "waits for another compressor" in capsys.readouterr().err


def test_a_damaged_result_is_mended_where_others_read_it(tmp_path: Path) -> None:
    run = Run(tmp_path, SILENT)
    kept = run.stage("a", Made, made, (), mends=True).value
    kept.path.write_text("y")

    def mend(out: Path) -> Made:
        assert out == kept.path.parent
        assert (out / "artifact.json").is_file()
        return made(out)

    assert run.stage("a", Made, mend, (), mends=True).value == kept
    assert kept.path.read_text() == "x"
    run.stage("a", Made, fails, (), mends=True)


def test_a_file_in_the_place_of_the_shared_folder(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("")
    with pytest.raises(StorageError, match="expected a folder, found a file; choose another with --cache"):
        Run(tmp_path / "one", SILENT).stage("a", Made, made, (), shared=tmp_path / "shared")
