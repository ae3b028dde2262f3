"""A power cut after every operation: whatever of the bytes and names that were not synced is there or is not, the
service opens, nothing is wrong, and nothing that anybody had been told is lost.

Needs strace, which sees what SQLite writes; without it these tests are skipped, and say so.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.service import uploads
from app.store.blobs import open_blobs
from app.store.migrate import migrate
from app.store.staging import Partials
from espalier.formats.note import opened
from tests.faults.crash_states import Ground, State, read, recorded, states, strace_works, tree_of
from tests.faults.steps import (
    RECIPE,
    STEPS,
    Place,
    Site,
    Step,
    cycle,
    differences,
    entries,
    make_key,
    picture,
    prepared,
    problems,
    reclaimed,
    roll_back,
    upload,
)
from tests.service.conftest import ACTOR

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not strace_works(), reason="strace is not there, or may not trace: no crash states are built"),
]
LONELY = {"erased"}
AGAIN = 40
"""In every so-manyth state the whole step is done again, to its end; in all others it is only looked at."""

Ack = Callable[..., None]


@dataclass(frozen=True)
class Scenario:
    """What is recorded. ``act`` says ``ack`` whenever somebody outside has been told something."""

    name: str
    act: Callable[[Place, Ack], Any]
    again: Step | None = None
    """What does it all again, to the same end."""
    fresh: bool = False
    """Whether it begins on an empty deployment, migrated and never opened."""


def told(place: Place, **more: Any) -> dict[str, Any]:
    """What whoever asks is told: the log as it is; and more."""
    with place.store.reading() as tx:
        head = tx.audit.head()
    return {"size": head.size, "root": head.root, **more}


def plain(name: str) -> Scenario:
    def act(place: Place, ack: Ack) -> None:
        STEPS[name].act(place)
        ack()

    return Scenario(name, act, STEPS[name])


def in_parts(place: Place, ack: Ack) -> None:
    """A resumable upload, told after each of its parts."""
    data, upload = place.part(), place.begun()
    for start, end in ((0, 700), (700, 1900), (1900, len(data))):
        with uploads.appending(place.store, upload, start, length=None, settings=place.settings) as writer:
            writer.write([data[start:end]])
            found = writer.record(complete=end == len(data))
        ack(offset=found.offset)
    STEPS["part"].act(place)
    ack()


def signing(place: Place, ack: Ack) -> None:
    for key in (None, "line-3"):
        if key:
            make_key(place)
            ack()
        ack(note=place.notary.checkpoint())


def first_day(place: Place, ack: Ack) -> None:
    """The first of everything: folders that were never there before."""
    place.create(recipe=RECIPE)
    ack()
    described = uploads.Described(len(place.part()))
    uploads.create_upload(place.store, "gas", described, settings=place.settings, actor=ACTOR)
    ack(offset=0)
    with uploads.appending(place.store, place.begun(), 0, length=None, settings=place.settings) as writer:
        writer.write([place.part()[:1000]])
        ack(offset=writer.record().offset)
    ack(note=place.notary.checkpoint())
    upload(place)
    ack(note=place.notary.checkpoint())


def busy_day(place: Place, ack: Ack) -> None:
    """One thing after another, on top of a past."""
    cycle(place)
    ack(note=place.notary.checkpoint())
    roll_back(place)
    ack(note=place.notary.checkpoint())
    make_key(place)
    ack()


SCENARIOS = [
    Scenario("first day", first_day, fresh=True),
    plain("upload"),
    Scenario("part", in_parts, STEPS["part"]),
    plain("cycle"),
    plain("rollback"),
    plain("promote"),
    plain("key"),
    Scenario("checkpoint", signing),
    plain("rotation"),
    plain("sweep"),
    plain("erasure"),
    Scenario("busy day", busy_day),
]


class Enumeration:
    """One scenario, recorded, and its states."""

    def __init__(self, site: Site, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.ground = scenario, Ground(folder / "state")
        before = tree_of(site.folder)
        self.ground.become(before)
        self.site = Site(self.ground.folder, "", snapshot_seconds=0.02 if scenario.name == "cycle" else 3600.0)
        calls = recorded(self._record, folder)
        self.record = read(calls, self.ground.folder, before, folder / "marks")
        assert self.record.end.tree() == tree_of(self.ground.folder), "the model is not what really happened"
        with self.site.opened() as place:
            assert problems(place) == []
            self.expected = entries(place)
            self.picture = picture(place, scenario.again.extra) if scenario.again else {}

    def _record(self, mark: Callable[[Any], None]) -> None:
        with self.site.opened() as place:
            self.scenario.act(place, lambda **more: mark(told(place, **more)))

    def check(self, tally: Any, most: int | None = None) -> int:
        number = 0
        with self.site.opened() as place:
            for number, state in enumerate(states(self.record), 1):
                tally.add(crash_states=1)
                self._look(place, state, tally, again=number % AGAIN == 0)
                if number == most:
                    break
        return number

    def _look(self, place: Place, state: State, tally: Any, *, again: bool) -> None:
        self._open(place, state)
        where = f"{self.scenario.name}: {state.where}"
        assert [one for one in problems(place) if getattr(one, "kind", "") not in LONELY] == [], where
        lost = [said for said in state.told if not self._holds(place, said)]
        tally.add(lost=len(lost))
        assert lost == [], where
        known, there = Counter(map(repr, self.expected)), Counter(map(repr, entries(place)))
        tally.add(doubled=(there - known).total())
        assert there <= known, f"{where}: {there - known}"
        if place.settings.log_keys.exists():
            assert place.notary.checkpoint(), where
        if again and self.scenario.again is not None:
            self._again(self.scenario.again, place, tally, where)

    def _open(self, place: Place, state: State) -> None:
        """As a process does that starts: nothing is remembered."""
        place.store.dispose()
        self.ground.become(state.tree)
        store = place.store
        store.blobs = open_blobs("", self.site.folder / "blobs", cache_bytes=2**30, grace_seconds=3600)
        store.partials = Partials(store.blobs.root)
        store.check_schema()
        place.notary = type(place.notary)(store, place.settings)

    def _holds(self, place: Place, said: dict[str, Any]) -> bool:
        """Whether what somebody was told is still so."""
        with place.store.reading() as tx:
            head = tx.audit.head()
            if head.size < said["size"] or tx.audit.tree().root(said["size"]).hex() != said["root"]:
                return False
            if note := said.get("note"):
                found = opened(note, place.notary.verifier_keys())
                if tx.audit.tree().root(found.size) != found.root:
                    return False
        return "offset" not in said or self._has(place, said["offset"])

    def _has(self, place: Place, offset: int) -> bool:
        """Whether the bytes of the upload are there as far as was acknowledged; or it has become a megabatch."""
        found = uploads.get_upload(place.store, place.begun())
        if found.megabatch is not None:
            return True
        data = place.store.partials.path(found.id).read_bytes()
        return found.offset >= offset and data[:offset] == place.part()[:offset]

    def _again(self, step: Step, place: Place, tally: Any, where: str) -> None:
        reclaimed(place)
        step.act(place)
        assert problems(place) == [], where
        extra = {*step.extra, "log.key-created", "cycle.reclaimed"}
        expected = {**self.picture, "log": [one for one in self.picture["log"] if dict(one)["kind"] not in extra]}
        wrong = differences(picture(place, extra), expected)
        tally.add(**wrong)
        assert not any(wrong.values()), (where, wrong)


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(tmp_path_factory.mktemp("crash") / "past", "sqlite") as found:
        yield found


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("crash") / "fresh", "")
    site.folder.mkdir()
    migrate(site.url)
    return site


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_every_state_of_a_crash(scenario: Scenario, past: Site, fresh: Site, tmp_path: Path, tally: Any) -> None:
    enumeration = Enumeration(fresh if scenario.fresh else past, scenario, tmp_path)
    assert enumeration.check(tally) > 5
    shutil.rmtree(tmp_path / "state")


@pytest.mark.sample
def test_a_sample_of_crash_states(past: Site, tmp_path: Path, tally: Any) -> None:
    assert Enumeration(past, plain("key"), tmp_path).check(tally, most=30) == 30
