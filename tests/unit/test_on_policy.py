"""What the student says itself: against a loop without a cache, and which batches are its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compressor.distill.on_policy import continued, is_on_policy
from compressor.preprocess import CausalPreprocessor
from compressor.tasks.decoder import CausalLanguageModel
from compressor.teachers.decoder import cache_shape

VOCABULARY = 60


def _llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
    )


def _gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5)
    )


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("build", [_llama, _gpt2])
def test_it_says_what_it_would_say_without_a_cache(build: object, tokenizer_file: Path) -> None:
    model = build().eval()  # type: ignore[operator]
    preprocessor = CausalPreprocessor(tokenizer_file, 32, cache_shape(model.config), 0)
    drawn = np.random.default_rng(0)
    examples = [drawn.integers(0, VOCABULARY, length) for length in (9, 12, 10)]
    found = continued(CausalLanguageModel(model), (), preprocessor, examples, torch.Generator().manual_seed(5))

    generator = torch.Generator().manual_seed(5)
    ids = torch.from_numpy(np.stack([example[:4] for example in examples]))
    while ids.shape[1] < 12:
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, -1]
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
    for row, example, whole in zip(found, examples, ids.numpy(), strict=True):
        np.testing.assert_array_equal(row, whole[: len(example)])
    assert not np.array_equal(found[1], examples[1])


def test_a_head_that_is_left_to_the_loss_is_applied(tokenizer_file: Path) -> None:
    model = _llama().eval()
    preprocessor = CausalPreprocessor(tokenizer_file, 32, cache_shape(model.config), 0)
    examples = [np.arange(10), np.arange(10, 20)]
    whole = continued(CausalLanguageModel(model), (), preprocessor, examples, torch.Generator().manual_seed(1))
    weight = model.lm_head.weight
    model.lm_head.forward = lambda hidden: hidden
    opened = continued(CausalLanguageModel(model), (weight,), preprocessor, examples, torch.Generator().manual_seed(1))
    for one, other in zip(whole, opened, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_share_of_batches_is_that_asked_for() -> None:
    steps = range(4000)
    assert not any(is_on_policy(0.0, 3, step) for step in steps)
    assert all(is_on_policy(1.0, 3, step) for step in steps)
    share = np.mean([is_on_policy(0.3, 3, step) for step in steps])
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5
    assert [is_on_policy(0.5, 3, step) for step in range(64)] != [is_on_policy(0.5, 4, step) for step in range(64)]
