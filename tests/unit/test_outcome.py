"""What a run folder keeps of earlier runs when nothing ships any more."""

from __future__ import annotations

from pathlib import Path

from compressor.outcome import retract


def test_what_was_shipped_is_retracted_and_finished_work_is_kept(tmp_path: Path) -> None:
    for name in ("bundle/manifest.json", "stages/bundle-c0ffee/bundle/manifest.json", "stages/distill-beef/weights"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("result.json", "report.html"):
        (tmp_path / name).touch()
    retract(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["weights"]
    retract(tmp_path)
