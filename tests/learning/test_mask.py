from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from app.errors import InvariantBroken, TrainingDiverged
from app.learning import mask as module
from app.learning.mask import Mask, top_k
from espalier.formats.checkpoint import mask_digest


def full(**shapes: tuple[int, ...]) -> Mask:
    return Mask.full({name: torch.empty(shape) for name, shape in shapes.items()})


def scores_of(**values: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_keeps_the_highest_over_all_layers() -> None:
    chosen = top_k(scores_of(a=[0.5, 3.0, 1.0], b=[2.0, 0.1]), full(a=(3,), b=(2,)), 2)
    assert chosen.mask["a"].tolist() == [False, True, False] and chosen.mask["b"].tolist() == [True, False]
    assert chosen.threshold == 2.0
    assert chosen.quantiles == pytest.approx((0.1, 0.5, 1.0, 2.0, 3.0))


def test_ties_go_to_the_lower_flat_index_in_the_order_of_names() -> None:
    chosen = top_k(scores_of(z=[1.0, 2.0, 1.0], a=[1.0, 1.0, 3.0]), full(z=(3,), a=(3,)), 4)
    assert chosen.mask["z"].tolist() == [True, True, True] and chosen.mask["a"].tolist() == [False, False, True]


def test_ties_within_a_layer_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3)
    chosen = top_k({"a": torch.zeros(10)}, full(a=(10,)), 7)
    assert chosen.mask["a"].tolist() == [True] * 7 + [False] * 3


def test_negative_zero_ties_with_zero() -> None:
    assert top_k(scores_of(a=[-0.0, 0.0]), full(a=(2,)), 1).mask["a"].tolist() == [True, False]


def test_negative_scores_rank_as_numbers_do() -> None:
    assert top_k(scores_of(a=[-3.0, -1.0, 0.5, -2.0]), full(a=(4,)), 3).mask["a"].tolist() == [False, True, True, True]


def test_pruned_weights_never_return() -> None:
    before = Mask({"a": torch.tensor([True, False, True])})
    chosen = top_k(scores_of(a=[-5.0, 100.0, -9.0]), before, 2)
    assert chosen.mask["a"].tolist() == [True, False, True]


def test_scores_of_pruned_weights_are_not_looked_at() -> None:
    before = Mask({"a": torch.tensor([True, False, True])})
    assert top_k(scores_of(a=[1.0, float("nan"), 2.0]), before, 1).mask["a"].tolist() == [False, False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(TrainingDiverged, match="scores of a are infinite or NaN: lower"):
        top_k(scores_of(a=[1.0, bad]), full(a=(2,)), 1)


@pytest.mark.parametrize("k", [0, 3])
def test_an_impossible_count_is_refused(k: int) -> None:
    with pytest.raises(InvariantBroken):
        top_k(scores_of(a=[1.0, 2.0]), full(a=(2,)), k)


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(InvariantBroken, match="scores of a"):
        top_k(scores_of(a=[1.0]), full(a=(2,)), 1)


def test_a_mask_counts_layers_and_whole() -> None:
    mask = Mask({"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False])})
    assert [(y.name, y.shape, y.kept, y.total) for y in mask.layers] == [("a", (2, 2), 3, 4), ("b", (1,), 0, 1)]
    assert (mask.kept, mask.total, mask.density) == (3, 5, 0.6)


def test_a_mask_is_boolean() -> None:
    with pytest.raises(InvariantBroken, match="boolean: a"):
        Mask({"a": torch.ones(2)})


def test_a_mask_is_not_changed_through_what_it_was_made_from() -> None:
    source = torch.tensor([True, True])
    mask = Mask({"a": source})
    source[0] = False
    assert mask["a"].all() and mask.intact()
    mask["a"][0] = False
    assert not mask.intact()


def test_applying_sets_pruned_weights_to_zero_even_infinite_ones() -> None:
    mask = Mask({"a": torch.tensor([True, False, False])})
    weights = {"a": torch.tensor([2.0, float("inf"), -1.0])}
    assert not mask.holds(weights)
    mask.apply(weights)
    assert weights["a"].tolist() == [2.0, 0.0, 0.0] and mask.holds(weights)
    assert mask.holds({})


def test_subsets() -> None:
    small, large = Mask({"a": torch.tensor([True, False])}), Mask({"a": torch.tensor([True, True])})
    assert small.is_subset_of(large) and small.is_subset_of(small) and not large.is_subset_of(small)
    assert not small.is_subset_of(Mask({"b": torch.tensor([True, True])}))


def test_arrays_come_back_and_bear_the_checkpoints_digest() -> None:
    mask = Mask({"a": torch.tensor([[True, False], [True, True]])})
    again = Mask.from_arrays(mask.arrays(), {"a": torch.empty(2, 2)})
    assert torch.equal(again["a"], mask["a"])
    assert mask.digest() == mask_digest({"a": np.array([[True, False], [True, True]])})


def test_arrays_must_fit_the_network() -> None:
    with pytest.raises(InvariantBroken, match="do not fit the network: a, b"):
        Mask.from_arrays({"a": np.ones(2, bool)}, {"a": torch.empty(3), "b": torch.empty(1)})
