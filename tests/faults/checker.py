"""The history checker: what clients were told, what the log says and what the rows hold must be one story.

It reads three things and knows nothing of how they came about: the calls of clients with their outcomes, the audit
entries in order, and the rows at the end. It names every violation that it finds.

    * each acknowledged effect is there exactly once, and no refused one is there at all;
    * a model has at most one running cycle at any time;
    * a version's parent was champion when its cycle was claimed, and still when it was published;
    * the champion's history is one line: every move starts where the one before ended, revisions have no gaps;
    * nothing is trained twice along a lineage, and nothing that is quarantined is trained after that;
    * everything accepted is trained on by the champion's lineage, or still eligible;
    * version numbers have no gaps, every version has one entry and one cycle, and a tick is taken up once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["done", "refused", "unknown"]


@dataclass(frozen=True)
class Call:
    """What a client asked for, and what it was told."""

    verb: Literal["upload", "rollback", "promote"]
    model: str
    outcome: Outcome
    content: str = ""
    """Of an upload: which content."""
    number: int = 0
    """Of an upload: the megabatch. Of a move: the version."""
    revision: int = 0
    """Of a move: the champion's revision."""
    quarantined: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One audit entry."""

    seq: int
    kind: str
    model: str | None
    actor: str
    parameters: Mapping[str, Any]


@dataclass
class Rows:
    """One model's rows at the end."""

    megabatches: dict[int, str]
    """Status by number."""
    versions: dict[int, tuple[int | None, int]]
    """Parent and cycle by number."""
    cycles: dict[int, tuple[str, int | None]]
    """State and version by number."""
    moves: list[tuple[int, int | None, int]]
    """Revision, from, to, of the champion, in order."""
    champion: int | None = None


@dataclass
class _Model:
    """A model as the log tells it, so far."""

    champion: int | None = None
    revision: int = 0
    running: dict[int, int | None] = field(default_factory=dict)
    """Parent by running cycle."""
    versions: dict[int, tuple[int | None, frozenset[int]]] = field(default_factory=dict)
    """Parent and new megabatches by version."""
    accepted: Counter[int] = field(default_factory=Counter)
    quarantined: Counter[int] = field(default_factory=Counter)
    ticks: Counter[str] = field(default_factory=Counter)
    moves: list[tuple[int, int | None, int]] = field(default_factory=list)


_ENDS = {"cycle.superseded", "cycle.failed", "cycle.released", "cycle.reclaimed"}


def check(calls: Sequence[Call], entries: Sequence[Entry], rows: Mapping[str, Rows], *, settled: bool) -> list[str]:
    """Every violation, in words.

    Args:
        settled: nothing was left to train on at the end: what is accepted must be trained on.
    """
    models: dict[str, _Model] = {}
    found = [*_contiguous(entries)]
    for entry in entries:
        if entry.model is not None:
            model = models.setdefault(entry.model, _Model())
            found += [f"entry {entry.seq}: {entry.model}: {said}" for said in _told(model, entry)]
    for name, held in rows.items():
        model = models.setdefault(name, _Model())
        of = [call for call in calls if call.model == name]
        checks = (_rows(model, held), _uploads(of, model, held), _moves(of, model), _trained(model, held, settled))
        found += [f"{name}: {said}" for said in (said for each in checks for said in each)]
    return found


def _contiguous(entries: Sequence[Entry]) -> Iterator[str]:
    for expected, entry in enumerate(entries, 1):
        if entry.seq != expected:
            yield f"entry {expected} is missing: entry {entry.seq} stands in its place"
            return


# -- the log, entry by entry -------------------------------------------------------------------------------------------


def _told(model: _Model, entry: Entry) -> Iterator[str]:
    about = entry.parameters
    match entry.kind:
        case "megabatch.accepted":
            model.accepted[about["megabatch"]] += 1
        case "megabatch.quarantined":
            model.quarantined[about["megabatch"]] += 1
        case "cycle.requested" if "due" in about:
            model.ticks[about["due"]] += 1
            if model.ticks[about["due"]] > 1:
                yield f"the tick {about['due']} was taken up twice"
        case "cycle.started":
            yield from _started(model, about)
        case "version.published" | "version.withheld":
            yield from _published(model, about)
        case "alias.moved" if about["alias"] == "champion":
            yield from _moved(model, about)
        case kind if kind in _ENDS:
            model.running.pop(about["cycle"], None)


def _started(model: _Model, about: Mapping[str, Any]) -> Iterator[str]:
    if model.running:
        yield f"cycle {about['cycle']} started while {sorted(model.running)} ran"
    if about["parent"] != model.champion:
        yield f"cycle {about['cycle']} started from {about['parent']}, but {model.champion} was champion"
    model.running[about["cycle"]] = about["parent"]


def _published(model: _Model, about: Mapping[str, Any]) -> Iterator[str]:
    cycle, version, parent = about["cycle"], about["version"], about["parent"]
    if cycle not in model.running:
        yield f"version {version} came of cycle {cycle}, which did not run"
    elif model.running.pop(cycle) != parent:
        yield f"version {version} has parent {parent}, which its cycle {cycle} did not start from"
    if parent != model.champion:
        yield f"version {version} has parent {parent}, but {model.champion} was champion when it was published"
    if version in model.versions:
        yield f"version {version} was published twice"
    trained = frozenset(about["megabatches"])
    if banned := trained & model.quarantined.keys():
        yield f"version {version} was trained on {sorted(banned)}, which were quarantined"
    new = frozenset(about["new"])
    if twice := new & _seen(model.versions, parent):
        yield f"version {version} took {sorted(twice)} in again: an ancestor had done so"
    model.versions[version] = parent, new


