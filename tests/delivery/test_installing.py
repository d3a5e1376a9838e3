"""`compressor device`: what may be installed, what is refused and why, and that the old version serves until then."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from made_bundles import PRODUCT, Signer, answers, edit_manifest, make_bundle, make_signer
from onnx import TensorProto, helper

from compressor.__main__ import main
from compressor.bundle.archive import pack
from compressor.device import SOURCES, versions
from compressor.device.compatible import Machine, check_compatible, this_machine
from compressor.device.manifest import read_manifest
from compressor.device.selftest import self_test
from compressor.errors import BundleError, CompressorError, DeviceError, StorageError

REPOSITORY = Path(__file__).resolve().parents[2]


class Device:
    """A folder with versions, and the command that a user runs there."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.capsys = capsys

    def run(self, verb: str, *arguments: object) -> int:
        return main(["device", verb, *map(str, arguments), "--root", str(self.root)])

    def installs(self, bundle: Path, *arguments: object) -> dict[str, Any]:
        self.capsys.readouterr()
        assert self.run("install", bundle, *arguments, "--json") == 0, self.capsys.readouterr().err
        return dict(json.loads(self.capsys.readouterr().out))

    def refuses(self, bundle: Path, code: int, words: str, *arguments: object) -> None:
        """In one line, and nothing of the device changes."""
        before = self.state()
        self.capsys.readouterr()
        assert self.run("install", bundle, *arguments) == code
        said = self.capsys.readouterr().err
        assert said.count("\n") == 1
        assert words in said
        assert self.state() == before

    def state(self) -> dict[str, bytes]:
        files = [path for path in self.root.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}

    def status(self) -> dict[str, Any]:
        self.capsys.readouterr()
        assert self.run("status", "--json") == 0, self.capsys.readouterr().err
        return dict(json.loads(self.capsys.readouterr().out))


@pytest.fixture
def device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Device:
    return Device(tmp_path / "device", capsys)


@pytest.fixture
def serving(device: Device, old: Path, signer: Signer) -> Device:
    """With version 1."""
    device.installs(old, "--public-key", signer.public)
    return device


def test_an_update_and_the_way_back(device: Device, old: Path, new: Path, signer: Signer, tmp_path: Path) -> None:
    found = device.installs(old, "--public-key", signer.public)
    assert (found["version"], found["floor"], found["previous"]) == (1, 1, None)
    assert found["self_test"]["cases"] == 3
    assert answers(device.root / "current") == answers(old)
    first = found["current"]
    packed = pack(new, tmp_path / "new.tar.zst").path
    found = device.installs(packed)
    assert (found["version"], found["floor"], found["previous"]) == (2, 2, first)
    assert answers(device.root / "current") == answers(new) != answers(old)
    assert (device.root / "current").readlink() == Path("versions") / found["current"]
    assert device.run("rollback") == 0
    assert answers(device.root / "current") == answers(old)
    assert (device.status()["version"], device.status()["floor"]) == (1, 2)
    assert device.run("rollback") == 16, "there is nothing older"
    assert device.installs(new)["version"] == 2, "what was gone back from may be installed again"
    assert device.installs(new)["self_test"] is None, "and is there then"
    assert device.status()["previous"] == first


def test_two_versions_are_kept(serving: Device, new: Path, signer: Signer, tmp_path: Path) -> None:
    serving.installs(new)
    third = signer.sign(make_bundle(tmp_path / "third", 3), 3)
    found = serving.installs(third)
    kept = sorted(path.name for path in (serving.root / "versions").iterdir())
    assert kept == sorted([found["current"], found["previous"]])


def test_a_tar_on_standard_input(serving: Device, new: Path, tmp_path: Path) -> None:
    packed = pack(new, tmp_path / "new.tar").path
    command = [sys.executable, "-m", "compressor.device", "install", "-", "--root", str(serving.root)]
    cut = subprocess.run(command, input=packed.read_bytes()[:5000], capture_output=True, check=False)
    assert cut.returncode == 11
    assert cut.stderr.count(b"\n") == 1
    with packed.open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "version 2" in done.stdout


