"""A whole run whose student writes in a part of its teacher's tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_inputs import Inputs
from run_folders import assert_nothing_half_written, assert_one_clear_line
from shared_runs import Run
from tokenizers import Tokenizer

import compressor

VOCAB = 400


def test_a_decoder_with_fewer_tokens(inputs: dict[str, Inputs], run: Run, tmp_path: Path) -> None:
    """What ships reads and says its own tokens alone; other depths share what was recorded for it, other vocabularies
    do not.
    """
    made, cache = inputs["text-generation"], tmp_path / "cache"
    recipe = made.write_recipe(tmp_path / "run", student__vocab=VOCAB)
    ended = run(
        "compress", recipe, "--cache", cache, "--set", "distill.on_policy=0.2", "--set", "distill.control=false"
    )
    assert ended.code == 0, ended.stderr
    assert "tokens for each of its teacher's" in ended.stderr
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    kept = {model["name"]: model["quality"]["kept"]["value"] for model in found["models"]}
    assert 0.6 < kept["student"] <= 1.1
    assert kept["student-torch"] == pytest.approx(kept["student"], rel=1e-3)

    predictor = compressor.load(tmp_path / "run" / "bundle")
    assert predictor.manifest.outputs[0].shape[-1] == VOCAB
    tokenizer = Tokenizer.from_file(str(tmp_path / "run" / "bundle" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB
    (end,) = predictor.manifest.answer["stop_ids"]
    assert tokenizer.id_to_token(end) == "<|end|>"
    words = {
        word
        for line in (made.folder / "eval.jsonl").read_text().splitlines()
        for word in json.loads(line)["text"].split()
    }
    said = predictor.generate(" ".join(sorted(words)[:2]), max_tokens=24).split()
    assert len(said) > 4
    assert len(set(said[1:-1]) & words) > len(set(said[1:-1])) / 2, "words, also where a token of theirs is gone"

    for changed, there in (("layers=1", "found"), ("vocab=390", "to be recorded"), ("vocab=null", "to be recorded")):
        plan = run("compress", recipe, "--cache", cache, "--dry-run", "--set", f"student.{changed}")
        assert plan.code == 0, plan.stderr
        assert f"MB of teacher outputs, {there} in {cache}" in plan.stdout

    out = tmp_path / "small"
    small = run("compress", made.write_recipe(out), "--set", "student.vocab=270")
    assert "of the student's, which is all that it reads" in assert_one_clear_line(small, 6)
    assert_nothing_half_written(out)
