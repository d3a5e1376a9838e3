"""The oldest supported ONNX Runtime and the installed one do the same.

`make test-ort-matrix` runs these tests with every minor version between, named in COMPRESSOR_ORT_VERSIONS.
"""

import json
import os
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import pytest
import runner_cases
import runtimes

from compressor import native

INSTALLED = installed_version("onnxruntime")
VERSIONS = os.environ.get("COMPRESSOR_ORT_VERSIONS", f"{runtimes.OLDEST} {INSTALLED}").split()
NAMES = ("mlp", "mlp-int8", "cnn", "cnn-int8", "integers")
ONNX_NAMES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def path(version):
    if version == INSTALLED:
        return native.onnxruntime_library()
    return runtimes.required(runtimes.library, version)


@pytest.fixture(scope="module")
def library(path):
    return native.load().Library(str(path))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return runner_cases.samples(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def answers(samples):
    """Of the installed version, through its Python session."""
    return {name: runner_cases.python_answers(sample) for name, sample in samples.items()}


def test_it_is_that_version(library, version):
    assert library.version == version
    assert "CPUExecutionProvider" in library.providers


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_installed_versions(name, library, samples, answers):
    sample = samples[name]
    session = native.load().Session(library, str(sample.path))
    for feed, wanted in zip(sample.feeds, answers[name], strict=True):
        prepared = session.prepare(feed)
        for _ in range(2):  # the second writes where the first one did
            for got, want in zip(prepared.run(), wanted, strict=True):
                runner_cases.assert_same(got, want, exact=sample.exact, tolerance=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_models_say_the_same_of_themselves(name, library, samples):
    session = native.load().Session(library, str(samples[name].path))
    reference = runner_cases.python_session(samples[name])
    for ours, theirs in ((session.inputs, reference.get_inputs()), (session.outputs, reference.get_outputs())):
        for got, want in zip(ours, theirs, strict=True):
            sizes = [symbol if size < 0 else size for size, symbol in zip(got.shape, got.symbols, strict=True)]
            assert (got.name, got.dtype, sizes) == (want.name, ONNX_NAMES[want.type], want.shape)


@pytest.mark.parametrize("level", [0, 1, 2, 99])
def test_every_level_of_optimization_is_taken(level, library, samples, answers):
    session = native.load().Session(library, str(samples["cnn"].path), 2, level, True)
    (got,) = session.prepare(samples["cnn"].feeds[0]).run()
    runner_cases.assert_same(got, answers["cnn"][0][0], exact=False, tolerance=1e-5)


@pytest.mark.parametrize("content", [b"", b"no model", None], ids=["empty", "corrupt", "missing"])
def test_what_is_no_model_is_refused(content, library, tmp_path):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(native.load().OrtError, match=r"\w"):
        native.load().Session(library, str(path))


def test_a_feed_that_does_not_fit_is_refused_and_harms_nothing(library, samples, answers):
    session = native.load().Session(library, str(samples["mlp"].path))
    with pytest.raises(native.load().OrtError, match="invalid dimensions"):
        session.prepare({"x": np.zeros((1, 31), np.float32)})
    (got,) = session.prepare(samples["mlp"].feeds[0]).run()
    runner_cases.assert_same(got, answers["mlp"][0][0], exact=False, tolerance=1e-6)


def test_an_unknown_execution_provider_is_told_which_there_are(path, library, samples):
    said = runner_cases.failure("--model", samples["mlp"].path, "--provider", "nonsense", runtime=path)
    assert "nonsense" in said
    assert ", ".join(library.providers) in said


@pytest.mark.parametrize("name", NAMES)
def test_the_runner_streams(name, path, version, samples, answers, tmp_path):
    sample = samples[name]
    cases = runner_cases.write_cases(tmp_path / "cases", sample.feeds)
    arguments = ("--model", sample.path, "--cases", cases, "--samples", "20", "--budget", "1", "--outputs", tmp_path)
    found = runner_cases.result("--scenario", "stream", *arguments, runtime=path)
    assert (found["scenario"], found["complete"]) == ("stream", True)
    assert found["runtime"]["version"] == version
    (model,) = found["models"]
    assert model["name"] == name
    assert model["inferences"] >= 20
    for case, wanted in enumerate(answers[name]):
        for output, want in enumerate(wanted):
            got = np.load(tmp_path / f"0-{case}-{output}.npy")
            runner_cases.assert_same(got, want, exact=sample.exact, tolerance=1e-6)


def test_a_profile_names_the_nodes(path, samples, tmp_path):
    prefix = tmp_path / "profile"
    few = ("--samples", "20", "--budget", "0.2")
    found = runner_cases.result("--model", samples["cnn"].path, "--profile", prefix, *few, runtime=path)
    file = found["models"][0]["profile"]
    assert file.startswith(str(prefix))
    events = json.loads(Path(file).read_text(encoding="utf-8"))
    operators = {event["args"]["op_name"] for event in events if event.get("cat") == "Node"}
    assert {"Conv", "MaxPool", "MatMul"} <= {name.removeprefix("Fused") for name in operators}
