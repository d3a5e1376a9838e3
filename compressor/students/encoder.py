"""A physically smaller encoder cut out of the teacher's own weights: fewer layers, narrower feed-forward, fewer tokens.

Where the parts are is found by structure, not by a table of architectures: the encoder stack is the module list as
long as the config says the model is deep, and a layer's feed-forward is its pair of linear maps up and down again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from optimum.utils import NormalizedConfigManager
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from compressor.artifacts import Student
from compressor.errors import StudentError
from compressor.preprocess import Feed, TextPreprocessor
from compressor.recipe import EncoderStudent
from compressor.store import write_atomic
from compressor.students.vocabulary import TrimmedVocabulary, for_device, trim_vocabulary

_IMPORTANCE_BATCH = 64


@dataclass(frozen=True)
class EncoderParts:
    """Where an encoder keeps what can be cut. Names are those of `named_modules`."""

    stack: str
    up: str  # within a layer: hidden -> feed-forward
    down: str  # within a layer: feed-forward -> hidden
    depth: int
    ffn: int
    depth_key: str  # the config's attribute for the number of layers


def find_parts(model: PreTrainedModel) -> EncoderParts:
    """The encoder stack of a BERT-like model. Raises StudentError when its structure is another."""
    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(model.config.model_type)(model.config)
        depth, hidden = int(normalized.num_layers), int(normalized.hidden_size)
        depth_key = str(normalized.NUM_LAYERS)
    except (KeyError, AttributeError, NotImplementedError):
        raise StudentError(
            f"no student can be derived from a {model.config.model_type!r} model: its config is unknown"
        ) from None
    stacks = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(stacks) != 1:
        raise StudentError(
            f"expected one stack of {depth} layers in a {model.config.model_type} model, found {len(stacks)}"
        )
    layer = model.get_submodule(f"{stacks[0]}.0")
    linear = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    ups = [(n, m) for n, m in linear if m.in_features == hidden and m.out_features != hidden]
    downs = [(n, m) for n, m in linear if m.out_features == hidden and m.in_features != hidden]
    if len(ups) != 1 or len(downs) != 1 or ups[0][1].out_features != downs[0][1].in_features:
        raise StudentError(
            f"expected one feed-forward pair in each {model.config.model_type} layer; this one is built otherwise"
        )
    if getattr(model.config, "intermediate_size", None) != ups[0][1].out_features:
        raise StudentError(f"a {model.config.model_type} config without intermediate_size cannot be narrowed")
    return EncoderParts(stacks[0], ups[0][0], downs[0][0], depth, ups[0][1].out_features, depth_key)


def chosen_layers(wanted: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Layer indices: as given, or `wanted` of them evenly spaced with the first and the last. Raises StudentError."""
    if isinstance(wanted, int):
        if not 1 <= wanted <= depth:
            raise StudentError(f"student.layers: expected 1 to {depth} (the teacher's depth), got {wanted}")
        return tuple(round(i * (depth - 1) / max(wanted - 1, 1)) for i in range(wanted)) if wanted > 1 else (0,)
    if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= depth:
        raise StudentError(
            f"student.layers: expected ascending layer numbers from 0 to {depth - 1}, got {list(wanted)}"
        )
    return wanted


def student_config(
    config: PretrainedConfig, parts: EncoderParts, spec: EncoderStudent, vocabulary: int
) -> PretrainedConfig:
    """The teacher's config with the student's sizes. Raises StudentError when it would not be smaller."""
    if spec.ffn is not None and spec.ffn > parts.ffn:
        raise StudentError(f"student.ffn: expected at most {parts.ffn} (the teacher's), got {spec.ffn}")
    smaller = copy.deepcopy(config)
    setattr(smaller, parts.depth_key, len(chosen_layers(spec.layers, parts.depth)))
    smaller.intermediate_size = spec.ffn or parts.ffn
    smaller.vocab_size = vocabulary
    return smaller


