"""What `bench quantization` makes smaller: float32 ONNX graphs as torch exports them, with their data and metrics.

None of the data that judges is calibrated on. Texts that calibrate have one length: onnxruntime's calibrators with
histograms take no others. The network of images has no labels here that are ImageNet's: it is
judged by how often it names the same class as in float32, of photographs of one thing each on a white ground.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench._classroom import first_lines
from bench._outcome import EXAMPLES
from compressor.artifacts import OnnxModel, TensorSpec
from compressor.distill import outputs_of
from compressor.errors import BenchmarkError, DataError, TeacherError
from compressor.export import export_onnx
from compressor.materials import Materials
from compressor.metrics import accuracy, mean_cosine
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import first_outputs, open_session, run_one
from compressor.preprocess import Feed, Preprocessor
from compressor.progress import SILENT
from compressor.recipe_file import read_recipe
from compressor.store import key_of, sha256_file

CACHE = Path(__file__).parent.parent / ".cache"
MODELS = CACHE / "bench" / "quantization"
_OPSET = 20
_TIMED = 16
_LEAST_COSINE = 1 - 1e-5  # of what the exported graph says with what torch says


@dataclass(frozen=True)
class Subject:
    """A float32 model. `calibration` are encoded examples; `judge` gives the answers of a model to the examples that
    judge, [N, ...], and `metric` what they are worth, higher is better, of any of their rows; `timed` are feeds.
    """

    model: OnnxModel
    preprocessor: Preprocessor
    calibration: Sequence[NDArray[Any]]
    judge: Callable[[Path], NDArray[Any]]
    metric_name: str
    metric: Callable[[NDArray[Any], NDArray[np.int64]], float]
    timed: tuple[Feed, ...]
    has_text: bool

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def calibration_feeds(self) -> list[Feed]:
        return [self.preprocessor.collate([example]) for example in self.calibration]


@dataclass(frozen=True)
class Amount:
    """How many examples calibrate, and how many rows of data judge at most."""

    calibration: int
    evaluation: int


def encoder(amount: Amount) -> Subject:
    """MiniLM-L6, the teacher of the sentence-embedding example: AUROC of SNLI's entailment against contradiction."""
    test = CACHE / "assets" / "minilm-snli" / "test.jsonl"
    lines = first_lines(_there(test, "minilm-snli"), amount.evaluation)
    return _of_recipe("minilm-l6", "sentence-embedding", "minilm-snli", [f"data.eval={lines}"], amount, 16)


def language_model(amount: Amount) -> Subject:
    """SmolLM2-135M, the teacher of the text-generation example: 1 / perplexity of held-out presidential addresses.

    Timed is a step of generation.
    """
    settings = [f"data.max_eval={amount.evaluation}", "student.max_length=64"]
    return _of_recipe("smollm2-135m", "text-generation", "smollm2-sotu", settings, amount, 64)


def network_of_images(amount: Amount) -> Subject:
    """EfficientNet-Lite0, trained on ImageNet: the share of photographs, also mirrored, classed as in float32."""
    assets = CACHE / "assets" / "efficientnet-lite0"
    with np.load(_there(assets / "images.npz", "efficientnet-lite0")) as archive:
        images = archive["images"]
    images = images[np.random.default_rng(0).permutation(len(images))]
    calibration, held_out = images[: amount.calibration], images[amount.calibration :][: amount.evaluation]
    preprocessor = _Pictures()
    weights = assets / "weights.pth"

    def export(path: Path) -> OnnxModel:
        sys.path.append(str(assets))
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights, weights_only=True))
        # Averages as well over all places; the other way prints.
        network._global_params = network._global_params._replace(local_pooling=False)
        inputs = [TensorSpec("image", "float32", ("batch", 3, 224, 224))]
        outputs = [TensorSpec("logits", "float32", ("batch", 1000))]
        feeds = [preprocessor.collate(images[:count]) for count in (2, 1)]
        return _export(_Network(network), path.stem, inputs, outputs, feeds, path)

    model = _exported("efficientnet-lite0", sha256_file(weights), export)

    def judge(path: Path) -> NDArray[np.int64]:
        seen = [
            _answers(path, preprocessor, list(images)).argmax(axis=1) for images in (held_out, held_out[:, :, ::-1])
        ]
        return np.stack(seen, axis=1)

    in_float32 = judge(model.path)
    return Subject(
        model,
        preprocessor,
        list(calibration),
        judge,
        "same class",
        lambda classes, rows: accuracy(classes[rows], in_float32[rows]),
        tuple(preprocessor.collate([image]) for image in held_out[:_TIMED]),
        has_text=False,
    )


