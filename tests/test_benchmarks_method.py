"""The evidence: counted densities, the emulated reference, paired statistics, results that are kept, the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from app.learning.recipe import Recipe
from app.learning.schedules import density_at, kept_at
from benchmarks import __main__ as every
from benchmarks.method import page, streams, tasks, words
from benchmarks.method.charts import Line, Panel, draw, nice
from benchmarks.method.findings import Estimate, Findings, estimate
from benchmarks.method.goals import goals, judged
from benchmarks.method.rows import ROWS, small_network, unusable
from benchmarks.method.runs import lineage, output_positions, planned, run, training_macs
from benchmarks.method.streams import Stream
from benchmarks.method.tasks import Task

CPU = torch.device("cpu")
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def small() -> Stream:
    """Three megabatches of digits, one epoch."""
    whole = streams.make("digits", NOWHERE, 0)
    return replace(
        whole, train=whole.train[:3], test=whole.test[:3], network={"name": "mlp", "hidden": [16, 16]},
        training=whole.training | {"epochs": 2},
    )  # fmt: skip


def _figures(accuracy: list[float], stream: str = "digits", **more: object) -> dict[str, object]:
    n = len(accuracy)
    return {
        "accuracy": accuracy, "wrong": [round(100 * (1 - a)) for a in accuracy], "tested": [100] * n,
        "train": [1.0] * n, "validation": [None, *accuracy[1:]], "kept": [8, 5, 4][:n], "planned": [8, 5, 4][:n],
        "total": 10, "training_macs": [1.0] * n, "macs": [5] * n, "cpu_seconds": [0.1] * n, "seconds": [0.1] * n,
        "device": "cpu", "machine": "a machine", "made": "2026-01-02T03:04:05+00:00", "wall_seconds": 1.0,
        "stream": stream, "row": "dense", **more,
    }  # fmt: skip


def _task(row: str, seed: int, stream: str = "digits") -> Task:
    return Task(stream, row, seed, "sha256:" + "0" * 64, "code")


@pytest.mark.parametrize("name", ["app", "factor", "one-shot", "constant"])
@pytest.mark.parametrize("stages", [1, 7, 120])
def test_plan_here_is_the_schedules(name: str, stages: int) -> None:
    options = {"name": name} | ({"stages": stages} if name in ("app", "factor") else {})
    recipe = Recipe.resolve({"schedule": options, "guardrails": []})
    for t in (1, 2, 7, 8, 130):
        for total in (10, 25_856, 11_173_962):
            assert planned(recipe, t, total) == kept_at(density_at(recipe.schedule, t), total)


def test_every_row_is_a_recipe_of_its_stream(small: Stream) -> None:
    digests = set()
    for row in ROWS.values():
        if unusable(row, small) is None:
            recipe = row.recipe(small, 3)
            assert recipe.seed == 3
            assert recipe.guardrails == ()
            assert recipe.training.minibatch == 64
            assert recipe.training.epochs == (3 if "1.5 x" in row.title else 2)
            assert "least" in row.title or recipe.training.least_steps == 0
            digests |= {recipe.digest} if row.group == "main" else set()
    assert len(digests) == sum(row.group == "main" for row in ROWS.values()) - 1  # the reference is the dense recipe


def test_small_network_has_as_many_weights() -> None:
    stream = streams.make("digits", NOWHERE, 0)
    assert small_network(stream, 1.0)["hidden"] == [128, 128]
    for density in (0.366, 0.1, 0.05):
        first, second = small_network(stream, density)["hidden"]
        weights = 64 * first + first * second + second * 10
        assert weights == pytest.approx(density * 25_856, rel=0.05)


def test_a_run_counts_and_compares(small: Stream) -> None:
    found = run(small, ROWS["espalier-10"], 0, CPU)
    assert found["kept"] == found["planned"] == sorted(found["kept"], reverse=True)
    assert found["kept"][-1] / found["total"] == pytest.approx(0.1, abs=1e-3)
    assert all(
        wrong == round(500 * (1 - right)) for wrong, right in zip(found["wrong"], found["accuracy"], strict=True)
    )
    assert found["macs"] == found["kept"]
    assert [2 * macs for macs in found["macs"]] == [metrics["sparse_flops"] for metrics in found["metrics"]]
    assert list(found["prequential"][1]) == ["2"]
    json.dumps(found, allow_nan=False)
    assert run(small, ROWS["espalier-10"], 0, CPU)["accuracy"] == found["accuracy"]


def test_reference_multiplies_its_masks(small: Stream) -> None:
    recipe = ROWS["app-reference"].recipe(small, 0)
    results = list(lineage(small, recipe, CPU, reference=True))
    densities = [result.kept / result.total for result in results]
    assert densities[0] == pytest.approx(0.8, abs=1e-3)
    assert densities[-1] < 0.366 - 0.02  # three masks, the last one of 0.366 by itself
    assert all(not np.any(result.arrays[n][~mask]) for result in results for n, mask in result.masks.items())
    assert all(
        not np.any(b.masks[n] & ~a.masks[n]) for a, b in zip(results, results[1:], strict=False) for n in a.masks
    )


def test_training_arithmetic(small: Stream) -> None:
    recipe = ROWS["dense"].recipe(small, 0)
    result = next(lineage(small, recipe, CPU))
    positions = output_positions(recipe, small, CPU)
    assert set(positions.values()) == {1}
    assert training_macs(result, positions) == pytest.approx(3 * result.total * result.metrics["examples_seen"])
    pruned = ROWS["espalier-10"].recipe(small, 0)
    sparse = training_macs(next(lineage(small, pruned, CPU)), positions)
    assert 0.46 < sparse / training_macs(result, positions) < 1  # a third of the way to 0.1 is 0.464


def test_differences_are_paired() -> None:
    results = {
        _task(row, seed): _figures([0.5 + 0.1 * seed + more, 0.6 + 0.1 * seed + more])
        for row, more in (("dense", 0.1), ("small-10", 0.0))
        for seed in (0, 1, 2)
    } | {_task("small-10", 3): _figures([0.1, 0.1]), _task("app-paper", 0): _figures([0.1, 0.1])}
    found = Findings(results)
    difference = found.difference("digits", "dense", "small-10", "final")
    assert difference is not None
    assert difference == pytest.approx((10.0, 0.0, 3))
    assert found.compare("digits", "dense", "small-10") == "better"
    assert found.compare("digits", "small-10", "dense") == "worse"
    assert found.compare("digits", "dense", "dense") == "even"
    assert found.compare("digits", "dense", "app-paper") == "unknown"
    assert found.better_at_the_end("digits", "dense", "small-10")
    assert not found.better_at_the_end("digits", "small-10", "dense")
    assert found.difference("digits", "dense", "espalier-10", "final") is None


def test_estimates() -> None:
    assert estimate([]) is None
    assert estimate([2.0]) == Estimate(2.0, 0.0, 1)
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.error == pytest.approx(1 / 3**0.5)
    assert found.sure == pytest.approx(4.303 * found.error, rel=1e-3)
    assert judged(found, 1.9) == "met, within noise"
    assert judged(found, 9.0) == "not met"
    assert judged(None, 9.0) == "not measured here"


def test_finished_runs_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, left_out = tasks.wanted({"digits": (2, ["dense", "espalier-10"])}, NOWHERE, "code")
    assert [(task.row, task.seed) for task in wanted] == [
        ("dense", 0),
        ("espalier-10", 0),
        ("dense", 1),
        ("espalier-10", 1),
    ]
    assert not left_out
    monkeypatch.setattr(tasks, "run", lambda *_: _figures([0.5]))
    for task in wanted:
        assert tasks.do_one(task, tmp_path, NOWHERE)
    assert tasks.do(wanted, tmp_path, NOWHERE, workers=2) == []
    assert len(tasks.results(wanted, tmp_path)) == 4
    assert not tasks.results([replace(wanted[0], code="other")], tmp_path)


def test_page_and_charts(tmp_path: Path) -> None:
    results = {
        _task(row, seed, stream): _figures([0.5 + 0.1 * seed, 0.6 + index / 100, 0.7 + index / 100], stream)
        for stream in ("digits", "gas")
        for index, row in enumerate(["small-10", "small-36", "dense-paper", "dense", "espalier-36", "espalier-10"])
        for seed in (0, 1, 2)
    }
    found = Findings(results)
    page.write(found, page.Told("a command", "abc"), tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text()
    assert "no worse than dense at full size): Digits at 36.6, 10 %; Gas sensors (drift) at 36.6, 10 %." in text
    assert "| Digits | 36.6 % | +1.0 ± 0.0 / +0.7 ± 0.0 | +3.0 ± 0.0 / +2.0 ± 0.0 | it pays |" in text
    assert "weight granularity only" in text
    for picture in (tmp_path / "evidence").iterdir():
        ElementTree.fromstring(picture.read_text())
        assert f"evidence/{picture.name}" in text
    assert {goal.number for goal in goals(found)} == {1, 2, 3, 4, 5, 6, 7}
    assert "not measured here" in page.text(Findings({}), page.Told("a command", "abc"))


def test_charts_leave_gaps_and_round_ticks() -> None:
    assert nice(0.83, 0.98) == [0.8, 0.85, 0.9, 0.95, 1.0]
    assert nice(5, 5) == [5, 6]
    svg = draw([Panel("a < b", [Line("one", "#000", [None, (2, 3, 1), (3, 4, 0), None, (5, 1, 0)])])], "x", "y")
    assert svg.count("<circle") == 1
    assert "a &lt; b" in svg
    ElementTree.fromstring(svg)


def test_packages_are_benchmarks_too() -> None:
    assert "method" in every.names()


def test_streams_that_cannot_run_say_why() -> None:
    assert list(streams.STREAMS) == list(words.TITLES) == list(words.ABOUT)
    assert "--data" in str(streams.missing("gas", NOWHERE, gpu=False))
    assert streams.missing("digits", NOWHERE, gpu=False) is None
