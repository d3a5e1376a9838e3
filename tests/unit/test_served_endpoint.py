"""The endpoint's client against a server that others wrote: `transformers serve` with a tiny chat model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compressor.answered import Answer
from compressor.errors import TeacherError
from compressor.recipe_teacher import EndpointClassifier, EndpointWriter
from compressor.teachers.labels import open_endpoint
from compressor.teachers.written import open_writer

TEXTS = {"a goal": "sport", "hot soup": "food", "the team": "sport", "old bread": "food"}
pytestmark = pytest.mark.slow


def chat_model(folder: Path) -> None:
    """One layer of Llama over single characters that has learnt which word answers each of TEXTS."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(32, 127)), "sport", "food"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        for text, word in TEXTS.items():
            ids = torch.tensor([[1, *(vocabulary.index(c) for c in text), vocabulary.index(word), 2]])
            labels = ids.clone()
            labels[:, :-2] = -100
            model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL and model name."""
    folder = tmp_path_factory.mktemp("served")
    chat_model(folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu", str(folder / "model")],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder / "model")
    finally:
        process.kill()
        process.wait()


def teacher(served: tuple[str, str], **settings: object) -> EndpointClassifier:
    url, model = served
    values = {"endpoint": url, "model": model, "classes": ["sport", "food"], "prompt": "{text}", "max_tokens": 2}
    return EndpointClassifier.model_validate({**values, "permission": "own-model", **settings})


def test_its_answers_become_labels(served: tuple[str, str], tmp_path: Path) -> None:
    found = open_endpoint(teacher(served), tmp_path / "cache.jsonl").answers(list(TEXTS))
    assert [("sport", "food")[row] for row in found.argmax(axis=1)] == list(TEXTS.values())


def test_what_it_does_not_offer_is_said(served: tuple[str, str], tmp_path: Path) -> None:
    """It passes over log-probabilities without a word."""
    with pytest.raises(TeacherError, match=r"gives no log-probabilities; set teacher\.top_logprobs to 0"):
        open_endpoint(teacher(served, top_logprobs=3), tmp_path / "cache.jsonl").answers(["a goal"])


def test_another_model_is_refused(served: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="with status 400: Server is pinned to"):
        open_endpoint(teacher(served, model="absent"), tmp_path / "cache.jsonl").answers(["a goal"])


def test_another_path_is_refused(served: tuple[str, str], tmp_path: Path) -> None:
    url, _ = served
    with pytest.raises(TeacherError, match="status 404: no chat/completions there"):
        open_endpoint(teacher(served, endpoint=f"{url}/v2"), tmp_path / "cache.jsonl").answers(["a goal"])


def test_its_answers_are_texts(served: tuple[str, str], tmp_path: Path) -> None:
    """Whole ones, and with no token left for the end, ones that were cut off."""
    url, model = served
    for max_tokens, ended in ((3, True), (1, False)):
        given = {"endpoint": url, "model": model, "max_tokens": max_tokens, "permission": "own-model"}
        one = open_writer(EndpointWriter.model_validate(given), tmp_path / "cache.jsonl")
        assert one.answers(list(TEXTS)) == [Answer(text, ended) for text in TEXTS.values()]
