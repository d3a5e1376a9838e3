"""The native session gives, bit for bit, what onnxruntime's own Python session gives."""

import threading
import time

import numpy as np
import onnxruntime
import pytest

from compressor import native


@pytest.fixture(scope="module")
def library():
    return native.load().Library(str(native.onnxruntime_library()))


def python_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["mlp", "mlp-int8", "cnn", "mixed"])
def test_outputs_are_bit_equal(name, models, library):
    path, make_feed = models[name]
    reference = python_session(path)
    session = native.load().Session(library, str(path))
    generator = np.random.default_rng(1)
    for _ in range(3):
        feed = make_feed(generator)
        outputs = session.run(session.prepare(feed))
        expected = reference.run(None, feed)
        assert len(outputs) == len(expected)
        for got, want in zip(outputs, expected, strict=True):
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["mlp", "cnn", "mixed"])
def test_what_the_model_says_of_itself(name, models, library):
    path, _ = models[name]
    reference = python_session(path)
    session = native.load().Session(library, str(path))
    onnx_names = {"float": "float32"}
    for ours, theirs in ((session.inputs, reference.get_inputs()), (session.outputs, reference.get_outputs())):
        for got, want in zip(ours, theirs, strict=True):
            shape = [symbol if size < 0 else size for size, symbol in zip(got.shape, got.symbols, strict=True)]
            dtype = want.type.removeprefix("tensor(").removesuffix(")")
            assert (got.name, got.dtype, shape) == (want.name, onnx_names.get(dtype, dtype), want.shape)


def test_the_version_is_the_packages(library):
    assert library.version == onnxruntime.__version__


def test_a_block_times_every_inference_and_takes_the_feeds_in_turn(models, library):
    path, make_feed = models["cnn"]
    session = native.load().Session(library, str(path))
    generator = np.random.default_rng(2)
    prepared = [session.prepare(make_feed(generator)) for _ in range(3)]
    elapsed_ns, thread_cpu_ns, process_cpu_ns = session.run_block(prepared, 2, 50)
    assert elapsed_ns.shape == (50,)
    assert elapsed_ns.dtype == np.int64
    assert (elapsed_ns > 0).all()
    assert 0 < thread_cpu_ns <= process_cpu_ns * 1.01 + 1e5


def test_a_feed_that_fails_in_the_middle_of_a_block_is_reported(models, library):
    session = native.load().Session(library, str(models["mlp"][0]))
    good = session.prepare({"x": np.zeros((1, 32), np.float32)})
    bad = session.prepare({"x": np.zeros((1, 31), np.float32)})
    with pytest.raises(native.load().OrtError, match="invalid dimensions"):
        session.run_block([good, bad], 0, 4)
    assert session.run(good)[0].shape == (1, 10)


def test_other_threads_run_during_a_block(slow_model, library):
    session = native.load().Session(library, str(slow_model))
    prepared = session.prepare({"x": np.ones((1024, 1024), np.float32)})
    ticks = []
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(None)
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = len(ticks)
    session.run_block([prepared], 0, 10)
    during = len(ticks) - before
    stop.set()
    ticker.join()
    assert during > 1


def test_feeds_outlive_the_arrays_and_the_session(models, library):
    path, make_feed = models["mlp"]
    session = native.load().Session(library, str(path))
    feed = make_feed(np.random.default_rng(3))
    want = python_session(path).run(None, feed)[0]
    prepared = session.prepare(feed)
    feed["x"][:] = 0
    assert session.run(prepared)[0].tobytes() == want.tobytes()
    del session
    assert prepared is not None


def test_strided_and_empty_arrays(models, library):
    path, _ = models["mlp"]
    session = native.load().Session(library, str(path))
    wide = np.random.default_rng(4).standard_normal((4, 64), dtype=np.float32)
    strided = session.run(session.prepare({"x": wide[:, ::2]}))[0]
    assert strided.tobytes() == session.run(session.prepare({"x": wide[:, ::2].copy()}))[0].tobytes()
    assert session.run(session.prepare({"x": np.zeros((0, 32), np.float32)}))[0].shape == (0, 10)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 32))}, "input 'x' must be float32, got float64"),
        ({"x": np.zeros((1, 32), np.float32), "z": np.zeros(1)}, "expected 1 arrays, one for each input, got 2"),
        ({"x": ["a"]}, "input 'x' must be float32"),
    ],
)
def test_feeds_that_do_not_fit(feed, message, models, library):
    session = native.load().Session(library, str(models["mlp"][0]))
    with pytest.raises(ValueError, match=message):
        session.prepare(feed)


def test_feeds_of_another_session_are_refused(models, library):
    mlp = native.load().Session(library, str(models["mlp"][0]))
    path, make_feed = models["mixed"]
    mixed = native.load().Session(library, str(path))
    with pytest.raises(ValueError, match="another session"):
        mlp.run(mixed.prepare(make_feed(np.random.default_rng(0))))
    with pytest.raises(ValueError, match="non-empty"):
        mlp.run_block([], 0, 1)


def test_an_input_type_that_is_not_supported_is_named(string_model, library):
    with pytest.raises(native.load().OrtError, match=r"input 'text' is unsupported .* supported are float32, int64"):
        native.load().Session(library, str(string_model))


def test_a_file_that_is_no_runtime(tmp_path):
    other = tmp_path / "libonnxruntime.so"
    other.write_bytes(b"not a library")
    with pytest.raises(native.load().OrtError, match="cannot open the ONNX Runtime library"):
        native.load().Library(str(other))
    with pytest.raises(native.load().OrtError, match="lacks OrtGetApiBase"):
        native.load().Library("libm.so.6")
