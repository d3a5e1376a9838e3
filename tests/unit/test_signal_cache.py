"""Recorded signals: what is read is what the teacher said, damage is found, an interruption costs one shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertModel

from compressor.artifacts import TeacherSignals
from compressor.distill import (
    Inputs,
    SignalReader,
    Taps,
    intact,
    outputs_of,
    record_signals,
    whole_answers,
    write_outputs,
)
from compressor.distill import cache as cache_module
from compressor.errors import TeacherError
from compressor.preprocess import TextPreprocessor
from compressor.progress import SILENT
from compressor.tasks.sentence_embedding import SentenceEncoder
from compressor.teachers.sentence import SentenceHead

ROWS_OF_A_SHARD = 8
TAPS = ("hidden.1", "qkv.3")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ROWS", ROWS_OF_A_SHARD)
    monkeypatch.setattr("compressor.distill.record.ROWS", ROWS_OF_A_SHARD)


@pytest.fixture
def inputs(tokenizer_file: Path) -> Inputs:
    preprocessor = TextPreprocessor(tokenizer_file, 16)
    texts = ["the cat", "a dog runs on the green mat", "house"] * 7
    return Inputs(preprocessor.encode(texts), 1, lambda example, _: example)


class Counting:
    """Answers as the deployable teacher does; counts the rows, and stops like a killed process when there are many."""

    def __init__(self, encoder: BertModel, tokenizer_file: Path, most: int = 10**9, factor: float = 1.0) -> None:
        self.module = SentenceEncoder(encoder, SentenceHead())
        self.preprocessor = TextPreprocessor(tokenizer_file, 16)
        self.seen, self.most, self.factor = 0, most, factor

    def __call__(self, examples: Sequence[Any]) -> NDArray[np.float32]:
        self.seen += len(examples)
        if self.seen > self.most:
            raise KeyboardInterrupt
        with torch.inference_mode():
            return outputs_of(self.module, self.preprocessor.collate(examples)).numpy() * np.float32(self.factor)

    def record(self, inputs: Inputs, folder: Path) -> TeacherSignals:
        folder.mkdir(exist_ok=True)
        taps = Taps(self.module, TAPS, TeacherError)
        try:
            return record_signals(whole_answers(self, taps), inputs, folder, SILENT, 64)
        finally:
            taps.close()


def test_what_is_read_is_what_the_teacher_said(
    bert: BertModel, tokenizer_file: Path, inputs: Inputs, tmp_path: Path
) -> None:
    """Each row alone through transformers, with its own hidden states."""
    signals = Counting(bert, tokenizer_file).record(inputs, tmp_path / "a")
    assert len(signals.shards) == 3
    reader = SignalReader(signals)
    assert (reader.rows, reader.width) == (21, 32)
    assert [reader.tap_width(name) for name in TAPS] == [32, 96]
    rows = np.array([0, 9, 20, 7])
    outputs, hidden = reader.outputs(rows), reader.tokens("hidden.1", rows, 16)
    for place, row in enumerate(rows):
        ids = torch.from_numpy(inputs.examples[row])[None]
        with torch.inference_mode():
            said = bert(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        pooled = torch.nn.functional.normalize(said.last_hidden_state.mean(1), dim=-1)[0]
        np.testing.assert_allclose(outputs[place], pooled.numpy(), atol=1e-6)
        tokens = ids.shape[1]
        np.testing.assert_allclose(hidden[place, :tokens], said.hidden_states[2][0].numpy(), atol=5e-3)
        assert not hidden[place, tokens:].any()
    assert reader.tokens("qkv.3", rows, 3).shape == (4, 3, 96)
    np.testing.assert_array_equal(reader.tokens("hidden.1", rows, 3), hidden[:, :3])


def test_an_interrupted_recording_continues_with_the_next_shard(
    bert: BertModel, tokenizer_file: Path, inputs: Inputs, tmp_path: Path
) -> None:
    whole = Counting(bert, tokenizer_file).record(inputs, tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        Counting(bert, tokenizer_file, ROWS_OF_A_SHARD + 3).record(inputs, cut)
    again = Counting(bert, tokenizer_file)
    resumed = again.record(inputs, cut)
    assert again.seen == inputs.rows - ROWS_OF_A_SHARD
    assert [shard.sha256 for shard in resumed.shards] == [shard.sha256 for shard in whole.shards]


def flip(content: bytes) -> bytes:
    return content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda _: b""], ids=["flip", "cut", "empty"])
def test_a_damaged_shard_is_found_and_alone_made_again(
    bert: BertModel, tokenizer_file: Path, inputs: Inputs, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    signals = Counting(bert, tokenizer_file).record(inputs, tmp_path / "signals-1")
    path = signals.shards[1].path
    path.write_bytes(damage(path.read_bytes()))
    assert [intact(shard) for shard in signals.shards] == [True, False, True]
    with pytest.raises(
        TeacherError, match=r"signals-00001\.safetensors: the recorded .* damaged; run again with --from"
    ):
        SignalReader(signals)
    again = Counting(bert, tokenizer_file)
    mended = again.record(inputs, tmp_path / "signals-1")
    assert again.seen == ROWS_OF_A_SHARD
    assert [shard.sha256 for shard in mended.shards] == [shard.sha256 for shard in signals.shards]


@pytest.mark.parametrize(
    "listed", [b'{"p": "x"}', b"[]", b"3", b"null", b'{"0": 7}', b'{"0"', b"\xff", b'{"-1": "x", "99": "x"}', b""]
)
def test_a_damaged_list_of_shards_costs_the_shards_and_no_more(
    bert: BertModel, tokenizer_file: Path, inputs: Inputs, tmp_path: Path, listed: bytes
) -> None:
    signals = Counting(bert, tokenizer_file).record(inputs, tmp_path / "signals-1")
    path = signals.shards[1].path
    path.write_bytes(flip(path.read_bytes()))
    (tmp_path / "signals-1" / "shards.json").write_bytes(listed)
    again = Counting(bert, tokenizer_file)
    assert again.record(inputs, tmp_path / "signals-1").shards == signals.shards
    assert again.seen == inputs.rows


def test_a_shard_in_the_place_of_another_is_found(
    bert: BertModel, tokenizer_file: Path, inputs: Inputs, tmp_path: Path
) -> None:
    signals = Counting(bert, tokenizer_file).record(inputs, tmp_path / "a")
    first, second, third = signals.shards
    swapped = dataclasses.replace(signals, shards=(dataclasses.replace(first, path=third.path), second, third))
    with pytest.raises(TeacherError, match="missing or damaged"):
        SignalReader(swapped)


def test_every_byte_counts(tmp_path: Path) -> None:
    """Of a small shard, every single byte changed: nothing is ever used."""
    signals = write_outputs(np.arange(12, dtype=np.float32).reshape(4, 3), tmp_path, 0.0)
    (shard,) = signals.shards
    content = shard.path.read_bytes()
    for place in range(len(content)):
        shard.path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        assert not intact(shard)


def test_outputs_that_are_known_already(tmp_path: Path) -> None:
    outputs: NDArray[np.float32] = np.random.default_rng(0).standard_normal((19, 3)).astype(np.float32)
    reader = SignalReader(write_outputs(outputs, tmp_path, 1.0))
    np.testing.assert_array_equal(reader.outputs(np.arange(19)), outputs)


def test_outputs_that_are_not_finite_are_refused(
    bert: BertModel, tokenizer_file: Path, inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match="not finite on the training data"):
        Counting(bert, tokenizer_file, factor=float("nan")).record(inputs, tmp_path)
