"""GGUF language models: a tiny Llama written with the package gguf as llama.cpp's converter writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from compressor.errors import TeacherError
from compressor.recipe_student import DecoderStudent
from compressor.recipe_teacher import GgufTeacher
from compressor.students import write_student
from compressor.students.derive import derive_model
from compressor.students.on_disk import load_student_folder
from compressor.teachers.decoder import decoder_config
from compressor.teachers.gguf import load_gguf, load_gguf_tokenizer

HEADS, KV_HEADS = 4, 2
WORDS = ["<unk>", "<s>", "</s>", *map(chr, range(97, 123)), "▁"]
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """GGUF has the rotary pairs of a head side by side, transformers in its two halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(model: LlamaForCausalLM, path: Path, *, int8: bool = False) -> Path:
    config, writer = model.config, GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([0.0] * len(WORDS))
    writer.add_token_types([2, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        _, _, layer = name.partition("model.layers.")
        number, _, inner = layer.partition(".")
        named = f"blk.{number}.{NAMES[inner]}" if layer else NAMES[name]
        if "attn_q" in named or "attn_k" in named:
            array = interleaved(array, HEADS if "attn_q" in named else KV_HEADS)
        if int8 and array.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(named, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(named, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([[1, 5, 9, 3, 20, 7]])).logits
    return found


def test_float32_answers_as_the_model_that_was_written(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    loaded = load_gguf(write(llama, tmp_path / "tiny.gguf"))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(logits(loaded), logits(llama), atol=1e-5, rtol=1e-5)


def test_int8_weights_are_widened(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    loaded = load_gguf(write(llama, tmp_path / "tiny.gguf", int8=True))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    exact, found = logits(llama), logits(loaded)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=-1).min() > 0.999
    assert not torch.equal(found, exact), "else nothing was quantized"


def test_a_student_cut_from_it_loads_again(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    teacher = load_gguf(write(llama, tmp_path / "tiny.gguf", int8=True))
    student = derive_model(teacher, DecoderStudent(layers=1), []).model
    write_student(student, tmp_path)
    loaded = load_student_folder(tmp_path, "text-generation", 16)
    assert torch.equal(logits(loaded), logits(student))


def test_the_tokenizer_comes_along(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    tokenizer = load_gguf_tokenizer(write(llama, tmp_path / "tiny.gguf"))
    ids = tokenizer("abc").input_ids
    assert [WORDS[i] for i in ids if i > 2 and WORDS[i] != "▁"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found none"),
        (b"", "not a GGUF file"),
        (b"GGML" * 9, "not a GGUF file"),
        (b"GGUF" * 9, "expected 2 or 3"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "tiny.gguf"
    if content is not None:
        path.write_bytes(content)
    for load in (load_gguf, load_gguf_tokenizer):
        with pytest.raises(TeacherError) as raised:
            load(path)
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_cut_file(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    path = write(llama, tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    for left in (len(whole) - 1000, len(whole) // 2, 2000, 300):
        path.write_bytes(whole[:left])
        for load in (load_gguf, lambda file: decoder_config(GgufTeacher(gguf=file))):
            with pytest.raises(
                TeacherError, match=r"not a GGUF file: .*; if it was cut short, fetch it again$"
            ) as raised:
                load(path)
            assert "\n" not in str(raised.value)
