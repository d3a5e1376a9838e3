"""Whole runs whose teacher is a black box."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.torch
import torch
from chat_server import Reply, Server, completion, serving
from command_runs import Ended, command, environment, run_fresh
from endpoint_runs import KEY, endpoint_recipe, keywords, write_recipe
from made_inputs import made_words, write_rows
from ruamel.yaml import YAML
from shared_runs import Finished, Inputs, Run
from transformers import LlamaConfig, LlamaForCausalLM

import compressor
from compressor.artifacts import TensorSpec
from compressor.export import export_onnx
from compressor.report.schema import result_schema


@pytest.fixture(scope="session")
def image_file(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image teacher as a user would export it: normalised float32 images, channels first."""
    folder, scope = inputs["image-classification"].folder, dict[str, Any]()
    exec((folder / "networks.py").read_text(), scope)
    network = scope["teacher"]()
    network.load_state_dict(safetensors.torch.load_file(folder / "teacher.safetensors"))

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images)
            return logits

    images = TensorSpec("images", "float32", ("batch", 1, 12, 12))
    feeds = [{"images": torch.zeros(rows, 1, 12, 12).numpy()} for rows in (1, 3)]
    path = tmp_path_factory.mktemp("black-box") / "teacher.onnx"
    return export_onnx(
        Named(), "teacher", [images], [TensorSpec("scores", "float32", ("batch", 3))], feeds, 20, path
    ).path


