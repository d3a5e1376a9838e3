"""One run of every task, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
from command_runs import environment, run_fresh
from numpy.typing import NDArray
from shared_runs import Finished
from tokenizers import Encoding, Tokenizer

import compressor
from compressor.report.schema import result_schema

# What a terminal would act on; a line feed and a tab it may have.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_EXTERNAL = re.compile(
    r"""(?:src|href)\s*=\s*["']?(?!#|data:)[^"'\s>]|@import|url\(\s*["']?(?!#|data:)|<link|<iframe"""
)


# 1/perplexity has a bound below 1: of the made texts' three followers, exp(-entropy) = 0.45.
_GOOD = {"text-generation": 0.35}


def _result(finished: Finished) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((finished.out / "result.json").read_text(encoding="utf-8"))
    return loaded


def _raw_inputs(finished: Finished) -> list[Any]:
    data = finished.inputs.folder
    if (data / "eval.npz").exists():
        return list(np.load(data / "eval.npz")["images"][:5])
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text().splitlines()[:5]]
    return [row.get("text", row.get("sentence1", row.get("tokens"))) for row in rows]


def _feed(bundle: Path, raw: Any) -> dict[str, NDArray[Any]]:
    """One raw input as the graph takes it, with nothing of this package."""
    if isinstance(raw, np.ndarray):
        return {"pixels": raw[None, :, :, None]}
    return _of_tokens(bundle, _encoding(bundle, raw).ids)


def _encoding(bundle: Path, raw: str | list[str]) -> Encoding:
    return Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(raw, is_pretokenized=isinstance(raw, list))


