"""Comparison: which examples two versions answer differently.

Knows: the answers that each version gave when it was judged. Must never know: HTTP, torch, or the values of any
example.

Laws:
    * Only examples that both versions answered are compared; how many each answered beside them is told.
    * An example whose values were erased is counted, and neither its label nor an answer to it is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain import Version
from app.errors import CorruptBlob
from app.learning.statistics import mcnemar
from app.service.custody import erased, erased_from, not_recorded
from app.store.database import Store
from espalier.errors import CustodyMismatch
from espalier.formats.custody import EVALUATION, VALIDATION, Answers, Use, decode_answers, decode_samples

Array = npt.NDArray[Any]

SOURCES = {"validation": VALIDATION, "evaluation": EVALUATION}


class Kind(IntEnum):
    """What became of an answer from the first version to the second."""

    UNCHANGED = 0
    FIXED = 1
    """Wrong before, right now."""
    BROKEN = 2
    """Right before, wrong now."""
    CHANGED = 3
    """Wrong before and now, another class."""


CHANGES = (Kind.FIXED, Kind.BROKEN, Kind.CHANGED)


@dataclass(frozen=True, slots=True)
class Tally:
    """How many examples of each kind.

    Attributes:
        right_before, right_now: right answers of the first and of the second version.
    """

    examples: int
    kinds: Mapping[Kind, int]
    right_before: int
    right_now: int


@dataclass(frozen=True, slots=True)
class SourceTally:
    """The examples of one source that both versions answered.

    Attributes:
        total: of all of them.
        by_class: by label; classes without examples are absent.
        p_value: two-sided exact McNemar test: how likely so uneven a split of fixed and broken answers is by chance.
        only_before, only_now: examples that the first, or the second, version alone answered.
    """

    source: str
    total: Tally
    by_class: Mapping[int, Tally]
    p_value: float
    only_before: int
    only_now: int


@dataclass(frozen=True, slots=True)
class Change:
    """One example and both answers to it. Label, answers and confidences are None where it was erased."""

    source: str
    id: int
    kind: Kind
    label: int | None
    answers: tuple[int, int] | None
    confidence: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions side by side.

    Attributes:
        classes: names of the classes, in label order.
        items: the examples of this page.
        next: place of the next one; None on the last page.
    """

    before: Version
    now: Version
    classes: tuple[str, ...]
    tallies: tuple[SourceTally, ...]
    items: tuple[Change, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class Sought:
    """Which examples: of these kinds, this label, this source; None: any."""

    kinds: Collection[Kind] = CHANGES
    label: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class _Common:
    """What both versions answered: arrays of one length."""

    source: str
    ids: Array
    labels: Array
    before: Array
    now: Array
    confidence_before: Array
    confidence_now: Array
    kinds: Array
    only: tuple[int, int]


def compare(
    store: Store, name: str, before: str, now: str, *, sought: Sought, after: int | None, limit: int
) -> Comparison:
    """Compare what two versions answered.

    Args:
        before, now: numbers or aliases.
        sought: which examples are told one by one.
        after: ``next`` of the page before.
        limit: at most this many.

    Raises:
        UnknownModel, UnknownVersion: there is no such model or version.
        NotRecorded: one of them was made before answers were written down.
    """
    with store.reading() as tx:
        versions = tx.ledger.version(name, before), tx.ledger.version(name, now)
        classes = max((_classes(tx.ledger.manifest(name, v.number)) for v in versions), key=len)
    first, second = (_answers(store, version) for version in versions)
    found = [_common(source, first.of(code), second.of(code)) for source, code in SOURCES.items()]
    items, further = _page(store, versions, found, classes, sought, after or 0, limit)
    tallies = tuple(_tallied(common) for common in found if len(common.ids) or any(common.only))
    return Comparison(*versions, classes, tallies, tuple(items), further)


def _classes(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple((manifest.get("input") or {}).get("classes") or ())


def _answers(store: Store, version: Version) -> Answers:
    if version.answers is None:
        raise not_recorded(version, "answers")
    try:
        return decode_answers(store.blobs.read(version.answers))
    except CustodyMismatch as error:
        raise CorruptBlob(f"{version.answers}: {error}") from error


def _common(source: str, first: Answers, second: Answers) -> _Common:
    """Examples are the same when id and label are; of duplicates the first belongs to the first, and so on."""
    here, there = _matched(first, second)
    labels, before, now = first.labels[here], first.answers[here], second.answers[there]
    right_before, right_now = before == labels, now == labels
    kinds = np.select(
        [right_now & ~right_before, right_before & ~right_now, before != now], [*CHANGES], default=Kind.UNCHANGED
    )
    only = len(first) - len(here), len(second) - len(there)
    confidences = first.confidence[here], second.confidence[there]
    return _Common(source, first.ids[here], labels, before, now, *confidences, kinds, only)


def _matched(first: Answers, second: Answers) -> tuple[Array, Array]:
    """Places of the examples that are in both."""
    if np.array_equal(first.ids, second.ids) and np.array_equal(first.labels, second.labels):
        places = np.arange(len(first))
        return places, places
    _, here, there = np.intersect1d(_keys(first), _keys(second), assume_unique=True, return_indices=True)
    return here, there


def _keys(answers: Answers) -> Array:
    """Id, label, and which of the examples with both it is; rows are in order of id, then label."""
    keys = np.zeros(len(answers), [("id", "<u8"), ("label", "<i8"), ("nth", "<i8")])
    keys["id"], keys["label"] = answers.ids, answers.labels
    if len(keys):
        places = np.arange(len(keys))
        fresh = np.ones(len(keys), np.bool_)
        fresh[1:] = (answers.ids[1:] != answers.ids[:-1]) | (answers.labels[1:] != answers.labels[:-1])
        keys["nth"] = places - np.maximum.accumulate(np.where(fresh, places, 0))
    return keys


def _tallied(common: _Common) -> SourceTally:
    total = _tally(common, np.ones(len(common.ids), np.bool_))
    by_class = {int(label): _tally(common, common.labels == label) for label in np.unique(common.labels)}
    fixed, broken = total.kinds[Kind.FIXED], total.kinds[Kind.BROKEN]
    p_value = min(1.0, 2 * mcnemar(max(fixed, broken), min(fixed, broken)))
    return SourceTally(common.source, total, by_class, p_value, *common.only)


def _tally(common: _Common, among: Array) -> Tally:
    labels = common.labels[among]
    counts = np.bincount(common.kinds[among], minlength=len(Kind))
    right = (int(np.count_nonzero(answers[among] == labels)) for answers in (common.before, common.now))
    return Tally(len(labels), {kind: int(counts[kind]) for kind in Kind}, *right)


def _page(
    store: Store,
    versions: tuple[Version, Version],
    found: list[_Common],
    classes: tuple[str, ...],
    sought: Sought,
    place: int,
    limit: int,
) -> tuple[list[Change], int | None]:
    """Examples from ``place`` on, where those of all sources are counted through."""
    label = classes.index(sought.label) if sought.label in classes else -1
    wanted: list[tuple[int, _Common, int]] = []
    begin = 0
    for common in found:
        fit = np.isin(common.kinds, [*sought.kinds])
        if sought.label is not None:
            fit &= common.labels == label
        if sought.source in (None, common.source):
            places = np.flatnonzero(fit)
            later = places[places + begin >= place][: limit + 1 - len(wanted)]
            wanted += [(begin + int(at), common, int(at)) for at in later]
        begin += len(common.ids)
    gone = _erased_ids(store, versions, {c.source for _, c, _ in wanted})
    items = [_change(common, at, gone) for _, common, at in wanted[:limit]]
    return items, wanted[limit][0] if len(wanted) > limit else None


def _change(common: _Common, at: int, gone: Mapping[str, frozenset[int]]) -> Change:
    id, kind = int(common.ids[at]), Kind(int(common.kinds[at]))
    if id in gone.get(common.source, ()):
        return Change(common.source, id, kind, None, None, None)
    confidence = float(common.confidence_before[at]), float(common.confidence_now[at])
    answers = int(common.before[at]), int(common.now[at])
    return Change(common.source, id, kind, int(common.labels[at]), answers, confidence)


def _erased_ids(store: Store, versions: tuple[Version, Version], sources: Collection[str]) -> dict[str, frozenset[int]]:
    """Ids of examples whose values were erased since: found by the samples of either version, and by what is left of
    the evaluation set that it was judged on.
    """
    finds = {"validation": _gone, "evaluation": _gone_from_evaluation}
    return {source: frozenset(id for version in versions for id in finds[source](store, version)) for source in sources}


def _gone_from_evaluation(store: Store, version: Version) -> Iterator[int]:
    with store.reading() as tx:
        revision = tx.ledger.cycle(version.model, version.cycle).evaluation_revision
        sets = tx.buffer.evaluation_sets(tx.ledger.model(version.model))
    found = next((one for one in sets if one.revision == revision), None)
    if found is not None:
        yield from erased_from(store, found, _answers(store, version).of(EVALUATION).ids.tolist())


def _gone(store: Store, version: Version) -> Iterator[int]:
    if version.samples is None:
        return
    samples = decode_samples(store.blobs.read(version.samples))
    validated = {number: ids[(use & Use.VALIDATION) > 0] for number, (ids, use) in samples.items()}
    is_gone = erased(store, version.model, {number for number, ids in validated.items() if len(ids)})
    for number, ids in validated.items():
        yield from (id for id in ids.tolist() if is_gone(number, id))
