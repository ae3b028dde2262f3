from __future__ import annotations

from datetime import UTC, datetime

import pytest

from espalier.errors import EspalierClientError
from espalier.records import Alias, Cycle, Megabatch, Reference, Version

ALIAS = {"model": "gas", "name": "champion", "version": 5, "revision": 3, "moved_at": "2026-03-02T09:30:00Z"}
VERSION = {
    "model": "gas", "number": 5, "parent": None, "status": "published", "stage": 2, "density": 1,
    "checkpoint": {"digest": "sha256:00", "bytes": 1, "dense_bytes": 2},
}  # fmt: skip


def test_members_have_their_types() -> None:
    alias = Alias.from_json(ALIAS)
    assert alias == Alias("gas", "champion", 5, 3, datetime(2026, 3, 2, 9, 30, tzinfo=UTC))
    version = Version.from_json(
        VERSION | {"layers": [{"name": "0.weight", "shape": [4, 2], "kept": 2, "total": 8}], "metrics": {"a": 0.5}}
    )
    assert isinstance(version.density, float)
    assert version.layers[0].shape == (4, 2)
    assert version.layers[0].density == 0.25
    assert version.checkpoint.dense_bytes == 2


def test_a_newer_services_members_are_kept_and_ignored() -> None:
    alias = Alias.from_json(ALIAS | {"colour": "green"})
    assert alias == Alias.from_json(ALIAS)
    assert alias.document["colour"] == "green"


def test_an_older_services_answer_is_read_with_defaults() -> None:
    assert Version.from_json(VERSION).megabatches == 0
    assert Version.from_json(VERSION).verdict is None


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({}, "'model' is missing"),
        (ALIAS | {"version": "5"}, "Alias.version"),
        (ALIAS | {"version": True}, "Alias.version"),
        (ALIAS | {"moved_at": "yesterday"}, "not a time"),
        ([], "an object was expected"),
    ],
)
def test_what_cannot_be_read_is_named(document: object, word: str) -> None:
    with pytest.raises(EspalierClientError, match=word):
        Alias.from_json(document)


def test_nothing_is_guessed_of_lists_and_nulls() -> None:
    with pytest.raises(EspalierClientError, match="a list was expected"):
        Version.from_json(VERSION | {"layers": "none"})
    with pytest.raises(EspalierClientError, match="stage"):
        Version.from_json(VERSION | {"stage": None})


def test_open_cycles() -> None:
    cycle = {
        "model": "gas", "number": 1, "state": "queued", "trigger": "manual", "through": 1, "parent": None,
        "version": None, "reason": None, "created_at": "2026-03-02T09:30:00Z",
    }  # fmt: skip
    assert Cycle.from_json(cycle).open
    assert not Cycle.from_json(cycle | {"state": "withheld"}).open


def test_a_megabatch_without_a_shape() -> None:
    megabatch = {
        "model": "gas", "number": 1, "status": "accepted", "digest": "sha256:00", "examples": 1, "bytes": 1,
        "histogram": {}, "received_at": "2026-03-02T09:30:00Z", "shape": None,
    }  # fmt: skip
    assert Megabatch.from_json(megabatch).shape is None


@pytest.mark.parametrize(
    ("text", "ref", "expected"),
    [
        ("gas@champion", None, ("gas", "champion")),
        ("gas:7", None, ("gas", "7")),
        ("gas", None, ("gas", "champion")),
        ("gas", 7, ("gas", "7")),
        ("gas-2", "latest", ("gas-2", "latest")),
    ],
)
def test_references(text: str, ref: int | str | None, expected: tuple[str, str]) -> None:
    found = Reference.parse(text, ref)
    assert (found.model, found.ref) == expected
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "Gas", "gas:", "gas:latest", "gas@", "gas@Champion", "gas/7", "../gas", "-gas", "a" * 64]
)
def test_what_names_no_version(text: str) -> None:
    with pytest.raises(EspalierClientError, match="gas-sensors:7"):
        Reference.parse(text)
