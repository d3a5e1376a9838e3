"""Hostile ONNX files are refused before this process opens them; honest ones that resemble them are not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from chosen import chosen
from made_onnx import HONEST, HOSTILE, beside, every_type, product, saved
from measured import assert_refused, run_measured

from compressor.errors import BundleError, UsageError
from compressor.intake.onnx_model import check_onnx
from compressor.intake.trial import admit_onnx

# These alone take more than a look: they are tried out.
_SLOW = ("bomb: endless Loop", "bomb: doubling functions")


@pytest.mark.parametrize("case", [case for case in HOSTILE if case not in _SLOW])
def test_a_hostile_model_is_refused(case: str, folder: Path) -> None:
    with pytest.raises(BundleError) as raised:
        admit_onnx(HOSTILE[case](folder), BundleError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_model_is_admitted(case: str, folder: Path) -> None:
    admit_onnx(HONEST[case](folder), BundleError)


def test_weights_of_every_type_are_as_large_as_onnx_writes_them(folder: Path) -> None:
    facts = check_onnx(every_type(folder), BundleError)
    assert (facts.ir_version, facts.opset) == (13, 20)


def test_external_files_count(folder: Path) -> None:
    path = beside(folder)
    assert check_onnx(path, BundleError).bytes == path.stat().st_size + 64


def test_a_model_is_run_on_what_is_known_of_its_inputs(folder: Path) -> None:
    path = saved(folder, product())
    admit_onnx(path, BundleError, {"x": np.ones((2, 4), np.float32)})
    admit_onnx(path, BundleError, {"x": np.ones((2, 5), np.float32)})  # which the model itself will refuse


def test_every_cut_and_every_flipped_bit_ends_in_an_error_or_not_at_all(folder: Path) -> None:
    """What stays a model may be let in: only hashes find a flipped weight. Here nothing else than BundleError comes."""
    content = product().SerializeToString()
    flips = random.Random(0)
    damaged = [content[:length] for length in range(len(content))]
    for _ in range(300):
        bits = bytearray(content)
        bits[flips.randrange(len(bits))] ^= 1 << flips.randrange(8)
        damaged.append(bytes(bits))
    refused = 0
    for one in damaged:
        try:
            check_onnx(saved(folder, one), BundleError)
        except BundleError:
            refused += 1
    assert refused > len(content) / 2


@pytest.mark.parametrize("text", ["", "long", "0", "nan", "1e9"])
def test_a_time_that_is_none(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_TRIAL_S", text)
    with pytest.raises(UsageError, match="COMPRESSOR_TRIAL_S"):
        admit_onnx(saved(folder, product()), BundleError)


@pytest.mark.parametrize(
    "case", chosen(HOSTILE, ("external: hard link", "bomb: 64 GB constant", "crash: LayerNormalization without bias"))
)
def test_inspect_refuses_in_one_line(case: str, folder: Path) -> None:
    assert_refused(run_measured("inspect", HOSTILE[case](folder), cwd=folder))


@pytest.mark.parametrize("case", chosen(HOSTILE, ("bomb: endless Loop",)))
def test_quantize_refuses_in_one_line(case: str, folder: Path) -> None:
    np.savez(folder / "inputs.npz", x=np.ones((32, 4), np.float32))
    path = HOSTILE[case](folder)
    ended = run_measured("quantize", path, "--inputs", folder / "inputs.npz", "--out", folder / "out", cwd=folder)
    assert_refused(ended)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "case",
    chosen(HOSTILE, ("bomb: endless Loop", "bomb: 64 GB constant", "crash: Attention without bias", "circle of nodes")),
)
def test_bench_refuses_in_one_line(case: str, folder: Path) -> None:
    limits = ("--silence", "3", "--memory-limit", "2048", "--budget", "0.5", "--samples", "20")
    assert_refused(run_measured("bench", HOSTILE[case](folder), *limits, cwd=folder))


@pytest.mark.parametrize("case", chosen([case for case in HONEST if case != "hub cache"], ("Loop that ends",)))
def test_bench_measures_what_resembles_them(case: str, folder: Path) -> None:
    ended = run_measured("bench", HONEST[case](folder), "--budget", "0.5", "--samples", "20", cwd=folder)
    assert ended.code == 0, ended.stderr
