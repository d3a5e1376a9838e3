"""Raw ONNX files: the inputs made for them, their names, and what is refused."""

import shutil

import numpy as np
import pytest
from compressor.benchmark.paths import random_feeds

from compressor.artifacts import TensorSpec
from compressor.benchmark import BenchmarkSettings, bench_paths
from compressor.errors import BenchmarkError
from compressor.progress import SILENT

QUICK = BenchmarkSettings(warmup_s=0.0)


def test_the_baseline_comes_first_and_names_are_unique(models, tmp_path):
    copy = tmp_path / "mlp.onnx"
    shutil.copy(models["mlp"][0], copy)
    latencies = bench_paths(
        [models["mixed"][0], models["mlp"][0], copy],
        baseline=copy,
        shapes={"length": 5, "batch": 2},
        settings=QUICK,
        progress=SILENT,
    )
    assert [latency.name for latency in latencies] == ["mlp", "mixed", "mlp-2"]
    assert latencies[0].speedup.value == 1.0


def test_made_up_feeds():
    specs = [
        TensorSpec("input_ids", "int64", ("batch", "length")),
        TensorSpec("attention_mask", "int64", ("batch", "length")),
        TensorSpec("token_type_ids", "int32", ("batch", "length")),
        TensorSpec("image", "float32", ("", 3, "", "side")),
        TensorSpec("flags", "bool", (4,)),
        TensorSpec("scalar", "float32", ()),
    ]
    feeds = random_feeds(specs, {"length": 9}, BenchmarkSettings(batch=2))
    assert len(feeds) == 4
    for feed in feeds:
        assert feed["input_ids"].shape == (2, 9)
        assert feed["input_ids"].dtype == np.int64
        assert 0 <= feed["input_ids"].min() <= feed["input_ids"].max() < 100
        assert (feed["attention_mask"] == 1).all()
        assert feed["token_type_ids"].dtype == np.int32
        assert not feed["token_type_ids"].any()
        assert feed["image"].shape == (2, 3, 16, 16)
        assert feed["image"].dtype == np.float32
        assert feed["flags"].all()
        assert feed["scalar"].shape == ()
        assert feed["scalar"].dtype == np.float32
    again = random_feeds(specs, {"length": 9}, BenchmarkSettings(batch=2))
    assert all((a[name] == b[name]).all() for a, b in zip(feeds, again, strict=True) for name in a)
    assert (feeds[0]["input_ids"] != feeds[1]["input_ids"]).any()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"width": 3}, "no model has a dynamic dimension 'width'; there are: batch"),
        ({"batch": 0}, "the size of 'batch' must be 1 or more, got 0"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message, models):
    with pytest.raises(BenchmarkError, match=message):
        bench_paths([models["mlp"][0]], baseline=None, shapes=shapes, settings=QUICK, progress=SILENT)


def test_files_that_are_no_models(tmp_path, crashing_model, string_model):
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"\x08\x01garbage")
    expected = {
        tmp_path: "must be an ONNX file, got a folder",
        tmp_path / "none.onnx": "must be an ONNX file, got nothing",
        corrupt: "corrupt: ONNX Runtime does not load it",
        crashing_model: "crash: the measuring process was ended by SIGSEGV",
        string_model: "string: .*input 'text' is unsupported",
    }
    for path, message in expected.items():
        with pytest.raises(BenchmarkError, match=message) as caught:
            bench_paths([path], baseline=None, shapes={}, settings=QUICK, progress=SILENT)
        assert "\n" not in str(caught.value)
    with pytest.raises(BenchmarkError, match="one ONNX file or more is needed"):
        bench_paths([], baseline=None, shapes={}, settings=QUICK, progress=SILENT)
