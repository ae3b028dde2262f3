"""Selection is exact, nested and deterministic, against a plain reference: a stable sort of all scores."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.learning import mask as module
from app.learning.mask import Mask, top_k

# Few distinct values, so that ties are the rule; tiny and huge ones, so that both halves of the bits decide.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, 0.5, 1e-45, -1e-45, 1e-38, 3e38, -3e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], Mask, int]:
    """Scores, a mask that keeps at least one weight, and a count that it allows."""
    shapes = [tuple(shape) for shape in draw(SHAPES)]
    names = [f"layer{index}" for index in draw(st.permutations(range(len(shapes))))]
    sizes = [int(np.prod(shape)) for shape in shapes]
    scores = [draw(st.lists(VALUES, min_size=size, max_size=size)) for size in sizes]
    kept = [draw(st.lists(st.booleans(), min_size=size, max_size=size)) for size in sizes]
    kept[0][0] = True
    flat = list(zip(names, shapes, scores, kept, strict=True))
    mask = Mask({name: torch.tensor(bits).reshape(shape) for name, shape, _, bits in flat})
    tensors = {name: torch.tensor(value, dtype=torch.float32).reshape(shape) for name, shape, value, _ in flat}
    return tensors, mask, draw(st.integers(1, mask.kept))


def flattened(tensors: dict[str, Tensor] | Mask) -> np.ndarray:
    return np.concatenate([tensor.reshape(-1).numpy() for tensor in tensors.values()])


def reference(scores: np.ndarray, kept: np.ndarray, k: int) -> np.ndarray:
    ranked = np.argsort(np.where(kept, -scores, np.inf), kind="stable")
    chosen = np.zeros(len(scores), bool)
    chosen[ranked[:k]] = True
    return chosen


@given(problems(), st.integers(1, 7))
@settings(deadline=None)
def test_top_k_is_a_stable_sort_cut_off_at_k(problem: tuple[dict[str, Tensor], Mask, int], chunk: int) -> None:
    scores, mask, k = problem
    with mock.patch.object(module, "_CHUNK", chunk):
        chosen = top_k(scores, mask, k)
    np.testing.assert_array_equal(flattened(chosen.mask), reference(flattened(scores), flattened(mask), k))
    assert chosen.mask.kept == k
    assert chosen.mask.is_subset_of(mask)
    ranked = np.sort(flattened(scores)[flattened(mask)])
    assert chosen.threshold == ranked[len(ranked) - k]
    assert chosen.quantiles == tuple(ranked[round(q * (len(ranked) - 1))] for q in (0, 0.25, 0.5, 0.75, 1))


@given(problems(), st.data())
@settings(deadline=None)
def test_masks_nest_along_a_lineage(problem: tuple[dict[str, Tensor], Mask, int], data: st.DataObject) -> None:
    """Whatever the scores of later cycles: each mask is a subset of the one before, and each count exact."""
    scores, mask, k = problem
    while True:
        after = top_k(scores, mask, k).mask
        assert after.kept == k and after.is_subset_of(mask)
        if k == 1:
            break
        k, mask = data.draw(st.integers(1, k - 1)), after
        scores = {name: -tensor for name, tensor in scores.items()}


@given(problems())
@settings(deadline=None)
def test_keeping_as_many_as_before_changes_nothing(problem: tuple[dict[str, Tensor], Mask, int]) -> None:
    scores, mask, _ = problem
    assert top_k(scores, mask, mask.kept).mask.digest() == mask.digest()


@given(problems())
@settings(max_examples=50, deadline=None)
def test_the_digest_tells_masks_apart(problem: tuple[dict[str, Tensor], Mask, int]) -> None:
    _, mask, _ = problem
    for name in mask:
        for index in range(mask[name].numel()):
            bits = {key: tensor.clone() for key, tensor in mask.items()}
            bits[name].view(-1)[index] ^= True
            assert Mask(bits).digest() != mask.digest()
