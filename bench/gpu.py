"""How close do the GPU kernels of the distillation loss come to the memory's speed, and how do others compare?

First every kernel is held against float64; nothing is timed if one disagrees. Then loss and gradient are timed on the
device's clock, alternatives in turn, each time on other inputs, so that no cache holds them. The device is kept busy
while a call is being issued, so that what Python takes to issue it is not counted, for anybody.

`python -m bench.gpu --json FILE` does the same where only torch, triton and numpy are installed, and writes what it has
after every part, since a lent machine may be taken back.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import _gpu_checks
from bench._gpu_measure import INPUT_SETS, Keep, Result, Run, milliseconds, peak_gib
from compressor.errors import BenchmarkError
from compressor.kernels import distillation_loss, gpu
from compressor.kernels.settings import LossInputs, LossSettings

ROWS, WIDTHS, QUICK_WIDTHS = 8192, (4096, 32000, 50257, 128256), (4096, 50257)
HIDDEN, LINEAR_WIDTH, QUICK_LINEAR_WIDTH = 4096, 128256, 32000
ROUNDS, QUICK_ROUNDS = 20, 5
TEMPERATURE = 2.0
RESIDENT_WIDTH = 8192
COPY_SHARE = {"resident": 0.85, "looped": 0.6}  # of a copy's speed, at least
LINEAR_TFLOPS, LINEAR_MEMORY_SHARE = 600.0, 0.2


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """What people write: in float32, as half precision would not do."""
    log_q = F.log_softmax(student.float() / TEMPERATURE, dim=-1)
    log_p = F.log_softmax(teacher.float() / TEMPERATURE, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * TEMPERATURE**2


def _jsd(student: Tensor, teacher: Tensor) -> Tensor:
    log_q = F.log_softmax(student.float() / TEMPERATURE, dim=-1)
    log_p = F.log_softmax(teacher.float() / TEMPERATURE, dim=-1)
    log_m = torch.logaddexp(log_p, log_q) - 0.6931471805599453
    from_p = F.kl_div(log_m, log_p, reduction="batchmean", log_target=True)
    from_q = F.kl_div(log_m, log_q, reduction="batchmean", log_target=True)
    return (from_p + from_q) * (2 * TEMPERATURE**2)


def _liger(name: str, **settings: object) -> Any:
    """One of Liger-Kernel's losses; None where that is not installed."""
    try:
        transformers = importlib.import_module("liger_kernel.transformers")
    except ImportError:
        return None
    return getattr(transformers, name)(**settings)


def _peers(divergence: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    plain = _kl if divergence == "forward_kl" else _jsd
    peers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "eager": plain,
        "torch.compile": torch.compile(plain, dynamic=False),
    }
    if divergence == "forward_kl":
        liger = _liger("LigerKLDIVLoss", reduction="batchmean", log_target=True)
    else:
        liger = _liger("LigerJSD", beta=0.5)
    if liger is not None:
        peers["liger"] = lambda student, teacher: liger(
            F.log_softmax(student.float() / TEMPERATURE, dim=-1), F.log_softmax(teacher.float() / TEMPERATURE, dim=-1)
        )
    return peers


