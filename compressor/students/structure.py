"""Where a transformer keeps what can be cut, found by running it once: no table of architectures.

In a pre- or post-norm transformer layer the linear maps that read the same tensor belong together, and run in this
order: query, key and value (or the three fused), the attention's output, the feed-forward's first map (with its gate,
or the two fused), its second. What each part is taken to be is checked by disturbing it and looking where that arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from optimum.utils import NormalizedConfigManager
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compressor.errors import StudentError

# What configs call the feed-forward width; optimum's normalized configs have no word for it.
_FFN_KEYS = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim")


@dataclass(frozen=True)
class Parts:
    """Sizes of a model and the names of its parts; of the linear maps, the names within a layer.

    `reads` are query, key and value, or one map that has their outputs one after the other; `rises` the feed-forward's
    first map with its gate behind it, or one map that has both. `*_key` are the config's attributes.
    """

    stack: str
    reads: tuple[str, ...]
    writes: str
    rises: tuple[str, ...]
    falls: str
    depth: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    depth_key: str
    hidden_key: str
    heads_key: str
    ffn_key: str

    @property
    def group(self) -> int:
        """Query heads to each key and value head; 1 without grouped-query attention."""
        return self.heads // self.kv_heads

    @property
    def widths(self) -> tuple[int, int, int]:
        """Outputs that are queries, keys and values."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim


def find_parts(model: PreTrainedModel) -> Parts:
    """The parts of a transformer of one stack. Raises StudentError when it is built in a way that cannot be cut."""
    kind, config = model.config.model_type, model.config
    depth_key, hidden_key, heads_key = _names(config)
    depth, hidden, heads = (int(getattr(config, key)) for key in (depth_key, hidden_key, heads_key))
    stack = _stack(model, depth)
    groups = _groups(model, f"{stack}.0")
    layer = model.get_submodule(f"{stack}.0")
    if len(groups) != 4 or [len(group) for group in groups[1::2]] != [1, 1] or len(groups[0]) not in (1, 3):
        raise StudentError(
            f"expected attention, then one feed-forward in each {kind} layer; this one is built otherwise"
        )
    reads, (writes,), rises, (falls,) = groups
    inner, ffn = width_in(layer, writes), width_in(layer, falls)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    parts = Parts(
        stack=stack, reads=reads, writes=writes, rises=rises, falls=falls,
        depth=depth, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=inner // heads, ffn=ffn,
        depth_key=depth_key, hidden_key=hidden_key, heads_key=heads_key, ffn_key=_ffn_key(config, ffn),
    )  # fmt: skip
    q, k, v = parts.widths
    outputs = [width_out(layer, name) for name in reads]
    rising = [width_out(layer, name) for name in rises]
    if outputs not in ([q, k, v], [q + k + v]) or rising not in ([ffn], [ffn, ffn], [2 * ffn]):
        raise StudentError(
            f"the linear maps of a {kind} layer have {outputs} and {rising} outputs, which does not fit {heads} heads"
            f" of {parts.head_dim} and a feed-forward of {ffn}"
        )
    _check(model, parts)
    return parts


def tiny_feed(model: PreTrainedModel) -> dict[str, Tensor]:
    """The smallest sensible input: two rows of three tokens, or two images."""
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, model.config.num_channels, height, width, generator=generator)}
    ids = torch.arange(6).reshape(2, 3) % model.config.vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def axes(module: nn.Module) -> tuple[int, int]:
    """Of a linear map's weight, the axis of its outputs and that of its inputs; GPT-2's Conv1D has them swapped."""
    return (1, 0) if isinstance(module, Conv1D) else (0, 1)


def width_out(layer: nn.Module, name: str) -> int:
    """Outputs of the linear map `name` of a layer."""
    module: Any = layer.get_submodule(name)
    return int(module.weight.shape[axes(module)[0]])


def width_in(layer: nn.Module, name: str) -> int:
    """Inputs of the linear map `name` of a layer."""
    module: Any = layer.get_submodule(name)
    return int(module.weight.shape[axes(module)[1]])