# Who may install what.


def test_only_trusted_keys_count(device: Device, old: Path, new: Path, signer: Signer, tmp_path: Path) -> None:
    stranger = make_signer(tmp_path, "stranger")
    device.refuses(old, 15, "name one with --public-key")
    device.installs(old, "--public-key", signer.public)
    device.refuses(stranger.sign(new, 2), 15, "trusted key")
    device.refuses(new, 15, "the device trusts other keys", "--public-key", stranger.public)
    shutil.copyfile(stranger.public, device.root / "keys" / "next.pub")  # by hand, as docs/delivery.md says
    assert device.installs(new)["version"] == 2


def test_unsigned_bundles_are_refused(serving: Device, new: Path) -> None:
    (new / "signature.json").unlink()
    serving.refuses(new, 15, "expected a signed bundle")


def test_older_versions_are_refused_also_after_a_rollback(
    serving: Device, old: Path, new: Path, signer: Signer, tmp_path: Path
) -> None:
    serving.installs(new)
    serving.refuses(old, 15, "expected a version above 2")
    other = signer.sign(make_bundle(tmp_path / "other", 4), 2)
    serving.refuses(other, 15, "expected a version above 2")
    assert serving.run("rollback") == 0
    for bundle in (other, signer.sign(make_bundle(tmp_path / "another", 5), 1)):
        serving.refuses(bundle, 15, "expected a version above 2")
    assert serving.installs(signer.sign(old, 3))["version"] == 3, "the same model again, as a newer release"


def test_another_product_is_refused(serving: Device, new: Path, signer: Signer) -> None:
    serving.refuses(signer.sign(new, 9, product="barometer"), 15, f"expected a bundle of the product {PRODUCT}")


def test_expired_signatures_are_refused(serving: Device, new: Path, signer: Signer) -> None:
    serving.refuses(signer.sign(new, 2, expires=int(time.time()) - 10), 15, "expired")
    assert serving.installs(signer.sign(new, 2, expires=int(time.time()) + 1000))["version"] == 2


def test_damaged_bundles_are_refused(serving: Device, new: Path) -> None:
    content = bytearray((new / "model.onnx").read_bytes())
    content[-5] ^= 1
    (new / "model.onnx").write_bytes(content)
    serving.refuses(new, 11, "SHA-256")


# What a device must have.


@pytest.mark.parametrize(
    ("requirement", "code", "words"),
    [
        ({"onnxruntime_min": "99.0.0"}, 16, "needs onnxruntime 99.0.0"),
        ({"onnxruntime_max": "1.0.0"}, 16, "and at most 1.0.0"),
        ({"providers": ["CPUExecutionProvider", "ImaginaryExecutionProvider"]}, 16, "ImaginaryExecutionProvider"),
        ({"instruction_sets": {"vax": []}}, 16, "the model is for vax"),
        ({"instruction_sets": {os.uname().machine: ["imaginary"]}}, 16, "instruction sets imaginary"),
        ({"ram_bytes": 1 << 60}, 16, "MB of memory"),
    ],
)
def test_a_device_that_lacks_something_takes_nothing(
    serving: Device, new: Path, signer: Signer, requirement: dict[str, Any], code: int, words: str
) -> None:
    """It is refused before the files come: here they are not even there."""
    requires = json.loads((new / "manifest.json").read_text())["requires"]
    edit_manifest(new, requires=requires | requirement)
    signer.sign(new, 2)
    (new / "model.onnx").unlink()
    serving.refuses(new, code, words)