def _dense(result: Result, width: int, divergence: str, rounds: int) -> None:
    students = [torch.randn(ROWS, width, device="cuda", dtype=torch.bfloat16) * 3 for _ in range(INPUT_SETS)]
    teachers = [torch.randn(ROWS, width, device="cuda", dtype=torch.bfloat16) * 3 for _ in range(INPUT_SETS)]
    labels = torch.randint(0, width, (ROWS,), device="cuda")
    copied = torch.empty(2, 3 * ROWS * width, device="cuda", dtype=torch.uint8)  # read and written: 6 bytes a logit
    gradient = torch.empty_like(students[0])
    soft = LossSettings(TEMPERATURE, divergence)  # type: ignore[arg-type]

    def kernel(settings: LossSettings) -> Run:
        given = labels if settings.hard_weight else None
        return lambda i: gpu.row_losses(LossInputs(students[i], teachers[i], given), settings, gradient, None)

    def whole(loss: Callable[[Tensor, Tensor], Tensor]) -> Run:
        def run(i: int) -> object:
            student = students[i].detach().requires_grad_()
            return torch.autograd.grad(loss(student, teachers[i]), student)

        return run

    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return distillation_loss(student, teacher, temperature=TEMPERATURE, divergence=divergence)  # type: ignore[arg-type]

    runs: dict[str, Run] = {
        "copy of 6 bytes a logit": lambda _: copied[1].copy_(copied[0]),
        "kernel": kernel(soft),
        "kernel with cross-entropy": kernel(LossSettings(TEMPERATURE, divergence, hard_weight=0.5)),  # type: ignore[arg-type]
        "ours": whole(ours),
        **{name: whole(peer) for name, peer in _peers(divergence).items()},
    }
    shape = f"{ROWS}x{width}"
    taken = {}
    for name, run in list(runs.items()):  # a peer that fails here is no reason to leave out the others
        try:
            run(0)
        except Exception as error:
            del runs[name]
            result.row(part="dense", divergence=divergence, shape=shape, implementation=name, error=str(error)[:200])
    taken = milliseconds(runs, rounds)
    copy = taken["copy of 6 bytes a logit"]
    for name, spent in taken.items():
        result.row(
            part="dense",
            divergence=divergence,
            shape=shape,
            implementation=name,
            ms=spent,
            gb_per_s=6e-6 * ROWS * width / spent,
            share_of_copy=copy / spent,
            times_ours=spent / taken["ours"],
        )
    if divergence == "forward_kl":
        least = COPY_SHARE["resident" if width <= RESIDENT_WIDTH else "looped"]
        result.bar(f"share_of_copy_{shape}", copy / taken["kernel"], least)
    peers = {name: taken[name] for name in taken if name in ("eager", "torch.compile", "liger")}
    if peers:
        result.bar(f"times_fastest_peer_{divergence}_{shape}", min(peers.values()) / taken["ours"], 1.0)


def _tiles(result: Result, width: int, divergence: str, rounds: int) -> None:
    """Every tile that the tuning chooses from."""
    from compressor.kernels import triton_launch as launch

    students = [torch.randn(ROWS, width, device="cuda", dtype=torch.bfloat16) * 3 for _ in range(INPUT_SETS)]
    teacher = torch.randn(ROWS, width, device="cuda", dtype=torch.bfloat16) * 3
    gradient = torch.empty_like(teacher)
    settings = LossSettings(TEMPERATURE, divergence)  # type: ignore[arg-type]
    processors = torch.cuda.get_device_properties(0).multi_processor_count

    def run(plan: launch.Plan) -> Run:
        return lambda i: launch.row_losses(LossInputs(students[i], teacher), settings, gradient, None, plan)

    plans = launch.candidates(ROWS, width, processors)
    named = {f"{plan.kernel} {plan.block}/{plan.warps}": run(plan) for plan in plans}
    for name, spent in milliseconds(named, rounds).items():
        result.row(part="tiles", divergence=divergence, shape=f"{ROWS}x{width}", implementation=name, ms=spent)


