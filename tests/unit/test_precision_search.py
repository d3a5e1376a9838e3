"""The search for a precision per node, where the worth of every mixture is known; and that it goes on where it was."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from compressor.progress import SILENT
from compressor.quantize.search import (
    PARETO,
    SENSITIVITY,
    TRIALS,
    Bench,
    Chosen,
    Limits,
    Timed,
    Trial,
    finalists,
    pareto,
    search,
)
from compressor.quantize.sites import Site
from compressor.recipe_quantize import NodePrecision

SITES = (
    Site("embed", "Gather", "table", (1000, 32)),
    *(Site(f"product_{i}", "MatMul", f"w{i}", (32, 32)) for i in range(6)),
    Site("slow", "MatMul", "slow", (64, 8)),
)
BYTES = {"float32": 400, "dynamic-int8": 100, "static-int8": 100, "weight-int8": 110, "weight-int4": 60}
MS = {"float32": 1.0, "dynamic-int8": 0.5, "static-int8": 0.45, "weight-int8": 0.6, "weight-int4": 0.4}


class World:
    """Product i costs i thousandths of agreement in int8, three times that in four bits; `slow` loses time in both."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.timings, self.dies_at = 0, dies_at

    def write(self, chosen: Chosen, path: Path) -> None:
        path.write_bytes(json.dumps(dict(chosen)).encode().ljust(sum(BYTES[one] for one in chosen.values())))

    def agreement(self, path: Path) -> float:
        chosen = json.loads(path.read_bytes())
        lost = sum(
            int(node.removeprefix("product_")) * (3 if precision == "weight-int4" else 1)
            for node, precision in chosen.items()
            if node.startswith("product_") and precision != "float32"
        )
        return 1 - lost / 1000

    def timed(self, path: Path) -> Timed:
        self.timings += 1
        if self.timings == self.dies_at:
            raise KeyboardInterrupt
        chosen = json.loads(path.read_bytes())
        ms = sum(
            {"float32": 1.0}.get(precision, 3.0) if node == "slow" else MS[precision]
            for node, precision in chosen.items()
        )
        return Timed(ms, len(SITES) / ms)

    @property
    def bench(self) -> Bench:
        return Bench(self.write, self.agreement, self.timed)


LIMITS = Limits(hours=1.0, trials=30)


def test_the_node_that_loses_is_reverted_and_the_sensitive_ones_keep_more_bits(tmp_path: Path) -> None:
    found = search(SITES, World().bench, LIMITS, tmp_path, 0, SILENT)
    assert [one.agreement for one in found] == sorted((one.agreement for one in found), reverse=True)
    plain = World()
    uniform = dict.fromkeys((site.node for site in SITES), "static-int8")
    plain.write(uniform, tmp_path / "plain")
    fastest = max(found, key=lambda one: one.speed)
    assert fastest.chosen["slow"] == "float32"
    assert fastest.speed > plain.timed(tmp_path / "plain").speed
    assert found[0].agreement >= 0.999
    assert found[0].chosen["product_5"] == "float32", "it alone costs five thousandths"


def test_every_trial_is_on_disk_and_the_front_is_theirs(tmp_path: Path) -> None:
    search(SITES, World().bench, LIMITS, tmp_path, 0, SILENT)
    trials = [Trial(**json.loads(line)) for line in (tmp_path / TRIALS).read_text().splitlines() if line]
    front = [Trial(**row) for row in json.loads((tmp_path / PARETO).read_text())]
    assert tuple(front) == pareto(trials)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("dies_at", [2, 5, 15])
def test_an_interrupted_search_measures_nothing_twice(tmp_path: Path, dies_at: int) -> None:
    first = World(dies_at)
    with pytest.raises(KeyboardInterrupt):
        search(SITES, first.bench, LIMITS, tmp_path, 0, SILENT)
    written = [line for line in (tmp_path / TRIALS).read_text().splitlines() if line] if dies_at > 2 else []
    second = World()
    search(SITES, second.bench, LIMITS, tmp_path, 0, SILENT)
    trials = [line for line in (tmp_path / TRIALS).read_text().splitlines() if line]
    keys = [json.dumps(json.loads(line)["chosen"], sort_keys=True) for line in trials]
    assert len(keys) == len(set(keys)), "no mixture is measured twice"
    assert trials[: len(written)] == written
    third = World()
    assert search(SITES, third.bench, LIMITS, tmp_path, 0, SILENT)
    assert third.timings == 0, "what is done is done"


