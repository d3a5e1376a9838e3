"""The native session gives, bit for bit, what onnxruntime's own Python session gives."""

import threading
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from made_models import save

from compressor import native


@pytest.fixture(scope="module")
def library():
    return native.load().Library(str(native.onnxruntime_library()))


def python_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["mlp", "mlp-int8", "cnn", "cnn-int8", "transformer", "transformer-int8", "mixed"])
def test_outputs_are_bit_equal(name, models, library):
    path, make_feed = models[name]
    reference = python_session(path)
    session = native.load().Session(library, str(path))
    generator = np.random.default_rng(1)
    for _ in range(3):
        feed = make_feed(generator)
        prepared = session.prepare(feed)
        assert prepared.keeps_outputs
        prepared.run_block(3)
        outputs = prepared.run()
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


def test_a_block_times_every_inference(models, library):
    path, make_feed = models["cnn"]
    feed = native.load().Session(library, str(path)).prepare(make_feed(np.random.default_rng(2)))
    wall_ns, corrected_ns, process_cpu_ns = feed.run_block(50)
    assert wall_ns.shape == (50,)
    assert (wall_ns > 0).all()
    assert corrected_ns.shape == (0,)
    assert process_cpu_ns > 0
    assert feed.run_bare(10) > 0
    with pytest.raises(ValueError, match="1 or more"):
        feed.run_block(0)


@pytest.mark.parametrize("latency_ns", [1e9, 1.0], ids=["of-each", "of-the-block"])
def test_waiting_is_taken_off(models, library, latency_ns):
    path, make_feed = models["cnn"]
    feed = native.load().Session(library, str(path)).prepare(make_feed(np.random.default_rng(2)))
    meter = native.load().DelayMeter(1, latency_ns)
    if not meter.available:
        pytest.skip("this system does not tell how long a thread waits for a processor (/proc/self/schedstat)")
    assert meter.each_inference == (latency_ns == 1e9)
    wall_ns, corrected_ns, _ = feed.run_block(50, meter)
    assert corrected_ns.shape == wall_ns.shape
    assert (corrected_ns > 0).all()
    assert (corrected_ns <= wall_ns).all()


def test_an_output_of_changing_shape(library, tmp_path):
    """The second run of a feed writes where the first did; a shape that depends on the values stays that feed's own."""
    path = save(
        tmp_path / "nonzero.onnx",
        [onnx.helper.make_node("NonZero", ["x"], ["where"])],
        [("x", onnx.TensorProto.FLOAT, ["n"])],
        [("where", onnx.TensorProto.INT64, [1, "count"])],
    )
    session = native.load().Session(library, str(path))
    feeds = [session.prepare({"x": np.array(x, np.float32)}) for x in ([0, 1, 2], [0, 0, 0], [3, 0, 0])]
    for _ in range(2):
        assert [feed.run()[0].tolist() for feed in feeds] == [[[1, 2]], [[]], [[0]]]


def test_an_inference_that_fails_is_reported(models, library):
    session = native.load().Session(library, str(models["mlp"][0]))
    good = session.prepare({"x": np.zeros((1, 32), np.float32)})
    with pytest.raises(native.load().OrtError, match="invalid dimensions"):
        session.prepare({"x": np.zeros((1, 31), np.float32)})
    assert good.run()[0].shape == (1, 10)


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
    prepared.run_block(10)
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
    del session
    assert prepared.run()[0].tobytes() == want.tobytes()


def test_strided_and_empty_arrays(models, library):
    path, _ = models["mlp"]
    session = native.load().Session(library, str(path))
    wide = np.random.default_rng(4).standard_normal((4, 64), dtype=np.float32)
    strided = session.prepare({"x": wide[:, ::2]}).run()[0]
    assert strided.tobytes() == session.prepare({"x": wide[:, ::2].copy()}).run()[0].tobytes()
    assert session.prepare({"x": np.zeros((0, 32), np.float32)}).run()[0].shape == (0, 10)


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


def test_an_input_type_that_is_not_supported_is_named(string_model, library):
    with pytest.raises(native.load().OrtError, match=r"input 'text' is string; supported are float32, int64"):
        native.load().Session(library, str(string_model))


def test_a_file_that_is_no_runtime(tmp_path):
    other = tmp_path / "libonnxruntime.so"
    other.write_bytes(b"not a library")
    with pytest.raises(native.load().OrtError, match="cannot open the ONNX Runtime library"):
        native.load().Library(str(other))
    with pytest.raises(native.load().OrtError, match="lacks OrtGetApiBase"):
        native.load().Library("libm.so.6")