def _linear(result: Result, width: int, rounds: int) -> None:
    from compressor.kernels.linear import LinearLayer, linear_distillation_loss

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    weight, teacher_weight = ((normal(width, HIDDEN) / HIDDEN**0.5).requires_grad_(needs) for needs in (True, False))
    hidden = [normal(ROWS, HIDDEN).requires_grad_() for _ in range(INPUT_SETS)]
    teacher_hidden = normal(ROWS, HIDDEN)

    def fused(divergence: str) -> Run:
        def run(i: int) -> object:
            loss = linear_distillation_loss(
                hidden[i],
                weight,
                LinearLayer(teacher_hidden, teacher_weight),
                settings=LossSettings(TEMPERATURE, divergence),  # type: ignore[arg-type]
            )
            return torch.autograd.grad(loss, (hidden[i], weight))

        return run

    def dense(i: int) -> object:
        logits = F.linear(hidden[i], weight), F.linear(teacher_hidden, teacher_weight)
        return torch.autograd.grad(distillation_loss(*logits, temperature=TEMPERATURE), (hidden[i], weight))

    runs: dict[str, Run] = {"fused forward_kl": fused("forward_kl"), "fused jsd": fused("jsd"), "dense": dense}
    liger = _liger("LigerFusedLinearJSD", jsd_beta=0.5, temperature=TEMPERATURE)
    if liger is not None:
        runs["liger fused jsd"] = lambda i: torch.autograd.grad(
            liger(hidden[i], weight, teacher_hidden, teacher_weight), (hidden[i], weight)
        )
    peaks = {name: peak_gib(run) for name, run in runs.items()}
    taken = milliseconds(runs, rounds)
    operations = 8 * ROWS * HIDDEN * width  # a product costs 2: the student's three, and the teacher's
    for name, spent in taken.items():
        result.row(
            part="linear",
            shape=f"{ROWS}x{HIDDEN}x{width}",
            implementation=name,
            ms=spent,
            tflop_per_s=operations / spent / 1e9,
            peak_gib=peaks[name],
        )
    result.bar("linear_tflop_per_s", operations / taken["fused forward_kl"] / 1e9, LINEAR_TFLOPS)
    share = peaks["fused forward_kl"] / peaks["dense"]
    result.bar("linear_share_of_dense_memory", share, LINEAR_MEMORY_SHARE, at_most=True)
    if liger is not None:
        result.bar("linear_times_liger", taken["liger fused jsd"] / taken["fused jsd"], 1.0)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run(quick: bool, keep: Keep = lambda _: None) -> dict[str, Any]:
    """Raises BenchmarkError where there is no CUDA device, or where a kernel disagrees with float64."""
    if not torch.cuda.is_available():
        raise BenchmarkError("this case measures a GPU, and there is no CUDA device; run it where there is one")
    properties = torch.cuda.get_device_properties(0)
    conditions = {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "torch": _version("torch"),
        "liger": _version("liger-kernel"),
        "dtype": "bfloat16",
        "temperature": TEMPERATURE,
    }
    result = Result(keep, conditions)
    started = time.monotonic()
    count, failed = _gpu_checks.failures()
    result.row(part="checks", implementation=f"{count} against float64", error=" | ".join(failed)[:4000])
    result.row(part="checks", implementation="took", ms=(time.monotonic() - started) * 1e3)
    keep(result.found)
    if failed:
        raise BenchmarkError(f"{len(failed)} of {count} checks against float64 failed, the first: {failed[0]}")
    rounds = QUICK_ROUNDS if quick else ROUNDS
    for width in QUICK_WIDTHS if quick else WIDTHS:
        for divergence in ("forward_kl", "jsd"):
            with result.part(f"dense {divergence} {width}") as in_time:
                if in_time:
                    _dense(result, width, divergence, rounds)
    with result.part("linear") as in_time:
        if in_time:
            _linear(result, QUICK_LINEAR_WIDTH if quick else LINEAR_WIDTH, QUICK_ROUNDS)
    for width in QUICK_WIDTHS if quick else WIDTHS:
        for divergence in ("forward_kl", "jsd"):
            with result.part(f"tiles {divergence} {width}") as in_time:
                if in_time:
                    _tiles(result, width, divergence, rounds)
    return result.found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    options.json.parent.mkdir(parents=True, exist_ok=True)

    def keep(found: dict[str, Any]) -> None:
        result = {"case": "gpu", "quick": options.quick, **found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    found = run(options.quick, keep)
    for row in found["rows"]:
        print("  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    for name, bar in found["bars"].items():
        print(f"{name}: {bar['value']:.4g} (bar {bar['bar']}): {'holds' if bar['holds'] else 'DOES NOT HOLD'}")
    return 0 if all(bar["holds"] for bar in found["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
