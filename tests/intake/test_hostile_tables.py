"""Hostile tables: each is refused with its reason and a remedy, soon, in little memory, and leaves nothing behind."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import InvalidMegabatch
from app.intake import sandbox
from app.intake.arrays import Limits
from tests.intake.hostile_tables import TABLES, Make, labelled, to_parquet
from tests.intake.hostile_tables import A as COLUMN

REMEDY = re.compile("send|write|use|number the classes|scale|fill|rename|give|convert|drop")
LIMITS = Limits(max_bytes=64 << 20, seconds=10, memory_bytes=256 << 20)
"""The child may take this much memory, and no more: the system sees to it."""


@pytest.fixture(scope="module", autouse=True)
def spare() -> Iterator[None]:
    with sandbox.spare():
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("make", "reason"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES])
def test_hostile_tables_are_refused(make: Make, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    upload, work = tmp_path / "upload", tmp_path / "work"
    work.mkdir()
    upload.write_bytes(make())
    began = time.monotonic()
    with pytest.raises(InvalidMegabatch) as caught:
        sandbox.decode(upload, work, LIMITS)
    assert time.monotonic() - began < 10
    told = str(caught.value)
    assert caught.value.reason == reason, told
    assert len(told) < 800
    assert re.search(r"send|write|use|number the classes|scale|fill|rename|give|convert|drop", told), (
        f"no remedy: {told}"
    )
    assert told.isprintable()
    assert not (tmp_path / "unpickled").exists()
    assert {path.name for path in work.iterdir()} <= {"x.npy", "y.npy", "ids.npy"}, "these go with the folder"


def test_the_next_upload_is_fine(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(to_parquet(labelled(COLUMN)))
    assert sandbox.decode(tmp_path / "upload", tmp_path, LIMITS).examples == len(COLUMN)
