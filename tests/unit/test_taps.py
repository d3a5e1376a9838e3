"""Taps against what transformers itself returns, and against the layers' own maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertModel, GPT2Config, GPT2Model, ModernBertConfig, ModernBertModel

from compressor.artifacts import TapPair
from compressor.distill.taps import Taps, tap_pairs
from compressor.errors import RecipeError, StudentError, TeacherError
from compressor.recipe_distill import EmbeddingDistillation

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def test_hidden_states_are_what_transformers_returns(bert: BertModel) -> None:
    taps = Taps(bert, ["hidden.0", "hidden.3"], TeacherError)
    with torch.inference_mode():
        expected = bert(input_ids=IDS, output_hidden_states=True).hidden_states
        taps.take()
        bert(input_ids=IDS)
    found = taps.take()
    assert list(found) == ["hidden.0", "hidden.3"]
    assert torch.equal(found["hidden.0"], expected[1])
    assert torch.equal(found["hidden.3"], expected[4])
    assert taps.take() == {}
    taps.close()


def test_queries_keys_and_values_lie_side_by_side(bert: BertModel) -> None:
    taps = Taps(bert, ["qkv.2"], TeacherError)
    with torch.inference_mode():
        before = bert(input_ids=IDS, output_hidden_states=True).hidden_states[2]
        found = taps.take()["qkv.2"]
        taps.close()
        own = bert.encoder.layer[2].attention.self
        expected = torch.cat([own.query(before), own.key(before), own.value(before)], dim=-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "model",
    [
        GPT2Model(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2)),
        ModernBertModel(
            ModernBertConfig(
                vocab_size=50,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                cls_token_id=1,
                sep_token_id=2,
            )
        ),
    ],
    ids=["gpt2", "modernbert"],
)
def test_fused_maps_are_found(model: nn.Module) -> None:
    taps = Taps(model, ["qkv.1", "hidden.1"], TeacherError)
    model(input_ids=IDS)
    found = taps.take()
    assert found["qkv.1"].shape == (2, 4, 24)
    assert found["hidden.1"].shape == (2, 4, 8)


def test_heads_that_do_not_divide_the_widths_are_refused(bert: BertModel) -> None:
    """The teacher is 32 wide."""
    student = BertModel(type(bert.config)(**{**bert.config.to_dict(), "hidden_size": 24, "num_attention_heads": 2}))
    with pytest.raises(RecipeError, match="24 in the student and 32 in the teacher, got 12; set it to 8"):
        tap_pairs(EmbeddingDistillation(relation_weight=1.0), student, bert)
    assert tap_pairs(EmbeddingDistillation(relation_weight=1.0, relation_heads=8), student, bert)
    gpt2 = GPT2Model(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(RecipeError, match="8 in the student and 8 in the teacher, got 12; set it to 8"):
        tap_pairs(EmbeddingDistillation(relation_weight=1.0), gpt2, gpt2)


def test_closed_taps_see_nothing(bert: BertModel) -> None:
    taps = Taps(bert, ["hidden.0"], TeacherError)
    taps.close()
    bert(input_ids=IDS)
    assert taps.take() == {}


def test_a_layer_that_is_not_there(bert: BertModel) -> None:
    with pytest.raises(TeacherError, match="layer 4: expected 0 to 3; the model has 4 layers"):
        Taps(bert, ["hidden.4"], TeacherError)


def test_a_network_without_layers() -> None:
    with pytest.raises(StudentError, match="need a transformer with one stack of layers; found none: set both to 0"):
        Taps(nn.Linear(2, 2), ["hidden.0"], StudentError)


def test_the_last_layer_learns_from_the_last_and_the_others_are_spread(bert: BertModel) -> None:
    student = BertModel(type(bert.config)(**{**bert.config.to_dict(), "num_hidden_layers": 2}))
    both = EmbeddingDistillation(hidden_weight=1.0, relation_weight=1.0, relation_heads=4)
    pairs = tap_pairs(both, student, bert)
    assert pairs == (
        TapPair("hidden.0", "hidden.1"),
        TapPair("hidden.1", "hidden.3"),
        TapPair("qkv.1", "qkv.3"),
    )
    named = tap_pairs(EmbeddingDistillation(hidden_weight=1.0, hidden_layers={1: 2}), student, bert)
    assert named == (TapPair("hidden.1", "hidden.2"),)
