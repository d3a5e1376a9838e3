"""Power cuts and failing disks at every change that an update makes: the old version or the new one, never neither."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_bundles import Signer, make_bundle
from recorded_os import Disk, RecordedOs

from compressor.device import disk, versions
from compressor.device.manifest import DeviceManifest
from compressor.device.selftest import SelfTest
from compressor.device.source import folder_source
from compressor.device.state import current_version, read_state
from compressor.errors import CompressorError, StorageError, storage_error

POWER_CUTS, EACH = 1000, 8  # in all, and at each change


def passes(_folder: Path, _manifest: DeviceManifest) -> SelfTest:
    """In place of a child process, of which there would be thousands; test_installing.py has the real one."""
    return SelfTest(1, 1.0, 0.0, 0.0, 0)


def install(bundle: Path, root: Path, key: Path | None = None) -> None:
    with folder_source(bundle) as source:
        versions.install(source, root, key, passes)


@contextmanager
def recorded(root: Path, before: Callable[[str, Disk], None]) -> Iterator[Disk]:
    followed = Disk(root)
    disk.os = RecordedOs(followed, lambda call: before(call, followed))
    try:
        yield followed
    finally:
        disk.os = os


def served(root: Path) -> int | None:
    """The version that is current and whole; None where there is none. Anything between is an error."""
    if not os.path.lexists(root / "current"):
        return None
    versions.check_current(root)
    return versions.status(root).version


@pytest.fixture
def third(tmp_path: Path, signer: Signer) -> Path:
    return signer.sign(make_bundle(tmp_path / "third", 3), 3)


@pytest.fixture
def root(tmp_path: Path, old: Path, new: Path, signer: Signer) -> Path:
    """A device with version 2, and 1 to go back to."""
    root = tmp_path / "root"
    install(old, root, signer.public)
    install(new, root)
    return root


@pytest.mark.slow
def test_a_power_cut_at_any_change_leaves_the_old_version_or_the_new(
    root: Path, third: Path, tmp_path: Path, signer: Signer
) -> None:
    """Of an update, of a way back, of the update again, and of a first installation."""
    first = tmp_path / "first"
    for folder in (first, first / "versions", first / "keys"):
        folder.mkdir()
    # What may serve after a cut, and the floor, where it is not the version that serves.
    steps: list[tuple[Path, Callable[[], object], set[int | None], int | None]] = [
        (root, lambda: install(third, root), {2, 3}, None),
        (root, lambda: versions.rollback(root), {3, 2}, 3),
        (root, lambda: install(third, root), {2, 3}, 3),
        (first, lambda: install(third, first, signer.public), {None, 3}, None),
    ]
    generator, cuts, seen = random.Random(1), 0, set()
    for number, (device, step, permitted, floor) in enumerate(steps):

        def cut(
            _call: str,
            followed: Disk,
            number: int = number,
            permitted: set[int | None] = permitted,
            floor: int | None = floor,
        ) -> None:
            nonlocal cuts
            for _ in range(EACH):
                crashed = tmp_path / "crashed"
                followed.after_crash(crashed, generator)
                version = served(crashed)
                assert version in permitted
                assert versions._settled(crashed).floor == (floor or version or 0)
                seen.add((number, version))
                with without_waiting():
                    install(third, crashed, signer.public)
                assert served(crashed) == 3
                assert left_over(crashed) == []
                shutil.rmtree(crashed)
                cuts += 1

        with recorded(device, cut):
            step()
    assert cuts >= POWER_CUTS
    assert len(seen) == 2 * len(steps), "in each kind of step both were seen"


def signed_files(version: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in version.iterdir() if path.name != "notes.txt"}


@pytest.mark.parametrize("fails", [False, True], ids=["power cut", "disk full"])
def test_what_serves_serves_on_while_it_is_put_there_anew(root: Path, new: Path, tmp_path: Path, fails: bool) -> None:
    """A file more in a version that is whole otherwise: at every change all of it can be opened through `current`."""
    (root / "current" / "notes.txt").write_text("of somebody")
    expected, generator, seen, at = signed_files(new), random.Random(2), set(), 0
    for again in (False, True):  # from the one name to the other, and back
        (root / "current" / "notes.txt").write_text("of somebody")

        def check(crashed: Path) -> None:
            assert signed_files(crashed / "current") == expected
            seen.add((crashed / "current" / "notes.txt").exists())
            with without_waiting():
                install(new, crashed)
            assert served(crashed) == 2
            assert left_over(crashed) == []
            assert versions.status(crashed).previous == versions.status(root).previous
            shutil.rmtree(crashed)

        def cut(_call: str, followed: Disk) -> None:
            for _ in range(EACH):
                followed.after_crash(tmp_path / "crashed", generator)
                check(tmp_path / "crashed")

        while fails:
            at, count = at + 1, 0
            device = Path(shutil.copytree(root, tmp_path / "device", symlinks=True))

            def fail(_call: str, _disk: Disk, last: int = at) -> None:
                nonlocal count
                count += 1
                if count >= last:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")

            try:
                with recorded(device, fail):
                    install(new, device)
            except OSError:
                check(device)
            else:
                shutil.rmtree(device)
                break
        if fails:
            install(new, root)
        else:
            with recorded(root, cut):
                install(new, root)
        assert served(root) == 2
        assert (current_version(root) or "").endswith(".1") is not again
        at = 0
    assert seen == {True, False}


@contextmanager
def without_waiting() -> Iterator[None]:
    """For what is thrown away: nothing is followed, and nothing waits for the disk."""
    kept, disk.os = disk.os, Unsynced()
    try:
        yield
    finally:
        disk.os = kept


class Unsynced:
    """`os`, but it does not sync."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, _descriptor: int) -> None:
        """What is in the cache is as good, where no power fails."""


