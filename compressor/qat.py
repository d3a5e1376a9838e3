"""Quantization-aware training: the distilled student learns on from its recorded teacher, in the bits it ships in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from compressor import learning, stages
from compressor.artifacts import (
    QAT_STUDENT,
    DistilledStudent,
    OnnxModel,
    Parity,
    QuantizationAwareStudent,
    Student,
    TeacherSignals,
    TrainingHistory,
)
from compressor.certificate import summary
from compressor.distill import team
from compressor.errors import QuantizationError
from compressor.materials import Materials
from compressor.onnx_file import describe_onnx
from compressor.preprocess import Feed, Preprocessor
from compressor.quantize import Mixer
from compressor.quantize.aware import fake_quantized
from compressor.quantize.matching import Match
from compressor.quantize.sites import assign
from compressor.quantize.target import Target
from compressor.quantize.thresholds import Range
from compressor.recipe_distill import Distillation
from compressor.recipe_quantize import QuantizationAware
from compressor.store import write_atomic
from compressor.verify import parity
from compressor.verify.departure import first_module

_RANGES = "ranges.json"


def train_on(
    at: Materials, distilled: DistilledStudent, whole: OnnxModel, recorded: TeacherSignals, folder: Path
) -> QuantizationAwareStudent:
    """Trains the student in the roundings of its quantized graph, exports and rewrites it again, and writes it with the
    ranges that it was trained in. `whole`: the distilled student, rewritten.

    Continues from a checkpoint in `folder`. Raises QuantizationError where the student cannot be trained so, or its
    graph has become another.
    """
    start = distilled.student
    mixer = _mixer(at, whole, start)
    target = _target(at, mixer, _ranges(at, mixer, folder / _RANGES))
    with team.together(team.Work(start, recorded, False, folder, whole)):
        history = _train(at, start, recorded, target, folder)
    trained = DistilledStudent(replace(start, folder=folder), history)

    with TemporaryDirectory(dir=folder) as scratch:  # weights that are not meant for float32
        exported = stages.export_student(at, trained, Path(scratch))
        (Path(scratch) / "rewritten").mkdir()
        again = stages.rewrite_student(at, trained, exported, Path(scratch) / "rewritten")
        final = _target(at, _mixer(at, again, trained.student), target.ranges)
    if (final.sites, final.static) != (target.sites, target.static):
        raise QuantizationError(f"{QAT_STUDENT}: training changed the exported graph; set quantize.qat to null")
    path = folder / f"{QAT_STUDENT}.onnx"
    for processor, holds in summary(final.ship(path, list(mixer.batches()))).items():
        at.progress.log(f"    integer products on {processor}: {holds}")
    model = describe_onnx(path, QAT_STUDENT, _settings(at).precision, whole.parameters)
    return QuantizationAwareStudent(trained, model, _compare(at, trained, final, model))


def share(at: Materials, work: team.Work) -> None:
    """What a process that does not lead does of the training; the ranges are those that the leader has written."""
    assert work.graph is not None
    assert work.recorded is not None
    target = _target(at, _mixer(at, work.graph, work.start), _read(work.folder / _RANGES))
    _train(at, work.start, work.recorded, target, work.folder)


def _settings(at: Materials) -> QuantizationAware:
    assert at.recipe.quantize.qat is not None
    return at.recipe.quantize.qat


def _mixer(at: Materials, whole: OnnxModel, student: Student) -> Mixer:
    """Of what quantizers take of a rewritten student. Scales and biases are left to the training."""
    wanted = at.recipe.quantize.model_copy(update={"migrate": "off", "correct_bias": "off"})
    preprocessor = at.task.preprocessor(student.folder)
    examples = preprocessor.encode(at.data.train[: wanted.calibration_samples])
    return Mixer.of(whole, examples, preprocessor, wanted, at.recipe.out / "cache")


def _target(at: Materials, mixer: Mixer, ranges: Mapping[str, Range]) -> Target:
    wanted = mixer.settings
    chosen = assign(mixer.sites, _settings(at).precision, wanted.overrides)
    return Target(mixer.source, mixer.sites, chosen, wanted.block, ranges, wanted.same_everywhere)


def _ranges(at: Materials, mixer: Mixer, kept: Path) -> dict[str, Range]:
    """Of the distilled student, and kept: a training that continues has those that it began with."""
    if not kept.is_file():
        chosen = assign(mixer.sites, _settings(at).precision, mixer.settings.overrides)
        found = mixer.start(chosen).ranges
        write_atomic(kept, json.dumps(found, indent=1).encode())
    return _read(kept)


def _read(kept: Path) -> dict[str, Range]:
    return {name: (low, high) for name, (low, high) in json.loads(kept.read_bytes()).items()}


def _train(at: Materials, start: Student, recorded: TeacherSignals, target: Target, folder: Path) -> TrainingHistory:
    feed = _feed(at, at.task.preprocessor(start.folder))

    def within(module: nn.Module) -> AbstractContextManager[tuple[Match, ...]]:
        return fake_quantized(module, target, feed)

    return learning.train_student(at, start, recorded, _lessons(at), folder, within)


def _lessons(at: Materials) -> Distillation:
    """Those of the distillation, in float32: half precision would round what is rounded already."""
    changed = {**_settings(at).model_dump(exclude={"precision"}), "precision": "float32"}
    return at.recipe.distill.model_copy(update=changed)


def _feed(at: Materials, preprocessor: Preprocessor) -> Feed:
    return at.task.shape_feeds(preprocessor)[0]


def _compare(at: Materials, trained: DistilledStudent, target: Target, model: OnnxModel) -> Parity:
    """How far the written model is from what was trained."""
    module, preprocessor = at.student(trained.student.folder), at.task.preprocessor(trained.student.folder)
    real = parity.probes_of(preprocessor, at.parity_inputs, at.task.compared)
    probes = (*real, *parity.probes_in_shapes(at.task.shape_feeds(preprocessor)))
    with fake_quantized(module, target, _feed(at, preprocessor)) as found:
        given = (
            parity.answers(parity.by_onnx(model.path), probes),
            parity.answers(parity.by_torch(module.eval()), probes),
        )
        where = partial(first_module, module, model.path, same=parity.same_way)
        compared = parity.compare(QAT_STUDENT, f"{QAT_STUDENT} in torch", given, probes, where, source=None)
    at.progress.log(
        f"  {len(found)} nodes trained in few bits; {QAT_STUDENT} against what was trained: cosine"
        f" {compared.mean_cosine:.6f}"
    )
    return compared
