"""Does a student learn more from its teacher than from labels alone, and as much with our losses as with others'?

For each task the rows have the same teacher, training data, steps, batches, learning rates and optimiser, and differ in
what is minimised: `scratch` (the student's sizes, random weights, labels alone), `hard labels` (its weights cut from
the teacher, labels alone), `teacher alone` (the divergence of softened logits; of embeddings the cosine), `ours` (this
program's default losses), and the losses of torchdistill and TextBrewer out of their packages. Image students are not
cut from a teacher: there `hard labels` is from scratch. Sentences are learnt from labels as triplets, in batches of
their own. This program's rows are trained by its engine, the others by a loop that is first shown to end where the
engine ends, given the same loss.

A language model has a case of its own, `distillation_language`. Results are kept one by one in
`.cache/bench/distillation`; a run that was ended continues. `--quick` has one seed and little data: it shows that the
case runs, not the outcome.
"""

from __future__ import annotations

from typing import Any

import torch

from bench._agreement import engine_against_loop
from bench._classroom import Classroom, Lecture, first_lines
from bench._methods import HARD, OURS, Method, methods, result_of, written_twice
from bench._outcome import EXAMPLES
from bench._seeds import Estimate, difference, over_seeds
from compressor.distill import steps_per_epoch
from compressor.errors import BenchmarkError
from compressor.progress import Progress

SEEDS = (0, 1, 2)
LEAST_TASKS_BEYOND = 2
LOSSES_APART, ANSWERS_APART = 1e-4, 2e-3

_SNLI = EXAMPLES.parent / ".cache" / "assets" / "minilm-snli" / "train.jsonl"


def _lectures(quick: bool) -> list[Lecture]:
    rows = 300 if quick else 3_000
    if not _SNLI.is_file():
        raise BenchmarkError(f"{_SNLI}: expected SNLI there; first: python examples/fetch.py minilm-snli")
    return [
        Lecture(
            "embeddings",
            "sentence-embedding",
            "minilm-snli",
            # Whole rows, so that the pairs which labels speak of are among the sentences.
            (f"data.train={first_lines(_SNLI, rows)}", "data.max_train=null", f"distill.epochs={1 if quick else 3}"),
        ),
        Lecture(
            "topics",
            "topic-classification",
            "wordnet-topics",
            (f"data.max_train={400 if quick else 2_400}", f"distill.epochs={1 if quick else 4}"),
        ),
        Lecture(
            "images",
            "image-classification",
            "fashion-mnist",
            (f"data.max_train={600 if quick else 2_000}", *(("distill.epochs=1",) if quick else ())),
        ),
    ]


def run(quick: bool) -> dict[str, Any]:
    """Bars: those of `compared`; and on at least two tasks ours is above hard labels with the whole interval."""
    found, beyond = compared(_lectures(quick), _lectures(quick=True), quick)
    if not quick:
        found["bars"]["tasks_beyond_the_interval"] = {
            "value": beyond,
            "bar": f">= {LEAST_TASKS_BEYOND}",
            "holds": beyond >= LEAST_TASKS_BEYOND,
        }
    return found


def compared(lectures: list[Lecture], small: list[Lecture], quick: bool) -> tuple[dict[str, Any], int]:
    """Rows and bars: engine and loop agree on the `small` ones; of every task ours is above hard labels and, within its
    interval, not below the best peer. And of how many tasks it is above hard labels with the whole interval.
    """
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    bars: dict[str, dict[str, Any]] = {}
    beyond = 0
    for lecture, little in zip(lectures, small, strict=True):
        bars |= _agreement(Classroom(little))
        room = Classroom(lecture)
        ways, absent = methods(room)
        scores = _scores(room, ways, SEEDS[:1] if quick else SEEDS)
        rows += _rows(room, ways, scores)
        rows += [{"task": lecture.task, "method": one.package, "note": one.reason} for one in absent]
        if not quick:
            found, whole = _bars(lecture.task, ways, scores)
            bars |= found
            beyond += whole
    return {"rows": rows, "bars": bars}, beyond


def _agreement(room: Classroom) -> dict[str, dict[str, Any]]:
    """The same training, with the same loss, by the engine and by the loop. Raises BenchmarkError where they differ."""
    changes, loss = written_twice(room)
    losses, answers = engine_against_loop(
        lambda: room.pupil(0), room.settings(0, **changes), loss, lambda: room.pupil(0, whole=True)
    )
    if not (losses <= LOSSES_APART and answers <= ANSWERS_APART):
        raise BenchmarkError(
            f"{room.lecture.task}: engine and loop must agree, losses within {LOSSES_APART:g} and answers within"
            f" {ANSWERS_APART:g} of their movement, got {losses:g} and {answers:g}; run the tests"
        )
    name = room.lecture.task
    return {
        f"{name}_engine_and_loop_losses_apart": {"value": losses, "bar": f"<= {LOSSES_APART:g}", "holds": True},
        f"{name}_engine_and_loop_answers_apart": {"value": answers, "bar": f"<= {ANSWERS_APART:g}", "holds": True},
    }


def _scores(room: Classroom, ways: list[Method], seeds: tuple[int, ...]) -> dict[str, list[float]]:
    """Of each method the metric of every seed; seed by seed, so that a run that is ended has all methods of some."""
    scores: dict[str, list[float]] = {way.name: [] for way in ways}
    progress = Progress()
    for seed in seeds:
        for way in ways:
            scores[way.name].append(result_of(room, way, seed))
            progress.log(f"{room.lecture.task}, seed {seed}, {way.name}: {scores[way.name][-1]:.4f}")
    return scores


def _rows(room: Classroom, ways: list[Method], scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    settings = room.settings(0)
    common = {"task": room.lecture.task, "metric": room.at.task.metric_name}
    steps = settings.epochs * steps_per_epoch(len(room.at.data.train) - room.at.data.holdout, settings.batch_size)
    found: list[dict[str, Any]] = [{**common, "method": "teacher", "mean": room.teacher_score()}]
    for way in ways:
        estimate = over_seeds(scores[way.name])
        found.append(
            {
                **common,
                "method": way.name,
                "mean": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                **_against(HARD, scores, way.name),
                "seeds": len(scores[way.name]),
                "parameters": room.start.parameters,
                "steps": steps,
                "values": scores[way.name],
            }
        )
    return found


def _against(other: str, scores: dict[str, list[float]], name: str) -> dict[str, float | None]:
    gain = difference(scores[name], scores[other])
    return {"over_hard_labels": gain.mean, "over_low": gain.low, "over_high": gain.high}


def _bars(task: str, ways: list[Method], scores: dict[str, list[float]]) -> tuple[dict[str, dict[str, Any]], bool]:
    over_labels = difference(scores[OURS], scores[HARD])
    bars = {f"{task}_ours_over_hard_labels": _bar(over_labels, "> 0", over_labels.mean > 0)}
    if peers := [way.name for way in ways if way.peer]:
        best = max(peers, key=lambda name: over_seeds(scores[name]).mean)
        over_peer = difference(scores[OURS], scores[best])
        bar = _bar(over_peer, ">= 0 within its interval", over_peer.reaches(0.0))
        bars[f"{task}_ours_over_best_peer"] = {**bar, "peer": best}
    return bars, over_labels.above(0.0)


def _bar(gain: Estimate, bar: str, holds: bool) -> dict[str, Any]:
    return {"value": gain.mean, "low": gain.low, "high": gain.high, "bar": bar, "holds": holds}
