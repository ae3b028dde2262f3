from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.domain import Progress
from app.errors import InvalidRecipe
from app.learning.cycle import CycleInput, CycleResult, Examples
from app.learning.features import features_of, losses_of
from app.learning.plan import Plan
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
from app.learning.replay import POLICIES as REGISTERED
from app.learning.replay import Candidates, composition, coresets, pool
from espalier.formats.canonical import exact
from espalier.formats.megabatch import example_ids, is_validation
from tests.learning.candidates import candidates_of, choose
from tests.learning.cases import (
    CPU,
    Snapshot,
    clusters,
    first_cycle,
    images,
    next_cycle,
    noisy,
    run,
    same_result,
    small_recipe,
)

STREAM = {2: [0, 1, 1], 5: [0, 0, 2], 7: [1, 0]}
CAPPED: list[type[Reservoir]] = [Reservoir, ClassBalanced, Herding, KCentre, HardestFirst]
EVERY: list[Replay] = [FullReplay(), NoReplay(), PinnedReplay(), LastReplay(), *[kind(examples=9) for kind in CAPPED]]


def name_of(options: Replay) -> str:
    return options.name


# -- policies ----------------------------------------------------------------------------------------------------------


def test_full_keeps_all_and_none_and_pinned_keep_none() -> None:
    everyone = candidates_of(STREAM)
    assert choose(FullReplay(), everyone).tolist() == list(range(8))
    assert not len(choose(NoReplay(), everyone)) and not len(choose(PinnedReplay(), everyone))


@pytest.mark.parametrize(("megabatches", "first"), [(1, 6), (2, 3), (3, 0), (9, 0)])
def test_last_keeps_the_newest_megabatches(megabatches: int, first: int) -> None:
    assert choose(LastReplay(megabatches=megabatches), candidates_of(STREAM)).tolist() == list(range(first, 8))


def test_hardest_first_breaks_ties_to_the_lower_row() -> None:
    everyone = candidates_of(STREAM, losses=np.array([1, 5, 2, 5, 0, 2, 2, 9]))
    assert choose(HardestFirst(examples=5), everyone).tolist() == [1, 2, 3, 5, 7]


def test_the_tighter_cap_holds() -> None:
    everyone = candidates_of(STREAM, row_bytes=10)
    for kind in CAPPED:
        sizes = [
            len(choose(kind(examples=e, bytes=b), everyone)) for e, b in ((3, 1000), (6, 39), (None, 9), (9, None))
        ]
        assert sizes == [3, 3, 0, 8], "a cap below one row keeps none"


@pytest.mark.parametrize("options", EVERY, ids=name_of)
def test_there_may_be_no_candidates(options: Replay) -> None:
    assert choose(options, candidates_of({})).tolist() == []


@pytest.mark.parametrize("kind", CAPPED)
def test_many_classes_of_one_example_and_few_places(kind: type[Reservoir]) -> None:
    everyone = candidates_of({1: list(range(40))}, features=np.arange(40)[:, None], losses=np.arange(40))
    for cap in (1, 3, 39, 40):
        assert len(choose(kind(examples=cap), everyone)) == cap


@pytest.mark.parametrize("kind", CAPPED)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_features_and_losses_that_are_not_finite_leave_the_choice_defined(kind: type[Reservoir], odd: float) -> None:
    values = np.arange(30, dtype=np.float32)
    values[::3] = odd
    everyone = candidates_of({1: [0] * 30}, features=np.stack([values, values], 1), losses=values)
    assert len(choose(kind(examples=11), everyone)) == 11


def test_another_seed_is_another_sample() -> None:
    stream = {1: [0] * 50}
    for kind in (Reservoir, ClassBalanced):
        samples = {tuple(choose(kind(examples=10), candidates_of(stream, seed=seed))) for seed in range(20)}
        assert len(samples) == 20


@pytest.mark.parametrize("kind", [Herding, KCentre])
def test_features_are_not_taken_where_there_is_nothing_to_choose(kind: type[Herding]) -> None:
    def refuse(positions: np.ndarray) -> np.ndarray:
        raise AssertionError("features were taken")

    everyone = replace(candidates_of(STREAM), features=refuse)
    assert len(choose(kind(examples=8), everyone)) == 8
    assert not len(choose(kind(bytes=1), everyone))


