"""Counts of layers: exact sums, bounds, nesting; and the shares that the papers say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.learning.distribution import DISTRIBUTIONS, least_kept
from app.learning.mask import Mask, top_k
from app.learning.recipe import Distribution, ErdosRenyiKernel, Global, Uniform

FLOORS = st.one_of(st.just(0.0), st.sampled_from([0.01, 0.05, 0.07, 0.5, 1.0]), st.floats(0, 1))
DISTRIBUTION = st.one_of(*(st.builds(kind, floor=FLOORS) for kind in (Global, Uniform, ErdosRenyiKernel)))
PER_LAYER = st.one_of(*(st.builds(kind, floor=FLOORS) for kind in (Uniform, ErdosRenyiKernel)))
SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6)


def full(*shapes: tuple[int, ...]) -> Mask:
    return Mask.full({f"layer{i}": torch.empty(shape) for i, shape in enumerate(shapes)})


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Any mask that keeps at least one weight."""
    shapes = draw(SHAPES)
    kept = [draw(st.integers(0, math.prod(shape))) for shape in shapes]
    kept[0] = max(kept[0], 1)
    tensors = {}
    for i, (shape, count) in enumerate(zip(shapes, kept, strict=True)):
        tensors[f"layer{i}"] = (torch.arange(math.prod(shape)) < count).reshape(shape)
    return Mask(tensors)


def random_scores(mask: Mask, seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.rand(tensor.shape, generator=source) for name, tensor in mask.items()}


def counts(options: Distribution, mask: Mask, planned: int) -> list[int]:
    return list(least_kept(options, mask, planned).values())


# -- laws --------------------------------------------------------------------------------------------------------------


@given(DISTRIBUTION, masks(), st.data())
@settings(deadline=None)
def test_counts_lie_within_what_was_kept_and_above_the_floors(
    options: Distribution, mask: Mask, data: st.DataObject
) -> None:
    planned = data.draw(st.integers(1, mask.kept))
    found = least_kept(options, mask, planned)
    assert list(found) == list(mask)
    assert all(0 <= found[layer.name] <= layer.kept for layer in mask.layers)
    floors = {
        layer.name: min(layer.kept, math.ceil(Fraction(str(options.floor)) * layer.total)) for layer in mask.layers
    }
    if sum(floors.values()) <= planned:
        assert all(found[name] >= floor for name, floor in floors.items())
    else:  # they shrink, and no further than they must
        assert sum(found.values()) == planned
        assert all(found[name] <= floor for name, floor in floors.items())
        protected = [name for name, floor in floors.items() if floor]
        assert sum(found[name] > 0 for name in protected) == min(planned, len(protected))
    if isinstance(options, Global):
        assert sum(found.values()) <= planned
    else:
        assert sum(found.values()) == planned


@given(PER_LAYER, masks(), st.data())
@settings(deadline=None)
def test_one_level_explains_all_counts_to_the_weight(
    options: Uniform | ErdosRenyiKernel, mask: Mask, data: st.DataObject
) -> None:
    """There is a level with each |count - clip(level * share, floor, kept)| < 1: Evci et al.'s capping, at its end.

    A count below its upper bound keeps the level from lying higher, one above its floor from lying lower.
    """
    planned = data.draw(st.integers(1, mask.kept))
    floor = Fraction(str(options.floor))
    floors = [min(layer.kept, math.ceil(floor * layer.total)) for layer in mask.layers]
    assume(sum(floors) <= planned)
    found, shares = counts(options, mask, planned), DISTRIBUTIONS[options](options, mask.layers)
    assert shares is not None
    bounded = list(zip(found, shares, floors, mask.layers, strict=True))
    above = [Fraction(count - 1, share) for count, share, low, _ in bounded if count > low]
    below = [Fraction(count + 1, share) for count, share, _, layer in bounded if count < layer.kept]
    assert not above or not below or max(above) < min(below)


@given(DISTRIBUTION, masks(), st.data())
@settings(deadline=None)
def test_masks_are_exact_and_nested_under_any_falling_counts(
    options: Distribution, mask: Mask, data: st.DataObject
) -> None:
    planned = mask.kept
    for seed in range(4):
        planned = data.draw(st.integers(1, planned))
        least = least_kept(options, mask, planned)
        after = top_k(random_scores(mask, seed), mask, planned, least=least).mask
        assert after.kept == planned and after.is_subset_of(mask)
        kept = {layer.name: layer.kept for layer in after.layers}
        assert all(kept[name] >= count for name, count in least.items())
        if not isinstance(options, Global):
            assert kept == least
        mask = after


