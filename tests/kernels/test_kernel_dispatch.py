"""Which implementation runs, how it is forced, and what the public function refuses."""

import subprocess
import sys

import pytest
import torch

from compressor.errors import UsageError
from compressor.kernels import distillation_loss, selected_implementation

LOGITS = torch.zeros(3, 4)


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv("COMPRESSOR_KERNEL", raising=False)


def test_contiguous_float32_takes_the_native_one():
    assert selected_implementation(LOGITS) == "cpu"
    assert selected_implementation(LOGITS, LOGITS) == "cpu"


@pytest.mark.parametrize("other", [LOGITS.double(), LOGITS.bfloat16(), LOGITS.t(), torch.zeros(3, 8)[:, ::2]])
def test_anything_else_takes_the_reference(other):
    assert selected_implementation(other) == "reference"
    assert selected_implementation(torch.zeros(other.shape), other) == "reference"


def test_strided_logits_give_the_same_loss():
    student, teacher = torch.randn(4, 3).t(), torch.randn(3, 4)
    torch.testing.assert_close(
        distillation_loss(student, teacher, temperature=2.0),
        distillation_loss(student.contiguous(), teacher, temperature=2.0),
    )


def test_the_environment_forces_one(monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", "reference")
    assert selected_implementation(LOGITS) == "reference"
    monkeypatch.setenv("COMPRESSOR_KERNEL", "cpu")
    assert selected_implementation(LOGITS) == "cpu"


def test_forced_but_unsuitable(monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", "cpu")
    with pytest.raises(UsageError, match=r"contiguous torch\.float32 logits on cpu, got torch\.float64 on cpu"):
        distillation_loss(LOGITS.double(), LOGITS.double(), temperature=1.0)


def test_forced_but_unknown(monkeypatch):
    monkeypatch.setenv("COMPRESSOR_KERNEL", "fast")
    with pytest.raises(UsageError, match="must be reference or cpu, got 'fast'"):
        selected_implementation(LOGITS)


def test_without_the_native_module():
    program = """
import sys
sys.modules["compressor._native"] = None  # as if it had not been built
import os, torch
from compressor.errors import MissingDependencyError
from compressor.kernels import selected_implementation
assert selected_implementation(torch.zeros(2, 2)) == "reference"
os.environ["COMPRESSOR_KERNEL"] = "cpu"
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
        ({"teacher_logits": torch.zeros(3, 5)}, r"student's shape \[3, 4\], got \[3, 5\]"),
        ({"temperature": 0.0}, "above 0, got 0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"hard_weight": 1.5}, r"0\.\.1, got 1\.5"),
        ({"hard_weight": 0.5, "labels": None}, "needs labels"),
        ({"labels": torch.zeros(3)}, r"int64 \[3\], got torch.float32 \[3\]"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"\[2\]"),
        ({"labels": torch.tensor([0, 4, 1])}, r"0\.\.3 or -100 \(ignored\), got 4"),
        ({"labels": torch.tensor([0, -1, 1])}, "got -1"),
        ({"reduction": "average"}, "none, sum or mean, got 'average'"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    arguments = {"student_logits": LOGITS, "teacher_logits": LOGITS, "temperature": 2.0} | changes
    with pytest.raises(ValueError, match=message):
        distillation_loss(**arguments)
