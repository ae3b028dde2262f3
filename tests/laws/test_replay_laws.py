"""Replay keeps its laws: uniform by enumeration, greedy by its definition, the same rows however megabatches arrive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import combinations, permutations
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.learning.recipe import (
    ClassBalanced,
    FullReplay,
    HardestFirst,
    Herding,
    KCentre,
    LastReplay,
    NoReplay,
    PinnedReplay,
    Replay,
    Reservoir,
)
from app.learning.replay import Buffer, Candidates, coresets, policies
from tests.learning.candidates import Stream, candidates_of, choose, members, next_buffer

LABELS = st.lists(st.integers(0, 4), max_size=8)
STREAMS = st.lists(LABELS, min_size=1, max_size=6).map(lambda parts: dict(enumerate(parts, start=1)))
CAPS = st.integers(1, 30)
BOUNDED = [Reservoir, ClassBalanced, Herding, KCentre, HardestFirst]


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Stream, list[list[int]]]:
    """A stream, and its megabatches dealt to cycles in order."""
    stream = draw(STREAMS)
    cycles: list[list[int]] = [[]]
    for number in stream:
        if draw(st.booleans()):
            cycles.append([])
        cycles[-1].append(number)
    return stream, cycles


def all_at_once(options: Replay, stream: Stream, seed: int = 0) -> set[tuple[int, int]]:
    return members(next_buffer(options, stream, {}, list(stream), seed))


def in_cycles(options: Replay, stream: Stream, cycles: list[list[int]], seed: int = 0) -> Iterator[Buffer]:
    buffer: Buffer = {}
    for new in cycles:
        buffer = next_buffer(options, stream, buffer, new, seed)
        yield buffer


@contextmanager
def keyed(table: Mapping[tuple[int, int], int]) -> Iterator[None]:
    """Keys from a table by (megabatch, row), in place of the random ones."""

    def keys(candidates: Candidates) -> np.ndarray:
        places = zip(candidates.megabatch.tolist(), candidates.row.tolist(), strict=True)
        return np.array([table[place] for place in places], np.uint64)

    with mock.patch.object(policies, "keys", keys):
        yield


def orders(stream: Stream) -> Iterator[dict[tuple[int, int], int]]:
    """Every order that the keys of a stream's rows can have."""
    places = [(number, row) for number, labels in stream.items() for row in range(len(labels))]
    for order in permutations(range(len(places))):
        yield dict(zip(places, order, strict=True))


