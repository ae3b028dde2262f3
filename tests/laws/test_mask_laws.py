"""Selection is exact, nested and deterministic, against a plain reference: a stable sort of all scores."""

from __future__ import annotations

from collections.abc import Mapping
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.learning import mask as module
from app.learning.mask import Mask, Selection, top_k

# Few distinct values, so that ties are the rule; tiny and huge ones, so that every digit of the bits decides.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, 0.5, 1e-45, -1e-45, 1e-38, 3e38, -3e38]),
    st.sampled_from([1.0000000000000002, -1e-300, 1e-300, 5e-324]),  # told apart by float64 alone
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4)
CHUNKS = st.sampled_from([1, 2, 3, 5, 7, 1 << 18])
"""The last one is larger than any case: it ranks by a partition, the others by counting."""


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], Mask, int]:
    """Scores, a mask that keeps at least one weight, and a count that it allows. Pruned weights may have any score."""
    shapes = [tuple(shape) for shape in draw(SHAPES)]
    names = [f"layer{index}" for index in draw(st.permutations(range(len(shapes))))]
    sizes = [int(np.prod(shape)) for shape in shapes]
    scores = [draw(st.lists(VALUES, min_size=size, max_size=size)) for size in sizes]
    kept = [draw(st.lists(st.booleans(), min_size=size, max_size=size)) for size in sizes]
    kept[0][0] = True
    flat = list(zip(names, shapes, scores, kept, strict=True))
    mask = Mask({name: torch.tensor(bits).reshape(shape) for name, shape, _, bits in flat})
    tensors = {name: tensor_of(value, draw(DTYPES)).reshape(shape) for name, shape, value, _ in flat}
    for name, tensor in tensors.items():
        tensor[~mask[name]] = draw(st.sampled_from([0.0, 7.0, float("nan"), float("-inf")]))
    return tensors, mask, draw(st.integers(1, mask.kept))


def tensor_of(values: list[float], dtype: torch.dtype) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    return torch.where(torch.isfinite(tensor), tensor, 0)


@st.composite
def floors(draw: st.DrawFn, mask: Mask, k: int) -> dict[str, int]:
    """How many to keep at least: any counts that the mask and k allow; now and then an exact budget."""
    left, least = k, {}
    for layer in draw(st.permutations(mask.layers)):
        least[layer.name] = draw(st.integers(0, min(layer.kept, left)))
        left -= least[layer.name]
    if draw(st.booleans()):
        for layer in mask.layers:
            more = min(layer.kept - least[layer.name], left)
            least[layer.name], left = least[layer.name] + more, left - more
    return least


def flattened(tensors: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([tensor.reshape(-1).to(torch.float64).numpy() for tensor in tensors.values()])


def reference(scores: Mapping[str, Tensor], mask: Mask, k: int, least: Mapping[str, int] | None = None) -> np.ndarray:
    """First the highest of each layer up to its floor, then of all others, by stable sorts in float64."""
    values, kept = flattened(scores), flattened(mask).astype(bool)
    layer = np.repeat(list(mask), [tensor.numel() for tensor in mask.values()])
    chosen = np.zeros(len(values), bool)

    def take(candidates: np.ndarray, count: int) -> None:
        chosen[np.argsort(np.where(candidates, -values, np.inf), kind="stable")[:count]] = True

    for name, count in (least or {}).items():
        take(kept & (layer == name), count)
    take(kept & ~chosen, k - int(chosen.sum()))
    return chosen


def top_k_by(chunk: int, *arguments: object, **keywords: object) -> Selection:
    with mock.patch.object(module, "_CHUNK", chunk):
        return top_k(*arguments, **keywords)  # type: ignore[arg-type]


@given(problems(), CHUNKS)
@settings(deadline=None)
def test_top_k_is_a_stable_sort_cut_off_at_k(problem: tuple[dict[str, Tensor], Mask, int], chunk: int) -> None:
    scores, mask, k = problem
    chosen = top_k_by(chunk, scores, mask, k)
    np.testing.assert_array_equal(flattened(chosen.mask), reference(scores, mask, k))
    assert chosen.mask.kept == k
    assert chosen.mask.is_subset_of(mask)
    ranked = np.sort(flattened(scores)[flattened(mask).astype(bool)])
    assert chosen.threshold == ranked[len(ranked) - k]
    assert chosen.quantiles == tuple(ranked[round(q * (len(ranked) - 1))] for q in (0, 0.25, 0.5, 0.75, 1))


@given(problems(), CHUNKS, st.data())
@settings(deadline=None)
def test_floors_come_first(problem: tuple[dict[str, Tensor], Mask, int], chunk: int, data: st.DataObject) -> None:
    scores, mask, k = problem
    least = data.draw(floors(mask, k))
    chosen = top_k_by(chunk, scores, mask, k, least=least)
    np.testing.assert_array_equal(flattened(chosen.mask), reference(scores, mask, k, least))
    assert chosen.mask.kept == k and chosen.mask.is_subset_of(mask)
    assert all(layer.kept >= least[layer.name] for layer in chosen.mask.layers)
    assert chosen.threshold == flattened(scores)[flattened(chosen.mask).astype(bool)].min()
    assert chosen.quantiles == top_k_by(chunk, scores, mask, k).quantiles


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 100, 2**20]), st.booleans(), DTYPES, st.data())
@settings(max_examples=40, deadline=None)
def test_the_way_and_the_chunks_do_not_matter(
    seed: int, distinct: int, signed: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Thousands of weights, from all alike to hardly a tie."""
    random = np.random.default_rng(seed)
    values = random.integers(-distinct if signed else 0, distinct, 3000) * 2.0 ** random.integers(-24, -5, 3000)
    scores = dict(zip("abc", torch.from_numpy(values).to(dtype).split([500, 1, 2499]), strict=True))
    bits = torch.from_numpy(random.random(3000) < random.random())
    bits[0] = True
    mask = Mask(dict(zip("abc", bits.split([500, 1, 2499]), strict=True)))
    k = data.draw(st.integers(1, mask.kept))
    least = data.draw(st.none() | floors(mask, k))
    found = [top_k_by(chunk, scores, mask, k, least=least) for chunk in (1 << 18, 999, 64)]
    np.testing.assert_array_equal(flattened(found[0].mask), reference(scores, mask, k, least))
    assert len({(each.mask.digest(), each.threshold, each.quantiles) for each in found}) == 1


@given(problems(), st.data())
@settings(deadline=None)
def test_masks_nest_along_a_lineage(problem: tuple[dict[str, Tensor], Mask, int], data: st.DataObject) -> None:
    """Whatever the scores and floors of later cycles: each mask is a subset of the one before, and each count exact."""
    scores, mask, k = problem
    while True:
        after = top_k(scores, mask, k, least=data.draw(st.none() | floors(mask, k))).mask
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