def left_over(root: Path) -> list[str]:
    """What is there beside what docs/delivery.md names."""
    known = {".lock", "current", "keys", "state.json", "versions"}
    kept = {current_version(root), read_state(root).previous}
    strange = [path.name for path in root.iterdir() if path.name not in known]
    strange += [path.name for path in (root / "versions").iterdir() if path.name not in kept]
    return strange + [path.name for path in (root / "keys").iterdir() if path.suffix != ".pub"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EXDEV, errno.EIO, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_a_disk_that_fails_at_any_change(root: Path, third: Path, number: int, lasting: bool, tmp_path: Path) -> None:
    """A full disk lets names go, not come; of the others nothing works any more."""
    gone = {"unlink", "rmdir", "fsync", "replace"} if number in (errno.ENOSPC, errno.EDQUOT) else set()
    at, outcomes = 0, set()
    while True:
        at += 1
        device = Path(shutil.copytree(root, tmp_path / "device", symlinks=True))
        count = 0

        def fail(call: str, _disk: Disk, at: int = at) -> None:
            nonlocal count
            if call not in gone:
                count += 1
                if count == at or (lasting and count > at):
                    raise OSError(number, os.strerror(number), "a file")

        try:
            with recorded(device, fail):
                install(third, device)
        except OSError as error:
            said = storage_error(error)
            assert said is not None
            assert said.exit_code == 13
            outcomes.add(served(device))
            assert (device / "versions" / current_version(root)).is_dir(), "the old copy stays"
        else:
            assert served(device) == 3
            assert count < at or not lasting
            if count < at:
                break
        with without_waiting():
            install(third, device)
        assert served(device) == 3
        assert left_over(device) == []
        shutil.rmtree(device)
    assert 2 in outcomes
    assert at > 15


def test_what_a_killed_installer_left_is_cleared_away(root: Path, third: Path) -> None:
    for folder in (root, root / "versions", root / "keys"):
        (folder / ".unfinished-0123").mkdir()
        (folder / ".unfinished-0123" / "model.onnx").write_bytes(b"half")
        (folder / ".unfinished-4567").symlink_to("versions/none")
    (root / "versions" / "0f0f").mkdir()
    install(third, root)
    assert left_over(root) == []


@pytest.mark.parametrize(
    "changed",
    [{"floor": value} for value in ("2", None, [1], -5, True, 1.0, float("inf"))]
    + [{"format_version": True}, {"product": 1}, {"floor_id": "f"}, {"previous": 5}, {"previous": ".."}]
    + [{"pending": "0" * 63 + "/"}, {"replaced": "A" * 64}],
    ids=str,
)
def test_a_state_of_other_types_stops_everything(root: Path, third: Path, changed: dict[str, object]) -> None:
    path = root / "state.json"
    content = json.dumps({**json.loads(path.read_text()), **changed}).replace("Infinity", "1e999")
    path.write_text(content)
    for act in (lambda: install(third, root), lambda: versions.rollback(root), lambda: versions.status(root)):
        with pytest.raises(StorageError, match="expected the state of a device"):
            act()
    assert path.read_text() == content


@pytest.mark.parametrize("target", ["versions/..", "versions/.", "versions/v1"])
def test_a_link_to_what_is_no_version_stops_everything(root: Path, third: Path, target: str) -> None:
    (root / "current").unlink()
    (root / "current").symlink_to(target)
    for act in (lambda: install(third, root), lambda: versions.rollback(root), lambda: versions.status(root)):
        with pytest.raises(StorageError, match="expected a link into versions"):
            act()


@pytest.mark.parametrize("name", ["manifest.json", "signature.json"])
@pytest.mark.parametrize("way", ["again", "back"])
def test_a_killed_update_whose_version_is_damaged_is_mended_by_a_verb(
    root: Path, third: Path, name: str, way: str
) -> None:
    """Killed between swap and commit: `pending` is current, and cannot be read."""
    before = json.loads((root / "state.json").read_text())
    second = current_version(root)
    install(third, root)
    path = root / "state.json"
    path.write_text(json.dumps({**before, "pending": current_version(root), "replaced": second}))
    (root / "current" / name).unlink()
    if way == "again":
        install(third, root)
        assert (served(root), read_state(root).floor, read_state(root).previous) == (3, 3, second)
    else:
        versions.rollback(root)
        assert (served(root), read_state(root).floor, read_state(root).pending) == (2, 2, None)
    assert left_over(root) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format_version": 2}', b'{"floor": 0}', b'{"format_version": 1, "x": 1}']
)
def test_a_state_that_cannot_be_read_stops_everything(root: Path, third: Path, content: bytes) -> None:
    """Or a floor would be forgotten."""
    (root / "state.json").write_bytes(content)
    for act in (lambda: install(third, root), lambda: versions.rollback(root), lambda: versions.status(root)):
        with pytest.raises(CompressorError, match="expected the state of a device"):
            act()
