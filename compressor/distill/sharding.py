"""A teacher that is too large for one device, in parts on those of several processes (FSDP2).

Each process holds a part of every weight. Before a layer runs its weights are gathered, after it they are let go, so a
device needs room for its part and one layer at a time; what is in no layer counts as one. Zhao et al. 2023, "PyTorch
FSDP".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from torch.distributed.fsdp import fully_shard

from compressor.distill import team
from compressor.errors import TeacherError


def sharded(load: Callable[[], nn.Module]) -> nn.Module:
    """What `load` gives, with its weights spread over the team's processes, all of which call this.

    They load one after the other, so that the host never holds more than one whole copy for it. From then on the module
    runs in all processes or in none, each with inputs of its own. Raises TeacherError where there are no layers.
    """
    mesh = team.mesh()
    found: list[nn.Module] = []

    def take_part() -> None:
        module = load()
        layers = list(_layers(module))
        if not layers:
            raise TeacherError("teacher.shard: found no layers to share among processes; set it to false")
        for part in (*layers, module):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        found.append(module)

    team.take_turns(take_part)
    return found[0]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Those of the outermost lists: what a layer has in it, such as experts, may run in some processes only."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (part for part in child if any(True for _ in part.parameters()))
        else:
            yield from _layers(child)
