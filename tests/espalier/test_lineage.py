"""A lineage, as entries tell it."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from espalier.errors import ProofRejected
from espalier.formats.lineage import Lineage, grown

Entry = dict[str, Any]


class Log:
    """Entries in order."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.lineage = Lineage("gas")

    def add(self, kind: str, outputs: list[str] | None = None, model: str = "gas", **parameters: Any) -> Log:
        seq = next(self.numbers)
        self.lineage.read(
            {"seq": seq, "kind": kind, "model": model, "parameters": parameters, "outputs": outputs or []}
        )
        return self

    def pruned(self, cycle: int, before: str, after: str) -> Log:
        return self.add("mask.pruned", cycle=cycle, mask_digest_before=before, mask_digest_after=after)

    def made(self, version: int, parent: int | None, mask: str, total: int = 10) -> Log:
        return self.add(
            "version.published", version=version, parent=parent, cycle=version, mask_digest=mask, total=total
        )


def test_a_line_is_followed_to_its_first_version() -> None:
    log = Log().pruned(1, "full", "a").made(1, None, "a").pruned(2, "a", "b").pruned(2, "b", "c").made(2, 1, "c")
    log.made(3, 2, "c").made(4, 1, "a")
    assert [made.version for made in log.lineage.followed(3)] == [3, 2, 1]
    assert [len(made.steps) for made in log.lineage.followed(3)] == [0, 2, 1]
    assert [made.version for made in log.lineage.followed(4)] == [4, 1], "a branch"


def test_steps_of_an_attempt_that_failed_do_not_count() -> None:
    log = Log().made(1, None, "a").pruned(2, "a", "x").add("cycle.failed", cycle=2).pruned(2, "a", "b").made(2, 1, "b")
    assert [step.after for step in log.lineage.followed(2)[0].steps] == ["b"]


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (Log().made(2, 1, "a"), "no entry tells version 1, which version 2 came from"),
        (Log().made(1, None, "a"), "no entry tells version 2"),
        (Log().made(1, None, "a").made(2, 1, "b"), "has the masks b"),
        (Log().made(1, None, "a").pruned(2, "x", "b").made(2, 1, "b"), "began with the masks x"),
        (Log().made(1, None, "a").pruned(2, "a", "b").pruned(2, "x", "c").made(2, 1, "c"), "began with the masks x"),
        (Log().made(1, None, "a").pruned(2, "a", "b").made(2, 1, "c"), "end with b"),
        (Log().pruned(1, "full", "b").made(1, None, "a").made(2, 1, "a"), "end with b"),
        (Log().made(1, 2, "a").made(2, 1, "a"), "version 1 cannot come from version 2"),
        (Log().made(2, 2, "a"), "version 2 cannot come from version 2"),
    ],
)
def test_what_does_not_follow_is_refused(log: Log, why: str) -> None:
    with pytest.raises(ProofRejected, match=why):
        log.lineage.followed(2)


def test_where_a_class_was_added_masks_begin_anew() -> None:
    log = Log().made(1, None, "a").pruned(2, "wider", "b").made(2, 1, "b", total=12)
    line = log.lineage.followed(2)
    assert grown(line[0], line[1])
    assert not grown(line[1], None)
    with pytest.raises(ProofRejected, match="end with b"):
        Log().made(1, None, "a").pruned(2, "wider", "b").made(2, 1, "c", total=12).lineage.followed(2)


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "x"},
        {"seq": "1", "kind": "x"},
        {"seq": 1, "kind": None},
        {"seq": 1, "kind": "x", "model": "other", "parameters": {}},
        {"seq": 1, "kind": "x", "model": "gas", "parameters": []},
        {"seq": 1, "kind": "mask.pruned", "model": "gas", "parameters": {"cycle": 1}},
        {"seq": 1, "kind": "cycle.failed", "model": "gas", "parameters": {"cycle": True}},
        {"seq": 1, "kind": "version.published", "model": "gas", "parameters": {"version": 1, "cycle": 1}},
        {
            "seq": 1,
            "kind": "version.published",
            "model": "gas",
            "parameters": {"version": 1, "cycle": 1},
            "outputs": [1],
        },
    ],
)
def test_what_is_no_entry_is_refused(entry: Entry) -> None:
    with pytest.raises(ProofRejected):
        Lineage("gas").read(entry)


def test_a_version_is_told_once() -> None:
    with pytest.raises(ProofRejected, match="both tell version 1"):
        Log().made(1, None, "a").made(1, None, "a")
