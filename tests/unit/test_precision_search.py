"""The search for a precision per node, where the worth of every mixture is known; and that it goes on where it was."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from compressor.errors import QuantizationError
from compressor.progress import SILENT
from compressor.quantize.search import JOURNAL, Bench, Limits, Space, Timed, finalists, search
from compressor.quantize.sites import Site
from compressor.quantize.trials import PARETO, SENSITIVITY, TRIALS, UNFIT, Chosen, Trial, claimed, pareto, trials_in
from compressor.recipe_quantize import NodePrecision

SITES = (
    Site("embed", "Gather", "table", (1000, 32)),
    *(Site(f"product_{i}", "MatMul", f"w{i}", (32, 32)) for i in range(6)),
    Site("slow", "MatMul", "slow", (64, 8)),
)
BYTES = {
    "float32": 400,
    "static-int16": 110,
    "dynamic-int8": 100,
    "static-int8": 100,
    "weight-int8": 110,
    "weight-int4": 60,
}
MS = {
    "float32": 1.0,
    "static-int16": 0.5,
    "dynamic-int8": 0.5,
    "static-int8": 0.45,
    "weight-int8": 0.6,
    "weight-int4": 0.4,
}


class World:
    """Product i costs i thousandths of agreement in int8, three times that in four bits; `slow` loses time in both."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.timings, self.dies_at = 0, dies_at
        self.written: list[Chosen] = []

    def start(self, chosen: Chosen) -> None:
        """Nothing is calibrated."""

    def write(self, chosen: Chosen, path: Path) -> None:
        self.written.append(dict(chosen))
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
        return Bench(self.start, self.write, self.agreement, self.timed)


SPACE = Space(SITES, {})
LIMITS = Limits(hours=1.0, trials=30)


def test_the_node_that_loses_is_reverted_and_the_sensitive_ones_keep_more_bits(tmp_path: Path) -> None:
    found = search(SPACE, World().bench, LIMITS, tmp_path, 0, SILENT)
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
    search(SPACE, World().bench, LIMITS, tmp_path, 0, SILENT)
    trials = [Trial(**json.loads(line)) for line in (tmp_path / TRIALS).read_text().splitlines() if line]
    front = [Trial(**row) for row in json.loads((tmp_path / PARETO).read_text())]
    assert tuple(front) == pareto(trials)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("half", ['{"chosen": {"emb', '{"chosen": {"embed": "float32"}', '"chosen"', "7"])
def test_of_torn_lines_the_search_goes_on(tmp_path: Path, half: str) -> None:
    first = search(SPACE, World().bench, LIMITS, tmp_path, 0, SILENT)
    with (tmp_path / TRIALS).open("a") as file:
        file.write(half)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    again = World()
    more = search(SPACE, again.bench, Limits(hours=1.0, trials=LIMITS.trials + 5), tmp_path, 0, SILENT)
    assert max(one.agreement for one in more) >= max(one.agreement for one in first)
    for line in journal.read_bytes().splitlines():
        json.loads(line)
    assert again.timings <= 6, "what was measured is known, but for the last mixture's verdict"


def count(folder: Path) -> None:
    for _ in range(20):
        with claimed(folder, "what", wait=True):
            counted = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(counted + 1))