def test_requirements_are_compared_as_versions_and_bytes(new: Path) -> None:
    manifest = read_manifest((new / "manifest.json").read_bytes())
    plenty = 1 << 40

    def machine(version: str, ram: int | None = plenty) -> Machine:
        return Machine(version, ("CPUExecutionProvider",), "x86_64", frozenset(), ram)

    for version in ("1.20.0", "1.20.1", "1.100.0", "2.0", "1.21.0.dev20250101"):
        check_compatible(manifest, machine(version), plenty)
    for version in ("1.19.9", "1.9.0", "0.99"):
        with pytest.raises(DeviceError, match="needs onnxruntime"):
            check_compatible(manifest, machine(version), plenty)
    check_compatible(manifest, machine("1.20.0", None), plenty)
    with pytest.raises(DeviceError, match="of memory"):
        check_compatible(manifest, machine("1.20.0", manifest.requires.ram_bytes - 1), plenty)
    with pytest.raises(StorageError, match="on the disk"):
        check_compatible(manifest, machine("1.20.0"), manifest.bytes)


def test_the_memory_that_a_manifest_asks_for_is_enough(new: Path) -> None:
    manifest = read_manifest((new / "manifest.json").read_bytes())
    assert self_test(new, manifest).peak_ram_bytes <= manifest.requires.ram_bytes


def test_what_is_printed_before_the_self_test_s_answer_is_passed_over(
    new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('a library of the child greets', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert self_test(new, read_manifest((new / "manifest.json").read_bytes())).cases == 3


def test_this_machine_has_what_proc_says() -> None:
    found = this_machine()
    assert found.architecture == os.uname().machine
    assert found.instruction_sets
    assert found.ram_bytes is not None
    assert found.ram_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Self-tests that fail.


def replace_model(bundle: Path, nodes: list[Any], weights: list[Any] = []) -> None:  # noqa: B006 (not changed)
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "width"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    edit_manifest(bundle)


def wrong(bundle: Path) -> None:
    replace_model(bundle, [helper.make_node("Neg", ["x"], ["y"])])


def not_finite(bundle: Path) -> None:
    replace_model(bundle, [helper.make_node("Sub", ["x", "x"], ["z"]), helper.make_node("Div", ["z", "z"], ["y"])])


def crashing(bundle: Path) -> None:
    """Valid, but ONNX Runtime follows the absent optional bias into a null pointer."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [8], np.ones(8))
    replace_model(bundle, [helper.make_node("LayerNormalization", ["x", "scale", ""], ["y"])], [scale])


def greedy(bundle: Path) -> None:
    """16 GiB of zeros."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [1 << 32])
    replace_model(bundle, [helper.make_node("ConstantOfShape", ["shape"], ["y"])], [shape])


def no_model(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"\x08\x09rubbish")
    edit_manifest(bundle)


def no_golden(bundle: Path) -> None:
    (bundle / "golden.npz").write_bytes(b"PK rubbish")
    edit_manifest(bundle)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong, "golden case 0, y: cosine"),
        (not_finite, "expected finite values"),
        (crashing, "ended by SIGSEGV"),
        (greedy, "the self-test fails"),
        (no_model, "the self-test fails"),
        (no_golden, "cannot be read"),
    ],
)
def test_a_model_that_fails_its_self_test_is_not_installed(
    serving: Device, old: Path, new: Path, signer: Signer, spoil: Callable[[Path], None], words: str
) -> None:
    """All of it signed: its maker may be wrong, and the old version serves on."""
    spoil(new)
    serving.refuses(signer.sign(new, 2), 16, words)
    assert answers(serving.root / "current") == answers(old)


@pytest.mark.parametrize("cases", [0, -1, 10_001])
def test_of_a_bundle_something_is_tried_and_not_too_much(new: Path, signer: Signer, cases: int) -> None:
    golden = json.loads((new / "manifest.json").read_text())["golden"]
    edit_manifest(new, golden={**golden, "cases": cases})
    with pytest.raises(BundleError, match="golden cases"):
        signer.sign(new, 2)
    with pytest.raises(BundleError, match=f"and {cases}; build"):
        read_manifest((new / "manifest.json").read_bytes())