def _moved(model: _Model, about: Mapping[str, Any]) -> Iterator[str]:
    if about["from"] != model.champion:
        yield f"the champion moved from {about['from']}, but {model.champion} was champion"
    if about["revision"] != model.revision + 1:
        yield f"the champion's revision {about['revision']} follows {model.revision}"
    model.champion, model.revision = about["to"], about["revision"]
    model.moves.append((about["revision"], about["from"], about["to"]))


def _seen(versions: Mapping[int, tuple[int | None, frozenset[int]]], number: int | None) -> set[int]:
    seen: set[int] = set()
    while number is not None and number in versions:
        parent, new = versions[number]
        seen |= new
        number = parent
    return seen


# -- the log against the rows ------------------------------------------------------------------------------------------


def _rows(model: _Model, rows: Rows) -> Iterator[str]:
    if sorted(rows.versions) != list(range(1, len(rows.versions) + 1)):
        yield f"version numbers have gaps: {sorted(rows.versions)}"
    logged = {number: parent for number, (parent, _) in model.versions.items()}
    if logged != {number: parent for number, (parent, _) in rows.versions.items()}:
        yield "the versions of the log are not those of the rows"
    made = Counter(cycle for _, cycle in rows.versions.values())
    if twice := sorted(cycle for cycle, times in made.items() if times > 1):
        yield f"cycles {twice} made more than one version"
    for number, (state, version) in rows.cycles.items():
        if (state in ("published", "withheld")) != (version is not None):
            yield f"cycle {number} is {state} with version {version}"
        if version is not None and rows.versions.get(version, (None, None))[1] != number:
            yield f"cycle {number} says version {version}, which is another cycle's"
    running = sorted(number for number, (state, _) in rows.cycles.items() if state == "running")
    if running != sorted(model.running):
        yield f"cycles {running} run by their rows, {sorted(model.running)} by the log"
    if rows.moves != model.moves or rows.champion != model.champion:
        yield "the champion's moves in the log are not those of the rows"
    if model.accepted.keys() != rows.megabatches.keys() or set(model.accepted.values()) - {1}:
        yield "the megabatches of the log are not those of the rows, once each"
    banned = {number for number, status in rows.megabatches.items() if status == "quarantined"}
    if model.quarantined.keys() != banned or set(model.quarantined.values()) - {1}:
        yield "the quarantine of the log is not that of the rows, once each"


def _trained(model: _Model, rows: Rows, settled: bool) -> Iterator[str]:
    seen = _seen(model.versions, model.champion)
    accepted = {number for number, status in rows.megabatches.items() if status == "accepted"}
    if strange := seen - rows.megabatches.keys():
        yield f"megabatches {sorted(strange)} were trained on, and are not there"
    if settled and (left := accepted - seen):
        yield f"megabatches {sorted(left)} are accepted, and neither trained on nor eligible"


# -- what clients were told --------------------------------------------------------------------------------------------


def _uploads(calls: Iterable[Call], model: _Model, rows: Rows) -> Iterator[str]:
    uploads = [call for call in calls if call.verb == "upload"]
    numbers: dict[str, set[int]] = {}
    for call in uploads:
        if call.outcome == "done":
            numbers.setdefault(call.content, set()).add(call.number)
    for content, given in numbers.items():
        if len(given) > 1:
            yield f"one content became megabatches {sorted(given)}: {content}"
    given = Counter(number for each in numbers.values() for number in each)
    for number, times in sorted(given.items()):
        if times > 1:
            yield f"megabatch {number} was acknowledged for {times} contents"
        if number not in rows.megabatches:
            yield f"megabatch {number} was acknowledged, and is lost"
    unknown = {call.content for call in uploads if call.outcome == "unknown"} - numbers.keys()
    unasked = len(rows.megabatches.keys() - given.keys())
    if unasked > len(unknown):
        yield f"{unasked} megabatches are there that nobody was told of, {len(unknown)} may be"


def _moves(calls: Iterable[Call], model: _Model) -> Iterator[str]:
    by_revision = {revision: to for revision, _, to in model.moves}
    asked = [call for call in calls if call.verb in ("rollback", "promote")]
    done = Counter(call.revision for call in asked if call.outcome == "done")
    for call in asked:
        if call.outcome == "done" and by_revision.get(call.revision) != call.number:
            yield f"a {call.verb} to version {call.number} was acknowledged as revision {call.revision}, and is lost"
        if call.outcome == "done" and (left := set(call.quarantined) - model.quarantined.keys()):
            yield f"the quarantine of {sorted(left)} was acknowledged, and is lost"
    if twice := sorted(revision for revision, times in done.items() if times > 1):
        yield f"revisions {twice} were acknowledged twice"
    asked_for = {n for call in asked if call.outcome != "refused" for n in call.quarantined}
    if alone := model.quarantined.keys() - asked_for:
        yield f"megabatches {sorted(alone)} are quarantined, and nobody who asked for that was let"