def test_a_claim_excludes_all_others(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    with ProcessPoolExecutor(6, mp_context=get_context("spawn")) as pool:
        for worker in [pool.submit(count, tmp_path) for _ in range(6)]:
            worker.result(timeout=120)
    assert (tmp_path / "count").read_text() == "120"
    assert not list(tmp_path.glob(".*.claim"))


@pytest.mark.parametrize("dies_at", [2, 5, 15])
def test_an_interrupted_search_measures_nothing_twice(
    tmp_path: Path, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    first = World(dies_at)
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, first.bench, LIMITS, tmp_path, 0, SILENT)
    assert first.written
    assert not list(tmp_path.rglob("*.onnx"))
    assert not list(scratch.iterdir())
    written = [line for line in (tmp_path / TRIALS).read_text().splitlines() if line] if dies_at > 2 else []
    second = World()
    search(SPACE, second.bench, LIMITS, tmp_path, 0, SILENT)
    trials = [line for line in (tmp_path / TRIALS).read_text().splitlines() if line]
    keys = [json.dumps(json.loads(line)["chosen"], sort_keys=True) for line in trials]
    assert len(keys) == len(set(keys)), "no mixture is measured twice"
    assert trials[: len(written)] == written
    third = World()
    assert search(SPACE, third.bench, LIMITS, tmp_path, 0, SILENT)
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
    search(Space(sites, {}), World().bench, LIMITS, tmp_path, 0, SILENT)
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
    first = search(SPACE, World().bench, LIMITS, tmp_path, 0, SILENT)
    with (tmp_path / TRIALS).open("a") as file:
        file.write('{"chosen": {"emb')
    assert search(SPACE, World().bench, LIMITS, tmp_path, 0, SILENT) == first


def test_without_time_there_is_still_a_best(tmp_path: Path) -> None:
    found = search(SPACE, World().bench, Limits(hours=0.0, trials=30), tmp_path, 0, SILENT)
    assert len(found) == 1


def ranked(folder: Path) -> list[str]:
    path = folder / SENSITIVITY
    return [json.loads(line)["node"] for line in path.read_text().splitlines() if line] if path.is_file() else []


def test_the_ranking_keeps_to_the_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each timing: of seven products three are ranked, then one trial is made, and no more."""
    world = World()
    monkeypatch.setattr("time.monotonic", lambda: float(world.timings))
    sites = tuple(Site(f"product_{i}", "MatMul", f"w{i}", (32, 32 + i)) for i in range(7))  # none is timed for another
    short = Limits(hours=3 / 3600, trials=30)
    assert len(search(Space(sites, {}), world.bench, short, tmp_path, 0, SILENT)) == 1
    assert ranked(tmp_path) == ["product_0", "product_1", "product_2"]
    assert world.timings == 4
    monkeypatch.undo()
    search(Space(sites, {}), world.bench, LIMITS, tmp_path, 0, SILENT)
    assert ranked(tmp_path) == [f"product_{i}" for i in range(7)], "it goes on where it was"


def test_what_is_fixed_is_so_in_every_mixture(tmp_path: Path) -> None:
    world = World()
    fixed: dict[str, NodePrecision] = {"product_1": "float32", "embed": "weight-int8", "product_2": "static-int16"}
    assert search(Space(SITES, fixed), world.bench, LIMITS, tmp_path, 0, SILENT)
    trials = trials_in(tmp_path).values()
    assert len(trials) > 5
    for one in trials:
        assert {node: one.chosen[node] for node in fixed} == fixed
        assert one.chosen.keys() == {site.node for site in SITES}
    assert not fixed.keys() & set(ranked(tmp_path))


def test_where_all_is_fixed_nothing_is_tried(tmp_path: Path) -> None:
    world = World()
    fixed: dict[str, NodePrecision] = {site.node: "float32" for site in SITES}
    assert search(Space(SITES, fixed), world.bench, LIMITS, tmp_path, 0, SILENT) == ()
    assert not world.written


def test_a_graph_of_tables_alone(tmp_path: Path) -> None:
    found = search(Space(SITES[:1], {}), World().bench, LIMITS, tmp_path, 0, SILENT)
    assert [one.chosen for one in found] == [{"embed": "weight-int4"}], (
        "the smallest, the fastest, and it costs nothing"
    )


class Picky(World):
    """The table has no blocks of four bits, product_3 nothing but static, `slow` nothing at all."""

    def write(self, chosen: Chosen, path: Path) -> None:
        if chosen["embed"] == "weight-int4":
            raise QuantizationError("no whole blocks")
        if chosen["product_3"] not in ("float32", "static-int8") or chosen["slow"] != "float32":
            raise QuantizationError("a Gemm with alpha")
        super().write(chosen, path)


def test_what_cannot_be_is_passed_over_and_not_tried_again(tmp_path: Path) -> None:
    first = Picky()
    found = search(SPACE, first.bench, LIMITS, tmp_path, 0, SILENT)
    assert found[0].chosen["slow"] == "float32"
    assert any(one.chosen["product_3"] == "static-int8" for one in trials_in(tmp_path).values())
    unfit = [json.loads(line) for line in (tmp_path / UNFIT).read_text().splitlines() if line]
    assert {row["reason"] for row in unfit} == {"no whole blocks", "a Gemm with alpha"}
    keys = [json.dumps(row["chosen"], sort_keys=True) for row in unfit]
    assert len(keys) == len(set(keys))
    assert len(ranked(tmp_path)) == 7, "what nothing fits is known too"
    again = Picky()
    assert search(SPACE, again.bench, LIMITS, tmp_path, 0, SILENT) == found
    assert not again.written


def test_what_the_examples_do_not_permit_ends_the_search(tmp_path: Path) -> None:
    def start(chosen: Chosen) -> None:
        if "static-int8" in chosen.values():
            raise QuantizationError("calibration: NaN in batch 3")

    world = World()
    bench = Bench(start, world.write, world.agreement, world.timed)
    with pytest.raises(QuantizationError, match="NaN in batch 3"):
        search(SPACE, bench, LIMITS, tmp_path, 0, SILENT)


def test_processes_that_share_a_folder_measure_no_mixture_twice(tmp_path: Path) -> None:
    """Each writes down what it measured; each sees the other's."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        workers = [pool.submit(search_slowly, tmp_path) for _ in range(2)]
        timed = [worker.result(timeout=120) for worker in workers]
    rows = [json.loads(line)["chosen"] for line in (tmp_path / TRIALS).read_text().splitlines() if line]
    keys = [json.dumps(row, sort_keys=True) for row in rows]
    assert len(keys) == len(set(keys))
    nodes = ranked(tmp_path)
    assert sorted(nodes) == sorted(set(nodes))
    assert len(nodes) == len(SITES) - 1
    assert min(timed) > 2, "both had their share"
    assert not list(tmp_path.glob(".*.claim"))
    last = World()
    assert search(SPACE, last.bench, LIMITS, tmp_path, 0, SILENT)
    assert last.timings == 0, "together they made all the trials"


class Slow(World):
    """As slow as a timing is, so that two processes meet."""

    def timed(self, path: Path) -> Timed:
        time.sleep(0.1)
        return super().timed(path)


def search_slowly(folder: Path) -> int:
    world = Slow()
    search(SPACE, world.bench, LIMITS, folder, 0, SILENT)
    return world.timings


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