def test_a_model_that_never_ends_is_ended(new: Path, signer: Signer) -> None:
    """An infinite Loop; the limit is the test's, so that it does not take a minute."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 8]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n", 8]),
        ],
    )
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    replace_model(new, [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)], [true])
    onnx.checker.check_model(str(new / "model.onnx"))
    with pytest.raises(DeviceError, match="did not end within 3 s"):
        self_test(signer.sign(new, 2), read_manifest((new / "manifest.json").read_bytes()), limit_s=3)


# One at a time, whole or not at all.


def test_one_installer_at_a_time(serving: Device, new: Path) -> None:
    with (serving.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        serving.refuses(new, 13, "another installer is at work")
        assert serving.run("rollback") == 13
        assert serving.status()["version"] == 1
    serving.installs(new)


def test_a_damaged_version_is_noticed_and_replaced(serving: Device, old: Path, new: Path) -> None:
    serving.installs(new)
    model = serving.root / "current" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[50] ^= 1
    model.write_bytes(content)
    assert serving.run("status") == 11
    assert serving.run("rollback") == 0
    assert answers(serving.root / "current") == answers(old)
    serving.installs(new)
    assert serving.status()["version"] == 2


def _flip(version: Path) -> None:
    content = bytearray((version / "model.onnx").read_bytes())
    content[50] ^= 1
    (version / "model.onnx").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [_flip, lambda version: (version / "manifest.json").unlink(), lambda version: (version / "signature.json").unlink(),
     lambda version: (version / "manifest.json").write_text("{}"), shutil.rmtree],
    ids=["model", "no manifest", "no signature", "another manifest", "nothing"],
)  # fmt: skip
def test_a_damaged_current_version_is_put_there_anew(
    serving: Device, old: Path, new: Path, damage: Callable[[Path], None]
) -> None:
    """Also one that was gone back to, below the floor."""
    serving.installs(new)
    for bundle in (new, old):
        before = serving.status()
        damage((serving.root / "current").resolve())
        assert serving.run("status") in (11, 15)
        assert serving.installs(bundle)["self_test"]["cases"] == 3
        assert serving.status() == before
        assert answers(serving.root / "current") == answers(bundle)
        assert not list((serving.root / "versions").glob(".unfinished-*"))
        assert serving.run("rollback") == (0 if bundle == new else 16)


def test_a_floor_that_is_lost_is_not_begun_anew(serving: Device, old: Path, new: Path) -> None:
    serving.installs(new)
    (serving.root / "state.json").unlink()
    for bundle in (old, new):
        serving.refuses(bundle, 13, "expected the state of a device, got none")
    assert serving.run("status") == 13


def test_what_is_in_the_way_is_named(serving: Device, new: Path) -> None:
    (serving.root / "current").unlink()
    (serving.root / "current").mkdir()
    serving.refuses(new, 13, "current: expected a link into versions, got none")
    assert main(["device", "status", "--root", "x" * 300]) == 13
    serving.root = serving.root / ("x" * 300)
    assert serving.run("install", new) == 13
    assert "choose a shorter name" in serving.capsys.readouterr().err


def test_a_damaged_previous_version_is_not_gone_back_to(serving: Device, new: Path) -> None:
    previous = serving.installs(new)["previous"]
    (serving.root / "versions" / previous / "README.md").unlink()
    assert serving.run("rollback") == 11
    assert serving.status()["version"] == 2


def test_where_nothing_was_installed(device: Device, tmp_path: Path) -> None:
    for verb in ("status", "rollback"):
        assert device.run(verb) == 16
    assert not device.root.exists()
    device.root.write_text("a file")
    assert device.run("install", tmp_path) == 11
    assert device.root.read_text() == "a file"


def test_a_refused_first_installation_is_none(device: Device, old: Path, signer: Signer) -> None:
    device.refuses(old, 15, "name one with --public-key")
    assert [path.name for path in device.root.iterdir()] == [".lock"]
    assert device.run("status") == device.run("rollback") == 16
    assert "nothing was ever installed" in device.capsys.readouterr().err
    assert device.installs(old, "--public-key", signer.public)["version"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_small_and_a_read_only_file_system(device: Device, old: Path, signer: Signer, tmp_path: Path) -> None:
    """Real ones, where the container lets them be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        device.root = small / "device"
        device.installs(old, "--public-key", signer.public)
        large = signer.sign(make_bundle(tmp_path / "large", 2, 512), 2)
        device.refuses(large, 13, "on the disk")
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        device.refuses(large, 13, "read-only file system; mount it so that it can be written")
        assert answers(device.root / "current") == answers(old)
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(serving: Device, new: Path) -> None:
    (serving.root / "versions").chmod(0o555)
    serving.refuses(new, 13, "permission denied")
    (serving.root / "versions").chmod(0o755)