def test_what_shares_a_weight_changes_as_one_and_what_cannot_have_int8_stays(tmp_path: Path) -> None:
    """A table whose rows the output is compared with, which has no int8 but in blocks; a table that has no blocks; a
    product that has nothing."""
    per_channel: tuple[NodePrecision, ...] = ("dynamic-int8", "static-int8", "static-int16")
    blocks: tuple[NodePrecision, ...] = ("weight-int8", "weight-int4")
    odd = (
        Site("head", "MatMul", "table", (1000, 32), per_channel),
        Site("narrow", "Gather", "narrow", (1000, 24), blocks),
        Site("nothing", "MatMul", "nothing", (24, 24), (*per_channel, *blocks)),
    )
    sites = (Site("embed", "Gather", "table", (1000, 32), per_channel), *SITES[1:], *odd)
    search(sites, World().bench, LIMITS, tmp_path, 0, SILENT)
    trials = [Trial(**json.loads(line)).chosen for line in (tmp_path / TRIALS).read_text().splitlines() if line]
    assert all(chosen.keys() == {site.node for site in sites} for chosen in trials)
    assert {chosen["embed"] for chosen in trials} == {"weight-int8", "weight-int4", "float32"}
    assert all(chosen["embed"] == chosen["head"] for chosen in trials)
    assert {chosen["narrow"] for chosen in trials} == {"dynamic-int8", "float32"}
    assert {chosen["nothing"] for chosen in trials} == {"float32"}
    ranked = [json.loads(line) for line in (tmp_path / SENSITIVITY).read_text().splitlines() if line]
    assert {row["node"]: row["precision"] for row in ranked}["head"] == "weight-int8"
    assert "nothing" not in {row["node"] for row in ranked}


def test_half_a_line_of_a_process_that_died_is_not_read(tmp_path: Path) -> None:
    first = search(SITES, World().bench, LIMITS, tmp_path, 0, SILENT)
    with (tmp_path / TRIALS).open("a") as file:
        file.write('{"chosen": {"emb')
    assert search(SITES, World().bench, LIMITS, tmp_path, 0, SILENT) == first


def test_without_time_there_is_still_a_best(tmp_path: Path) -> None:
    found = search(SITES, World().bench, Limits(hours=0.0, trials=30), tmp_path, 0, SILENT)
    assert len(found) == 1


def trial(agreement: float, size: int, speed: float, ms: float = 1.0, name: str = "") -> Trial:
    return Trial({f"{agreement}{size}{speed}{name}": "float32"}, agreement, size, ms, speed)


def test_the_front_by_hand() -> None:
    good, small, fast = trial(0.99, 100, 1.5), trial(0.95, 50, 1.5), trial(0.95, 100, 2.0)
    worse, equal = trial(0.94, 100, 1.9), trial(0.99, 100, 1.5, name="twin")
    for order in itertools.permutations([good, small, fast, worse, equal]):
        assert set(map(id, pareto(order))) == {id(good), id(small), id(fast), id(equal)}


def test_finalists_keep_to_the_limits() -> None:
    close, small, slow, large = (
        trial(0.9995, 100, 1.2),
        trial(0.98, 50, 1.5),
        trial(1.0, 10, 0.9),
        trial(0.99, 200, 3.0),
    )
    every = [close, small, slow, large]
    limits = Limits(1, 1, max_bytes=150, max_ms=2.0)
    assert finalists(every, limits) == (close, small)
    assert finalists(every, Limits(1, 1)) == (close, large, small)
    assert finalists(every, Limits(1, 1, max_ms=0.5)) == ()
