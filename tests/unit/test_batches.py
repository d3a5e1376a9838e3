"""The order of training is a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.distill.batches import epoch_batches, epoch_views
from compressor.preprocess import by_length


@pytest.mark.parametrize(("rows", "size"), [(10, 2), (11, 4), (1000, 7), (3, 4), (0, 4), (4000, 16)])
def test_every_row_at_most_once_in_full_batches(rows: int, size: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, rows)
    batches = epoch_batches(lengths, size, seed=0, epoch=0)
    shown = [int(row) for batch in batches for row in batch]
    assert len(batches) == rows // size
    assert all(len(batch) == size for batch in batches)
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(range(rows))


def test_the_order_is_the_same_again_and_another_with_another_epoch_or_seed() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 640)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(lengths, 16, seed, epoch)).tolist()  # type: ignore[no-any-return]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_rows_sit_out_in_turn() -> None:
    """Of 11 rows in batches of 4, three sit out; over 40 epochs everybody is shown."""
    lengths = np.ones(11, dtype=np.int64)
    assert {int(r) for e in range(40) for b in epoch_batches(lengths, 4, 0, e) for r in b} == set(range(11))


def test_similar_lengths_go_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 3200)

    def padding(batches: list[np.ndarray]) -> int:
        return sum(int(lengths[b].max() * len(b) - lengths[b].sum()) for b in batches)

    shuffled = np.random.default_rng(1).permutation(3200).reshape(-1, 32)
    assert padding(epoch_batches(lengths, 32, 0, 0)) < padding(list(shuffled)) / 5


def test_batches_are_not_shown_from_short_to_long() -> None:
    lengths = np.arange(800)
    means = [lengths[b].mean() for b in epoch_batches(lengths, 8, 0, 0)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.5


def test_views_are_uniform_and_repeatable() -> None:
    views = epoch_views(6000, 3, seed=0, epoch=4)
    assert np.bincount(views, minlength=3).min() > 1850  # 2000 expected, standard deviation 37
    np.testing.assert_array_equal(views, epoch_views(6000, 3, seed=0, epoch=4))
    assert (views != epoch_views(6000, 3, seed=0, epoch=5)).any()
    assert not epoch_views(10, 1, 0, 0).any()


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_by_length_covers_all_rows_longest_first(size: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 50).tolist()
    order = np.concatenate(by_length(lengths, size))
    assert sorted(order.tolist()) == list(range(50))
    assert (np.diff(np.asarray(lengths)[order]) <= 0).all()
