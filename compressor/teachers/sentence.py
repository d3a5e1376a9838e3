"""A sentence-transformers folder, read as data: `modules.json` and what it names, without that package.

The modules are an encoder in Hugging Face layout, a pooling, then any number of dense layers and normalisations.
Documented at https://sbert.net/docs/sentence_transformer/usage/custom_models.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from compressor.errors import TeacherError
from compressor.intake.files import check_within, read_bounded
from compressor.intake.json_text import strict_json
from compressor.intake.safetensors import check_safetensors
from compressor.tokenizer_file import open_tokenizer, tokenizing

_MOST_JSON_BYTES = 1 << 20
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Activation = Literal["Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU"]
# What `pooling_mode` is in folders from before version 5, in the order in which several are concatenated.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Dense:
    """activation(x W^T + b): `weight` float32 [out, in], `bias` float32 [out] or None."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: Activation


@dataclass(frozen=True)
class Normalize:
    """Division by the Euclidean norm."""


@dataclass(frozen=True)
class SentenceHead:
    """How token vectors become one: poolings, concatenated in this order, then layers one after the other."""

    poolings: tuple[Pooling, ...] = ("mean",)
    layers: tuple[Dense | Normalize, ...] = ()


def encoder_folder(folder: Path) -> Path:
    """Where the encoder of a teacher's folder lies: the folder itself unless its modules.json says otherwise.

    Raises TeacherError.
    """
    modules = _modules(folder)
    return folder if not modules else _inside(folder, modules[0])


def read_head(folder: Path) -> SentenceHead:
    """The head that a folder describes; mean pooling where it describes none.

    Raises TeacherError for modules, settings or weights that are not supported or not readable.
    """
    modules = _modules(folder)
    if not modules:
        note = folder / "1_Pooling" / "config.json"
        return SentenceHead(_poolings(note.parent)) if note.is_file() else SentenceHead()
    kinds = [_kind(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or any(kind not in ("Dense", "Normalize") for kind in kinds[2:]):
        raise TeacherError(
            f"{folder}: consists of {', '.join(kinds)}; expected Transformer, Pooling, then Dense and Normalize"
        )
    _check_text_settings(folder, _inside(folder, modules[0]))
    poolings = _poolings(_inside(folder, modules[1]))
    layers = tuple(
        Normalize() if kind == "Normalize" else _dense(_inside(folder, module))
        for kind, module in zip(kinds[2:], modules[2:], strict=True)
    )
    return SentenceHead(poolings, layers)


def _modules(folder: Path) -> list[dict[str, str]]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules = _json(path)
    if (
        not isinstance(modules, list)
        or not modules
        or not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules)
        or not all(isinstance(m.get("path"), str) for m in modules)
    ):
        raise TeacherError(f"{path}: expected a list of modules, each with a type and a path")
    return modules


def _kind(module: dict[str, str]) -> str:
    return module["type"].rpartition(".")[2]


def _inside(folder: Path, module: dict[str, str]) -> Path:
    path = folder / module["path"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise TeacherError(f"{folder}: modules.json names {module['path']}, which lies outside of the folder")
    return path


def _json(path: Path) -> Any:
    return strict_json(read_bounded(path, _MOST_JSON_BYTES, TeacherError), str(path), TeacherError, constants=True)


def _settings(path: Path) -> dict[str, Any]:
    found = _json(path)
    if not isinstance(found, dict):
        raise TeacherError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _poolings(folder: Path) -> tuple[Pooling, ...]:
    path = folder / "config.json"
    settings = _settings(path)
    chosen = settings.get("pooling_mode")
    if chosen is None:
        chosen = [pooling for flag, pooling in _FLAGS.items() if settings.get(flag) is True] or ["mean"]
    modes = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(modes, list) or not modes or not all(mode in get_args(Pooling) for mode in modes):
        raise TeacherError(f"{path}: expected a pooling of {', '.join(get_args(Pooling))}, got {chosen!r}")
    return cast("tuple[Pooling, ...]", tuple(modes))


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    settings = _settings(path)
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in get_args(Activation) or settings.get("use_residual"):
        raise TeacherError(
            f"{path}: expected a dense layer without residual, its activation one of"
            f" {', '.join(get_args(Activation))}, got {settings.get('activation_function')}"
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise TeacherError(f"{folder}: expected the dense layer's weights as model.safetensors, found none")
    check_within(file, folder, TeacherError)
    check_safetensors(file, TeacherError)
    try:
        state = load_file(file)
        weight, bias = state["linear.weight"], state.get("linear.bias")
    except (SafetensorError, KeyError) as error:
        raise TeacherError(f"{file}: expected linear.weight in a safetensors file: {error}") from None
    expected = (settings.get("out_features"), settings.get("in_features"))
    if weight.shape != expected or (bias is not None and bias.shape != expected[:1]):
        raise TeacherError(f"{file}: expected linear.weight {expected} as config.json says, got {weight.shape}")
    return Dense(
        weight.astype(np.float32), None if bias is None else bias.astype(np.float32), cast(Activation, activation)
    )


def _check_text_settings(folder: Path, encoder: Path) -> None:
    """What changes the text before the tokenizer sees it must be in the tokenizer: a device has nothing else."""
    config = folder / "config_sentence_transformers.json"
    prompt = _settings(config).get("default_prompt_name") if config.is_file() else None
    if prompt is not None:
        raise TeacherError(
            f"{config}: puts the prompt {prompt!r} before every text; expected default_prompt_name null: write the"
            " prompt into the texts"
        )
    note, tokenizer = encoder / "sentence_bert_config.json", encoder / "tokenizer.json"
    if note.is_file() and _settings(note).get("do_lower_case") is True and tokenizer.is_file():
        normalizer = open_tokenizer(tokenizer).normalizer
        with tokenizing(tokenizer):
            lowers = normalizer is not None and normalizer.normalize_str("A") == "a"
        if not lowers:
            raise TeacherError(f"{note}: lowers the case of texts, which tokenizer.json does not; expected it there")
