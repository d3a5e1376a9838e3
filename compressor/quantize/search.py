"""A precision for every site of a graph, searched: small, fast and close to float32, as far as the time goes.

First each site alone is brought into few bits: how far the output then is from float32's, and whether it is faster at
all, ranks the sites. Then Optuna proposes how far to go down that ranking: which precision the products have, how many
sites, of the least sensitive, are in four bits and how many, of the most sensitive, stay float32, what the tables have,
and whether sites that lose time are reverted. Every trial is written down when it is done, so a search that is
interrupted goes on where it was, and its best so far is there at any time.

The study is in Optuna's own journal beside the trials: several processes that name the same folder share it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from compressor.progress import Progress
from compressor.quantize.sites import Site, applies, settled, sharing
from compressor.recipe_quantize import NodePrecision
from compressor.store import write_atomic

Chosen = Mapping[str, NodePrecision]

JOURNAL, SENSITIVITY, TRIALS, PARETO = "study.journal", "sensitivity.jsonl", "trials.jsonl", "pareto.json"
_BASES: tuple[NodePrecision, ...] = ("dynamic-int8", "static-int8", "weight-int8")
_TABLES: tuple[NodePrecision, ...] = ("dynamic-int8", "weight-int8", "weight-int4", "float32")
# A site that is slower than this beside float32 loses; below it is the noise of a short timing.
_LOSES_BELOW = 0.98
# Of each tier of agreement with float32, the best goes on to be judged in full.
_TIERS = (0.999, 0.99, 0.97, 0.9)


@dataclass(frozen=True)
class Timed:
    """Median milliseconds of an inference, and how many times as fast as float32 in the same run."""

    p50_ms: float
    speed: float


@dataclass(frozen=True)
class Trial:
    """A mixture and what came of it. `agreement`: with float32, 1 is equal."""

    chosen: dict[str, NodePrecision]
    agreement: float
    bytes: int
    p50_ms: float
    speed: float


@dataclass(frozen=True)
class Sensitivity:
    """What one node alone in few bits does to the whole: agreement with float32, and times as fast."""

    node: str
    operator: str
    precision: NodePrecision
    agreement: float
    speed: float


@dataclass(frozen=True)
class Bench:
    """How mixtures are made and measured: `write(chosen, path)`, `agreement(path)`, `timed(path)`."""

    write: Callable[[Chosen, Path], None]
    agreement: Callable[[Path], float]
    timed: Callable[[Path], Timed]


@dataclass(frozen=True)
class Limits:
    """What a mixture may weigh and take, and how long the search may: it ends by whichever comes first."""

    hours: float
    trials: int
    max_bytes: int | None = None
    max_ms: float | None = None


def search(
    sites: tuple[Site, ...], bench: Bench, limits: Limits, folder: Path, seed: int, progress: Progress
) -> tuple[Trial, ...]:
    """The trials that go on: of each tier of agreement the one with the largest (times smaller) x (times faster).

    `folder` keeps the study, every trial, and after each the Pareto set of agreement, bytes and speed.
    """
    ends = time.monotonic() + 3600 * limits.hours
    ranking = _rank(sites, bench, folder, progress)
    known = _trials(folder)
    study = _study(folder / JOURNAL, ranking, seed)
    with progress.bar("search", limits.trials, "trial") as bar:
        bar.advance(min(_done(study), limits.trials))
        while _done(study) < limits.trials and (not known or time.monotonic() < ends):
            trial = study.ask()
            chosen = ranking.mixture(trial)
            found = known.get(_key(chosen))
            if found is None:
                found = _measured(chosen, bench, folder)
                _append(folder / TRIALS, found)
                known = _trials(folder)  # with those of other processes
                front = [asdict(one) for one in pareto(known.values())]
                write_atomic(folder / PARETO, json.dumps(front, indent=2).encode())
            study.tell(trial, [found.agreement, found.bytes, found.speed])
            bar.advance(1, f"{found.bytes / 1e6:.2f} MB, {found.speed:.2f}x, agreement {found.agreement:.4f}")
    return finalists(_trials(folder).values(), limits)


def pareto(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Those that no other matches in agreement, bytes and speed and beats in one; the best agreement first."""
    all_trials = tuple(trials)
    front = [one for one in all_trials if not any(_dominates(other, one) for other in all_trials)]
    return tuple(sorted(front, key=lambda one: -one.agreement))


def finalists(trials: Iterable[Trial], limits: Limits) -> tuple[Trial, ...]:
    """Within the limits, faster than float32, and each the one that gains most in its tier of agreement or above."""
    fit = [
        one
        for one in trials
        if one.speed > 1 and one.bytes <= (limits.max_bytes or math.inf) and one.p50_ms <= (limits.max_ms or math.inf)
    ]
    best: dict[str, Trial] = {}
    for tier in _TIERS:
        if within := [one for one in fit if one.agreement >= tier]:
            winner = max(within, key=lambda one: one.speed / one.bytes)
            best.setdefault(_key(winner.chosen), winner)
    return tuple(best.values())


