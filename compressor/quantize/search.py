"""A precision for every site of a graph, searched: small, fast and close to float32, as far as the time goes.

First each site alone is brought into few bits: how far the output then is from float32's, and whether it is faster at
all, ranks the sites. Then Optuna proposes how far to go down that ranking: which precision the products have, how many
sites, of the least sensitive, are in four bits and how many, of the most sensitive, stay float32, what the tables have,
and whether sites that lose time are reverted. Every trial is written down when it is done, so a search that is
interrupted goes on where it was, and its best so far is there at any time.

The study is in Optuna's own journal beside the trials: several processes that name the same folder share it.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from compressor.errors import BundleError, QuantizationError
from compressor.progress import Progress
from compressor.quantize.sites import Site, applies, settled, sharing
from compressor.quantize.trials import (
    Chosen,
    Sensitivity,
    Trial,
    Unfit,
    claimed,
    mixture_key,
    record,
    sensitivities_in,
    trials_in,
    tried_in,
)
from compressor.recipe_quantize import NodePrecision

JOURNAL = "study.journal"
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
class Space:
    """What is searched: a precision for each of the sites, but for those that have a `fixed` one, by node."""

    sites: tuple[Site, ...]
    fixed: Mapping[str, NodePrecision]


@dataclass(frozen=True)
class Bench:
    """How mixtures are made and measured: `write(chosen, path)`, `agreement(path)`, `timed(path)`.

    `start(chosen)` comes first: what it raises is no fault of the mixture, and ends the search.
    """

    start: Callable[[Chosen], object]
    write: Callable[[Chosen, Path], None]
    agreement: Callable[[Path], float]
    timed: Callable[[Path], Timed]


@dataclass(frozen=True)
class Limits:
    """What a mixture may weigh and take, and how long the search may: it ends by whichever comes first."""

    hours: float
    trials: int
    max_bytes: float | None = None
    max_ms: float | None = None


def search(
    space: Space, bench: Bench, limits: Limits, folder: Path, seed: int, progress: Progress
) -> tuple[Trial, ...]:
    """The trials that go on: of each tier of agreement the one with the largest (times smaller) x (times faster).

    `folder` keeps the study, every trial, and after each the Pareto set of agreement, bytes and speed. The time counts
    from the call on: what the ranking has not come to by then stays unknown, and one trial is made in any case.
    """
    ends = time.monotonic() + 3600 * limits.hours
    ranking = _rank(space, bench, folder, ends, progress)
    if not ranking.products and not ranking.tables:
        return ()
    study = _study(folder, ranking, seed)
    with progress.bar("search", limits.trials, "trial") as bar:
        bar.advance(min(_done(study), limits.trials))
        while _done(study) < limits.trials and (not trials_in(folder) or time.monotonic() < ends):
            trial = study.ask()
            found = _tried(ranking.mixture(trial), bench, folder)
            if isinstance(found, Unfit):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                bar.advance(1, "cannot be")
            else:
                study.tell(trial, [found.agreement, found.bytes, found.speed])
                bar.advance(1, f"{found.bytes / 1e6:.2f} MB, {found.speed:.2f}x, agreement {found.agreement:.4f}")
    return finalists(trials_in(folder).values(), limits)


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
            best.setdefault(mixture_key(winner.chosen), winner)
    return tuple(best.values())


@dataclass(frozen=True)
class _Ranking:
    """All sites; of them the products that int8 applies to, the least sensitive first, and the tables; which nodes lose
    time in few bits; what is settled.
    """

    sites: tuple[Site, ...]
    products: tuple[Site, ...]
    tables: tuple[Site, ...]
    losing: frozenset[str]
    fixed: Mapping[str, NodePrecision]

    @property
    def bases(self) -> tuple[NodePrecision, ...]:
        return tuple(one for one in _BASES if any(applies(one, site) for site in self.products))

    def mixture(self, trial: optuna.Trial) -> dict[str, NodePrecision]:
        """What Optuna proposes, as a precision for every node."""
        chosen = dict(self.fixed)
        if self.tables:
            tables = cast(NodePrecision, trial.suggest_categorical("tables", _TABLES))
            chosen |= {site.node: tables for site in self.tables}
        if self.products:
            chosen |= self._of_products(trial)
        return settled(self.sites, chosen)

    def _of_products(self, trial: optuna.Trial) -> dict[str, NodePrecision]:
        base = cast(NodePrecision, trial.suggest_categorical("base", self.bases))
        revert = trial.suggest_categorical("revert", [True, False])
        in_four_bits = trial.suggest_int("in_four_bits", 0, len(self.products))
        in_float32 = trial.suggest_int("in_float32", 0, len(self.products))
        chosen: dict[str, NodePrecision] = {}
        for rank, site in enumerate(self.products):
            precision = base
            if rank < in_four_bits and applies("weight-int4", site):
                precision = "weight-int4"
            if rank >= len(self.products) - in_float32 or (revert and site.node in self.losing):
                precision = "float32"
            chosen[site.node] = precision
        return chosen

    def starts(self) -> list[dict[str, object]]:
        """Where a search begins: each base everywhere, then with tables in four bits, then with most in four bits."""
        plain: list[dict[str, object]] = [
            {"base": base, "tables": tables, "revert": revert, "in_four_bits": 0, "in_float32": 0}
            for base in self.bases
            for tables, revert in (("dynamic-int8", False), ("weight-int4", False), ("weight-int8", True))
        ]
        half = {"tables": "weight-int4", "revert": False, "in_four_bits": len(self.products) // 2, "in_float32": 0}
        return [*plain, {"base": self.bases[0], **half}] if self.bases else []


def _rank(space: Space, bench: Bench, folder: Path, ends: float, progress: Progress) -> _Ranking:
    """As far as the time goes. What it does not come to is ranked as if it were the most sensitive."""
    free = [site for site in space.sites if site.node not in space.fixed]
    products = [site for site in free if site.operator != "Gather" and any(applies(one, site) for one in _BASES)]
    with progress.bar("sensitivity", len(products), "node") as bar:
        busy = products
        for wait in (False, True):  # first those that no other process is at
            left = []
            for site in busy:
                if time.monotonic() >= ends:
                    break
                if _sensed(site, space, bench, folder, wait=wait):
                    bar.advance(1)
                else:
                    left.append(site)
            busy = left
    known = sensitivities_in(folder)
    stay: dict[str, NodePrecision] = {
        site.node: "float32" for site in products if site.node in known and known[site.node].precision == "float32"
    }
    ranked = sorted(
        (site for site in products if site.node not in stay),
        key=lambda site: -known[site.node].agreement if site.node in known else math.inf,
    )
    losing = frozenset(site.node for site in ranked if site.node in known and known[site.node].speed < _LOSES_BELOW)
    tables = tuple(site for site in free if site.operator == "Gather")
    return _Ranking(space.sites, tuple(ranked), tables, losing, {**space.fixed, **stay})


def _sensed(site: Site, space: Space, bench: Bench, folder: Path, *, wait: bool) -> bool:
    """A product alone in the first base that it can have, all else float32. False where another process is at it."""
    with claimed(folder, site.node, wait=wait) as mine:
        if mine and site.node not in sensitivities_in(folder):
            record(_sensitivity(site, space, bench, folder), folder)
        return mine


def _sensitivity(site: Site, space: Space, bench: Bench, folder: Path) -> Sensitivity:
    """Nodes of one operator and shape take the same time."""
    known = sensitivities_in(folder)
    for base in (one for one in _BASES if applies(one, site)):
        chosen = settled(space.sites, {one.node: base for one in sharing(space.sites, site)})
        bench.start(chosen)
        speed = next(
            (
                known[one.node].speed
                for one in space.sites
                if one.node in known
                and (one.operator, one.shape, known[one.node].precision) == (site.operator, site.shape, base)
            ),
            None,
        )
        with _scratch() as path:
            try:
                bench.write(chosen, path)
                agreement = bench.agreement(path)
            except (QuantizationError, BundleError):  # which the next may not be
                continue
            return Sensitivity(site.node, site.operator, base, agreement, speed or bench.timed(path).speed)
    return Sensitivity(site.node, site.operator, "float32", 1.0, 1.0)


def _study(folder: Path, ranking: _Ranking, seed: int) -> optuna.Study:
    """Each process that joins proposes by a seed of its own: two with the same would propose the same."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with claimed(folder, JOURNAL, wait=True):
        _without_half_a_line(folder / JOURNAL)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        study = optuna.create_study(
            study_name="precisions",
            directions=["maximize", "minimize", "maximize"],
            storage=storage,
            load_if_exists=True,
        )
        joined = study.user_attrs.get("joined", 0)
        if joined == 0:
            for start in ranking.starts():
                study.enqueue_trial(start, skip_if_exists=True)
        study.set_user_attr("joined", joined + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # so long as constant_liar is new
        study.sampler = optuna.samplers.TPESampler(seed=seed + joined, constant_liar=True)
    return study


def _without_half_a_line(journal: Path) -> None:
    """Takes away what a process that died has left of its last line: Optuna would write the next one behind it."""
    if not journal.is_file() or journal.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock = JournalFileSymlinkLock(str(journal))  # another process may be writing the rest of it
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()


def _done(study: optuna.Study) -> int:
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    return len(study.get_trials(deepcopy=False, states=done))


def _tried(chosen: dict[str, NodePrecision], bench: Bench, folder: Path) -> Trial | Unfit:
    """What is known of a mixture, or is found now; after another process that is at it."""
    key = mixture_key(chosen)
    with claimed(folder, key, wait=True):
        found = tried_in(folder).get(key)
        if found is None:
            found = _measured(chosen, bench)
            record(found, folder)
    return found


def _measured(chosen: dict[str, NodePrecision], bench: Bench) -> Trial | Unfit:
    bench.start(chosen)
    with _scratch() as path:
        try:
            bench.write(chosen, path)
            agreement = bench.agreement(path)
        except (QuantizationError, BundleError) as error:
            return Unfit(chosen, str(error).removeprefix(f"{path}: "))
        timed = bench.timed(path)
        return Trial(chosen, agreement, path.stat().st_size, timed.p50_ms, timed.speed)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Where a mixture is written to be measured: not in the folder, which may be another machine's."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "mixture.onnx"
