"""The evaluation set: never trained on, selected on or counted into the normalisation, whichever megabatch holds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.errors import NothingToTrain
from app.learning.cycle import CycleInput, Examples
from app.learning.normalisation import initial_state
from app.learning.plan import Plan
from espalier.formats.megabatch import is_validation
from tests.learning.cases import CPU, clusters, events_of, first_cycle, next_cycle, run, small_recipe


def part(examples: Examples, rows: slice) -> Examples:
    return Examples(0, examples.x[rows], examples.y[rows], examples.ids[rows])


def given_with(evaluation: Examples | None, **over: object) -> CycleInput:
    return replace(first_cycle(small_recipe(), clusters(1)), evaluation=evaluation, **over)


def test_its_examples_are_neither_trained_on_nor_validated_on() -> None:
    first = clusters(1)
    evaluation = part(first, slice(0, 30))
    plan = Plan(given_with(evaluation), CPU)
    held = is_validation(first.ids, 0.34)
    assert set(plan.training.ids) == set(first.ids[30:][~held[30:]])
    assert plan.selection is not None
    validated = {*plan.selection.ids, *plan.verdict.ids}
    assert validated == set(first.ids[30:][held[30:]])
    assert not validated & set(plan.training.ids)
    assert plan.left_out == 30


def test_duplicates_by_content_are_found_in_any_megabatch() -> None:
    first, second = clusters(1), clusters(2)
    copies = np.concatenate([second.x[:20], first.x[:5]])
    mixed = replace(second, x=copies, y=np.concatenate([second.y[:20], first.y[:5]]),
                    ids=np.concatenate([second.ids[:20], first.ids[:5]]))  # fmt: skip
    start = given_with(part(first, slice(0, 5)))
    given = next_cycle(start, run(start), mixed)
    assert not set(Plan(given, CPU).training.ids) & set(first.ids[:5])


def test_statistics_are_of_the_rows_that_are_trained_on() -> None:
    first = clusters(1)
    plan = Plan(given_with(part(first, slice(0, 30))), CPU)
    rows = first.x[30:][~is_validation(first.ids[30:], 0.34)]
    expected = initial_state(plan.given.input, lambda: [rows])
    assert plan.normalisation is not None and expected is not None
    assert np.array_equal(plan.normalisation.mean, expected.mean)


def test_what_is_left_out_stands_in_the_log() -> None:
    (told,) = events_of(run(given_with(part(clusters(1), slice(0, 12)))), "network.trained")
    assert told["evaluation_overlap"] == 12
    (silent,) = events_of(run(given_with(None)), "network.trained")
    assert "evaluation_overlap" not in silent
    assert silent["examples"] > told["examples"]


def test_a_set_without_overlap_changes_no_bit_of_the_network() -> None:
    plain, beside = run(given_with(None)), run(given_with(replace(clusters(9), number=0)))
    assert all(np.array_equal(plain.arrays[name], beside.arrays[name]) for name in plain.arrays)
    assert "evaluation_accuracy" in beside.metrics and "evaluation_accuracy" not in plain.metrics


def test_a_megabatch_that_is_the_evaluation_set_leaves_nothing_to_train_on() -> None:
    with pytest.raises(NothingToTrain):
        Plan(given_with(clusters(1)), CPU)
    with pytest.raises(NothingToTrain):  # and statistics need a row, too
        Plan(given_with(part(clusters(1), slice(0, 60))), CPU)


def test_on_arrival_all_examples_of_a_megabatch_are_asked() -> None:
    start = given_with(part(clusters(2), slice(0, 30)))
    result = run(next_cycle(start, run(start), clusters(2)))
    assert result.prequential[2].examples == 60
