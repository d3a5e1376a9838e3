"""Tiny transformers of every family that students are cut from, seeded, with where each keeps its parts.

The names are written out here, so that what `find_parts` finds by running a model is held against them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
)

HIDDEN, HEADS, FFN, LAYERS, VOCAB = 32, 4, 64, 4, 300


@dataclass(frozen=True)
class Family:
    build: Callable[[], PreTrainedModel]
    stack: str
    reads: tuple[str, ...]
    writes: str
    rises: tuple[str, ...]
    falls: str
    kv_heads: int = HEADS
    head_dim: int = 8
    transposed: bool = False
    logits: bool = False  # the first output, rather than the hidden state

    def model(self) -> PreTrainedModel:
        """With weights as large as trained ones, so that every part has its share in the output."""
        torch.manual_seed(0)
        model = self.build()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim < 4 else 0.2)
            else:
                torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.1)
        model.train(False)
        return model


_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": 64,
}
_BERT = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    ("intermediate.dense",),
    "output.dense",
)
_LLAMA = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
)
_DECODER: dict[str, Any] = {
    **_SIZES,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-12,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, Family] = {
    "bert": Family(lambda: BertModel(BertConfig(**_SIZES)), "encoder.layer", *_BERT),
    "roberta": Family(
        lambda: RobertaModel(RobertaConfig(**_SIZES, pad_token_id=0, layer_norm_eps=1e-12)), "encoder.layer", *_BERT
    ),
    "distilbert": Family(
        lambda: DistilBertModel(
            DistilBertConfig(
                vocab_size=VOCAB, dim=HIDDEN, hidden_dim=FFN, n_layers=LAYERS, n_heads=HEADS, max_position_embeddings=64
            )
        ),
        "transformer.layer",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        ("ffn.lin1",),
        "ffn.lin2",
    ),
    "modernbert": Family(
        lambda: ModernBertModel(
            ModernBertConfig(
                **_SIZES, pad_token_id=0, bos_token_id=1, cls_token_id=1, sep_token_id=2, eos_token_id=2,
                local_attention=8, norm_eps=1e-12,
            )
        ),
        "layers", ("attn.Wqkv",), "attn.Wo", ("mlp.Wi",), "mlp.Wo",
    ),
    "gpt2": Family(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=FFN, n_positions=64,
                bos_token_id=1, eos_token_id=2, layer_norm_epsilon=1e-12,
            )
        ),
        "transformer.h", ("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj", transposed=True, logits=True,
    ),
    # SmolLM is a Llama with grouped-query attention whose output layer is its token table.
    "llama": Family(
        lambda: LlamaForCausalLM(LlamaConfig(**_DECODER, tie_word_embeddings=True)),
        "model.layers", *_LLAMA, kv_heads=2, logits=True,
    ),
    "qwen2": Family(
        lambda: Qwen2ForCausalLM(Qwen2Config(**_DECODER)), "model.layers", *_LLAMA, kv_heads=2, logits=True
    ),
    "qwen3": Family(
        lambda: Qwen3ForCausalLM(Qwen3Config(**_DECODER, head_dim=16)),
        "model.layers", *_LLAMA, kv_heads=2, head_dim=16, logits=True,
    ),
    "vit": Family(
        lambda: ViTForImageClassification(
            ViTConfig(
                hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FFN,
                image_size=16, patch_size=4, num_labels=5,
            )
        ),
        "vit.layers",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.o_proj", ("mlp.fc1",), "mlp.fc2",
        logits=True,
    ),
}  # fmt: skip


def inputs_of(model: PreTrainedModel, seed: int = 1) -> dict[str, Tensor]:
    """Four rows; of text, one with padding at its end."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, VOCAB, (4, 12), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 7:], mask[1, 7:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def output_of(model: PreTrainedModel, feed: dict[str, Tensor]) -> Tensor:
    """The first output, logits or hidden state, with zeros where there is padding."""
    with torch.inference_mode():
        output: Tensor = model(**feed)[0]
    mask = feed.get("attention_mask")
    return output if mask is None or output.ndim < 3 else output * mask[..., None]


def silence_heads(model: PreTrainedModel, family: Family, dead: list[int]) -> None:
    """Nothing of these heads is written back."""
    columns = [head * family.head_dim + i for head in dead for i in range(family.head_dim)]
    _silence_inputs(model, family, family.writes, columns)


def silence_neurons(model: PreTrainedModel, family: Family, dead: list[int]) -> None:
    """Nothing of these neurons of the feed-forward is written back."""
    _silence_inputs(model, family, family.falls, dead)


def silence_dimensions(model: PreTrainedModel, family: Family, dead: list[int]) -> None:
    """These dimensions of the hidden state are 0 everywhere, and the others have mean 0: norms lose nothing with them.

    A LayerNorm of x is one of its other dimensions alone when these are 0, and x has mean 0.
    """
    alive = torch.tensor([i for i in range(HIDDEN) if i not in dead])
    writers = [f"{family.stack}.{layer}.{path}" for layer in range(LAYERS) for path in (family.writes, family.falls)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, _, leaf = name.rpartition(".")
            if "norm" in module.lower() or ".ln_" in f".{name}":
                if parameter.shape == (HIDDEN,):
                    parameter[:] = 1.0 if leaf == "weight" else parameter - parameter[alive].mean()
                    parameter[dead] = 0
                continue
            if module in writers:
                axis = -1 if family.transposed or leaf == "bias" else 0
            elif "patch_embeddings" in name:
                axis = 0
            elif "embed" in name or ".wte" in name or ".wpe" in name or "cls_token" in name:
                axis = -1
            else:
                continue
            moved = parameter.movedim(axis, 0)
            moved -= moved[alive].mean(0)
            moved[dead] = 0


def _silence_inputs(model: PreTrainedModel, family: Family, path: str, columns: list[int]) -> None:
    with torch.no_grad():
        for layer in range(LAYERS):
            weight: Any = model.get_parameter(f"{family.stack}.{layer}.{path}.weight")
            (weight.T if family.transposed else weight)[:, columns] = 0
