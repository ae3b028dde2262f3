"""What a criterion says does not depend on how its sample happens to be cut up, or on the scale of what it ignores."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from app.learning.architectures import prunable_parameters
from app.learning.criteria import score, tally
from app.learning.mask import Mask
from app.learning.recipe import Grasp, Snip, SnipAbsolute, SynFlow
from app.learning.scoring import agreement, median
from app.learning.seeds import seeded
from tests.learning.cases import CPU, noisy

EXAMPLES = 9


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A convolution, batch normalisation with statistics of its own, dropout; in float64."""
    with seeded(2, CPU):
        network = noisy((1, 3, 3), 3, width=3)
        network(torch.rand(8, 1, 3, 3))
        return network.double(), torch.rand(EXAMPLES, 1, 3, 3).double(), torch.randint(0, 3, (EXAMPLES,))


NETWORK, X, Y = problem()


@st.composite
def partitions(draw: st.DrawFn) -> list[Tensor]:
    """All examples in any order, cut into minibatches anywhere."""
    order = torch.tensor(draw(st.permutations(range(EXAMPLES))))
    cuts = sorted(draw(st.sets(st.integers(1, EXAMPLES - 1))))
    return list(torch.tensor_split(order, cuts))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("options", [Snip(), Grasp(temperature=1.5)], ids=["snip", "grasp"])
@given(parts=partitions())
@settings(max_examples=40, deadline=None)
def test_scores_do_not_depend_on_how_the_sample_falls_into_minibatches(
    options: Snip | Grasp, parts: list[Tensor]
) -> None:
    prunable = prunable_parameters(NETWORK)
    whole = score(options, NETWORK, prunable, [(X, Y)], 0)
    same(score(options, NETWORK, prunable, [(X[part], Y[part]) for part in parts], 0), whole)


@given(parts=partitions(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_absolute_scores_do_not_depend_on_the_order_of_minibatches(parts: list[Tensor], data: st.DataObject) -> None:
    prunable = prunable_parameters(NETWORK)
    shuffled = data.draw(st.permutations([part.flip(0) for part in parts]))
    first, second = (
        score(SnipAbsolute(), NETWORK, prunable, [(X[part], Y[part]) for part in order], 0)
        for order in (parts, shuffled)
    )
    same(first, second)
    snip = score(Snip(), NETWORK, prunable, [(X, Y)], 0)
    assert all(bool((first[name] >= snip[name] - 1e-12).all()) for name in first)


@pytest.mark.parametrize(
    "options", [Snip(), SnipAbsolute(), Grasp(temperature=1.5)], ids=["snip", "snip-absolute", "grasp"]
)
@given(parts=partitions(), data=st.data())
@settings(max_examples=30, deadline=None)
def test_tallies_add_up_in_any_order(options: object, parts: list[Tensor], data: st.DataObject) -> None:
    prunable = prunable_parameters(NETWORK)
    tallies = [tally(options, NETWORK, prunable, [(X[part], Y[part])], 0) for part in data.draw(st.permutations(parts))]
    total = tallies[0]
    for other in tallies[1:]:
        total = total + other
    same(total.scores(), score(options, NETWORK, prunable, [(X[part], Y[part]) for part in parts], 0))


@given(st.lists(st.integers(1, 7), min_size=3, max_size=6), st.integers(0, 100), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_the_flow_through_each_layer_of_a_chain_is_the_whole_flow(widths: list[int], seed: int, scale: float) -> None:
    """Tanaka et al. 2020, theorem 2: conservation; and the scale of a layer changes nothing."""
    with seeded(seed, CPU):
        network = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))).double()
    sample = [(torch.zeros(1, widths[0]), torch.zeros(1))]
    shares = score(SynFlow(), network, prunable_parameters(network), sample, 0)
    for value in shares.values():
        assert float(value.sum()) == pytest.approx(1, rel=1e-5)
        assert float(value.min()) >= 0
    with torch.no_grad():
        network[0].weight.mul_(scale)
        network[0].bias.mul_(scale)
    for name, value in score(SynFlow(), network, prunable_parameters(network), sample, 0).items():
        torch.testing.assert_close(value, shares[name], rtol=1e-4, atol=1e-9)


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=9))
def test_the_median_is_numpys(rows: list[list[float]]) -> None:
    found = median([{"a": torch.tensor(row, dtype=torch.float64).reshape(2, 2)} for row in rows])["a"]
    np.testing.assert_allclose(found.numpy().reshape(-1), np.median(np.array(rows), axis=0))


@given(st.integers(1, 6), st.data())
def test_agreement_is_the_share_that_both_keep_of_what_one_keeps(size: int, data: st.DataObject) -> None:
    bits = st.lists(st.booleans(), min_size=2 * size, max_size=2 * size)
    drawn = [np.array([True, *data.draw(bits)]) for _ in range(2)]
    first, second = (Mask({"a": torch.from_numpy(kept[:size]), "b": torch.from_numpy(kept[size:])}) for kept in drawn)
    found = agreement(first, second)
    assert found == agreement(second, first)
    assert found.whole == (drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum()
    for name, part in (("a", slice(size)), ("b", slice(size, None))):
        either = (drawn[0] | drawn[1])[part].sum()
        assert found.layers[name] == ((drawn[0] & drawn[1])[part].sum() / either if either else 1)
    assert agreement(first, first).whole == 1
