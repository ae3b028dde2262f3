from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.learning.plan import Plan
from app.learning.recipe import BlockReading, ExactReading, Reading
from app.learning.replay.order import by_blocks, epoch_order
from app.learning.seeds import permutation
from tests.learning.cases import CPU, clusters, first_cycle, next_cycle, run, small_recipe

BLOCKS = BlockReading(block_bytes=12, pool_bytes=48)  # of 3 and 12 rows of 4 bytes
READINGS: list[Reading] = [ExactReading(), BLOCKS]


def bounds_of(*lengths: int) -> np.ndarray:
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=1)


def shown(new: Any, share: float | None, seed: int, reading: Reading) -> Tensor:
    """Rows of 4 bytes; the replayed ones in megabatches of 7, the new ones in one."""
    new = np.asarray(new, dtype=np.bool_)
    old = int((~new).sum())
    lengths = [7] * (old // 7) + [old % 7, len(new) - old]
    return epoch_order(new, share, seed, reading, bounds_of(*lengths), 4)


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS)
def test_an_epoch_shows_every_row_once(reading: Reading) -> None:
    new = np.arange(50) >= 40
    order = shown(new, None, 3, reading)
    assert sorted(order.tolist()) == list(range(50)) and order.tolist() != list(range(50))
    assert torch.equal(order, shown(new, None, 3, reading)) and not torch.equal(order, shown(new, None, 4, reading))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("share", "fresh"), [(0.001, 1), (0.1, 5), (0.2, 10), (0.5, 25), (0.9, 45), (0.999, 49)])
def test_a_share_of_new_rows_is_met_by_repeating_and_leaving_out(share: float, fresh: int, reading: Reading) -> None:
    new = np.arange(50) >= 40
    order = shown(new, share, 3, reading)
    assert len(order) == 50 and int(new[order].sum()) == fresh
    times = np.bincount(order, minlength=50)
    for kind in (new, ~new):
        assert times[kind].max() - times[kind].min() <= 1, "repeated, or left out, evenly"
    assert not torch.equal(order, shown(new, share, 4, reading))


@pytest.mark.parametrize("reading", READINGS)
def test_repeated_rows_are_mixed_with_the_others(reading: Reading) -> None:
    order = shown(np.arange(1000) >= 990, 0.5, 3, reading)
    first = (order[:500] >= 990).sum()
    assert 200 < first < 300


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("new", [[], [True], [True] * 30, [False] * 30], ids=len)
def test_a_share_needs_both_kinds(new: list[bool], reading: Reading) -> None:
    assert sorted(shown(new, 0.25, 3, reading).tolist()) == list(range(len(new)))


def test_two_rows_of_both_kinds() -> None:
    for share in (0.01, 0.5, 0.99):
        assert sorted(shown([False, True], share, 3, ExactReading()).tolist()) == [0, 1]


# -- by blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(100,), (1,) * 40, (3, 3, 0, 94), (7, 0, 50, 2, 41), (99, 1)])
def test_every_pool_is_of_whole_blocks_each_in_one_megabatch(lengths: tuple[int, ...]) -> None:
    bounds = bounds_of(*lengths)
    order = by_blocks(BLOCKS, bounds, 4, 5).numpy()
    assert sorted(order.tolist()) == list(range(bounds[-1, 1]))
    source = np.searchsorted(bounds[:, 1], order, side="right")
    block = list(zip(source.tolist(), ((order - bounds[source, 0]) // 3).tolist(), strict=True))
    sizes, seen = list[int](), 0
    while seen < len(order):  # rows until no block that was begun is left
        ends = range(seen + 1, len(order) + 1)
        last = next(end for end in ends if not set(block[seen:end]) & set(block[end:]))
        sizes.append(last - seen)
        seen = last
    assert max(sizes) <= 12 + 2, "a pool is drawn empty before the next one is begun"


def test_blocks_and_rows_within_a_pool_come_in_random_order() -> None:
    """Every row is equally likely at every place of the epoch, and neighbours seldom stay neighbours."""
    bounds, places = bounds_of(60, 60), np.zeros(120)
    for seed in range(400):
        order = by_blocks(BLOCKS, bounds, 4, seed).numpy()
        places[order] += np.arange(120)
        assert (np.diff(order) == 1).mean() < 0.3
    mean = places / 400
    assert abs(mean - 59.5).max() < 5 * np.sqrt((120**2 - 1) / 12 / 400)


def test_what_fits_into_one_pool_comes_as_with_exact() -> None:
    fits = BlockReading(block_bytes=12, pool_bytes=200)
    assert torch.equal(shown(np.ones(50, bool), None, 3, fits), permutation(50, 3))
    assert not torch.equal(shown(np.ones(51, bool), None, 3, fits), permutation(51, 3))


def test_a_row_larger_than_a_block_is_a_block() -> None:
    order = by_blocks(BlockReading(block_bytes=1, pool_bytes=1), bounds_of(9, 9), 4000, 1)
    assert sorted(order.tolist()) == list(range(18))


def test_a_mixed_order_keeps_to_few_blocks() -> None:
    """With a share too, rows that are shown soon after one another lie in the pools of two streams."""
    new = np.arange(4000) >= 3000
    order = shown(new, 0.5, 2, BLOCKS).numpy()
    blocks = [len(set((order[start : start + 12] // 3).tolist())) for start in range(0, 2000, 12)]
    assert np.mean(blocks) < 11 < np.mean([
        len(set((shown(new, 0.5, 2, ExactReading()).numpy()[start : start + 12] // 3).tolist()))
        for start in range(0, 2000, 12)
    ])  # fmt: skip


def test_a_plan_cuts_blocks_at_megabatches_and_follows_the_epoch() -> None:
    blocks = {"name": "blocks", "block_bytes": 96, "pool_bytes": 480}  # 3 and 15 rows of 32 bytes
    recipe = small_recipe(training={"reading": blocks})
    first = first_cycle(recipe, clusters(1))
    plan = Plan(next_cycle(first, run(first), clusters(2)), CPU)
    rows, epochs = plan.training, [plan.order(epoch) for epoch in (0, 0, 1)]
    expected = by_blocks(recipe.training.reading, rows.bounds, 32, plan.seed("epoch-0"))
    assert torch.equal(epochs[0], expected) and torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
