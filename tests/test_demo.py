"""The demo: its data, its own arithmetic, and one short run against a real service."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from app.demo import Options, run
from app.demo.data import Stream, UnusableData, digits, from_file
from app.demo.screen import Screen
from app.demo.story import planned_density
from app.learning.recipe import Factor
from app.learning.schedules import density_at


def write(path: Path, **members: Any) -> Path:
    np.savez(path, **members)
    return path


def clusters(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, n)
    return (np.eye(3, 6)[y] * 4 + random.normal(size=(n, 6))).astype(np.float32), y


def rows(stream: Stream) -> list[bytes]:
    parts = (*stream.megabatches, stream.later, stream.held_out)
    return [row.tobytes() for part in parts for row in part.x]


def test_digits_are_scikit_learns_and_none_is_lost() -> None:
    stream, original = digits(8, seed=1), load_digits()
    assert [len(part) for part in stream.megabatches] == [145, *[144] * 7]
    assert (len(stream.later), len(stream.held_out)) == (144, 500)
    assert sorted(rows(stream)) == sorted(row.tobytes() for row in original.data.astype(np.uint8))
    labels = np.concatenate([part.y for part in (*stream.megabatches, stream.later, stream.held_out)])
    assert np.array_equal(np.bincount(labels), np.bincount(original.target))


def test_the_seed_divides() -> None:
    assert rows(digits(3, 1)) == rows(digits(3, 1)) != rows(digits(3, 2))


def test_a_batch_column_names_the_megabatches_in_order(tmp_path: Path) -> None:
    x, y = clusters(400)
    batch = np.repeat([30, 10, 20, 40], 100)
    names = np.array(["a", "b", "c"])
    path = write(tmp_path / "My data.npz", x=x, y=y, batch=batch, class_names=names, concentration_ppmv=np.ones(400))
    stream = from_file(path, None, seed=0)
    assert (stream.name, stream.classes) == ("my-data", ("a", "b", "c"))
    assert [len(part) for part in (*stream.megabatches, stream.later)] == [90] * 4
    assert len(stream.held_out) == 40
    for value, part in zip((10, 20, 30, 40), (*stream.megabatches, stream.later), strict=True):
        inside = {row.tobytes() for row in x[batch == value]}
        assert all(row.tobytes() in inside for row in part.x)
    for label in range(3):
        share = np.sum(stream.held_out.y == label) / np.sum(y == label)
        assert 0.08 < share < 0.12
    assert len(from_file(path, 2, seed=0).megabatches) == 2


def test_copies_of_held_out_examples_are_left_out_of_the_test_set(tmp_path: Path) -> None:
    x, y = clusters(200)
    twice = write(tmp_path / "twice.npz", x=np.concatenate([x, x]), y=np.concatenate([y, y]))
    stream = from_file(twice, 3, seed=0)
    uploaded = {row.tobytes() for part in (*stream.megabatches, stream.later) for row in part.x}
    assert not any(row.tobytes() in uploaded for row in stream.held_out.x)
    assert "are left out of it" in stream.split


def test_a_file_sorted_by_label_is_shuffled_and_says_so(tmp_path: Path) -> None:
    x, y = clusters(200)
    order = np.argsort(y, kind="stable")
    stream = from_file(write(tmp_path / "sorted.npz", x=x[order], y=y[order]), 3, seed=0)
    assert "sorted by label" in stream.split
    assert all(len(np.unique(part.y)) == 3 for part in stream.megabatches)


@pytest.mark.parametrize(
    ("members", "remedy"),
    [
        ({"x": np.ones((9, 2))}, "no member y"),
        ({"x": np.ones(9), "y": np.ones(9, int)}, "x must be"),
        ({"x": np.ones((9, 2)), "y": np.ones(8, int)}, "x must be"),
        ({"x": np.ones((9, 2)), "y": np.ones(9)}, "np.unique"),
        ({"x": np.ones((9, 2)), "y": -np.ones(9, int)}, "np.unique"),
        ({"x": np.ones((9, 2)), "y": np.ones(9, int)}, "too few"),
        ({"x": np.ones((90, 2)), "y": np.ones(90, int), "batch": np.ones(90)}, "at least two"),
        ({"x": np.ones((400, 2)), "y": np.ones(400, int)}, "all alike"),
        ({"x": np.array([object()] * 9), "y": np.ones(9, int)}, "plain arrays"),
    ],
)
def test_unusable_files_say_what_would_help(tmp_path: Path, members: dict[str, Any], remedy: str) -> None:
    with pytest.raises(UnusableData, match=remedy):
        from_file(write(tmp_path / "bad.npz", **members), None, seed=0)


def test_what_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(UnusableData, match="cannot read"):
        from_file(tmp_path / "bad.npz", None, seed=0)


def test_the_demos_own_plan_falls_to_the_end_of_the_schedule() -> None:
    plan = [planned_density(0.366, stage, 8) for stage in range(1, 11)]
    assert plan == pytest.approx([density_at(Factor(target=0.366, stages=8), stage) for stage in range(1, 11)])
    assert all(later < earlier for earlier, later in itertools.pairwise(plan[:8]))
    assert planned_density(0.366, 1, 1) == plan[7] == plan[9]


def played(*, terminal: bool, **options: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False, soft_wrap=True)
    status = run(Options(**options), Screen(console))
    return status, console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above


@pytest.mark.slow
def test_a_short_run_on_data_of_ones_own(tmp_path: Path) -> None:
    x, y = clusters(600)
    path = write(tmp_path / "mine.npz", x=x, y=y, batch=np.arange(600) // 150)
    status, shown = played(terminal=False, data=path, epochs=2, hidden=(8,), data_dir=tmp_path / "kept")
    assert status == 0, shown
    assert "as reported" in shown and "Roll back from version 3 to 1" in shown and "all is well" in shown
    assert "goes on from 1: stage 1 -> 2" in shown
    assert (tmp_path / "kept" / "downloads" / "mine-4.safetensors").is_file()
    assert f"espalier serve --data-dir {tmp_path / 'kept'}" in shown


@pytest.mark.slow
def test_ones_own_settings_do_not_reach_the_demos_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_DATABASE_URL", "postgresql+psycopg://nobody@nowhere.invalid/espalier")
    monkeypatch.setenv("ESPALIER_API_KEY", "secret")
    monkeypatch.setenv("ESPALIER_KEY", "another")
    x, y = clusters(160)
    path = write(tmp_path / "mine.npz", x=x, y=y)
    status, shown = played(terminal=True, data=path, megabatches=1, epochs=1, hidden=(4,))
    assert status == 0, shown
    assert "No rollback" in shown
