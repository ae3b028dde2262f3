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


@pytest.mark.parametrize("chunk", [1, 100])
def test_negative_zero_ties_with_zero(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    chosen = top_k(scores_of(a=[-0.0, 0.0]), full(a=(2,)), 1)
    assert chosen.mask["a"].tolist() == [True, False]
    assert str(chosen.threshold) == "0.0" and str(chosen.quantiles[0]) == "0.0"


def test_more_weights_than_are_partitioned_are_counted() -> None:
    """With the real chunk size: many pieces, many ties, most of it pruned; and in any layout."""
    size = 2 * module._CHUNK + 3
    scores = {"a": torch.arange(3 * size).remainder(1009).neg().float().reshape(3, size).t()}
    mask = Mask({"a": torch.arange(3 * size).remainder(7).ne(2).reshape(size, 3)})
    k = mask.kept // 10
    ranked = torch.where(mask["a"], scores["a"], -torch.inf).reshape(-1).sort(descending=True, stable=True).indices[:k]
    chosen = top_k(scores, mask, k).mask["a"].reshape(-1)
    assert int(chosen.sum()) == k and bool(chosen[ranked].all())


def test_floors_are_kept_before_all_others() -> None:
    scores = scores_of(a=[9.0, 8.0, 7.0, 6.0], b=[1.0, 2.0, 2.0], c=[0.5])
    chosen = top_k(scores, full(a=(4,), b=(3,), c=(1,)), 4, least={"b": 1, "c": 1})
    assert [layer.kept for layer in chosen.mask.layers] == [2, 1, 1]
    assert chosen.mask["b"].tolist() == [False, True, False]
    assert chosen.threshold == 0.5 and chosen.quantiles[-1] == 9.0


def test_floors_that_hold_by_themselves_change_nothing() -> None:
    scores, mask = scores_of(a=[9.0, 8.0, 7.0], b=[1.0, 8.0]), full(a=(3,), b=(2,))
    assert top_k(scores, mask, 3, least={"a": 2, "b": 1}).mask.digest() == top_k(scores, mask, 3).mask.digest()


def test_floors_that_add_up_to_k_are_budgets() -> None:
    chosen = top_k(scores_of(a=[9.0, 8.0], b=[1.0, 1.0, 3.0]), full(a=(2,), b=(3,)), 3, least={"a": 1, "b": 2})
    assert chosen.mask["a"].tolist() == [True, False] and chosen.mask["b"].tolist() == [True, False, True]
    assert chosen.threshold == 1.0


@pytest.mark.parametrize(
    ("least", "said"),
    [
        ({"a": 2}, "at least 2 weights of a are to be kept of 1"),
        ({"a": -1}, "at least -1 weights of a"),
        ({"c": 1}, "at least 1 weights of c are to be kept of 0"),
        ({"a": 1, "b": 2}, "at least 3 weights are to be kept where 2 are planned"),
    ],
)
def test_floors_that_cannot_be_kept_are_refused(least: dict[str, int], said: str) -> None:
    before = Mask({"a": torch.tensor([True, False]), "b": torch.tensor([True, True])})
    with pytest.raises(InvariantBroken, match=said):
        top_k(scores_of(a=[1.0, 2.0], b=[1.0, 2.0]), before, 2, least=least)


def test_negative_scores_rank_as_numbers_do() -> None:
    assert top_k(scores_of(a=[-3.0, -1.0, 0.5, -2.0]), full(a=(4,)), 3).mask["a"].tolist() == [False, True, True, True]


def test_pruned_weights_never_return() -> None:
    before = Mask({"a": torch.tensor([True, False, True])})
    chosen = top_k(scores_of(a=[-5.0, 100.0, -9.0]), before, 2)
    assert chosen.mask["a"].tolist() == [True, False, True]


def test_scores_of_pruned_weights_are_not_looked_at() -> None:
    before = Mask({"a": torch.tensor([True, False, True])})
    assert top_k(scores_of(a=[1.0, float("nan"), 2.0]), before, 1).mask["a"].tolist() == [False, False, True]


@pytest.mark.parametrize("chunk", [1, 100])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_refused(bad: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
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