@given(masks(), st.data())
def test_a_change_of_distribution_nests_too(mask: Mask, data: st.DataObject) -> None:
    """What a layer cannot give, because another distribution took it before, goes to the others."""
    for options in (Global(), ErdosRenyiKernel(), Uniform(), ErdosRenyiKernel(floor=0.1)):
        planned = data.draw(st.integers(1, mask.kept))
        found = least_kept(options, mask, planned)
        mask = top_k(random_scores(mask, 1), mask, planned, least=found).mask
        assert mask.kept == planned


# -- shares ------------------------------------------------------------------------------------------------------------


def test_uniform_is_the_same_density_everywhere() -> None:
    assert counts(Uniform(), full((10, 10), (20, 10), (7, 100)), 100) == [10, 20, 70]


def test_largest_remainders_get_what_is_left_and_ties_go_to_the_earlier_layer() -> None:
    assert counts(Uniform(), full((1, 5), (1, 5), (1, 5)), 7) == [3, 2, 2]
    assert counts(Uniform(), full((1, 2), (1, 7), (1, 3)), 5) == [1, 3, 1]  # shares 5/6, 35/12, 5/4


def published(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    """Densities by the iteration that Evci et al. publish: what exceeds 1 is made dense, and the rest is rescaled."""
    dense: set[int] = set()
    while True:
        sizes = [math.prod(shape) for shape in shapes]
        raw = [sum(shape) / math.prod(shape) for shape in shapes]
        wanted = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = wanted / sum(raw[i] * sizes[i] for i in range(len(shapes)) if i not in dense)
        highest = max((raw[i] for i in range(len(shapes)) if i not in dense), default=0.0)
        if scale * highest <= 1:
            return [1.0 if i in dense else scale * raw[i] for i in range(len(shapes))]
        dense |= {i for i in range(len(shapes)) if i not in dense and raw[i] == highest}


CONVOLUTIONAL = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (10, 1024)]


@pytest.mark.parametrize("density", [0.02, 0.1, 0.366, 0.7, 0.95])
def test_erdos_renyi_kernel_is_as_published(density: float) -> None:
    mask = full(*CONVOLUTIONAL)
    found = counts(ErdosRenyiKernel(), mask, round(density * mask.total))
    for layer, count, expected in zip(mask.layers, found, published(CONVOLUTIONAL, density), strict=True):
        assert abs(count - expected * layer.total) <= 1.5, layer.name


def test_what_a_layer_cannot_give_goes_to_the_others_in_proportion() -> None:
    mask = Mask(
        {"a": torch.arange(100) < 10, "b": torch.ones(100, dtype=torch.bool), "c": torch.ones(200, dtype=torch.bool)}
    )
    assert counts(Uniform(), mask, 160) == [10, 50, 100]


# -- floors ------------------------------------------------------------------------------------------------------------


def test_floors_of_a_global_ranking() -> None:
    assert counts(Global(floor=0.05), full((10, 10), (3, 3), (1, 2)), 50) == [5, 1, 1]
    assert counts(Global(), full((10, 10), (3, 3)), 50) == [0, 0]


def test_a_floor_is_the_decimal_fraction_that_was_written() -> None:
    assert counts(Global(floor=0.07), full((10, 10)), 50) == [7]  # 0.07 * 100 is 7.000000000000001 in floats


def test_a_floor_holds_in_a_per_layer_distribution() -> None:
    found = counts(ErdosRenyiKernel(floor=0.2), full((100, 100), (4, 4)), 2010)
    assert found == [2000, 10]


def test_many_tiny_layers_whose_floors_exceed_the_plan_shrink_instead_of_failing() -> None:
    mask = full(*[(1, 3)] * 20, (50, 50))
    found = counts(Global(floor=0.01), mask, 40)
    assert sum(found) == 40 and found[:20] == [1] * 20 and found[20] == 20
    for options in (Global(floor=0.01), Uniform(floor=0.01)):  # too few for one each: highest floors first
        assert counts(options, mask, 12) == [1] * 11 + [0] * 9 + [1]


def test_a_floor_holds_what_is_there() -> None:
    mask = Mask({"a": torch.arange(100) < 3, "b": torch.ones(100, dtype=torch.bool)})
    assert counts(Global(floor=0.1), mask, 50) == [3, 10]
