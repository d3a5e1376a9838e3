"""The way through: teacher, student, distil, export, rewrite, quantize, verify, benchmark, bundle, report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressor import judging, learning, qat, stages
from compressor.artifacts import (
    STAGES,
    Bundle,
    DistilledStudent,
    Evidence,
    OnnxModel,
    Parity,
    QuantizationAwareStudent,
    QuantizedModels,
    Student,
    Teacher,
    TeacherSignals,
)
from compressor.distill import inside_signals, team
from compressor.errors import ExportError, GateError, UsageError
from compressor.materials import Materials
from compressor.outcome import Outcome, publish, retract, withdraw
from compressor.processor import measured_on
from compressor.progress import SILENT, Progress
from compressor.recipe import ImageClassificationRecipe, Recipe, TokenClassificationRecipe
from compressor.recipe_distill import ClassDistillation, NextTokenDistillation, TokenDistillation
from compressor.recipe_file import read_recipe
from compressor.recipe_portable import portable
from compressor.recipe_teacher import EndpointTeacher
from compressor.result import Result
from compressor.store import Keyed, Run, WorkAhead, key_of, sha256_file
from compressor.timings import Latencies
from compressor.verify.gate import Measured, check_examples, choose

_ASKING = (
    "distill/*.py", "tasks/*.py", "teachers/*.py", "preprocess.py", "images.py", "materials.py", "learning.py",
    "token_map.py", "tokenizer_file.py", "students/vocabulary.py", "students/subwords.py",
)  # fmt: skip
# Recorded signals are used for long, so they depend on the code that makes them, and not on the version alone.
_CODE = key_of([sha256_file(path) for part in _ASKING for path in sorted(Path(__file__).parent.glob(part))])


def compress(
    recipe: Recipe | str | Path,
    *,
    fresh: bool = False,
    rerun_from: str | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Runs a recipe (or the YAML file that holds one) to its end and returns what `result.json` then holds.

    Finished stages of earlier runs in the same folder are kept unless `fresh`, or from the stage `rerun_from` on.
    Raises a CompressorError; a GateError when nothing may ship: then result.json and report.html say why, and there is
    no bundle. After an ExportError there is none of the three: a model that departs from the one that it was made from
    takes back what an earlier run said.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(Path(recipe))
    if rerun_from is not None and rerun_from not in STAGES:
        raise UsageError(f"--from {rerun_from}: expected one of {', '.join(STAGES)}")
    run, at = Run(recipe.out, progress, fresh, rerun_from), Materials(recipe, progress)
    try:
        at.fingerprints  # noqa: B018 (what is missing or not permitted is refused before the run folder is made)
        with run.held():
            try:
                return _compress(recipe, run, at)
            except ExportError:
                retract(run.folder)
                raise
    finally:
        team.dismiss()


def assist(recipe: Recipe) -> None:
    """Trains with the process that runs `compress` on the same recipe; for the others that torchrun has started."""
    at = Materials(recipe, SILENT)
    team.follow(lambda work: (learning.share if work.graph is None else qat.share)(at, work))


def kept_stages(recipe: Recipe, at: Materials) -> tuple[str, ...]:
    """The stages that a run would keep, up to the first that it would have to make. Makes nothing."""
    run = Run(recipe.out, SILENT, planning=True)
    with suppress(WorkAhead):
        _compress(recipe, run, at)
    return tuple(time.stage for time in run.times)


def signals_kept(recipe: Recipe, at: Materials) -> bool:
    """Whether a run would find what it needs of the teacher recorded already, and whole."""

    def make(_: Path) -> TeacherSignals:
        raise WorkAhead

    try:
        _signals(Run(recipe.out, SILENT, planning=True), at, make)
    except WorkAhead:
        return False
    return True


def _compress(recipe: Recipe, run: Run, at: Materials) -> Result:
    stage, settings = run.stage, recipe.distill
    source, data, held_out = _sources(recipe, at)
    if not at.writes:  # bad data is refused before any work, also when the first stages do not read it
        check_examples(len(at.data.truth), recipe.gate)

    shape = [recipe.student, at.fingerprints.get("student")]
    teacher = stage("teacher", Teacher, lambda _: stages.teacher(at), (source,), [recipe.teacher, shape])
    graph = [recipe.export, recipe.data.graph(), recipe.student.max_length]
    # Behind an endpoint there is no model to export: the students are then compared with each other alone.
    big: Keyed[OnnxModel] | Keyed[None] = Keyed(None, source.key)
    if not isinstance(recipe.teacher, EndpointTeacher):
        big = stage("teacher-onnx", OnnxModel, lambda out: stages.export_teacher(at, out), (source,), graph)
    answers = stage(
        "teacher-answers", TeacherSignals, lambda out: judging.teacher_answers(at, big.value, out), (big, held_out)
    )
    references = _references(run, at)
    start = stage("student", Student, lambda out: stages.student(at, out), (source, data), shape)
    signals = _signals(run, at, lambda out: learning.signals(at, start.value, out))

    def learn(out: Path) -> DistilledStudent:
        return learning.distill(at, start.value, signals.value, out)

    def learn_without_teacher(out: Path) -> DistilledStudent:
        return learning.control(at, start.value, signals.value, out)

    lessons = settings.model_dump(exclude={"control"})
    distilled = stage("distill", DistilledStudent, learn, (start, signals), lessons, keep_partial=True)
    controls: tuple[Keyed[DistilledStudent], ...] = ()
    if isinstance(settings, ClassDistillation) and settings.control:
        labels_alone = settings.model_dump(exclude={"control", "temperature", "hard_weight"})
        controls = (
            stage(
                "control", DistilledStudent, learn_without_teacher, (start, signals), labels_alone, keep_partial=True
            ),
        )

    exported = stage(
        "export", OnnxModel, lambda out: stages.export_student(at, distilled.value, out), (distilled,), graph
    )
    small = stage(
        "rewrite", OnnxModel, lambda out: stages.rewrite_student(at, distilled.value, exported.value, out), (exported,)
    )
    quantized = stage(
        "quantize",
        QuantizedModels,
        lambda out: stages.quantize_student(at, distilled.value, small.value, out),
        (small, data),
        [
            recipe.quantize.model_dump(exclude={"qat": True, "search": {"study"}}),
            # A search is decided by timings.
            [recipe.benchmark.threads, *measured_on()] if recipe.quantize.search is not None else None,
        ],
    )
    few_bits, known = quantized.value.models, list[Parity]()
    written: tuple[Keyed[Any], ...] = (big, small, quantized)
    if recipe.quantize.qat is not None:
        aware = stage(
            "qat",
            QuantizationAwareStudent,
            lambda out: qat.train_on(at, distilled.value, small.value, signals.value, out),
            (distilled, small, signals),
            [recipe.quantize.model_dump(exclude={"precisions", "search", "migrate", "correct_bias"}), lessons, graph],
            keep_partial=True,
        )
        few_bits, known = (*few_bits, aware.value.model), [aware.value.parity]
        written = (*written, aware)
    models = judging.Models(big.value, exported.value, small.value, few_bits, distilled.value)
    all_models = (*written, held_out)
    verified = stage(
        "verify",
        Evidence,
        lambda _: judging.verify(
            at,
            models,
            answers.value,
            [control.value for control in controls],
            references[0].value if references else None,
            known,
        ),
        (*all_models, answers, *controls, *references),
    )
    target = [recipe.benchmark, measured_on()]
    timed = stage("benchmark", Latencies, lambda _: stages.benchmark(at, models), all_models, target)
    if run.planning:
        raise WorkAhead

    found = Outcome(recipe, teacher.value, models, quantized.value, verified.value, timed.value)
    try:
        candidates = (models.student, *models.quantized)
        measured = Measured(found.qualities, found.latencies, found.parities, timed.value.timing)
        decision = choose(models.teacher, candidates, measured, recipe.gate, recipe.quantize.search)
    except GateError as error:
        withdraw(found, error, at, run)
        raise
    bundle = stage(
        "bundle",
        Bundle,
        lambda out: stages.bundle(at, models, teacher.value, found.qualities[decision.shipped], out),
        (teacher, *written[1:], verified),
        [decision.shipped, portable(recipe), at.data.described],
    )
    return publish(found, decision, bundle.value, at, run)


def _references(run: Run, at: Materials) -> tuple[Keyed[TeacherSignals], ...]:
    """What the model of `verify.reference` answers, asked before there is much to lose; none where there is none."""
    if at.reference is None:
        return ()
    source = Keyed(None, key_of(at.recipe.task, at.fingerprints["reference"]))
    sources = (source, _sources(at.recipe, at)[2])
    return (run.stage("reference", TeacherSignals, lambda out: judging.reference_answers(at, out), sources),)


def _signals(run: Run, at: Materials, record: Callable[[Path], TeacherSignals]) -> Keyed[TeacherSignals]:
    """What the teacher says of the training data: of this run, or of all that share `recipe.cache`.

    Its answers serve every student, or those with the tokens that it was asked in; what is taken from inside it, those
    as deep as this one.
    """
    recipe, (source, data, _) = at.recipe, _sources(at.recipe, at)
    inside = inside_signals(recipe.distill)
    taken = [
        at.task.views,
        inside,
        inside and [recipe.student.layers, _layers_map(recipe), at.fingerprints.get("student")],
        _CODE,
        _kept_of_tokens(recipe),
    ]
    return run.stage(
        "signals",
        TeacherSignals,
        record,
        (source, data),
        taken,
        keep_partial=True,
        mends=True,
        shared=recipe.cache,
    )


def _layers_map(recipe: Recipe) -> object:
    return recipe.distill.hidden_layers if isinstance(recipe.distill, TokenDistillation) else None


def _kept_of_tokens(recipe: Recipe) -> object:
    settings = recipe.distill
    if isinstance(settings, NextTokenDistillation):
        kept = settings.model_dump(include={"temperature", "teacher_signal", "kept_tokens"})
        return [kept, recipe.student.vocab]
    return None


def _sources(recipe: Recipe, at: Materials) -> tuple[Keyed[None], Keyed[None], Keyed[None]]:
    """The keys of what comes from outside: the teacher, the training data, the evaluation data."""
    length = recipe.student.max_length
    own = at.fingerprints.get("definition")
    # Rows with bad labels are left out, but only where labels are read.
    by_labels = (
        isinstance(recipe, TokenClassificationRecipe | ImageClassificationRecipe) and recipe.distill.needs_labels
    )
    teacher = key_of(recipe.task, at.fingerprints["teacher"], own)
    training = key_of(recipe.data.training(), recipe.distill.seed, at.fingerprints["train"], length, own, by_labels)
    evaluation = key_of(recipe.data.evaluation(), at.fingerprints["eval"], length, own)
    return Keyed(None, teacher), Keyed(None, training), Keyed(None, evaluation)
