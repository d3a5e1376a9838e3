"""A sweep over small models: what onnxruntime's calibrators find on the same batches; bad batches; merging; keeping."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator

from compressor.artifacts import OnnxModel, QuantizedModels
from compressor.errors import QuantizationError
from compressor.onnx_file import describe_onnx
from compressor.preprocess import Feed
from compressor.progress import SILENT
from compressor.quantize import Mixer
from compressor.quantize import quantize as quantize_model
from compressor.quantize.bad_batches import check
from compressor.quantize.calibration import calibrate
from compressor.quantize.calibration_file import kept, load, save
from compressor.quantize.statistics import Calibration, merge
from compressor.quantize.thresholds import ranges
from compressor.recipe_quantize import Quantization

MakeOnnx = Callable[..., Path]
OPERATORS = ["MatMul", "Gemm", "Gather", "Conv"]


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)


@pytest.fixture
def attention_model(make_onnx: MakeOnnx, tmp_path: Path) -> Path:
    """ids -> embeddings, self-attention of one head, a feed-forward layer, a mean."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "wq"], ["q"]),
        helper.make_node("MatMul", ["x", "wk"], ["k"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "x"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "w1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "w2"], ["tokens"]),
        helper.make_node("ReduceMean", ["tokens", "axis"], ["out"], keepdims=0),
    ]
    sizes = {"table": (100, 32), "wq": (32, 32), "wk": (32, 32), "w1": (32, 128), "w2": (128, 16)}
    arrays = {name: weights(*size) * np.float32(3) for name, size in sizes.items()} | {"axis": np.array([1], np.int64)}
    interface = {"ids": (TensorProto.INT64, ["batch", "length"])}, {"out": (TensorProto.FLOAT, ["batch", 16])}
    return make_onnx(tmp_path / "attention.onnx", nodes, *interface, arrays)


@pytest.fixture
def image_model(make_cnn: Callable[..., Path]) -> Path:
    """Its input is calibrated, too."""
    return make_cnn(weights)


def texts(count: int = 16) -> list[Feed]:
    generator = np.random.default_rng(0)
    return [{"ids": generator.integers(0, 100, (1, 5 + i % 7))} for i in range(count)]


def images(count: int = 16) -> list[Feed]:
    generator = np.random.default_rng(0)
    return [{"image": generator.standard_normal((2, 16, 8, 8)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(params=["attention", "image"])
def model_and_batches(request: pytest.FixtureRequest) -> tuple[Path, list[Feed]]:
    model: Path = request.getfixturevalue(f"{request.param}_model")
    return model, texts() if request.param == "attention" else images()


def swept(model: Path, batches: Iterable[Feed], operators: list[str], first_number: int = 0) -> Calibration:
    return calibrate(onnx.load(model), batches, operators, first_number=first_number)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def theirs(model: Path, feeds: list[Feed], method: CalibrationMethod, folder: Path, **options: Any) -> TensorsData:
    """What onnxruntime's calibrator finds; runs of equal shape, since it stacks them."""
    path = str(folder / "augmented.onnx")
    calibrator = create_calibrator(
        model, OPERATORS, augmented_model_path=path, calibrate_method=method, extra_options=options
    )
    calibrator.collect_data(Reader(feeds))
    return calibrator.compute_data()


def test_the_tensors_are_those_that_onnxruntime_calibrates(
    model_and_batches: tuple[Path, list[Feed]], tmp_path: Path
) -> None:
    model, batches = model_and_batches
    found = swept(model, batches, OPERATORS)
    assert set(found.tensors) == set(theirs(model, batches[:1], CalibrationMethod.MinMax, tmp_path).keys())


def test_minmax_is_that_of_onnxruntime(model_and_batches: tuple[Path, list[Feed]], tmp_path: Path) -> None:
    model, batches = model_and_batches
    want = theirs(model, batches, CalibrationMethod.MinMax, tmp_path)
    for name, extremes in ranges(swept(model, batches, OPERATORS), "minmax").items():
        # It runs without graph optimizations, which round a sum otherwise.
        np.testing.assert_allclose(extremes, np.ravel(want[name].range_value), rtol=1e-5, atol=1e-6, err_msg=name)


def test_percentiles_are_those_of_onnxruntime_within_a_bin_of_each(
    model_and_batches: tuple[Path, list[Feed]], tmp_path: Path
) -> None:
    model, batches = model_and_batches
    same_shape = [feed for feed in batches if feed[next(iter(feed))].shape == next(iter(batches[0].values())).shape]
    want = theirs(model, same_shape, CalibrationMethod.Percentile, tmp_path, symmetric=False, percentile=99.999)
    calibration = swept(model, same_shape, OPERATORS)
    for tensor, extremes in zip(calibration.statistics(), ranges(calibration, "percentile").values(), strict=True):
        tolerance = tensor.width + 2 * max(-tensor.low, tensor.high) / 2048
        np.testing.assert_allclose(
            extremes, np.ravel(want[tensor.name].range_value), rtol=0, atol=tolerance, err_msg=tensor.name
        )


def test_entropy_by_default_is_minmax_in_onnxruntime(
    model_and_batches: tuple[Path, list[Feed]], tmp_path: Path
) -> None:
    """With 128 bins and 128 steps it has one range to choose from; why its default is not ours."""
    model, batches = model_and_batches
    one = batches[:1]
    entropy = theirs(model, one, CalibrationMethod.Entropy, tmp_path)
    extremes = theirs(model, one, CalibrationMethod.MinMax, tmp_path)
    for name in extremes.keys():  # noqa: SIM118 (it is no dict)
        np.testing.assert_allclose(
            np.ravel(entropy[name].range_value), np.ravel(extremes[name].range_value), rtol=1e-6, err_msg=name
        )


def test_moments_and_quantiles_are_numpys(image_model: Path) -> None:
    batches = images()
    at = {tensor.name: tensor for tensor in swept(image_model, batches, OPERATORS).statistics()}
    values = np.concatenate([feed["image"].ravel() for feed in batches]).astype(np.float64)
    assert at["image"].mean == pytest.approx(values.mean(), rel=1e-10)
    assert at["image"].deviation == pytest.approx(values.std(), rel=1e-10)
    assert (at["image"].values, at["image"].zeros) == (values.size, 0)
    assert at["image"].bins.sum() == values.size


def test_the_order_makes_no_difference(model_and_batches: tuple[Path, list[Feed]]) -> None:
    model, batches = model_and_batches
    forward, backward = (swept(model, order, OPERATORS) for order in (batches, batches[::-1]))
    for name in set(forward.counts) - {"first_with_peak"}:
        np.testing.assert_array_equal(forward.counts[name], backward.counts[name], err_msg=name)


def test_parts_merge_into_what_one_sweep_finds(model_and_batches: tuple[Path, list[Feed]]) -> None:
    model, batches = model_and_batches
    batches = [{name: array if i % 5 else array * 0 for name, array in feed.items()} for i, feed in enumerate(batches)]
    whole = swept(model, batches, OPERATORS)
    parts = [
        swept(model, batches[first : first + 6], OPERATORS, first_number=first) for first in range(0, len(batches), 6)
    ]
    assert merge(parts) == merge(parts[::-1]) == whole
    assert merge([merge(parts[:2]), *parts[2:]]) == whole
    assert parts[0] != whole
    assert merge(parts[:1]) == parts[0]


def test_calibrations_of_two_models_do_not_merge(attention_model: Path, image_model: Path) -> None:
    parts = [swept(attention_model, texts(1), OPERATORS), swept(image_model, images(1), OPERATORS)]
    with pytest.raises(QuantizationError, match="different tensors do not merge"):
        merge(parts)


def test_what_is_saved_is_loaded(image_model: Path, tmp_path: Path) -> None:
    found = swept(image_model, images(), OPERATORS)
    save(found, tmp_path / "c.npz")
    assert load(tmp_path / "c.npz") == found
    assert (tmp_path / "c.npz").stat().st_size < found.counts["bins"].nbytes / 4


@pytest.mark.parametrize("damage", ["nothing", "cut", "changed", "other"])
def test_a_damaged_file_is_no_calibration(image_model: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.npz"
    save(swept(image_model, images(1), OPERATORS), path)
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "other":
        np.savez(path, a=np.zeros(1))
    else:
        changed = content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 9]) + content[middle + 9 :]
        path.write_bytes({"nothing": b"", "cut": content[:middle], "changed": changed}[damage])
    with pytest.raises(QuantizationError, match=r"c\.npz: expected a calibration"):
        load(path)


def test_what_is_kept_is_taken_from_there(image_model: Path, tmp_path: Path) -> None:
    first = kept(onnx.load(image_model), lambda: images(4), OPERATORS, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    written = path.stat().st_mtime_ns
    assert kept(onnx.load(image_model), lambda: images(4), OPERATORS, tmp_path / "cache") == first
    assert path.stat().st_mtime_ns == written
    kept(onnx.load(image_model), lambda: images(5), OPERATORS, tmp_path / "cache")
    kept(onnx.load(image_model), lambda: images(4), ["Conv"], tmp_path / "cache")
    model = onnx.load(image_model)
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, image_model)
    kept(onnx.load(image_model), lambda: images(4), OPERATORS, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 4, "batches, operators and weights are part of the key"


def test_a_damaged_kept_file_is_made_again(image_model: Path, tmp_path: Path) -> None:
    first = kept(onnx.load(image_model), lambda: images(4), OPERATORS, tmp_path)
    (path,) = tmp_path.glob("calibration-*.npz")
    path.write_bytes(b"PK")
    assert kept(onnx.load(image_model), lambda: images(4), OPERATORS, tmp_path) == first == load(path)


def with_batch(feeds: list[Feed], at: int, change: Callable[[NDArray[Any]], NDArray[Any]]) -> list[Feed]:
    return [{name: change(a) if i == at else a for name, a in feed.items()} for i, feed in enumerate(feeds)]


def broken(array: NDArray[Any], value: float) -> NDArray[Any]:
    changed = array.copy()
    changed.flat[7:9] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda array: broken(array, np.nan),
            "1 of 16 batches have NaN or infinity, the first of them batch 5 in image (2 NaN and 0 infinite values",
        ),
        (
            lambda array: broken(array, -np.inf),
            "1 of 16 batches have NaN or infinity, the first of them batch 5 in image (0 NaN and 2 infinite values",
        ),
        (lambda array: array * 0, "1 of 16 batches are zero in every input, the first of them batch 5"),
        (lambda array: array * 1000, "1 of 16 batches are outliers in image, the first of them batch 5: up to 2^1"),
    ],
    ids=["NaN", "infinity", "zero", "outlier"],
)
def test_a_bad_batch_is_counted_named_and_refused_beyond_the_bound(
    image_model: Path, change: Callable[[NDArray[Any]], NDArray[Any]], message: str
) -> None:
    found = swept(image_model, with_batch(images(), 5, change), OPERATORS)
    with pytest.raises(QuantizationError) as refused:
        check(found, 0.0)
    assert message in str(refused.value)
    assert "quantize.max_bad_batches" in str(refused.value)
    check(found, 1 / 16)


def test_a_batch_that_is_left_out_leaves_no_trace(image_model: Path) -> None:
    good = images()
    bad = with_batch([*good, images()[0]], 16, lambda array: broken(array, np.nan))
    found, want = swept(image_model, bad, OPERATORS), swept(image_model, good, OPERATORS)
    assert ranges(found, "minmax") == ranges(want, "minmax")
    np.testing.assert_array_equal(found.counts["bins"], want.counts["bins"])
    assert (found.batches, found.not_finite) == (16, 1)


def test_good_batches_pass(model_and_batches: tuple[Path, list[Feed]]) -> None:
    check(swept(*model_and_batches, OPERATORS), 0.0)


def test_no_batches(image_model: Path) -> None:
    with pytest.raises(QuantizationError, match="one batch or more, got none"):
        check(swept(image_model, [], OPERATORS), 0.0)


def test_batches_none_of_which_can_be_used(image_model: Path) -> None:
    found = swept(image_model, [{"image": np.zeros((1, 16, 8, 8), np.float32)}], OPERATORS)
    with pytest.raises(QuantizationError, match="1 of 1 batches are zero in every input"):
        check(found, 0.99)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"picture": np.ones((1, 16, 8, 8), np.float32)}, "batch 2: expected arrays for image, got picture"),
        ({}, "batch 2: expected arrays for image, got none"),
        ({"image": np.ones((1, 16, 8, 8))}, "batch 2: expected image to be float32, got float64"),
        ({"image": np.ones((1, 16, 8), np.float32)}, "batch 2: onnxruntime fails to run the model"),
    ],
    ids=["name", "nothing", "type", "shape"],
)
def test_a_batch_that_the_model_does_not_take(image_model: Path, feed: Feed, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        swept(image_model, [*images(2), feed], OPERATORS)


def test_of_two_bad_batches_the_first_is_named_and_no_more_are_taken(image_model: Path) -> None:
    taken = 0

    def batches() -> Iterator[Feed]:
        nonlocal taken
        for feed in [*images(2), {}, {"picture": np.ones(1, np.float32)}, *images(12)]:
            taken += 1
            yield feed

    with pytest.raises(QuantizationError, match="batch 2: expected arrays for image, got none"):
        swept(image_model, batches(), OPERATORS)
    assert 3 <= taken <= 5


def test_of_a_bad_batch_and_a_later_one_that_cannot_be_read_the_first_is_named(image_model: Path) -> None:
    """The second sweep meets what cannot be read while the first still computes."""

    def batches() -> Iterator[Feed]:
        yield from images(1)
        yield {"image": np.ones((400, 15, 8, 8), np.float32)}
        raise OSError("unreadable")

    for _ in range(20):
        with pytest.raises(QuantizationError, match="batch 1: onnxruntime fails to run the model"):
            swept(image_model, batches(), OPERATORS)


INTERRUPTED = """
import sys, time
import numpy as np, onnx
from compressor.quantize.calibration import calibrate

def batches():
    for number in range(100):
        print(number, flush=True)
        time.sleep(0.1)
        yield {"image": np.ones((2, 16, 8, 8), np.float32)}

calibrate(onnx.load(sys.argv[1]), batches(), ["Conv"], threads=2)
"""


def test_pressing_ctrl_c_again_and_again_ends_a_sweep_at_once(image_model: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(image_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "3\n":
            pass
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        drawn, said = process.communicate()
    assert process.returncode == -signal.SIGINT, said
    assert len(drawn.splitlines()) < 20


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_makes_no_difference(model_and_batches: tuple[Path, list[Feed]], threads: int) -> None:
    model, batches = model_and_batches
    found = calibrate(onnx.load(model), iter(batches), OPERATORS, threads=threads)
    assert found == swept(model, batches, OPERATORS)
    assert found.batches == len(batches)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_are_taken_one_by_one_or_two_by_two(image_model: Path, threads: int) -> None:
    """Of all that were handed over no more than those at hand are alive, one for a thread."""
    alive = 0

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def batches() -> Iterator[Feed]:
        nonlocal alive
        for feed in images():
            assert alive <= threads
            alive += 1
            yield {"image": feed["image"].view(Counted)}

    calibrate(onnx.load(image_model), batches(), OPERATORS, threads=threads)


def test_a_model_without_such_operators(image_model: Path) -> None:
    found = swept(image_model, images(2), ["LSTM"])
    assert (found.tensors, found.batches) == ((), 2)


class Images:
    def encode(self, inputs: Any) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Any) -> Feed:
        return {"image": np.stack(examples)}


def quantize(
    student: OnnxModel, examples: list[NDArray[Any]], wanted: Quantization, folder: Path, keep: Path | None = None
) -> QuantizedModels:
    return quantize_model(student, Mixer.of(student, examples, Images(), wanted, keep), folder, SILENT)


def test_minmax_gives_the_model_that_quantize_static_gives(image_model: Path, tmp_path: Path) -> None:
    student: OnnxModel = describe_onnx(image_model, "student", "float32")
    examples = [feed["image"][0] for feed in images()]
    # What saturates without VNNI would have a wider step, and what errs less other weights: not the calibrator's.
    off = {"same_everywhere": False, "migrate": "off", "correct_bias": "off"}
    settings = Quantization.model_validate({"precisions": ["static-int8"], **off})
    (made,) = quantize(student, examples, settings, tmp_path).models
    quantize_static(
        image_model,
        tmp_path / "theirs.onnx",
        Reader([Images().collate([example]) for example in examples]),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*OPERATORS, "Relu", "GlobalAveragePool", "Flatten"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "MatMulConstBOnly": True,
            "DefaultTensorType": TensorProto.FLOAT,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        },
    )
    ours, want = (onnx.load(path).graph for path in (made.path, tmp_path / "theirs.onnx"))
    mine, theirs = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer} for graph in (ours, want)
    )
    # Of convolutions zero points that are 0 are not written.
    unwritten = theirs.keys() - mine.keys()
    assert unwritten
    assert not any(theirs[name].any() for name in unwritten)
    assert [(node.op_type, list(node.input)) for node in ours.node] == [
        (node.op_type, [name for name in node.input if name not in unwritten]) for node in want.node
    ]
    for name, array in mine.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-5)


