from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.errors import InvalidMegabatch
from app.learning import rows as module
from app.learning.normalisation import Preparation
from app.learning.recipe import Mlp
from app.learning.rows import Examples, Rows
from tests.learning.cases import CPU, clusters, spec_of


def rows_of(*examples: Examples, chosen: list[np.ndarray] | None = None, hold: bool = True, classes: int = 3) -> Rows:
    spec = spec_of(examples[0], name="none", clip=None)
    everything = [np.ones(len(e), bool) for e in examples]
    prepare = Preparation(spec, None, Mlp(), CPU)
    return Rows(examples, chosen or everything, prepare, device=CPU, classes=classes, hold=hold)


def mapped(examples: Examples, folder: Path) -> Examples:
    """The same megabatch, read-only from a file."""
    np.save(folder / f"{examples.number}.npy", examples.x)
    x = np.load(folder / f"{examples.number}.npy", mmap_mode="r")
    return Examples(examples.number, x, examples.y, examples.ids)


def test_chosen_rows_come_in_order_of_megabatch_and_row() -> None:
    a, b = clusters(1, 5), clusters(2, 4)
    chosen = [np.array([1, 0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)]
    rows = rows_of(a, b, chosen=chosen)
    expected = np.concatenate([a.x[chosen[0]], b.x[chosen[1]]])
    x, y = rows.gather(torch.arange(len(rows)))
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(y, np.concatenate([a.y[chosen[0]], b.y[chosen[1]]]))
    np.testing.assert_array_equal(rows.ids, np.concatenate([a.ids[chosen[0]], b.ids[chosen[1]]]))


def test_held_and_gathered_rows_are_the_same(tmp_path: Path) -> None:
    examples = [mapped(clusters(number, 50), tmp_path) for number in (1, 2, 3)]
    held, streamed = rows_of(*examples), rows_of(*examples, hold=False)
    assert held.held and not streamed.held
    at = torch.randperm(150, generator=torch.Generator().manual_seed(0))[:40]
    for left, right in zip(held.gather(at), streamed.gather(at), strict=True):
        assert torch.equal(left, right)
    for whole, part in zip(held.chunks(), streamed.chunks(), strict=True):
        assert torch.equal(whole[0], part[0]) and torch.equal(whole[1], part[1])


@pytest.mark.parametrize("hold", [True, False])
def test_minibatches_are_what_gather_gives(tmp_path: Path, hold: bool) -> None:
    rows = rows_of(*[mapped(clusters(number, 50), tmp_path) for number in (1, 2, 3)], hold=hold)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    parts = [order[start : start + 16] for start in range(0, 150, 16)]
    for (x, y), part in zip(rows.minibatches(parts), parts, strict=True):
        expected = rows.gather(part)
        assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])


def test_what_is_not_held_says_where_it_lies() -> None:
    a, b = clusters(1, 5), clusters(2, 4)
    rows = rows_of(a, b, chosen=[np.array([1, 0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)], hold=False)
    assert rows.source.tolist() == [0, 0, 0, 1, 1] and rows.row.tolist() == [0, 3, 4, 1, 3]
    assert rows.bounds.tolist() == [[0, 3], [3, 5]] and rows.row_bytes == 32
    found = rows.by_megabatch(np.array([0, 1, 0, 0, 0], bool), [7, 9])
    assert {number: kept.tolist() for number, kept in found.items()} == {7: [False, False, False, True, False]}


def test_chunks_are_bounded_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    rows = rows_of(clusters(1, 200), hold=False)
    sizes = [len(y) for _, y in rows.chunks()]
    assert sizes == [64, 64, 64, 8]
    assert torch.equal(torch.cat([x for x, _ in rows.chunks()]), rows.gather(torch.arange(200))[0])


def test_large_sets_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 60 * 8 * 4 - 1)
    assert not rows_of(clusters(1, 60)).held
    assert rows_of(clusters(1, 59)).held


def test_a_label_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidMegabatch, match=r"labels must lie in 0\.\.1") as caught:
        rows_of(clusters(1), classes=2)
    assert caught.value.reason == "label-out-of-range"


def test_no_rows_at_all() -> None:
    examples = clusters(1, 5)
    rows = rows_of(examples, chosen=[np.zeros(5, bool)])
    assert len(rows) == 0 and list(rows.chunks()) == []