def _of_recipe(name: str, example: str, source: str, settings: list[str], amount: Amount, tokens: int) -> Subject:
    """The teacher of an example, with its data; texts of so many `tokens` calibrate."""
    recipe = read_recipe(EXAMPLES / f"{example}.yaml", [*settings, f"out={MODELS / name}"])
    at = Materials(recipe, SILENT)
    try:
        fingerprint = at.fingerprints["teacher"]
    except (DataError, TeacherError) as error:
        raise BenchmarkError(f"{error}; first: python examples/fetch.py {source}") from None
    preprocessor, task, data = at.teacher_preprocessor, at.task, at.data

    def export(path: Path) -> OnnxModel:
        module, feeds = task.deployable(at.teacher), task.shape_feeds(preprocessor)
        with torch.inference_mode():
            width = outputs_of(module.eval(), feeds[0]).shape[-1]
        inputs, outputs = task.graph(width, preprocessor)
        return _export(module, path.stem, inputs, outputs, feeds, path)

    examples = preprocessor.encode(data.eval_inputs)

    def judge(path: Path) -> NDArray[Any]:
        outputs = first_outputs(
            path, preprocessor, examples, batch_size=1, progress=SILENT, title=path.stem, keep=task.judged
        )
        return task.answers(outputs, data)

    return Subject(
        _exported(name, key_of(fingerprint), export),
        preprocessor,
        [example for example in preprocessor.encode(data.train) if len(example) == tokens][: amount.calibration],
        judge,
        task.metric_name,
        lambda answers, rows: task.metric(answers[rows], data.truth[rows]),
        tuple(task.timed(preprocessor, example) for example in examples[:_TIMED]),
        has_text=True,
    )


def _exported(name: str, key: str, export: Callable[[Path], OnnxModel]) -> OnnxModel:
    """Kept, for as long as weights and torch are the same."""
    folder = MODELS / f"{name}-{key_of(key, torch.__version__, _OPSET)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    return describe_onnx(path, name, "float32") if path.is_file() else export(path)


def _export(
    module: nn.Module, name: str, inputs: list[TensorSpec], outputs: list[TensorSpec], feeds: list[Feed], path: Path
) -> OnnxModel:
    """Raises BenchmarkError where the graph does not say what torch says."""
    scratch = path.with_suffix(".new")
    found = export_onnx(module, name, inputs, outputs, feeds, _OPSET, scratch)
    with torch.inference_mode():
        expected = outputs_of(module.eval(), feeds[0]).numpy()
    cosine = mean_cosine(run_one(open_session(found.path), feeds[0])[0], expected)
    if not cosine >= _LEAST_COSINE:
        raise BenchmarkError(f"{name} in ONNX must answer as in torch, got a cosine of {cosine:.6f}")
    scratch.rename(path)
    return describe_onnx(path, name, "float32")


def _answers(path: Path, preprocessor: Preprocessor, examples: list[NDArray[Any]]) -> NDArray[np.float32]:
    return first_outputs(path, preprocessor, examples, batch_size=1, progress=SILENT, title=path.stem).reshape(
        len(examples), -1
    )


def _there(path: Path, source: str) -> Path:
    if not path.is_file():
        raise BenchmarkError(f"{path}: is missing; first: python examples/fetch.py {source}")
    return path


class _Network(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.network(image),)


@dataclass(frozen=True)
class _Pictures:
    """uint8 [224, 224, 3] to what the network takes: about -1 to 1, channels first."""

    def encode(self, inputs: Sequence[Any] | NDArray[Any]) -> list[NDArray[Any]]:
        return list(inputs)

    def collate(self, examples: Sequence[NDArray[Any]] | NDArray[Any]) -> Feed:
        images = (np.stack(list(examples)).astype(np.float32) - 127) / 128
        return {"image": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