def _dominates(one: Trial, other: Trial) -> bool:
    better = (one.agreement - other.agreement, other.bytes - one.bytes, one.speed - other.speed)
    return min(better) >= 0 and max(better) > 0


@dataclass(frozen=True)
class _Ranking:
    """All sites; of them the products that int8 applies to, the least sensitive first, and the tables; which nodes lose
    time in few bits.
    """

    sites: tuple[Site, ...]
    products: tuple[Site, ...]
    tables: tuple[Site, ...]
    losing: frozenset[str]

    @property
    def bases(self) -> tuple[NodePrecision, ...]:
        return tuple(one for one in _BASES if any(applies(one, site) for site in self.products))

    def mixture(self, trial: optuna.Trial) -> dict[str, NodePrecision]:
        """What Optuna proposes, as a precision for every node."""
        base = cast(NodePrecision, trial.suggest_categorical("base", self.bases))
        tables = cast(NodePrecision, trial.suggest_categorical("tables", _TABLES))
        revert = trial.suggest_categorical("revert", [True, False])
        in_four_bits = trial.suggest_int("in_four_bits", 0, len(self.products))
        in_float32 = trial.suggest_int("in_float32", 0, len(self.products))
        chosen: dict[str, NodePrecision] = {site.node: tables for site in self.tables}
        for rank, site in enumerate(self.products):
            precision = base
            if rank < in_four_bits and applies("weight-int4", site):
                precision = "weight-int4"
            if rank >= len(self.products) - in_float32 or (revert and site.node in self.losing):
                precision = "float32"
            chosen[site.node] = precision
        return settled(self.sites, chosen)

    def starts(self) -> list[dict[str, object]]:
        """Where a search begins: each base everywhere, then with tables in four bits, then with most in four bits."""
        plain: list[dict[str, object]] = [
            {"base": base, "tables": tables, "revert": revert, "in_four_bits": 0, "in_float32": 0}
            for base in self.bases
            for tables, revert in (("dynamic-int8", False), ("weight-int4", False), ("weight-int8", True))
        ]
        half = {"tables": "weight-int4", "revert": False, "in_four_bits": len(self.products) // 2, "in_float32": 0}
        return [*plain, {"base": self.bases[0], **half}] if self.bases else []


def _rank(sites: tuple[Site, ...], bench: Bench, folder: Path, progress: Progress) -> _Ranking:
    """Each product alone in the first base that applies to it. Nodes of one operator and shape take the same time."""
    products = [site for site in sites if site.operator != "Gather" and any(applies(one, site) for one in _BASES)]
    known = {row["node"]: Sensitivity(**row) for row in _rows(folder / SENSITIVITY)}
    speeds = {(site.operator, site.shape): known[site.node].speed for site in products if site.node in known}
    with progress.bar("sensitivity", len(products), "node") as bar:
        for site in products:
            if site.node not in known:
                base = next(one for one in _BASES if applies(one, site))
                chosen = settled(sites, {one.node: base for one in sharing(sites, site)})
                path = _scratch(folder)
                bench.write(chosen, path)
                alike = (site.operator, site.shape)
                speed = speeds[alike] = speeds.get(alike) or bench.timed(path).speed
                found = Sensitivity(site.node, site.operator, base, bench.agreement(path), speed)
                path.unlink()
                known[site.node] = found
                _append(folder / SENSITIVITY, found)
            bar.advance(1)
    tables = tuple(site for site in sites if site.operator == "Gather")
    losing = frozenset(site.node for site in products if known[site.node].speed < _LOSES_BELOW)
    return _Ranking(sites, tuple(sorted(products, key=lambda site: -known[site.node].agreement)), tables, losing)


def _study(journal: Path, ranking: _Ranking, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name="precisions",
        directions=["maximize", "minimize", "maximize"],
        sampler=optuna.samplers.TPESampler(seed=seed),
        storage=JournalStorage(JournalFileBackend(str(journal))),
        load_if_exists=True,
    )
    if not study.trials:
        for start in ranking.starts():
            study.enqueue_trial(start)
    return study


def _done(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def _measured(chosen: dict[str, NodePrecision], bench: Bench, folder: Path) -> Trial:
    path = _scratch(folder)
    bench.write(chosen, path)
    timed = bench.timed(path)
    found = Trial(chosen, bench.agreement(path), path.stat().st_size, timed.p50_ms, timed.speed)
    path.unlink()
    return found


def _trials(folder: Path) -> dict[str, Trial]:
    return {_key(one.chosen): one for one in (Trial(**row) for row in _rows(folder / TRIALS))}


def _scratch(folder: Path) -> Path:
    """Several processes may share the folder."""
    return folder / f"trial-{os.getpid()}.onnx"


def _key(chosen: Chosen) -> str:
    return json.dumps(chosen, sort_keys=True)


def _append(path: Path, row: Trial | Sensitivity) -> None:
    """A line of its own also after half a line, which a process that died has left."""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(asdict(row)) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, which may not be there yet; of a process that died while it wrote, not the half of one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
