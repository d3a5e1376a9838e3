"""The ways to teach that `bench distillation` compares, for each kind of task, and what each result is kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from bench import _peers
from bench._classroom import CACHE, Classroom
from bench._training import Loss, Objective, by_engine, by_loop
from compressor.recipe_distill import ClassDistillation, Distillation
from compressor.store import key_of, write_atomic

SCRATCH, HARD, LOGITS, OURS = "scratch", "hard labels", "teacher alone", "ours"
# torchdistill's temperature and weight of the labels: of its GLUE examples, and of its CIFAR-10 examples.
_GLUE, _CIFAR = (5.0, 0.9), (4.0, 0.9)
# What a result depends on beside settings and data.
_SOURCES = (
    *("compressor/distill", "compressor/kernels", "compressor/students"),
    *("bench/_training.py", "bench/_sentence_labels.py", "bench/_peers.py"),
)


@dataclass(frozen=True)
class Method:
    """`teach` gives the trained student of a seed; `settings`: what its result depends on, in words or numbers."""

    name: str
    settings: dict[str, object]
    teach: Callable[[int], nn.Module]
    peer: bool = False


def methods(room: Classroom) -> tuple[list[Method], list[_peers.Absent]]:
    """In the order of the table, and the peers that do not run here. Raises BenchmarkError where a peer's loss is not
    what its formula says.
    """
    classes = isinstance(room.at.recipe.distill, ClassDistillation)
    found = _of_classes(room) if classes else _of_embeddings(room)
    peers = _peers_of_classes(room) if classes else _peers.of_embeddings()
    running = [peer for peer in peers if isinstance(peer, _peers.Peer)]
    for peer in running:
        peer.apart(unit=not classes)
    return found + [_peer(room, peer) for peer in running], [p for p in peers if isinstance(p, _peers.Absent)]


def _peers_of_classes(room: Classroom) -> list[_peers.Peer | _peers.Absent]:
    """At their own temperatures and this program's; of a vocabulary, for which they document none, at the latter."""
    ours = float(type(room.at.recipe.distill).model_fields["temperature"].default)
    temperature, weight = _GLUE if room.cut else _CIFAR
    own = () if room.at.task.per_token else (temperature,)
    return _peers.of_classes((*own, ours), weight, documented=not room.at.task.per_token)


def teacher_alone(room: Classroom) -> dict[str, object]:
    """The settings that learn from the teacher's outputs and nothing else."""
    classes = isinstance(room.at.recipe.distill, ClassDistillation)
    return {"hard_weight": 0.0} if classes else {"similarity_weight": 0.0}


def result_of(room: Classroom, method: Method, seed: int) -> float:
    """The metric of one training: kept in the cache as soon as it is known, so that a run continues."""
    key = key_of(room.key, method.settings, seed, _code())
    kept = CACHE / "results" / f"{key}.json"
    if kept.is_file():
        return float(json.loads(kept.read_text(encoding="utf-8"))["metric"])
    metric = room.judge(method.teach(seed))
    kept.parent.mkdir(parents=True, exist_ok=True)
    about = {"task": room.lecture.task, "method": method.name, "seed": seed, "metric": metric}
    write_atomic(kept, json.dumps(about).encode())
    return metric


def _of_classes(room: Classroom) -> list[Method]:
    found = [_engine(room, SCRATCH, {"hard_weight": 1.0}, scratch=True)] if room.cut else []
    return [
        *found,
        _engine(room, HARD, {"hard_weight": 1.0}),
        _engine(room, LOGITS, teacher_alone(room)),
        _engine(room, OURS, {}),
    ]


def _of_embeddings(room: Classroom) -> list[Method]:
    return [
        _labels(room, SCRATCH, scratch=True),
        _labels(room, HARD, scratch=False),
        _engine(room, LOGITS, teacher_alone(room)),
        _engine(room, OURS, {}),
    ]


def _engine(room: Classroom, name: str, changes: dict[str, object], scratch: bool = False) -> Method:
    def teach(seed: int) -> nn.Module:
        pupil = room.pupil(seed, scratch)
        by_engine(pupil, room.settings(seed, **changes))
        return pupil.module

    return Method(name, {"scratch": scratch, **_dumped(room.settings(0, **changes))}, teach)


def _labels(room: Classroom, name: str, scratch: bool) -> Method:
    def teach(seed: int) -> nn.Module:
        pupil, settings = room.pupil(seed, scratch), room.settings(seed)
        by_loop(pupil, settings, room.sentence_labels(settings))
        return pupil.module

    return Method(name, {"scratch": scratch, "labels": "of pairs", **_training(room)}, teach)


def _peer(room: Classroom, peer: _peers.Peer) -> Method:
    def teach(seed: int) -> nn.Module:
        pupil = room.pupil(seed, whole=True)
        by_loop(pupil, room.settings(seed), Objective(peer.loss))
        return pupil.module

    name = f"{peer.package}: {peer.settings}"
    return Method(name, {"loss": name, **_training(room)}, teach, peer=True)


def written_twice(room: Classroom) -> tuple[dict[str, object], Loss]:
    """Settings of the engine, and what they minimise once more in torch's own terms: the two are compared."""
    if room.at.task.per_token:  # of whose teacher the engine keeps a part: the labels alone
        return {"hard_weight": 1.0}, _of_labels
    settings = room.settings(0)
    if not isinstance(settings, ClassDistillation):
        return teacher_alone(room), _of_directions
    temperature = settings.temperature

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:  # noqa: ARG001
        softened, target = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
        return temperature**2 * nn.functional.kl_div(softened, target, log_target=True, reduction="batchmean")

    return teacher_alone(room), divergence


def _of_labels(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:  # noqa: ARG001
    assert labels is not None
    return nn.functional.cross_entropy(student, labels)


def _of_directions(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:  # noqa: ARG001
    return (1 - nn.functional.cosine_similarity(student, teacher, dim=-1)).mean()


def _dumped(settings: Distillation) -> dict[str, object]:
    return settings.model_dump(mode="json", exclude={"seed"})


def _training(room: Classroom) -> dict[str, object]:
    """What the loop reads of the settings."""
    return room.settings(0).model_dump(mode="json", include=set(Distillation.model_fields) - {"seed"})


def _code() -> str:
    root = Path(__file__).parent.parent
    files = [path for name in _SOURCES for path in _python_files(root / name)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.py"))
