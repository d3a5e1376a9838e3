"""What a teacher said in one run folder serves the others that share `cache`: found by content, checked, made once."""

from __future__ import annotations

import json
from pathlib import Path

from made_inputs import Inputs
from run_folders import weights_of
from shared_runs import Finished, Run, Start

SIGNALS = "signals-*/signals-00000.safetensors"


def test_run_folders_share_what_the_teacher_said(
    inputs: dict[str, Inputs], finished_runs: dict[str, Finished], start: Start, run: Run, tmp_path: Path
) -> None:
    """Two runs at once, of which one records; a plan that says so; a student of other depth; a damaged shard."""
    made, alone = inputs["image-classification"], finished_runs["image-classification"].out
    cache = tmp_path / "cache"
    one, two, narrow = (made.write_recipe(tmp_path / name) for name in ("one", "two", "narrow"))
    plan = json.loads(run("compress", two, "--cache", cache, "--dry-run", "--json").stdout)
    assert (plan["teacher_cache_kept"], plan["teacher_cache"]) == (False, str(cache))

    both = [start("compress", recipe, "--cache", cache) for recipe in (one, two)]
    ended = [each.end() for each in both]
    assert [each.code for each in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert sorted("signals" in each.stages("done") for each in ended) == [False, True]
    assert sorted("signals" in each.stages("kept") for each in ended) == [False, True]
    recorded = next(each for each in ended if "signals" in each.stages("done"))
    assert "  960 rows in 0.01 MB: 12 bytes a row" in recorded.stderr  # and both mirror views, three logits each
    assert not list((tmp_path / "two" / "stages").glob("signals-*"))
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "two") == weights_of(alone)

    said = run("compress", narrow, "--cache", cache, "--dry-run").stdout
    assert f"MB of teacher outputs, found in {cache}" in said
    said = run("compress", narrow, "--cache", cache, "--dry-run", "--set", "distill.mirror=false").stdout
    assert f"MB of teacher outputs, to be recorded in {cache}" in said

    (shard,) = cache.glob(SIGNALS)
    content = shard.read_bytes()
    shard.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    mended = run("compress", narrow, "--cache", cache, "--set", "student.widths=[24, 48, 64]")
    assert mended.code == 0, mended.stderr
    assert "signals" in mended.stages("done")
    assert shard.read_bytes() == content
    assert "cache" not in json.loads((tmp_path / "narrow" / "result.json").read_text())["recipe"]
