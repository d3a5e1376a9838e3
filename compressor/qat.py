"""Quantization-aware training: the distilled student learns on from its recorded teacher, in the bits it ships in."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from torch import nn

from compressor import learning, stages
from compressor.artifacts import (
    DistilledStudent,
    OnnxModel,
    QuantizationAwareStudent,
    Student,
    TeacherSignals,
    TrainingHistory,
)
from compressor.distill import team
from compressor.errors import BundleError, QuantizationError
from compressor.materials import Materials
from compressor.metrics import mean_cosine
from compressor.onnx_file import describe_onnx
from compressor.onnxrt import open_session
from compressor.preprocess import Feed, Preprocessor
from compressor.quantize import load_float_model
from compressor.quantize.aware import Match, fake_quantized
from compressor.quantize.observed import observed_ranges
from compressor.quantize.qdq import Range, Target
from compressor.quantize.sites import assign, find_sites
from compressor.recipe_distill import Distillation
from compressor.recipe_quantize import QuantizationAware
from compressor.store import write_atomic
from compressor.verify import parity

NAME = "student-qat"
_RANGES = "ranges.json"


def train_on(
    at: Materials, distilled: DistilledStudent, exported: OnnxModel, recorded: TeacherSignals, folder: Path
) -> QuantizationAwareStudent:
    """Trains the student in the graph's roundings, exports it again, and writes it with the ranges it was trained in.

    Continues from a checkpoint in `folder`. Raises QuantizationError where the student cannot be trained so, or its
    graph has become another.
    """
    settings = _settings(at)
    start, preprocessor = distilled.student, at.task.preprocessor(distilled.student.folder)
    target = _target(at, exported)
    ranges = _ranges(at, target, preprocessor, folder / _RANGES)
    with team.together(team.Work(start, recorded, False, folder, exported)):
        history = _train(at, start, recorded, target, ranges, folder)
    trained = DistilledStudent(replace(start, folder=folder), history)

    again = stages.export_student(at, trained, folder)
    final = _target(at, again)
    again.path.unlink()  # its weights are not meant for float32
    if (final.sites, final.activations()) != (target.sites, target.activations()):
        raise QuantizationError(f"{NAME}: training changed the exported graph; set quantize.qat to null")
    model = _write(final, ranges, settings.precision, exported.parameters, folder / f"{NAME}.onnx")
    _compare(at, trained, final, ranges, model)
    return QuantizationAwareStudent(trained, model)


def share(at: Materials, work: team.Work) -> None:
    """What a process that does not lead does of the training; the ranges are those that the leader has written."""
    assert work.graph is not None
    assert work.recorded is not None
    target = _target(at, work.graph)
    _train(at, work.start, work.recorded, target, _read(work.folder / _RANGES), work.folder)


def _settings(at: Materials) -> QuantizationAware:
    assert at.recipe.quantize.qat is not None
    return at.recipe.quantize.qat


def _target(at: Materials, exported: OnnxModel) -> Target:
    source = load_float_model(exported.path)
    sites = find_sites(source)
    wanted = at.recipe.quantize
    return Target(source, sites, assign(sites, _settings(at).precision, wanted.overrides), wanted.block)


def _ranges(at: Materials, target: Target, preprocessor: Preprocessor, kept: Path) -> dict[str, Range]:
    """Found on training inputs, one by one, and kept: a training that continues has those that it began with."""
    if not kept.is_file():
        examples = preprocessor.encode(at.data.train[: at.recipe.quantize.calibration_samples])
        feeds = (preprocessor.collate([example]) for example in examples)
        found = observed_ranges(target.source, target.activations(), feeds)
        write_atomic(kept, json.dumps(found, indent=1).encode())
    return _read(kept)


def _read(kept: Path) -> dict[str, Range]:
    return {name: (low, high) for name, (low, high) in json.loads(kept.read_bytes()).items()}


def _train(
    at: Materials,
    start: Student,
    recorded: TeacherSignals,
    target: Target,
    ranges: dict[str, Range],
    folder: Path,
) -> TrainingHistory:
    feed = _feed(at, at.task.preprocessor(start.folder))

    def within(module: nn.Module) -> AbstractContextManager[tuple[Match, ...]]:
        return fake_quantized(module, target, ranges, feed)

    return learning.train_student(at, start, recorded, _lessons(at), folder, within)


def _lessons(at: Materials) -> Distillation:
    """Those of the distillation, in float32: half precision would round what is rounded already."""
    changed = {**_settings(at).model_dump(exclude={"precision"}), "precision": "float32"}
    return at.recipe.distill.model_copy(update=changed)


def _feed(at: Materials, preprocessor: Preprocessor) -> Feed:
    return at.task.shape_feeds(preprocessor)[0]


def _write(target: Target, ranges: dict[str, Range], precision: str, parameters: int, path: Path) -> OnnxModel:
    write_atomic(path, target.written(ranges).SerializeToString())
    try:
        open_session(path)
    except BundleError as error:
        path.unlink()
        raise QuantizationError(str(error)) from None
    return describe_onnx(path, NAME, precision, parameters)


def _compare(
    at: Materials, trained: DistilledStudent, target: Target, ranges: dict[str, Range], model: OnnxModel
) -> None:
    """Says how close the written model is to what was trained. The gate judges the model, whatever comes out here."""
    module, preprocessor = at.student(trained.student.folder), at.task.preprocessor(trained.student.folder)
    examples = preprocessor.encode(at.parity_inputs)
    with fake_quantized(module, target, ranges, _feed(at, preprocessor)) as found:
        expected = parity.torch_outputs(module, preprocessor, examples, at.task.compared)
    cosine = mean_cosine(parity.onnx_outputs(model, preprocessor, examples, at.task.compared), expected)
    at.progress.log(f"  {len(found)} nodes trained in few bits; {NAME} against what was trained: cosine {cosine:.6f}")
