"""The stages of `pipeline` in which the student learns: what the teacher says, and the trainings on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.artifacts import DistilledStudent, Student, TapPair, TeacherSignals, TrainingHistory
from compressor.distill import (
    ALONE,
    Crew,
    Inputs,
    SignalReader,
    Taps,
    TrainingData,
    Workplace,
    answers_at,
    inside_signals,
    record_signals,
    respelled,
    sharded,
    tap_pairs,
    team,
    train,
    whole_answers,
)
from compressor.distill.on_policy import Score
from compressor.distill.positions import as_teacher
from compressor.errors import StudentError, TeacherError
from compressor.kernels import SparseTeacher
from compressor.materials import Materials
from compressor.preprocess import Preprocessor, TextPreprocessor
from compressor.recipe import Recipe
from compressor.recipe_base import is_on
from compressor.recipe_distill import ClassDistillation, Distillation, NextTokenDistillation, TokenDistillation
from compressor.recipe_portable import portable
from compressor.recipe_teacher import FolderTeacher, GgufTeacher, HubTeacher
from compressor.store import write_atomic
from compressor.students import write_student
from compressor.teachers import Answers, load_teacher
from compressor.token_map import TokenMap

# Examples that the teacher is asked at once; fewer where each token of a text gets a row of logits.
_BATCH, _TEXTS = 64, 8
# Settings that no tracker is told.
_UNTOLD = {f"teacher.{name}" for name in ("endpoint", "key_env", "prompt", "reference", "terms")}


def signals(at: Materials, start: Student, folder: Path) -> TeacherSignals:
    """The teacher's outputs on the training data, and what else of it the student is to learn from."""
    if at.writes:
        recorded = at.written(at.data.train, folder)
    elif isinstance(at.recipe.teacher, FolderTeacher | HubTeacher | GgufTeacher) and at.recipe.teacher.shard:
        if team.size() == 1:
            raise TeacherError(
                "teacher.shard: expected several processes to share the teacher, got one; start them with"
                " torchrun --nproc-per-node=2 -m compressor compress ..., or set it to false"
            )
        with team.together(team.Work(start, None, False, folder)):
            recorded = _record_together(at, start, folder)
    else:
        recorded = _record_alone(at, start, folder)
    size = sum(shard.path.stat().st_size for shard in recorded.shards)
    tokens = at.task.views * sum(len(example) for example in at.teacher_examples)
    by_token = (at.task.per_token and not at.writes) or recorded.taps
    each = f", {size / tokens:.1f} a token" if by_token else ""
    at.progress.log(f"  {recorded.rows:,} rows in {size / 1e6:.2f} MB: {size / recorded.rows:.0f} bytes a row{each}")
    return recorded


@dataclass(frozen=True)
class _Asked:
    """A teacher, and how it is asked: for logits of every token, or for answers to whole inputs. None: a black box."""

    module: nn.Module | None
    logits: Callable[[list[Any]], torch.Tensor]
    answers: Answers


def _record_alone(at: Materials, start: Student, folder: Path) -> TeacherSignals:
    module = None if at.black_box else at.teacher
    try:
        return _record(at, start, folder, _Asked(module, at.logits, at.answers), ALONE)
    finally:
        if module is not None:
            module.cpu()  # where the student and what compares them expect it


def _record_together(at: Materials, start: Student, folder: Path) -> TeacherSignals:
    """Every process has a part of the teacher, and makes some of the shards."""
    at.progress.log(f"  the teacher's weights are shared by {team.size()} processes")
    module = sharded(lambda: at.task.deployable(load_teacher(at.recipe)).eval())
    asked = _Asked(
        module, lambda examples: at.says(module, examples), lambda examples: at.says(module, examples).cpu().numpy()
    )
    return _record(at, start, folder, asked, team.crew())