def test_the_method_of_the_recipe_sets_the_ranges(image_model: Path, tmp_path: Path) -> None:
    student: OnnxModel = describe_onnx(image_model, "student", "float32")
    examples = [feed["image"][0] for feed in images()]
    scales = {}
    for method in ("minmax", "percentile", "entropy", "mse"):
        folder = tmp_path / method
        folder.mkdir()
        # So that none of the examples is held out.
        wanted = {"migrate": "off", "correct_bias": "off", "calibration": method}
        settings = Quantization.model_validate({"precisions": ["static-int8"], **wanted})
        (made,) = quantize(student, examples, settings, folder, tmp_path / "kept").models
        initializers = {tensor.name: tensor for tensor in onnx.load(made.path).graph.initializer}
        scales[method] = float(onnx.numpy_helper.to_array(initializers["image_scale"]))
        low, high = ranges(swept(image_model, [Images().collate([e]) for e in examples], OPERATORS), method)["image"]
        assert scales[method] == pytest.approx((high - low) / 255, rel=1e-6)
    assert len(set(scales.values())) > 2
    assert scales["mse"] < scales["minmax"]
    assert len(list((tmp_path / "kept").iterdir())) == 1, "one sweep for all"


def test_a_mixture_of_two_static_precisions(image_model: Path, tmp_path: Path) -> None:
    student: OnnxModel = describe_onnx(image_model, "student", "float32")
    examples = [feed["image"][0] for feed in images()]
    wanted = {"precisions": ["static-int8"], "overrides": {"Gemm": "static-int16"}, "calibration": "mse"}
    (made,) = quantize(student, examples, Quantization.model_validate(wanted), tmp_path).models
    feed = Images().collate(examples)
    expected, got = (onnxruntime.InferenceSession(path).run(None, feed)[0] for path in (image_model, made.path))
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)
    zeros = [tensor.data_type for tensor in onnx.load(made.path).graph.initializer if "zero_point" in tensor.name]
    assert {TensorProto.UINT8, TensorProto.UINT16} <= set(zeros)


def test_a_poisoned_example_stops_the_quantization(image_model: Path, tmp_path: Path) -> None:
    student: OnnxModel = describe_onnx(image_model, "student", "float32")
    examples = [feed["image"][0] for feed in images()]
    examples[3] = examples[3] * np.float32(1e4)
    settings = {"precisions": ["static-int8"]}
    with pytest.raises(QuantizationError, match="outliers in image, the first of them batch 3"):
        quantize(student, examples, Quantization.model_validate(settings), tmp_path)
    assert not list(tmp_path.glob("student*")), "nothing is written"
    lenient = Quantization.model_validate({**settings, "max_bad_batches": "10%"})
    assert quantize(student, examples, lenient, tmp_path).models