def _names(config: PretrainedConfig) -> tuple[str, str, str]:
    """The config's names for depth, width and heads, as optimum's normalized configs know them."""
    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        names = tuple(
            str(getattr(normalized, key.upper(), standard))
            for key, standard in (
                ("num_layers", "num_hidden_layers"),
                ("hidden_size", "hidden_size"),
                ("num_attention_heads", "num_attention_heads"),
            )
        )
        if all(isinstance(getattr(config, name), int) for name in names):
            return names[0], names[1], names[2]
    except (KeyError, AttributeError, NotImplementedError):
        pass
    raise StudentError(f"no student can be derived from a {config.model_type!r} model: its config is unknown")


def _ffn_key(config: PretrainedConfig, ffn: int) -> str:
    for key in _FFN_KEYS:
        # GPT-2's null stands for four times its width.
        if hasattr(config, key) and getattr(config, key) in (ffn, None):
            return key
    raise StudentError(f"a {config.model_type} config does not say how wide the feed-forward is: it cannot be narrowed")


def _stack(model: PreTrainedModel, depth: int) -> str:
    stacks: list[str] = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(stacks) != 1:
        raise StudentError(
            f"expected one stack of {depth} layers in a {model.config.model_type} model, found {len(stacks)}"
        )
    return stacks[0]


def _groups(model: PreTrainedModel, layer: str) -> list[tuple[str, ...]]:
    """A layer's linear maps in the order in which they run, those that read the same tensor together."""
    seen: list[tuple[Tensor, list[str]]] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for tensor, names in seen:
                if tensor.data_ptr() == inputs[0].data_ptr() and tensor.shape == inputs[0].shape:
                    names.append(name)
                    return
            seen.append((inputs[0], [name]))  # held, so that its memory is not used for another

        return hook

    linear = [(n, m) for n, m in model.get_submodule(layer).named_modules() if isinstance(m, nn.Linear | Conv1D)]
    with hooked((module.register_forward_pre_hook(watch(name)) for name, module in linear), model):
        model(**tiny_feed(model))
    return [tuple(names) for _, names in seen]


@contextmanager
def hooked(handles: Iterable[Any], model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Within it `model` is in evaluation mode, by default without gradients; the hooks are removed at the end."""
    training, registered = model.training, list(handles)
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            model.eval()
            yield
    finally:
        model.train(training)
        for handle in registered:
            handle.remove()


def _check(model: PreTrainedModel, parts: Parts) -> None:
    """Disturbs the last head and the last neuron of the first layer: nothing but themselves may change."""
    q, k, v = parts.widths
    first = torch.tensor([0, q, q + k]) + torch.tensor([q, k, v]) - parts.head_dim
    spots = [torch.arange(int(start), int(start) + parts.head_dim) for start in first]
    if len(parts.reads) == 3:
        disturbed = dict(zip(parts.reads, (s - o for s, o in zip(spots, (0, q, q + k), strict=True)), strict=True))
    else:
        disturbed = {parts.reads[0]: torch.cat(spots)}
    # The last key and value head serves the last `group` query heads.
    _expect(model, parts, disturbed, parts.writes, parts.group * parts.head_dim)
    wide = width_out(model.get_submodule(f"{parts.stack}.0"), parts.rises[0])
    last = torch.arange(parts.ffn - 1, wide, parts.ffn)
    _expect(model, parts, dict.fromkeys(parts.rises, last), parts.falls, 1)


def _expect(model: PreTrainedModel, parts: Parts, disturbed: dict[str, Tensor], reader: str, last: int) -> None:
    layer = model.get_submodule(f"{parts.stack}.0")
    found: list[Tensor] = []

    def disturb(where: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[..., where] += torch.linspace(1, 2, len(where)) * (1 + output.abs().max())
            return changed

        return hook

    def read(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].clone())

    reading = layer.get_submodule(reader)
    with hooked([reading.register_forward_pre_hook(read)], model):
        model(**tiny_feed(model))
    handles = [layer.get_submodule(name).register_forward_hook(disturb(at)) for name, at in disturbed.items()]
    with hooked([*handles, reading.register_forward_pre_hook(read)], model):
        model(**tiny_feed(model))
    changed = (found[0] != found[1]).flatten(0, -2).any(dim=0)
    if changed[:-last].any() or not changed[-last:].any():
        raise StudentError(
            f"a {model.config.model_type} layer keeps its heads or neurons in an order that is not known: no student"
            " can be cut from it"
        )