# -- reservoir ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", range(1, 7))
def test_a_reservoir_is_exactly_uniform_after_every_cycle(cap: int) -> None:
    """Keys are exchangeable: over all of their orders, every subset of what has arrived is kept equally often."""
    stream = {1: [0, 0], 2: [0, 1, 0], 3: [1]}
    seen: list[Counter[frozenset[tuple[int, int]]]] = [Counter(), Counter(), Counter()]
    for table in orders(stream):
        with keyed(table):
            for counter, buffer in zip(seen, in_cycles(Reservoir(examples=cap), stream, [[1], [2], [3]]), strict=True):
                counter[frozenset(members(buffer))] += 1
    for cycle, counter in enumerate(seen, start=1):
        places = [(number, row) for number in range(1, cycle + 1) for row in range(len(stream[number]))]
        subsets = {frozenset(subset) for subset in combinations(places, min(cap, len(places)))}
        assert counter.keys() == subsets and set(counter.values()) == {720 // len(subsets)}


@given(arrivals(), CAPS, st.integers(0, 2**53 - 1))
@settings(deadline=None)
def test_a_reservoir_does_not_ask_how_megabatches_arrived(
    problem: tuple[Stream, list[list[int]]], cap: int, seed: int
) -> None:
    """Cap after every cycle or once at the end; and it says so at every time, not at the end alone."""
    stream, cycles = problem
    options = Reservoir(examples=cap)
    for done, buffer in enumerate(in_cycles(options, stream, cycles, seed), start=1):
        arrived = {number: stream[number] for part in cycles[:done] for number in part}
        assert members(buffer) == all_at_once(options, arrived, seed)
        assert len(members(buffer)) == min(cap, sum(map(len, arrived.values())))


def test_keys_are_the_published_generator() -> None:
    """The first outputs of SplitMix64 from the seed 1234567, as printed in its test vectors."""
    with mock.patch.object(policies, "seed_for", return_value=1234567):
        keys = policies.keys(candidates_of({1: [0] * 5}))
    assert keys.tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


@given(STREAMS, st.integers(0, 2**53 - 1), st.data())
@settings(deadline=None)
def test_keys_depend_on_seed_megabatch_and_row_alone(stream: Stream, seed: int, data: st.DataObject) -> None:
    rows = {number: np.array(data.draw(st.lists(st.booleans(), min_size=len(v), max_size=len(v))), bool)
            for number, v in stream.items()}  # fmt: skip
    everyone, some = candidates_of(stream, seed=seed), candidates_of(stream, rows, seed=seed)
    kept = np.concatenate([rows[number] for number in sorted(stream)])
    np.testing.assert_array_equal(policies.keys(everyone)[kept], policies.keys(some))
    assert len(set(policies.keys(everyone).tolist())) == len(everyone)


# -- class-balanced ----------------------------------------------------------------------------------------------------


def filled(counts: Sequence[int], cap: int) -> list[int]:
    """Water-filling: place after place to a class that has the fewest and has examples left; counts, sorted."""
    given = [0] * len(counts)
    for _ in range(min(cap, sum(counts))):
        given[min((c for c, count in enumerate(counts) if given[c] < count), key=given.__getitem__)] += 1
    return sorted(given)


@given(STREAMS, CAPS, st.integers(0, 2**53 - 1))
@settings(deadline=None)
def test_classes_differ_by_at_most_one_unless_kept_whole(stream: Stream, cap: int, seed: int) -> None:
    everyone = candidates_of(stream, seed=seed)
    kept = choose(ClassBalanced(examples=cap), everyone)
    had, has = np.bincount(everyone.labels, minlength=5), np.bincount(everyone.labels[kept], minlength=5)
    assert len(kept) == min(cap, len(everyone))
    for a, b in permutations(range(5), 2):
        assert has[b] - has[a] <= 1 or has[a] == had[a]
    assert sorted(has.tolist()) == filled(had.tolist(), cap)


@given(arrivals(), CAPS, st.integers(0, 2**53 - 1), st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=48)))
@settings(deadline=None)
def test_class_balanced_does_not_ask_how_megabatches_arrived(
    problem: tuple[Stream, list[list[int]]], cap: int, seed: int, ties: list[int] | None
) -> None:
    """Even with equal keys, which the random ones never have: then the older row goes first."""
    stream, cycles = problem
    options = ClassBalanced(examples=cap)
    places = [(number, row) for number, labels in stream.items() for row in range(len(labels))]
    with keyed(dict(zip(places, ties, strict=False))) if ties else mock.MagicMock():
        for done, buffer in enumerate(in_cycles(options, stream, cycles, seed), start=1):
            arrived = {number: stream[number] for part in cycles[:done] for number in part}
            assert members(buffer) == all_at_once(options, arrived, seed)


def test_within_a_class_the_kept_are_exactly_uniform() -> None:
    stream = {1: [0, 1, 0], 2: [0, 1, 0]}
    seen: dict[int, Counter[frozenset[tuple[int, int]]]] = {0: Counter(), 1: Counter()}
    for table in orders(stream):
        with keyed(table):
            *_, buffer = in_cycles(ClassBalanced(examples=4), stream, [[1], [2]])
        for label, counter in seen.items():
            counter[frozenset(place for place in members(buffer) if stream[place[0]][place[1]] == label)] += 1
    assert len(seen[0]) == 6 and set(seen[0].values()) == {120}, "two of four"
    assert len(seen[1]) == 1, "both of two"


# -- greedy choices, against their definitions -------------------------------------------------------------------------

Points = list[list[int]]

POINTS = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=9)
)