@pytest.mark.parametrize("kind", [Herding, KCentre])
@pytest.mark.parametrize("width", [1, 50, 4000])
def test_a_large_choice_looks_at_bounded_groups(
    kind: type[Herding], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coresets, "CONSIDERED", 64)
    monkeypatch.setattr(coresets, "VALUES", 2000)
    x = np.random.default_rng(0).normal(size=(600, width)).astype(np.float32)
    looked: list[int] = []

    def features(positions: np.ndarray) -> np.ndarray:
        looked.append(len(positions))
        return x[positions]

    everyone = replace(candidates_of({1: [0, 1] * 200, 2: [0, 0, 1, 2] * 50}), features=features)
    kept = choose(kind(examples=101), everyone)
    assert len(kept) == 101 and len(looked) > 4
    assert max(looked) <= max(coresets.SHARE, min(64, 2000 // width))
    if kind is Herding:
        assert sorted(np.bincount(everyone.labels[kept])) == [33, 34, 34]


# -- what a cycle trains on, and in which order ------------------------------------------------------------------------


def test_the_pool_is_the_buffer_and_the_whole_of_new_and_pinned_ones() -> None:
    some = np.array([True, False, True])
    before = {1: some, 2: some, 3: np.zeros(3, bool), 4: some}
    found = pool(before, pinned={2, 5, 8}, new={6}, sizes={1: 3, 2: 3, 3: 3, 5: 2, 6: 4})
    assert {number: rows.tolist() for number, rows in found.items()} == {
        1: [True, False, True], 2: [True] * 3, 5: [True] * 2, 6: [True] * 4,
    }  # fmt: skip


# -- what a buffer is made of ------------------------------------------------------------------------------------------


def test_composition_by_class_and_age() -> None:
    labels = {number: np.array(values) for number, values in STREAM.items()}
    kept = {7: np.array([True, True]), 2: np.array([False, True, True])}
    assert composition(Reservoir(examples=4, bytes=99), kept, labels, 4, 12) == {
        "policy": "reservoir",
        "cap_examples": 4,
        "cap_bytes": 99,
        "examples": 4,
        "bytes": 48,
        "megabatches": 2,
        "by_class": [1, 3, 0, 0],
        "by_age": [{"first": 2, "last": 2, "examples": 2}, {"first": 7, "last": 7, "examples": 2}],
    }


@pytest.mark.parametrize("options", EVERY, ids=name_of)
def test_an_empty_buffer_has_a_composition_too(options: Replay) -> None:
    made = composition(options, {}, {}, 2, 12)
    assert (made["examples"], made["by_class"], made["by_age"]) == (0, [0, 0], [])
    assert made["cap_examples"] == getattr(options, "examples", None) and made["cap_bytes"] is None


@pytest.mark.parametrize("megabatches", [63, 64, 65, 120, 1000])
def test_a_long_stream_is_told_in_ranges(megabatches: int) -> None:
    numbers = range(1, 3 * megabatches, 3)
    kept = {number: np.arange(4) < 1 + number % 3 for number in numbers}
    made = composition(FullReplay(), kept, {number: np.zeros(4, int) for number in numbers}, 1, 8)
    ages = made["by_age"]
    assert len(ages) == min(64, megabatches)
    assert sum(age["examples"] for age in ages) == made["examples"] == made["by_class"][0]
    ends = [end for age in ages for end in (age["first"], age["last"])]
    assert ends == sorted(ends) and ends[0] == 1 and ends[-1] == numbers[-1]
    assert json.loads(json.dumps(made)) == made
    exact(made)


# -- whole cycles ------------------------------------------------------------------------------------------------------


def through(recipe: Any, *parts: list[Examples], **over: Any) -> list[tuple[CycleInput, CycleResult]]:
    """Cycles over a stream, each with some new megabatches."""
    given = first_cycle(recipe, *parts[0], **over)
    done = [(given, run(given))]
    for part in parts[1:]:
        before, result = done[-1]
        given = next_cycle(before, result, *part)
        done.append((given, run(given)))
    return done


def kept_rows(result: CycleResult) -> set[tuple[int, int]]:
    return {(number, int(row)) for number, rows in result.replay.items() for row in np.flatnonzero(rows)}


def recipe_of(options: Replay, **over: Any) -> Any:
    return small_recipe(replay=options.model_dump(mode="json"), training={"epochs": 1, "minibatch": 32}, **over)


POLICIES: list[Replay] = [
    FullReplay(), NoReplay(), PinnedReplay(), LastReplay(), *[kind(examples=25) for kind in CAPPED],
    Herding(bytes=25 * 32 + 31), ClassBalanced(), KCentre(examples=10**6),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", POLICIES, ids=lambda options: "-".join(map(str, options.model_dump(exclude_none=True).values()))
)
def test_a_lineage_keeps_what_its_policy_says(options: Replay) -> None:
    done = through(recipe_of(options), [clusters(1)], [clusters(2), clusters(3)], [clusters(4)])
    for given, result in done:
        plan = Plan(given, CPU)
        trained = {(plan.trained[s], int(r)) for s, r in zip(plan.training.source, plan.training.row, strict=True)}
        kept = kept_rows(result)
        assert kept <= trained
        for number in given.new:
            examples = next(e for e in given.megabatches if e.number == number)
            fresh = np.flatnonzero(~is_validation(examples.ids, given.recipe.validation_share))
            assert {(number, int(row)) for row in fresh} <= trained, "a new one is trained on whole"
        match options:
            case FullReplay() | ClassBalanced(examples=None) | KCentre(examples=1_000_000):
                assert kept == trained
            case NoReplay() | PinnedReplay():
                assert not kept
            case LastReplay():
                assert kept == {place for place in trained if place[0] == max(given.new)}
            case _:
                assert len(kept) == min(25, len(trained))
        *_, made, judged = [event for event in result.events if event.kind in {"replay.kept", "cycle.judged"}]
        assert [event.kind for event in result.events].count("replay.kept") == 1
        assert (made.kind, judged.kind) == ("replay.kept", "cycle.judged")
        assert made.parameters["policy"] == options.name
        assert made.parameters["examples"] == len(kept) == sum(made.parameters["by_class"])
        assert made.parameters["bytes"] == 32 * len(kept)
        assert {age["first"] for age in made.parameters["by_age"]} == result.replay.keys()


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced])
def test_cycles_of_one_megabatch_or_of_many_leave_the_same_buffer(kind: type[Reservoir]) -> None:
    recipe = recipe_of(kind(examples=30))
    each = [clusters(number, 20 + number, noise=number) for number in range(1, 6)]
    buffers = [
        kept_rows(through(recipe, *parts)[-1][1])
        for parts in ([[e] for e in each], [each], [each[:2], each[2:]], [each[:1], each[1:4], each[4:]])
    ]
    assert len(buffers[0]) == 30 and all(buffer == buffers[0] for buffer in buffers)