def _of_tokens(bundle: Path, tokens: list[int]) -> dict[str, NDArray[Any]]:
    """Of one text; a decoder also takes the cache of what it has read, here of nothing."""
    ids = np.array([tokens], dtype=np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for spec in json.loads((bundle / "manifest.json").read_text())["inputs"]:
        if spec["name"].startswith("past_key_values."):
            _, heads, _, width = spec["shape"]
            feed[spec["name"]] = np.zeros((1, heads, 0, width), np.float32)
    return feed


def _said(bundle: Path, session: onnxruntime.InferenceSession, prompt: str) -> str:
    """The most probable tokens, each after reading everything before it once more, until one ends the text."""
    tokens, said = _encoding(bundle, prompt).ids, []
    while len(said) < 32:
        best = int(session.run(["logits"], _of_tokens(bundle, tokens + said))[0][0, -1].argmax())
        if best == 0:
            break
        said.append(best)
    text: str = Tokenizer.from_file(str(bundle / "tokenizer.json")).decode(said)
    return text


def test_streams_are_clean_without_a_terminal(finished: Finished) -> None:
    ended = finished.ended
    assert "bundle:" in ended.stdout
    assert not _CONTROL.search(ended.stdout)
    assert not _CONTROL.search(ended.stderr)
    assert "Traceback" not in ended.stderr
    assert "warning" not in ended.stderr.lower()


def test_result_follows_its_schema(finished: Finished) -> None:
    jsonschema.Draft202012Validator(result_schema()).validate(_result(finished))


def test_result_has_teacher_student_and_int8_measured(finished: Finished) -> None:
    result = _result(finished)
    rows = {row["name"]: row for row in result["models"]}
    int8 = [name for name in rows if name.startswith("student-") and "int8" in name]
    assert int8
    for name in ("teacher", "student", *int8):
        row = rows[name]
        assert row["bytes"] > 0
        # Where neighbours are too much alike to count as so many samples, there is no p99.
        assert 0 < row["latency"]["p50_ms"] <= (row["latency"]["p99_ms"] or np.inf)
        assert row["latency"]["throughput_per_s"] > 0
        assert row["latency"]["samples"] >= 459
        quality = row["quality"]["quality"]
        assert 0 <= quality["low"] <= quality["value"] <= quality["high"] <= 1
    parities = {parity["name"]: parity for parity in result["parities"]}
    assert list(parities) == ["teacher", "student-exported", "student", *int8]
    assert all(parity["holds"] and parity["departs_at"] is None for parity in parities.values())
    exact = [parities[name] for name in ("teacher", "student-exported", "student")]
    assert all(parity["shapes"] > 2 for parity in exact), "of lengths, where there are any, and of batches"
    # The inputs are made so that the teacher is good at them: otherwise a student could keep nothing of worth.
    assert rows["teacher"]["quality"]["quality"]["value"] > _GOOD.get(result["task"], 0.9)
    assert rows["student"]["parameters"] < rows["teacher"]["parameters"]
    assert all(rows[name]["bytes"] < rows["student"]["bytes"] for name in int8)
    assert result["shipped"] in ("student", *int8)
    assert result["lineage"]["permission"] == finished.inputs.recipe["teacher"]["permission"]


def test_control_is_reported_where_it_was_asked_for(finished: Finished) -> None:
    wanted = finished.inputs.recipe["distill"].get("control", False)
    assert (_result(finished)["control"] is not None) == wanted


def test_report_needs_no_network(finished: Finished) -> None:
    page = (finished.out / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "student" in page
    assert not _EXTERNAL.findall(page)


def test_bundle_verifies_elsewhere(finished: Finished, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(finished.out / "bundle", moved)
    ended = run_fresh("verify", moved, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert "golden cases" in ended.stdout
    assert ended.stderr == ""


def test_predictor_agrees_with_plain_onnxruntime(finished: Finished, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(finished.out / "bundle", bundle)
    predictor = compressor.load(bundle)
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    raw = _raw_inputs(finished)
    answers = predictor(raw)
    assert len(answers) == len(raw)
    for item, answer in zip(raw, answers, strict=True):
        outputs = session.run(None, _feed(bundle, item))
        if predictor.manifest.task == "sentence-embedding":
            np.testing.assert_allclose(answer, outputs[0][0], atol=1e-5)
            assert np.linalg.norm(answer) == pytest.approx(1, abs=1e-4)
        elif predictor.manifest.task == "text-generation":
            assert answer == _said(bundle, session, item)
        elif predictor.manifest.task == "token-classification":
            assert [tagged.word for tagged in answer] == item
            first = [_encoding(bundle, item).word_ids.index(word) for word in range(len(item))]
            probabilities = outputs[1][0][first]
            np.testing.assert_allclose([list(one.probabilities.values()) for one in answer], probabilities, atol=1e-5)
            named = [list(one.probabilities)[row.argmax()] for one, row in zip(answer, probabilities, strict=True)]
            assert [tagged.label for tagged in answer] == named
        else:
            np.testing.assert_allclose(list(answer.probabilities.values()), outputs[1][0], atol=1e-5)
            assert list(answer.probabilities)[int(outputs[1][0].argmax())] == answer.label


def test_predicting_imports_no_torch(finished: Finished, tmp_path: Path) -> None:
    raw = [item.tolist() if isinstance(item, np.ndarray) else item for item in _raw_inputs(finished)]
    program = (
        "import json, sys, numpy, compressor\n"
        "raw = [x if isinstance(x[0], str) else numpy.array(x, 'uint8') for x in json.loads(sys.argv[2])]\n"
        "answers = compressor.load(sys.argv[1])(raw)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'datasets'} & set(sys.modules)\n"
        "print(json.dumps([len(answers), sorted(heavy)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(finished.out / "bundle"), json.dumps(raw)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [len(raw), []]


@pytest.mark.parametrize("kept", ["bundle", "result.json", "report.html"])
def test_nothing_names_the_folders_of_this_machine(finished: Finished, kept: str) -> None:
    path = finished.out / kept
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    assert files
    for secret in (finished.inputs.folder, finished.out.parent, Path.home(), Path(compressor.__file__).parent):
        assert [file.name for file in files if str(secret).encode() in file.read_bytes()] == []


def test_run_folder_holds_no_leftovers(finished: Finished) -> None:
    names = [path.name for path in finished.out.rglob("*")]
    assert not [
        name for name in names if name.endswith((".tmp", ".partial", ".old", ".new")) or name == "checkpoint.pt"
    ]