def derive_encoder(
    model: PreTrainedModel,
    tokenizer_file: Path,
    spec: EncoderStudent,
    training_ids: list[NDArray[np.int64]],
    folder: Path,
) -> Student:
    """Writes the student into `folder` in Hugging Face layout: config.json, model.safetensors, tokenizer.json.

    `training_ids` (under the teacher's tokenizer) decide which tokens and which neurons stay. Raises StudentError.
    """
    parts = find_parts(model)
    layers = chosen_layers(spec.layers, parts.depth)
    trimmed = (
        trim_vocabulary(tokenizer_file, training_ids, spec.vocab)
        if spec.vocab is not None
        else TrimmedVocabulary(tokenizer_file.read_text(encoding="utf-8"), np.arange(model.config.vocab_size))
    )
    config = student_config(model.config, parts, spec, len(trimmed.kept_ids))
    if model.config.pad_token_id is not None:
        config.pad_token_id = _new_id(trimmed.kept_ids, model.config.pad_token_id)
    neurons = _active_neurons(model, parts, layers, config.intermediate_size, tokenizer_file, training_ids)
    state = _cut_weights(model, parts, layers, neurons, torch.from_numpy(trimmed.kept_ids))
    student = type(model)(config)
    student.load_state_dict(state)
    write_encoder(student, folder)
    write_atomic(folder / "tokenizer.json", for_device(trimmed.tokenizer, spec.max_length).encode())
    notes = (
        f"layers {', '.join(map(str, layers))} of {parts.depth}",
        f"feed-forward {config.intermediate_size} of {parts.ffn}",
        f"vocabulary {config.vocab_size} of {model.config.vocab_size}",
    )
    return Student(folder, sum(p.numel() for p in student.parameters()), notes)


def _new_id(kept_ids: NDArray[np.int64], old: int) -> int:
    new = int(np.searchsorted(kept_ids, old))
    if new == len(kept_ids) or kept_ids[new] != old:
        raise StudentError(f"the padding token {old} is no special token of the tokenizer; set student.vocab to null")
    return new


def write_encoder(model: PreTrainedModel, folder: Path) -> None:
    """config.json and model.safetensors, each replaced atomically."""
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomic(folder / "config.json", model.config.to_json_string().encode())
    write_atomic(folder / "model.safetensors", safetensors.torch.save(state, metadata={"format": "pt"}))


def _cut_weights(
    model: PreTrainedModel,
    parts: EncoderParts,
    layers: tuple[int, ...],
    neurons: dict[int, Tensor],
    kept_ids: Tensor,
) -> dict[str, Tensor]:
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    cut: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == f"{embedding}.weight":
            cut[name] = tensor[kept_ids].clone()
        elif not name.startswith(f"{parts.stack}."):
            cut[name] = tensor.clone()
        else:
            index, _, rest = name.removeprefix(f"{parts.stack}.").partition(".")
            if int(index) in layers:
                kept = neurons[int(index)]
                new = f"{parts.stack}.{layers.index(int(index))}.{rest}"
                if rest.startswith(f"{parts.up}."):
                    tensor = tensor[kept]
                elif rest == f"{parts.down}.weight":
                    tensor = tensor[:, kept]
                cut[new] = tensor.clone()
    return cut


def _active_neurons(
    model: PreTrainedModel,
    parts: EncoderParts,
    layers: tuple[int, ...],
    width: int,
    tokenizer_file: Path,
    training_ids: list[NDArray[np.int64]],
) -> dict[int, Tensor]:
    """Per layer, the `width` neurons that reach furthest: mean |activation| times the norm of what it feeds."""
    if width == parts.ffn:
        return {layer: torch.arange(width) for layer in layers}
    reach = {layer: torch.zeros(parts.ffn) for layer in layers}

    def record(layer: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reach[layer] += inputs[0].detach().abs().flatten(0, -2).mean(0)

        return hook

    hooks = [
        model.get_submodule(f"{parts.stack}.{layer}.{parts.down}").register_forward_pre_hook(record(layer))
        for layer in layers
    ]
    preprocessor = TextPreprocessor(tokenizer_file, 128)
    with torch.inference_mode():
        for feed in _sample_feeds(preprocessor, training_ids):
            model(**{name: torch.from_numpy(array) for name, array in feed.items()})
    for hook in hooks:
        hook.remove()
    kept = {}
    for layer in layers:
        outgoing = model.get_parameter(f"{parts.stack}.{layer}.{parts.down}.weight").detach().norm(dim=0)
        kept[layer] = torch.topk(reach[layer] * outgoing, width).indices.sort().values
    return kept


def _sample_feeds(preprocessor: TextPreprocessor, training_ids: list[NDArray[np.int64]]) -> Iterable[Feed]:
    sample = training_ids[: 8 * _IMPORTANCE_BATCH]
    for start in range(0, len(sample), _IMPORTANCE_BATCH):
        yield preprocessor.collate(sample[start : start + _IMPORTANCE_BATCH])
