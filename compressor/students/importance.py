"""What of a model matters, measured on data: dimensions of the hidden state, heads, neurons, layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import StudentError
from compressor.students.structure import Parts, axes, hooked

TorchFeed = dict[str, Tensor]


@dataclass(frozen=True)
class Importance:
    """All float64, larger is more. By rows the layers: `inner` the attention's outputs before they are written back,
    `heads` the same by head, `queries` and `keys` the mean size of those, `neurons` the feed-forward's; `hidden` is of
    the whole model. `influence` [layers] is 1 - cosine of a layer's input and output (Men et al. 2024, ShortGPT).
    """

    hidden: Tensor
    inner: Tensor
    heads: Tensor
    queries: Tensor
    keys: Tensor
    neurons: Tensor
    influence: Tensor


def measure(model: PreTrainedModel, parts: Parts, feeds: Iterable[TorchFeed], method: str) -> Importance:
    """Of `method` "activation": the mean size of every activation over the tokens that are no padding, times the norm
    of the weights that read it; of the hidden state, the mean size of all the norms' outputs (Muralidharan et al. 2024,
    Minitron). Of "gradient": the mean square of the output's derivative by a gate of 1 on each (Michel et al. 2019),
    along a random direction of the output per example.
    """
    held = list(feeds)
    found = _by_activation(model, parts, held)
    return _by_gradient(model, parts, held, found) if method == "gradient" else found


def hidden_norms(model: nn.Module, hidden: int) -> dict[str, nn.Module]:
    """The norms of the hidden state, by name: modules with nothing but a weight (and a bias) of its size."""
    return {
        name: module
        for name, module in model.named_modules()
        if not list(module.children())
        and isinstance(getattr(module, "weight", None), Tensor)
        and all(parameter.shape == (hidden,) for parameter in module.parameters())
    }


@dataclass(frozen=True)
class NormStatistics:
    """How a norm of fewer dimensions relates to the whole one, averaged over tokens: its deviation as a share of the
    whole one's, and how far its mean lies from the whole one's, in whole deviations.
    """

    spread: float
    shift: float


def norm_statistics(
    model: PreTrainedModel, hidden: int, kept: Tensor, feeds: Iterable[TorchFeed]
) -> dict[str, NormStatistics]:
    """Of every norm of the hidden state, of the dimensions `kept` of it. Raises StudentError for an unknown norm."""
    totals: dict[str, Tensor] = {}

    def watch(name: str, centred: bool, epsilon: float) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = _tokens(inputs[0], current[0])
            mean, deviation = _moments(rows, centred, epsilon)
            # The epsilon that the student adds is the same one, on fewer dimensions.
            kept_mean, kept_deviation = _moments(rows[:, kept], centred, epsilon)
            both = torch.stack([kept_deviation / deviation, (kept_mean - mean) / deviation])
            totals[name] = totals.get(name, torch.zeros(3, dtype=torch.float64)) + torch.cat(
                [both.sum(1), torch.tensor([float(len(rows))])]
            )

        return hook

    current: list[Tensor | None] = [None]
    norms = hidden_norms(model, hidden)
    handles = [m.register_forward_pre_hook(watch(n, *_kind_of_norm(n, m, hidden))) for n, m in norms.items()]
    with hooked(handles, model):
        for feed in feeds:
            current[0] = feed.get("attention_mask")
            model(**feed)
    return {
        name: NormStatistics(float(total[0] / total[2]), float(total[1] / total[2])) for name, total in totals.items()
    }


def _kind_of_norm(name: str, module: Any, hidden: int) -> tuple[bool, float]:
    """Whether it subtracts the mean, and its epsilon; tried out, for models have norms of their own."""
    centred = isinstance(module, nn.LayerNorm)
    epsilon = float(getattr(module, "eps", getattr(module, "variance_epsilon", 0.0)) or 0.0)
    sample = torch.randn(4, hidden, generator=torch.Generator().manual_seed(0))
    mean, deviation = _moments(sample.double(), centred, epsilon)
    expected = (sample - mean[:, None]) / deviation[:, None] * module.weight.detach()
    if getattr(module, "bias", None) is not None:
        expected = expected + module.bias.detach()
    with torch.no_grad():
        found = module(sample)
    if not torch.allclose(found.double(), expected.double(), rtol=1e-3, atol=1e-5):
        raise StudentError(
            f"{name} is neither a LayerNorm nor an RMSNorm with its plain weight: student.hidden cannot be changed"
        )
    return centred, epsilon


def _moments(rows: Tensor, centred: bool, epsilon: float) -> tuple[Tensor, Tensor]:
    mean = rows.mean(1) if centred else rows.new_zeros(len(rows))
    return mean, ((rows - mean[:, None]).square().mean(1) + epsilon).sqrt()


def _tokens(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """float64 [tokens, width] of a tensor [batch, sequence, width], without padding."""
    if mask is not None and tensor.shape[:2] == mask.shape:
        return tensor[mask.bool()].double()
    return tensor.flatten(0, -2).double()


def _by_activation(model: PreTrainedModel, parts: Parts, feeds: list[TorchFeed]) -> Importance:
    inner, key_width = parts.heads * parts.head_dim, parts.kv_heads * parts.head_dim
    sums = {name: torch.zeros(parts.depth, size, dtype=torch.float64) for name, size in (
        ("writes", inner), ("falls", parts.ffn), ("queries", inner), ("keys", key_width), ("influence", 1),
    )}  # fmt: skip
    hidden = torch.zeros(parts.hidden, dtype=torch.float64)
    current: list[Tensor | None] = [None]

    def into(name: str, layer: int, columns: slice = slice(None)) -> Callable[[Tensor], None]:
        def add(tensor: Tensor) -> None:
            sums[name][layer] += _tokens(tensor, current[0])[:, columns].abs().mean(0)

        return add

    def turned(layer: int) -> Any:
        def hook(_module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
            before = _tokens(inputs[0] if inputs else named["hidden_states"], current[0])
            after = _tokens(output[0] if isinstance(output, tuple) else output, current[0])
            sums["influence"][layer] += 1 - torch.cosine_similarity(before, after, dim=-1).mean()

        return hook

    def add_norm(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        hidden.add_(_tokens(output, current[0]).abs().mean(0))

    handles = [m.register_forward_hook(add_norm) for m in hidden_norms(model, parts.hidden).values()]
    for index in range(parts.depth):
        layer = model.get_submodule(f"{parts.stack}.{index}")
        for name, path in (("writes", parts.writes), ("falls", parts.falls)):
            handles.append(layer.get_submodule(path).register_forward_pre_hook(_of_input(into(name, index))))
        fused = len(parts.reads) == 1
        keys = slice(inner, inner + key_width) if fused else slice(None)
        for name, path, columns in (
            ("queries", parts.reads[0], slice(0, inner)),
            ("keys", parts.reads[-2 + fused], keys),
        ):
            handles.append(layer.get_submodule(path).register_forward_hook(_of_output(into(name, index, columns))))
        handles.append(layer.register_forward_hook(turned(index), with_kwargs=True))
    with hooked(handles, model):
        for feed in feeds:
            current[0] = feed.get("attention_mask")
            model(**feed)
    reach = {name: sums[name] * _readers(model, parts, getattr(parts, name)) for name in ("writes", "falls")}
    heads = reach["writes"].reshape(parts.depth, parts.heads, parts.head_dim).sum(-1)
    return Importance(
        hidden, reach["writes"], heads, sums["queries"], sums["keys"], reach["falls"], sums["influence"][:, 0]
    )


def _of_input(add: Callable[[Tensor], None]) -> Any:
    return lambda _module, inputs: add(inputs[0])


def _of_output(add: Callable[[Tensor], None]) -> Any:
    return lambda _module, _inputs, output: add(output)


def _readers(model: PreTrainedModel, parts: Parts, path: str) -> Tensor:
    """By layer, the norm of the weights that read each input of the linear map `path`."""
    norms = []
    for index in range(parts.depth):
        module: Any = model.get_submodule(f"{parts.stack}.{index}.{path}")
        norms.append(module.weight.detach().double().norm(dim=axes(module)[0]))
    return torch.stack(norms)


def _by_gradient(model: PreTrainedModel, parts: Parts, feeds: list[TorchFeed], found: Importance) -> Importance:
    squares = [torch.zeros_like(t) for t in (found.hidden, found.inner, found.heads, found.neurons)]
    generator = torch.Generator().manual_seed(0)
    for feed in feeds:
        rows = len(next(iter(feed.values())))
        of_norms = torch.ones(rows, 1, parts.hidden, requires_grad=True)
        gates = {
            (path, index): torch.ones(rows, 1, width, requires_grad=True)
            for path, width in ((parts.writes, parts.heads * parts.head_dim), (parts.falls, parts.ffn))
            for index in range(parts.depth)
        }
        handles = [m.register_forward_hook(_gate_output(of_norms)) for m in hidden_norms(model, parts.hidden).values()]
        for (path, index), gate in gates.items():
            module = model.get_submodule(f"{parts.stack}.{index}.{path}")
            handles.append(module.register_forward_pre_hook(_gate_input(gate)))
        with hooked(handles, model, gradients=True):
            output: Tensor = model(**feed)[0]
            mask = feed.get("attention_mask")
            if mask is not None and output.shape[:2] == mask.shape:
                output = output * mask[..., None]
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
            grads = torch.autograd.grad((output * signs).sum(), [of_norms, *gates.values()])
        by_gate = dict(zip(gates, grads[1:], strict=True))
        squares[0] += grads[0][:, 0].double().square().sum(0)
        for index in range(parts.depth):
            inner = by_gate[parts.writes, index][:, 0].double()
            squares[1][index] += inner.square().sum(0)
            squares[2][index] += inner.reshape(rows, parts.heads, parts.head_dim).sum(-1).square().sum(0)
            squares[3][index] += by_gate[parts.falls, index][:, 0].double().square().sum(0)
    return Importance(squares[0], squares[1], squares[2], found.queries, found.keys, squares[3], found.influence)


def _gate_output(gate: Tensor) -> Any:
    return lambda _module, _inputs, output: _gated(output, gate)


def _gate_input(gate: Tensor) -> Any:
    return lambda _module, inputs: (_gated(inputs[0], gate), *inputs[1:])


def _gated(tensor: Tensor, gate: Tensor) -> Tensor:
    if tensor.ndim != gate.ndim or len(tensor) != len(gate):
        raise StudentError("student.importance: gradient needs hidden states [batch, sequence, width]; use activation")
    return tensor * gate