def _record(at: Materials, start: Student, folder: Path, teacher: _Asked, crew: Crew) -> TeacherSignals:
    inputs = Inputs(at.teacher_examples, at.task.views, at.task.view)
    settings = at.recipe.distill
    pairs: tuple[TapPair, ...] = ()
    taps = None
    if inside_signals(settings) and isinstance(settings, TokenDistillation):
        assert teacher.module is not None
        pairs = tap_pairs(settings, at.student(start.folder), teacher.module)
        taps = Taps(teacher.module, [pair.teacher for pair in pairs], TeacherError)
    try:
        if at.task.per_token:
            assert isinstance(settings, ClassDistillation)
            if (tokens := _tokens(at, start)) is None:
                ask = answers_at(teacher.logits, at.task.positions, settings, taps)
            else:
                inputs = replace(inputs, examples=_in_its_tokens(at, start, tokens))
                ask = answers_at(respelled.of_texts(teacher.logits, tokens), respelled.positions, settings, taps)
            batch_size = _TEXTS
        else:
            ask, batch_size = whole_answers(teacher.answers, taps), _BATCH
        return replace(record_signals(ask, inputs, folder, at.progress, batch_size, crew), taps=pairs)
    finally:
        if taps is not None:
            taps.close()


def distill(at: Materials, start: Student, recorded: TeacherSignals, folder: Path) -> DistilledStudent:
    """Trains the student on the recorded signals."""
    with team.together(team.Work(start, recorded, False, folder)):
        history = train_student(at, start, recorded, at.recipe.distill, folder)
    return DistilledStudent(replace(start, folder=folder), history)


def control(at: Materials, start: Student, recorded: TeacherSignals, folder: Path) -> DistilledStudent:
    """The same student, data, steps and seed with the labels alone: what distillation is worth is the difference."""
    with team.together(team.Work(start, recorded, True, folder)):
        history = train_student(at, start, recorded, _labels_alone(at), folder)
    return DistilledStudent(replace(start, folder=folder), history)


def share(at: Materials, work: team.Work) -> None:
    """What a process that does not lead does of a training: its part of every batch, and it writes nothing. Of what the
    teacher says, it asks for and writes some shards.
    """
    if work.recorded is None:
        _record_together(at, work.start, work.folder)
        return
    train_student(at, work.start, work.recorded, _labels_alone(at) if work.control else at.recipe.distill, work.folder)


def _labels_alone(at: Materials) -> Distillation:
    assert isinstance(at.recipe.distill, ClassDistillation)
    # Also nothing from inside the teacher.
    alone = {"hard_weight": 1.0, "hidden_weight": 0.0, "relation_weight": 0.0}
    fields = type(at.recipe.distill).model_fields
    return at.recipe.distill.model_copy(update={name: value for name, value in alone.items() if name in fields})


def train_student(
    at: Materials,
    start: Student,
    recorded: TeacherSignals,
    settings: Distillation,
    folder: Path,
    within: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext,
) -> TrainingHistory:
    """Trains a student on the recorded signals and writes it into `folder`; `within(module)` holds while it learns."""
    module = at.student(start.folder)
    preprocessor = at.task.preprocessor(start.folder)
    known = at.lessons(recorded)
    examples = preprocessor.encode(known.train)
    if not inside_signals(settings):
        recorded = replace(recorded, taps=())
    tokens = _tokens(at, start)
    aligned = _aligned(at, preprocessor, examples) if recorded.taps else None
    score = None
    if isinstance(settings, NextTokenDistillation) and is_on(settings.on_policy) and settings.hard_weight < 1:
        score = _scoring(at, settings, tokens)
    labels = at.task.labels(known, examples)
    data = TrainingData(examples, SignalReader(recorded), labels, known.holdout, aligned=aligned, score=score)
    if at.task.per_token:
        data = _at_tokens(at, data, tokens)
    events = at.recipe.out / "tensorboard" / folder.name.removesuffix(".partial")
    place = Workplace(folder, at.progress, events, parameters(at.recipe, settings))
    with within(module):
        history = train(module, at.task, preprocessor, data, settings, place)
    if team.leads():
        write_student(next(module.children()), folder)
        if at.tokenizer_name:
            write_atomic(folder / at.tokenizer_name, (start.folder / at.tokenizer_name).read_bytes())
    return history


