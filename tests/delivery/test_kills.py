"""Some of the kills of installer_kills.py, which does as many as are wanted."""

from pathlib import Path

from installer_kills import run


def test_a_killed_update_leaves_the_old_version_or_the_new(tmp_path: Path) -> None:
    assert sum(run(5, 1, tmp_path).values()) == 5