def test_a_killed_installer_is_no_obstacle(serving: Device, old: Path, new: Path, tmp_path: Path) -> None:
    """Killed while it waits for the rest of the bundle."""
    packed = pack(new, tmp_path / "new.tar").path.read_bytes()
    command = [sys.executable, "-m", "compressor.device", "install", "-", "--root", str(serving.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(packed[:-3000])
    process.stdin.flush()
    unfinished = serving.root / "versions"
    deadline = time.monotonic() + 60
    while not list(unfinished.glob(".unfinished-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    assert list(unfinished.glob(".unfinished-*"))
    assert answers(serving.root / "current") == answers(old)
    assert serving.installs(new)["version"] == 2
    assert not list(unfinished.glob(".unfinished-*"))


# What it needs.


def test_it_needs_nothing_but_three_packages(releases: tuple[Path, Path], signer: Signer, tmp_path: Path) -> None:
    """The sources that a device gets, where of all other packages only these can be imported."""
    site = Path(sysconfig.get_path("purelib"))
    allowed = tmp_path / "site"
    (allowed / "compressor").mkdir(parents=True)
    for name in SOURCES:
        source = REPOSITORY / "compressor" / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, allowed / "compressor" / name)
    for name in (
        "numpy",
        "numpy.libs",
        "onnxruntime",
        "cryptography",
        "cffi",
        *(p.name for p in site.glob("_cffi*.so")),
    ):
        if (site / name).exists():
            (allowed / name).symlink_to(site / name)
    (allowed / "sitecustomize.py").write_text(
        "import sys\nsys.path = [p for p in sys.path if 'site-packages' not in p and 'dist-packages' not in p]\n"
    )
    python = [getattr(sys, "_base_executable", sys.executable)]
    environment = {"PYTHONPATH": str(allowed), "PATH": os.environ["PATH"]}

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [*python, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for package in ("pydantic", "tokenizers", "rich", "zstandard", "onnx"):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{package}') is not None)"
        run("-c", code)
    root = tmp_path / "root"
    verbs = ["-m", "compressor.device"]
    run(*verbs, "install", releases[0], "--root", root, "--public-key", signer.public)
    run(*verbs, "install", releases[1], "--root", root)
    assert json.loads(run(*verbs, "status", "--root", root, "--json"))["version"] == 2
    assert "version 1" in run(*verbs, "rollback", "--root", root)


def test_its_modules_import_nothing_else() -> None:
    code = (
        "import sys\nfrom compressor.device import __main__, versions, selftest\n"
        "print(' '.join(m for m in sys.modules if m.startswith('compressor')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    loaded = {name.split(".")[1] for name in done.stdout.split() if "." in name}
    assert loaded == {"device", "errors", "intake", "limited", "metrics", "processor"}


def test_what_is_trusted_is_the_device_s_own(serving: Device) -> None:
    """A key of the device that is none stops it, rather than being passed over."""
    (serving.root / "keys" / "broken.pub").write_text("no key")
    with pytest.raises(CompressorError, match="expected an Ed25519 public key"):
        versions.check_current(serving.root)