def parameters(recipe: Recipe, settings: Distillation) -> dict[str, str]:
    """The recipe as a tracker shows it: `{"distill.epochs": "3"}`. What a contract or a prompt says stays here."""
    values = {**portable(recipe), "distill": settings.model_dump()}
    told = {name: values[name] for name in ("task", "teacher", "data", "student", "distill")}
    return {key: value for key, value in _flat(told) if key not in _UNTOLD}


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _scoring(at: Materials, settings: NextTokenDistillation, tokens: TokenMap | None) -> Score:
    """Asks the teacher, as training goes, what it would have said at each position."""
    logits = at.logits if tokens is None else respelled.of_own_words(at.logits, tokens)
    ask = answers_at(logits, at.task.positions, settings, None)

    def score(examples: Sequence[Any], generator: torch.Generator) -> torch.Tensor | SparseTeacher:
        rows = ask(list(examples), generator)
        return as_teacher({name: torch.cat([row.said[name] for row in rows]) for name in rows[0].said})

    return score


def _tokens(at: Materials, start: Student) -> TokenMap | None:
    """Which of the teacher's tokens the student's are, where it predicts them and has not all. Raises StudentError."""
    if not isinstance(at.recipe.distill, NextTokenDistillation):
        return None
    return at.token_map(at.task.preprocessor(start.folder))


def _in_its_tokens(at: Materials, start: Student, tokens: TokenMap) -> list[respelled.Respelled]:
    """The training texts as the teacher is asked them for a student that has not all of its tokens."""
    mine = at.task.preprocessor(start.folder).encode(at.data.train)
    return [respelled.respelled(own, theirs, tokens) for own, theirs in zip(mine, at.teacher_examples, strict=True)]


def _at_tokens(at: Materials, data: TrainingData, tokens: TokenMap | None) -> TrainingData:
    """The same data for learning at those tokens that both teacher and student answer at. Raises StudentError when
    that is at most half of the teacher's.
    """
    task, labels = at.task, data.labels
    if at.writes or tokens is not None:  # it has no tokens that can be seen; or it answers at the student's
        return replace(data, positions=[task.positions(example) for example in data.examples])
    theirs = [task.positions(example) for example in at.teacher_examples]
    shared = [task.shared(mine, other) for mine, other in zip(data.examples, at.teacher_examples, strict=True)]
    share = sum(len(mine) for mine, _ in shared) / max(1, sum(map(len, theirs)))
    if share <= 0.5:
        raise StudentError(
            f"teacher and student both answer for only {share:.1%} of what the teacher does; the student cuts texts off"
            " earlier: set a larger student.max_length or student.vocab"
        )
    if share < 1:
        at.progress.log(f"  {share:.1%} of what the teacher answers, the student answers too")
    return replace(
        data,
        positions=[task.positions(example)[mine] for example, (mine, _) in zip(data.examples, shared, strict=True)],
        labels=None if labels is None else [one[mine] for one, (mine, _) in zip(labels, shared, strict=True)],
        recorded=[other for _, other in shared] if share < 1 else None,
    )


def _aligned(at: Materials, preprocessor: Preprocessor, examples: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """bool [examples]: which are the same tokens to teacher and student. Raises StudentError when most are not."""
    theirs = at.teacher_preprocessor
    assert isinstance(preprocessor, TextPreprocessor)
    assert isinstance(theirs, TextPreprocessor)
    my_tokens, their_tokens = preprocessor.tokens(), theirs.tokens()
    same = np.array(
        [
            np.array_equal(my_tokens[preprocessor.ids(mine)], their_tokens[theirs.ids(other)])
            for mine, other in zip(examples, at.teacher_examples, strict=True)
        ]
    )
    at.progress.log(f"  {same.mean():.1%} of the texts are the same tokens to teacher and student")
    if same.mean() <= 0.5:
        raise StudentError(
            f"teacher and student cut only {same.mean():.1%} of the texts into the same tokens: learning token by token"
            " needs the same tokenizer; set hidden_weight and relation_weight to 0, or a larger student.vocab"
        )
    return same
