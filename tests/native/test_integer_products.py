"""Integer products in the real ONNX Runtime, on this processor and on emulated ones, against the emulator's bits."""

import platform
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

import arm64
import integer_models
import needed
import numpy as np
import onnx
import pytest
import runner_cases
import runtimes

from compressor.onnxrt import open_session
from compressor.quantize.saturation import same_everywhere

X86_64 = platform.machine() in ("x86_64", "AMD64")
# All that it can emulate: AVX2, and neither AVX-512 nor VNNI (QEMU 7.2).
EMULATED_X86, WITHOUT_VNNI = "qemu-x86_64", "max"

on_x86 = pytest.mark.skipif(not X86_64, reason="it needs an x86-64 processor")


@pytest.fixture(scope="module")
def saturating(tmp_path_factory):
    return integer_models.products(tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module")
def narrowed(saturating, tmp_path_factory):
    """The same model after same_everywhere."""
    path = tmp_path_factory.mktemp("narrowed") / saturating.path.name
    shutil.copyfile(saturating.path, path)
    same_everywhere(path, [saturating.feed], narrow=True)
    return integer_models.Products(path, saturating.feed)


def answers(found, folder, words=(), runtime=None):
    """The model's outputs in their order, by the measuring program."""
    cases = runner_cases.write_cases(folder / "cases", [found.feed])
    (folder / "outputs").mkdir()
    arguments = ("--scenario", "stream", "--model", found.path, "--cases", cases, "--samples", "5", "--budget", "2")
    arguments += ("--sittings", "1", "--silence", "600", "--outputs", folder / "outputs")
    runner_cases.result(*arguments, words=words, runtime=runtime, limit_s=600)
    outputs = range(len(onnx.load(found.path).graph.output))
    return [np.load(next((folder / "outputs").glob(f"*-0-{number}.npy"))) for number in outputs]


def assert_equal(found, got, arithmetic):
    names = [value.name for value in onnx.load(found.path).graph.output]
    wanted = integer_models.expected(found, arithmetic)
    different = [name for name, one, other in zip(names, got, wanted, strict=True) if not np.array_equal(one, other)]
    assert not different


def on_this_processor(found):
    return open_session(found.path).run(None, found.feed)


def this_processors_arithmetic():
    flags = Path("/proc/cpuinfo").read_text().split()
    return "saturating" if X86_64 and not {"avx512_vnni", "avx_vnni"} & set(flags) else "exact"


def test_saturation_shows_in_the_model(saturating):
    """Else it would prove nothing; it does not where weights are unsigned or the convolution is depthwise."""
    exact, kept = (integer_models.expected(saturating, arithmetic) for arithmetic in ("exact", "saturating"))
    names = [value.name for value in onnx.load(saturating.path).graph.output]
    equal = {name for name, one, other in zip(names, exact, kept, strict=True) if np.array_equal(one, other)}
    assert {"Conv5", "Conv6", *(f"unsigned{number}" for number in range(len(integer_models.SHAPES)))} <= equal
    assert len(equal) < len(names) / 2


def test_this_processor(saturating):
    assert_equal(saturating, on_this_processor(saturating), this_processors_arithmetic())


def test_narrowed_on_this_processor(narrowed):
    assert_equal(narrowed, on_this_processor(narrowed), "exact")


@pytest.fixture
def without_vnni():
    needed.require(EMULATED_X86, "qemu-user")
    return [EMULATED_X86, "-cpu", WITHOUT_VNNI, runner_cases.program()]


@on_x86
@pytest.mark.slow
def test_x86_without_vnni_saturates(saturating, without_vnni, tmp_path):
    assert_equal(saturating, answers(saturating, tmp_path, without_vnni), "saturating")


@on_x86
@pytest.mark.slow
def test_narrowed_on_x86_without_vnni(narrowed, without_vnni, tmp_path):
    assert_equal(narrowed, answers(narrowed, tmp_path, without_vnni), "exact")


@pytest.fixture(scope="module", params=[arm64.PROCESSOR, arm64.WITHOUT_DOT_PRODUCT])
def arm(request, tmp_path_factory):
    return arm64.words(request.param, arm64.runner(), tmp_path_factory.mktemp("sysroot"))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() == "aarch64", reason="this is the processor itself")
@pytest.mark.parametrize("model", ["saturating", "narrowed"])
def test_arm_is_exact(model, request, arm, tmp_path):
    found = request.getfixturevalue(model)
    runtime = runtimes.required(runtimes.library_for_arm, installed_version("onnxruntime"))
    assert_equal(found, answers(found, tmp_path, arm, runtime), "exact")
