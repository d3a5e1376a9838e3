"""Which implementation runs, how it is forced, and what the public function refuses."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor import native
from compressor.errors import MissingDependencyError, UsageError
from compressor.kernels import distillation_loss, selected_implementation

LOGITS = torch.zeros(3, 4)


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv("COMPRESSOR_KERNEL", raising=False)


BEST = f"cpu-{native.load().instruction_sets()[-1]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_best_instruction_set_is_taken(dtype):
    assert selected_implementation(LOGITS.to(dtype)) == BEST
    assert selected_implementation(LOGITS.to(dtype).t(), LOGITS) == BEST


def test_the_processor_decides():
    flags = Path("/proc/cpuinfo").read_text()
    if platform.machine() != "x86_64":
        pytest.skip("the flags of /proc/cpuinfo are those of x86-64")
    found = native.load().instruction_sets()
    assert found[0] == "baseline"
    assert ("avx2" in found) == (" avx2 " in flags and " fma " in flags)
    assert ("avx512" in found) == (" avx512f " in flags and " avx512bw " in flags)
    assert "neon" not in found


def test_other_dtypes_and_devices_take_the_reference():
    assert selected_implementation(LOGITS.double()) == "reference"
    assert selected_implementation(LOGITS, LOGITS.double()) == "reference"
    assert selected_implementation(torch.zeros(2, 2, device="meta")) == "reference"


@pytest.mark.parametrize("name", ["reference", *(f"cpu-{name}" for name in native.load().instruction_sets())])
def test_the_environment_forces_one(name, monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", name)
    assert selected_implementation(LOGITS) == name


def test_forced_but_unsuitable(monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", BEST)
    with pytest.raises(
        UsageError, match=r"takes float32, bfloat16 or float16 logits on cpu, got torch\.float64 on cpu"
    ):
        distillation_loss(LOGITS.double(), LOGITS.double(), temperature=1.0)


def test_forced_but_not_of_this_processor(monkeypatch):
    lacking = next(name for name in ("neon", "avx512") if name not in native.load().instruction_sets())
    monkeypatch.setenv("COMPRESSOR_KERNEL", f"cpu-{lacking}")
    with pytest.raises(
        MissingDependencyError, match=f"cpu-{lacking}: this processor or build has only baseline.*unset it"
    ):
        selected_implementation(LOGITS)


def test_forced_but_unknown(monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", "fast")
    with pytest.raises(UsageError, match=r"must be one of reference, cpu-baseline, .*; got 'fast'"):
        selected_implementation(LOGITS)


def test_without_the_native_module():
    program = """
import sys
sys.modules["compressor._native"] = None  # as if it had not been built
import os, torch
from compressor.errors import MissingDependencyError
from compressor.kernels import selected_implementation
assert selected_implementation(torch.zeros(2, 2)) == "reference"
os.environ["COMPRESSOR_KERNEL"] = "cpu-baseline"
try:
    selected_implementation(torch.zeros(2, 2))
except MissingDependencyError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install ." in ended.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_logits": torch.zeros(4)}, r"\[N, V\] with V >= 1, got \[4\]"),
        ({"student_logits": torch.zeros(3, 0)}, r"V >= 1, got \[3, 0\]"),
        ({"teacher": torch.zeros(3, 5)}, r"student's 4 columns, got 5.*vocabulary='truncate' or 'mask'"),
        ({"teacher": torch.zeros(2, 4)}, r"\[3, V\] with V >= 1, got torch.float32 \[2, 4\]"),
        ({"teacher": torch.zeros(3, 4, dtype=torch.int64)}, "got torch.int64"),
        ({"teacher": torch.zeros(3, 3), "vocabulary": "mask", "divergence": "reverse_kl"}, "reverse KL is infinite"),
        ({"student_scale": -1.0}, "student_scale must be finite and above 0, got -1"),
        ({"beta": 1.5}, r"beta must be in 0\.\.1, got 1\.5"),
        ({"divergence": "kl"}, "one of forward_kl, reverse_kl, jsd, total_variation; got 'kl'"),
        ({"vocabulary": "pad"}, "one of error, truncate, mask; got 'pad'"),
        ({"row_weights": torch.zeros(4)}, r"row_weights must be floating \[3\], got torch.float32 \[4\]"),
        ({"class_weights": torch.zeros(4, dtype=torch.int64)}, r"class_weights must be floating \[4\]"),
        ({"temperature": 0.0}, "above 0, got 0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"hard_weight": 1.5}, r"0\.\.1, got 1\.5"),
        ({"hard_weight": 0.5, "labels": None}, "needs labels"),
        ({"labels": torch.zeros(3)}, r"int64 \[3\], got torch.float32 \[3\]"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"\[2\]"),
        ({"labels": torch.tensor([0, 4, 1])}, r"0\.\.3 or -100 \(ignored\), got 4"),
        ({"labels": torch.tensor([0, -1, 1])}, "got -1"),
        ({"reduction": "average"}, "one of none, sum, mean; got 'average'"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    arguments = {"student_logits": LOGITS, "teacher": LOGITS, "temperature": 2.0} | changes
    with pytest.raises(ValueError, match=message):
        distillation_loss(**arguments)