def interrupted_and_continued(recipe: Path, server: Server, folder: Path) -> tuple[Ended, str, Ended]:
    """A plan, what a run said that was interrupted when its teacher had been asked a hundred times, and its end."""
    planned = run_fresh("compress", recipe, "--dry-run", cwd=folder)
    assert "of unknown size" in planned.stdout, planned.stderr
    assert not server.seen, "a plan asks nothing"
    begun = subprocess.Popen(
        command("compress", recipe), env=environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    while len(server.seen) < 100:
        assert begun.poll() is None, begun.communicate()[1].decode()
        time.sleep(0.01)
    begun.send_signal(signal.SIGINT)
    first = begun.communicate(timeout=120)[1].decode()
    assert begun.returncode == 130, first
    ended = run_fresh("compress", recipe, cwd=folder)
    assert ended.code == 0, ended.stderr
    return planned, first, ended


def another_asks_nothing(recipe: Path, server: Server, folder: Path) -> None:
    """A run in another folder, with the same cache."""
    before = len(server.seen)
    ended = run_fresh("compress", recipe, "--out", folder / "another", "--set", "distill.epochs=1", cwd=folder)
    assert "distill" in ended.stages("done"), ended.stderr
    assert "teacher-answers" in ended.stages("done"), "of the held-out data, from the answers on disk"
    assert len(server.seen) == before


def test_an_onnx_file_teaches_images(inputs: dict[str, Inputs], image_file: Path, run: Run, tmp_path: Path) -> None:
    """The file itself is the baseline, and teacher and student are judged and timed as ever."""
    out = tmp_path / "out"
    teacher = {
        "onnx": str(image_file),
        "permission": "written-permission",
        "reference": "letter",
        "terms": "https://t/x",
    }
    recipe = write_recipe(inputs["image-classification"], out, teacher)
    planned = run("compress", recipe, "--dry-run")
    assert "parameters; predicted ONNX" in planned.stdout, planned.stderr
    ended = run("compress", recipe)
    assert ended.code == 0, ended.stderr
    result = json.loads((out / "result.json").read_text())
    rows = {row["name"]: row for row in result["models"]}
    assert rows["teacher"]["bytes"] == image_file.stat().st_size
    assert rows["teacher"]["latency"]["p50_ms"] > 0
    assert rows["teacher"]["quality"]["quality"]["value"] > 0.9
    converted = [parity["name"] for parity in result["parities"] if parity["holds"]]
    assert converted[:2] == ["student-exported", "student"], "the teacher was not converted"
    assert result["shipped"]
    sha256 = hashlib.sha256(image_file.read_bytes()).hexdigest()
    assert (result["lineage"]["source"], result["lineage"]["sha256"]) == ("teacher.onnx", sha256)
    assert run("verify", out / "bundle").code == 0
    shown = run("inspect", out / "bundle").stdout
    for expected in (sha256, "permission: written-permission", "reference: letter", "terms: https://t/x"):
        assert expected in shown
    bom = json.loads((out / "bundle" / "bom.cdx.json").read_text())
    assert bom["metadata"]["component"]["pedigree"]["ancestors"][0]["name"] == "teacher.onnx"
    assert "https://t/x" in (out / "bundle" / "README.md").read_text()
    again = run("compress", recipe)
    assert again.stages("done") == []


def test_a_black_box_without_permission_is_refused_before_it_is_opened(
    inputs: dict[str, Inputs], run: Run, tmp_path: Path
) -> None:
    unread = tmp_path / "teacher.onnx"
    unread.write_bytes(b"not even an ONNX file")
    ended = run("compress", write_recipe(inputs["image-classification"], tmp_path / "out", {"onnx": str(unread)}))
    assert ended.code == 5
    assert "a black box needs what permits distilling it" in ended.lines[-1]
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_teaches_text(
    finished_runs: dict[str, Finished], small_classifier: Path, run: Run, tmp_path: Path
) -> None:
    """The file is another run's teacher, which gives logits and probabilities: the logits are taken."""
    finished, out = finished_runs["text-classification"], tmp_path / "out"
    (file,) = (finished.out / "stages").glob("teacher-onnx-*/teacher.onnx")
    tokenizer = finished.inputs.folder / "teacher" / "tokenizer.json"
    teacher = {"onnx": str(file), "tokenizer": str(tokenizer), "classes": ["sport", "food"], "permission": "own-model"}
    path = write_recipe(finished.inputs, out, teacher)
    values = YAML(typ="safe").load(path)
    values["student"] = {"folder": str(small_classifier), "max_length": 24}
    values["distill"] |= {"epochs": 8, "learning_rate": 5e-3, "temperature": 1.0, "control": False}
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(values, stream)
    ended = run("compress", path)
    assert ended.code == 0, ended.stderr
    models = {row["name"]: row for row in json.loads((out / "result.json").read_text())["models"]}
    before = json.loads((finished.out / "result.json").read_text())["models"][0]
    assert models["teacher"]["quality"]["quality"] == before["quality"]["quality"]
    assert models["teacher"]["bytes"] == file.stat().st_size
    assert models["student"]["quality"]["quality"]["value"] > 0.8


def test_an_endpoint_teaches_text(
    inputs: dict[str, Inputs], small_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted and continued, it has been asked about every text once; the key is nowhere but in the requests."""
    monkeypatch.setenv("COMPRESSOR_TEACHER_KEY", KEY)
    text, out = inputs["text-classification"], tmp_path / "out"
    lines = [line for name in ("train", "eval") for line in (text.folder / f"{name}.jsonl").read_text().splitlines()]
    distinct = {json.loads(line)["text"] for line in lines}
    with serving(keywords) as server:
        recipe = endpoint_recipe(text, out, server.url, small_classifier)
        planned, first, ended = interrupted_and_continued(recipe, server, tmp_path)
        assert sorted(prompt.rpartition("Text: ")[2] for prompt in server.prompts()) == sorted(distinct)
        assert {headers["Authorization"] for _, headers, _, _ in server.seen} == {f"Bearer {KEY}"}
        another_asks_nothing(recipe, server, tmp_path)
        assert run_fresh("verify", out / "bundle", cwd=tmp_path).code == 0
        inspected = run_fresh("inspect", out / "bundle", cwd=tmp_path).stdout
    for expected in ("teacher: big at 127.0.0.1", "sha256: None", "terms: https://host/terms"):
        assert expected in inspected
    result = json.loads((out / "result.json").read_text())
    jsonschema.Draft202012Validator(result_schema()).validate(result)
    models = {row["name"]: row for row in result["models"]}
    assert next(iter(models)) == "teacher"
    assert (models["teacher"]["bytes"], models["teacher"]["latency"], models["teacher"]["parameters"]) == (
        None,
        None,
        0,
    )
    assert models["teacher"]["quality"]["quality"]["value"] == 1
    assert models["student"]["latency"]["verdict"] == "baseline"
    assert models["student"]["quality"]["quality"]["value"] > 0.8
    assert "the teacher's size and speed are unknown" in result["reason"]
    assert "the teacher's size and speed unknown" in ended.stdout
    assert "its teacher out of reach" in (out / "bundle" / "README.md").read_text()
    shown = [ended.stdout, ended.stderr, first, planned.stdout, planned.stderr, inspected]
    written = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in place for place in (*shown, *written))


def follower(word: str, words: list[str]) -> str:
    return words[(7 * words.index(word) + 3) % len(words)]


def writer(words: list[str]) -> Callable[[dict[str, Any]], Reply]:
    """Writes which words follow the last one of a prompt, one after the other: three of them."""

    def written(body: dict[str, Any]) -> Reply:
        word, said = body["messages"][-1]["content"].split()[-1], ""
        for _ in range(3):
            word = follower(word, words)
            said += f" {word}"
        return replace(completion(said), delay_s=0.002)

    return written


@pytest.fixture(scope="session")
def small_decoder(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that exists already and knows nothing yet."""
    source, folder = inputs["text-generation"].folder / "teacher", tmp_path_factory.mktemp("decoder")
    torch.manual_seed(9)
    LlamaForCausalLM(LlamaConfig.from_pretrained(source, num_hidden_layers=1)).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return folder


def prompts_of(words: list[str], folder: Path) -> set[str]:
    """train.jsonl and eval.jsonl of two words a prompt; the distinct ones among them."""
    pairs = np.random.default_rng(0).permutation(len(words) ** 2)
    texts = [f"{words[pair // len(words)]} {words[pair % len(words)]}" for pair in pairs]
    write_rows(folder / "train.jsonl", [{"text": text} for text in [*texts[:400], *texts[:20]]])
    write_rows(folder / "eval.jsonl", [{"text": text} for text in texts[400:460]])
    return set(texts[:460])


def writer_recipe(folder: Path, url: str, student: Path, **teacher: Any) -> Path:
    values = {
        "task": "text-generation",
        "teacher": {
            "endpoint": url,
            "model": "big",
            "prompt": "Which words follow? {text}",
            "max_tokens": 12,
            "permission": "written-permission",
            "reference": "letter",
            "terms": "https://host/terms",
            **teacher,
        },
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "student": {"folder": str(student), "max_length": 24},
        "distill": {"epochs": 12, "learning_rate": 1e-2},
        "gate": {"max_drop": 0.2, "judge": "value"},
        "benchmark": {"min_samples": 459, "budget_s": 5.0},
        "out": "out",
        "cache": "shared",
    }
    path = folder / "writer.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return path


def test_an_endpoint_teaches_to_write(small_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted and continued, it has been asked each distinct prompt once, and the student writes what it writes."""
    monkeypatch.setenv("COMPRESSOR_TEACHER_KEY", KEY)
    words, out = made_words()[:60], tmp_path / "out"
    distinct = prompts_of(words, tmp_path)
    with serving(writer(words)) as server:
        recipe = writer_recipe(tmp_path, server.url, small_decoder)
        planned, first, ended = interrupted_and_continued(recipe, server, tmp_path)
        assert sorted(server.prompts()) == sorted(f"Which words follow? {text}" for text in distinct)
        other = run_fresh("compress", recipe, "--dry-run", "--set", "distill.epochs=1", cwd=tmp_path)
        assert "of teacher outputs, found in" in other.stdout, "which another student learns from"
        another_asks_nothing(recipe, server, tmp_path)
        assert len(server.seen) == len(distinct)
    assert run_fresh("verify", out / "bundle", cwd=tmp_path).code == 0
    inspected = run_fresh("inspect", out / "bundle", cwd=tmp_path).stdout
    for expected in ("teacher: big at 127.0.0.1", "sha256: None", "terms: https://host/terms"):
        assert expected in inspected
    bom = json.loads((out / "bundle" / "bom.cdx.json").read_text())
    assert bom["metadata"]["component"]["pedigree"]["ancestors"][0]["name"] == "big at 127.0.0.1"
    result = json.loads((out / "result.json").read_text())
    jsonschema.Draft202012Validator(result_schema()).validate(result)
    models = {row["name"]: row for row in result["models"]}
    teacher, student = models["teacher"]["quality"], models["student"]["quality"]
    assert (teacher["metric"], teacher["quality"]["value"], models["teacher"]["bytes"]) == ("token agreement", 1, None)
    assert student["quality"]["value"] == student["kept"]["value"] > 0.8
    assert models["student"]["latency"]["verdict"] == "baseline"
    predict, judged = compressor.load(out / "bundle"), json.loads((out / "bundle" / "manifest.json").read_text())
    eval_texts = [json.loads(line)["text"] for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    same = [predict.generate(text) == said_after(text, words) for text in eval_texts]
    assert np.mean(same) == pytest.approx(judged["evidence"]["quality"]["agreement"], abs=1e-9), "word for word"
    written = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    shown = [ended.stdout, ended.stderr, first, planned.stdout, planned.stderr, inspected]
    assert not any(KEY in place for place in (*shown, *written))


def said_after(text: str, words: list[str]) -> str:
    reply = json.loads(writer(words)({"messages": [{"content": text}]}).body)
    said: str = reply["choices"][0]["message"]["content"]
    return said