def _squared(a: Sequence[Fraction | int], b: Sequence[Fraction | int]) -> Fraction:
    return sum(((Fraction(x) - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction(0))


def _mean(points: Points) -> list[Fraction]:
    return [Fraction(sum(column), len(points)) for column in zip(*points, strict=True)]


def herded(points: Points, count: int) -> list[int]:
    chosen: list[int] = []

    def apart(index: int) -> Fraction:
        return _squared(_mean([points[i] for i in [*chosen, index]]), _mean(points))

    while len(chosen) < count:
        chosen.append(min((i for i in range(len(points)) if i not in chosen), key=apart))
    return chosen


def centred(points: Points, count: int) -> list[int]:
    chosen = [min(range(len(points)), key=lambda i: _squared(points[i], _mean(points)))][:count]
    while len(chosen) < count:
        far = {i: min(_squared(points[i], points[c]) for c in chosen) for i in range(len(points)) if i not in chosen}
        chosen.append(max(far, key=lambda i: far[i]))
    return chosen


@given(POINTS, st.data())
@settings(deadline=None)
def test_herding_is_its_definition_in_exact_arithmetic(points: Points, data: st.DataObject) -> None:
    """Few distinct points, so that ties are the rule: they go to the lower position."""
    count = data.draw(st.integers(0, len(points)))
    assert coresets.herd(torch.tensor(points).double(), count) == herded(points, count)


@given(POINTS, st.data())
@settings(deadline=None)
def test_k_centre_is_its_definition_in_exact_arithmetic(points: Points, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(points)))
    assert coresets.spread(torch.tensor(points).double(), count) == centred(points, count)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_choices_are_their_definitions_in_float64(seed: int) -> None:
    x = np.random.default_rng(seed).normal(3, 1, (200, 17)).astype(np.float32).astype(np.float64)
    herd, centres, rest = [], [int(np.linalg.norm(x - x.mean(0), axis=1).argmin())], set(range(200))
    for k in range(1, 61):
        near = {i: np.linalg.norm(x.mean(0) - (x[i] + x[herd].sum(0)) / k) for i in sorted(rest)}
        herd.append(min(near, key=near.__getitem__))
        rest.remove(herd[-1])
    while len(centres) < 60:
        centres.append(int(np.linalg.norm(x[:, None] - x[None, centres], axis=2).min(1).argmax()))
    assert coresets.herd(torch.from_numpy(x), 60) == herd
    assert coresets.spread(torch.from_numpy(x), 60) == centres


@given(STREAMS, CAPS, st.integers(0, 9))
@settings(deadline=None)
def test_herding_herds_each_class_for_itself(stream: Stream, cap: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(-3, 4, (sum(map(len, stream.values())), 2))
    everyone = candidates_of(stream, features=points, seed=seed)
    kept, balanced = choose(Herding(examples=cap), everyone), choose(ClassBalanced(examples=cap), everyone)
    for label in range(5):
        of_class = np.flatnonzero(everyone.labels == label)
        expected = of_class[herded(points[of_class].tolist(), int((everyone.labels[balanced] == label).sum()))]
        assert set(kept[everyone.labels[kept] == label]) == set(expected)


@given(STREAMS, CAPS, st.integers(0, 9))
@settings(deadline=None)
def test_k_centre_and_hardest_first_look_at_no_class(stream: Stream, cap: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    n = sum(map(len, stream.values()))
    points, losses = random.integers(-3, 4, (n, 2)), random.integers(0, 4, n)
    everyone = candidates_of(stream, features=points, losses=losses)
    cap = min(cap, n)
    if n:
        assert set(choose(KCentre(examples=max(cap, 1)), everyone)) == set(centred(points.tolist(), cap))
    hardest = sorted(range(n), key=lambda i: (-losses[i], i))[:cap]
    assert set(choose(HardestFirst(examples=max(cap, 1)), everyone)) == set(hardest)


@given(st.integers(1, 60), st.integers(1, 80), st.data())
@settings(deadline=None)
def test_what_is_dealt_to_groups_is_each_member_once_and_adds_up(n: int, limit: int, data: st.DataObject) -> None:
    members = np.sort(np.random.default_rng(n).permutation(100)[:n])
    keys = np.random.default_rng(limit).integers(0, 2**63, 100).astype(np.uint64)
    limit, count = limit + coresets.SHARE, data.draw(st.integers(1, n))
    groups = list(coresets.dealt(members, keys, count, limit))
    everyone = np.concatenate([group for group, _ in groups])
    assert len(set(everyone)) == len(everyone) and set(everyone) <= set(members)
    assert sum(share for _, share in groups) == count
    for group, share in groups:
        assert share <= len(group) <= limit and (np.diff(group) > 0).all()
        assert share * coresets.SHARE <= limit + coresets.SHARE
    shares = [share for _, share in groups]
    assert max(shares) - min(shares) <= 1
    if n <= limit and count * coresets.SHARE <= limit:
        assert len(groups) == 1 and set(everyone) == set(members), "a small choice is made by the definition itself"


# -- what holds for all ------------------------------------------------------------------------------------------------


@given(STREAMS, st.sampled_from(BOUNDED), st.one_of(st.none(), CAPS), st.one_of(st.none(), st.integers(1, 100)))
@settings(deadline=None)
def test_both_caps_hold_and_are_used(
    stream: Stream, kind: type[Reservoir], examples: int | None, size: int | None
) -> None:
    n = sum(map(len, stream.values()))
    kept = choose(kind(examples=examples, bytes=size), candidates_of(stream, row_bytes=4))
    assert len(kept) == min(n, n if examples is None else examples, n if size is None else size // 4)


@given(arrivals(), CAPS, st.integers(1, 3))
@settings(deadline=None)
def test_what_is_kept_was_trained_on(problem: tuple[Stream, list[list[int]]], cap: int, last: int) -> None:
    stream, cycles = problem
    bounded: list[Replay] = [kind(examples=cap) for kind in BOUNDED]
    for options in [FullReplay(), NoReplay(), PinnedReplay(), LastReplay(megabatches=last), *bounded]:
        before: set[tuple[int, int]] = set()
        for new, buffer in zip(cycles, in_cycles(options, stream, cycles), strict=True):
            trained = before | {(number, row) for number in new for row in range(len(stream[number]))}
            assert members(buffer) <= trained
            before = members(buffer)