@pytest.mark.parametrize("kind", CAPPED)
def test_pinned_megabatches_are_trained_on_whole_and_not_counted(kind: type[Reservoir]) -> None:
    recipe = recipe_of(kind(examples=10))
    first = first_cycle(recipe, clusters(1), clusters(2), pinned=frozenset({1}))
    result = run(first)
    assert result.replay.keys() == {2} and result.replay[2].sum() == 10
    second = replace(next_cycle(first, result, clusters(3)), megabatches=[clusters(1), clusters(2), clusters(3)])
    after = run(second)
    assert after.trained == (1, 2, 3) and sum(rows.sum() for rows in after.replay.values()) == 10
    assert 1 not in after.replay
    everything = run(replace(second, pinned=frozenset({1, 2, 3})))
    assert everything.replay == {}, "all rows pinned: no candidates"


def test_hardest_first_keeps_what_the_published_network_finds_hardest() -> None:
    given = first_cycle(recipe_of(HardestFirst(examples=7)), clusters(1), clusters(2), pinned=frozenset({1}))
    result, plan = run(given), Plan(given, CPU)
    network = plan.network()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in result.arrays.items()})
    free = np.flatnonzero(plan.training.source == 1)
    hardest = np.argsort(-losses_of(network, plan.training, free), kind="stable")[:7]
    assert set(np.flatnonzero(result.replay[2])) == set(plan.training.row[free[hardest]])


