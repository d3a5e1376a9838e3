"""The Triton kernels compiled for GPUs that need not be there: no register is spilled, and loads are 16 bytes wide.

As a script, `python test_triton_compiled.py ARCHITECTURE [full]`, this file compiles and prints a JSON line for each
kernel: of every tile in the tables, and of the tiles that are taken untimed, or with `full` of all, every variant.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

ROWS = 2
NARROWEST_WIDE = 2048  # columns of a tile from where on every thread has 16 bytes to load
# Bytes that may be kept in memory, by architecture. On sm_100 the compiler puts one number there, read once a row, to
# fit another program on the multiprocessor.
SPARED = {80: 0, 90: 0, 100: 8}


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and the bytes it keeps in memory for want of them."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    assert found, listing
    return {"registers": int(found[1]), "spilled_bytes": int(found[2]) + int(found[3])}


def widths(ptx: str, operation: str) -> dict[str, int]:
    """How many instructions load from (ld) or store to (st) global memory, by width."""
    counts: dict[str, int] = {}
    for kind in re.findall(rf"\b{operation}\.global(?:\.\w+)*?((?:\.v\d)?\.b\d+)", ptx):
        counts[kind] = counts.get(kind, 0) + 1
    return counts


class Compiler:
    """Stands in for a GPU's driver: a launch compiles, and is not made."""

    def __init__(self, architecture: int) -> None:
        import triton
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", architecture, 32)
        self.compiled: list[Any] = []
        triton.runtime.driver.set_active(self)
        launch = triton.JITFunction.run

        def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            del warmup
            found = launch(kernel, *arguments, grid=grid, warmup=True, **options)
            self.compiled.append((kernel.__name__, options["num_warps"], found))
            return found

        triton.JITFunction.run = compile_only

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def plans() -> Iterator[tuple[Any, bool]]:
    """Every tile of the tables; and whether calls of 8192 columns and more take it without having been timed."""
    from compressor.kernels import triton_launch as launch

    for block, choice in launch.RESIDENT.items():
        for warps in choice:
            yield launch.Plan("resident", block, warps), (block, warps) == (8192, launch.RESIDENT[8192][0])
    for block, warps in launch.LOOPED:
        yield launch.Plan("looped", block, warps), (block, warps) == launch.LOOPED[0]
    yield launch.Plan("split", *launch.LOOPED[0], 3), True


def calls(full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names, and what `call` is given."""
    hard = {"hard_weight": 0.5}
    for plan, default in plans():
        yield "soft and hard", {"plan": plan, **hard}
        if not (full or default):
            continue
        yield "soft", {"plan": plan}
        yield "jsd", {"plan": plan, **hard, "divergence": "jsd"}
        yield "float32", {"plan": plan, **hard, "dtype": torch.float32}
        if plan.kernel == "split" or (not full and plan.kernel == "resident"):
            continue
        yield "any temperature", {"plan": plan, **hard, "temperature": 3.0, "label_smoothing": 0.1, "weights": True}
        yield "reverse_kl", {"plan": plan, **hard, "divergence": "reverse_kl"}
        yield "total_variation", {"plan": plan, **hard, "divergence": "total_variation"}
        yield "jsd, float32", {"plan": plan, **hard, "divergence": "jsd", "dtype": torch.float32}
        yield "float16", {"plan": plan, **hard, "dtype": torch.float16, "gradient_dtype": torch.float32}
        yield "mixed dtypes", {"plan": plan, **hard, "teacher_dtype": torch.float32}
        yield "loss alone", {"plan": plan, **hard, "gradient": False}
        yield "cross-entropy alone", {"plan": plan, "hard_weight": 1.0}
        if plan.kernel == "looped":
            yield "rows between units", {"plan": plan, **hard, "width": 50257}
            yield "masked vocabulary", {"plan": plan, **hard, "teacher_width": 127000, "vocabulary": "mask"}
            yield "truncated vocabulary", {"plan": plan, **hard, "teacher_width": 127000, "vocabulary": "truncate"}
            for mode in ("zero", "ghost", "sampled") if default else ():  # which take no other tile
                yield f"sparse {mode}", {"plan": plan, **hard, "sparse": mode}


def call(
    plan: Any,
    temperature: float = 2.0,
    divergence: str = "forward_kl",
    dtype: torch.dtype = torch.bfloat16,
    teacher_dtype: torch.dtype | None = None,
    width: int = 128256,
    teacher_width: int | None = None,
    gradient: bool = True,
    gradient_dtype: torch.dtype | None = None,
    weights: bool = False,
    sparse: str | None = None,
    **settings: Any,
) -> None:
    """One call of the loss, on tensors that nothing reads."""
    from compressor.kernels import triton_launch as launch
    from compressor.kernels.settings import LossInputs, LossSettings, SparseTeacher

    if plan.kernel == "resident":
        width = plan.block
    student = torch.empty(ROWS, width, dtype=dtype)
    teacher: Any = torch.empty(ROWS, teacher_width or width, dtype=teacher_dtype or dtype)
    if sparse:
        teacher = SparseTeacher(torch.zeros(ROWS, 64, dtype=torch.int64), torch.zeros(ROWS, 64), sparse)  # type: ignore[arg-type]
    asked = LossSettings(temperature, divergence, **settings)  # type: ignore[arg-type]
    labels = torch.zeros(ROWS, dtype=torch.int64) if asked.hard_weight else None
    classes = torch.ones(width) if weights else None
    inputs = LossInputs(student, teacher, labels, torch.ones(ROWS) if weights else None, classes)
    launch.row_losses(
        inputs, asked, torch.empty_like(student, dtype=gradient_dtype) if gradient else None, torch.ones(()), plan
    )


def scale_calls() -> None:
    from compressor.kernels import triton_launch as launch

    for dtype in (torch.bfloat16, torch.float32):
        gradient = torch.empty(ROWS, 4096, dtype=dtype)
        launch.scaled(gradient, torch.ones(()), True)
        launch.scaled(gradient, torch.ones(ROWS), False)


def main(architecture: int, full: bool) -> None:
    from compressor.kernels.triton_launch import Plan

    compiler = Compiler(architecture)
    runs = [(name, given["plan"], partial(call, **given)) for name, given in calls(full)]
    runs.append(("scaled", Plan("looped", 4096, 8), scale_calls))
    wide = Plan("resident", 32768, 16)
    runs.append(("too wide", wide, partial(call, plan=wide)))
    for name, plan, run in runs:
        compiler.compiled.clear()
        run()
        for kernel, warps, found in compiler.compiled:
            row = {"kernel": kernel, "case": name, "block": plan.block, "warps": warps, **usage(found.asm["cubin"])}
            row |= {operation: widths(found.asm["ptx"], operation) for operation in ("ld", "st")}
            print(json.dumps(row), flush=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_nothing_is_spilled_and_loads_are_wide(architecture: int, cache: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, __file__, str(architecture)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert {row["kernel"] for row in rows} >= {"resident", "looped", "split_gradient", "sparse", "scale"}
    for row in rows:
        if row["case"] == "too wide":
            assert row["spilled_bytes"] > 100, "what is counted here cannot fail"
            continue
        assert row["spilled_bytes"] <= SPARED[architecture], row
        if row["block"] < NARROWEST_WIDE:
            continue
        assert row["ld"].get(".v4.b32", 0) >= 2, row
        assert row["st"].get(".v4.b32", 0) >= 1 or "gradient" not in row["kernel"], row


if __name__ == "__main__":
    main(int(sys.argv[1]), "full" in sys.argv[2:])