def test_a_policy_is_told_of_each_row_what_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Candidates] = []

    def spy(options: object, candidates: Candidates) -> np.ndarray:
        seen.append(candidates)
        return np.zeros(len(candidates), bool)

    monkeypatch.setitem(REGISTERED._implementations, FullReplay, spy)
    stream = {number: clusters(number, 30) for number in (1, 3, 4)}
    plan = Plan(first_cycle(recipe_of(FullReplay()), *stream.values(), pinned=frozenset({1, 7})), CPU)
    network = plan.network()
    plan.next_buffer(network, lambda: None)
    (told,) = seen
    place = [(plan.trained[s], int(r)) for s, r in zip(plan.training.source, plan.training.row, strict=True)]
    free = [index for index, (number, _) in enumerate(place) if number != 1]
    assert list(zip(told.megabatch, told.row, strict=True)) == [place[index] for index in free]
    assert [(stream[n].y[r], stream[n].ids[r]) for n, r in zip(told.megabatch, told.row, strict=True)] == [
        *zip(told.labels, told.ids, strict=True)
    ]
    assert (told.row_bytes, told.seed, told.depth) == (8 * 4, 7, 1)
    some = np.array([5, 0, 11])
    expected = features_of(network, plan.recipe.network, plan.training, np.array(free)[some])
    np.testing.assert_array_equal(told.features(some), expected)
    np.testing.assert_array_equal(told.losses(), losses_of(network, plan.training, np.array(free)))


def duplicated(number: int) -> Examples:
    """Every example of a megabatch three times."""
    once = clusters(number, 20)
    x = np.repeat(once.x, 3, axis=0)
    return Examples(number, x, np.repeat(once.y, 3), example_ids(x))


@pytest.mark.parametrize("kind", CAPPED)
def test_duplicates_are_rows_of_their_own(kind: type[Reservoir]) -> None:
    result = run(first_cycle(recipe_of(kind(examples=17)), duplicated(1)))
    assert result.replay[1].sum() == 17


def test_a_share_of_new_examples_is_shown_in_a_cycle() -> None:
    recipe = recipe_of(FullReplay(new_share=0.5))
    given = through(recipe, [clusters(1), clusters(2), clusters(3)], [clusters(4)])[-1][0]
    plan = Plan(given, CPU)
    fresh = plan.training.source[plan.order(0).numpy()] == plan.trained.index(4)
    assert fresh.sum() == round(len(plan.training) / 2) and len(fresh) == len(plan.training)
    first = Plan(first_cycle(recipe, clusters(1)), CPU)
    assert sorted(first.order(0).tolist()) == list(range(len(first.training))), "all is new"


class Killed(Exception):
    """The worker is gone."""


@pytest.mark.parametrize("kind", [Herding, HardestFirst])
def test_a_cycle_resumed_at_any_pulse_keeps_the_same_rows_and_says_so_once(kind: type[Reservoir]) -> None:
    recipe = recipe_of(kind(examples=10), network={"name": "custom", "architecture": "noisy", "features": "head"})
    given = through(recipe, [images(1)], [images(2)], architecture=noisy)[-1][0]
    expected, pulses = None, 0

    def kill_at(pulse: int) -> Callable[[Progress, Snapshot], None]:
        def observe(progress: Progress, snapshot: Snapshot) -> None:
            nonlocal pulses
            pulses += 1
            if pulses == pulse:
                raise Killed(snapshot())

        return observe

    expected = run(given, kill_at(0))
    total = pulses
    assert total > 8
    for pulse in range(1, total + 1):
        pulses = 0
        with pytest.raises(Killed) as killed:
            run(given, kill_at(pulse))
        assert same_result(run(given, snapshot=killed.value.args[0]), expected)


def test_features_that_are_not_there_are_told_before_anything_is_trained() -> None:
    recipe = recipe_of(Herding(examples=9), network={"name": "custom", "architecture": "noisy", "features": "tail"})
    pulses: list[Progress] = []
    with pytest.raises(InvalidRecipe, match="'tail' .* is not there: set network.features to one of: conv, norm, drop"):
        run(first_cycle(recipe, images(1), architecture=noisy), lambda progress, _: pulses.append(progress))
    assert not pulses
