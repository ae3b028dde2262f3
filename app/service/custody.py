"""Custody: which data went into which version, sample by sample.

Knows: the index from megabatches to versions, and the blob of each version that names its samples. Must never know:
HTTP, torch, or the values of any sample.

Laws:
    * What is told was written down when the version was made; of versions that are older than that, it is said so.
    * Of what was erased, ids and uses are told, marked as erased, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from app.domain import Digest, EvaluationSet, Megabatch, MegabatchStatus, Page, Used, Version
from app.errors import CorruptBlob, NotRecorded
from app.service.overlap import ids_of
from app.store.database import Store
from espalier.errors import CustodyMismatch
from espalier.formats.custody import Samples, Use, decode_samples

T = TypeVar("T")

Part = Literal["inputs", "samples", "answers", "falls"]
Place = tuple[int, int]
"""Where a page of a lineage goes on: in which version, and at which item of it."""

_ANCESTORS = 32
"""Versions that one page of a lineage looks into at most."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A megabatch of which a version's cycle used samples.

    Attributes:
        counts: how many samples were put to each use; None where only the uses were written down.
    """

    used: Used
    status: MegabatchStatus
    counts: Mapping[Use, int] | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that a version's cycle used. ``use`` is what was done with it (``Use``)."""

    version: int
    megabatch: int
    id: int
    use: int
    erased: bool


@dataclass(frozen=True, slots=True)
class LinePage(Generic[T]):
    """One page of what a version and its ancestors used; it may hold fewer items than were asked for.

    Attributes:
        next: where the next page begins; None on the last one.
        unrecorded: versions of this page that were made before samples were written down.
    """

    items: tuple[T, ...]
    next: Place | None
    unrecorded: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """A file that says what a version was made from, or what it answered."""

    path: Path
    digest: Digest
    size: int
    version: Version


def versions_of(
    store: Store, name: str, number: int, *, after: int | None, limit: int, inherited: bool
) -> tuple[Megabatch, Page[Used]]:
    """Every version that a megabatch went into, oldest first.

    Args:
        number: of the megabatch.
        after: go on above this version.
        limit: at most this many.
        inherited: also those that only descend from a version whose cycle used it.

    Raises:
        UnknownModel, UnknownMegabatch: there is no such model or megabatch.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        megabatch = tx.buffer.megabatch(name, number)
        if not inherited:
            return megabatch, tx.custody.versions_of(model, number, after, limit)
        later = (used for used in tx.custody.heirs_of(model, [number]) if after is None or used.version > after)
        found = tuple(islice(later, limit + 1))
    return megabatch, Page(found[:limit], str(found[limit - 1].version) if len(found) > limit else None)


def megabatches_of(
    store: Store, name: str, ref: str, *, lineage: bool, after: Place | None, limit: int
) -> LinePage[Seen]:
    """Every megabatch of which a version's cycle used samples; with ``lineage``, those of its ancestors' cycles too.

    Args:
        ref: number or alias.
        after: ``next`` of the page before.
        limit: at most this many.

    Raises:
        UnknownModel, UnknownVersion: there is no such model or version.
    """

    def look(version: Version, place: int, wanted: int) -> tuple[list[Seen], int | None]:
        with store.reading() as tx:
            found = tx.custody.megabatches_of(tx.ledger.model(name), version.number, place, wanted)
            rows = tx.buffer.training_set(tx.ledger.model(name), [used.megabatch for used in found.items])
        states = {megabatch.number: megabatch.status for megabatch in rows}
        samples = None if version.samples is None else _samples(store, version.samples)
        seen = [Seen(used, states[used.megabatch], _counts(samples, used.megabatch)) for used in found.items]
        return seen, None if found.next is None else int(found.next)

    return _page(store, name, ref, lineage, after, limit, look)


def samples_of(
    store: Store,
    name: str,
    ref: str,
    *,
    lineage: bool,
    megabatch: int | None,
    use: int,
    after: Place | None,
    limit: int,
) -> LinePage[Sample]:
    """The very samples that a version's cycle used, by megabatch and id; with ``lineage``, its ancestors' too.

    Args:
        ref: number or alias.
        megabatch: of this megabatch only.
        use: put to one of these uses only; 0 for all.
        after: ``next`` of the page before.
        limit: at most this many.

    Raises:
        UnknownModel, UnknownVersion: there is no such model or version.
        NotRecorded: the version was made before samples were written down, and its ancestors were not asked for.
    """

    def look(version: Version, place: int, wanted: int) -> tuple[list[Sample], int | None]:
        if version.samples is None:
            if lineage:
                return [], None
            raise not_recorded(version, "samples")
        found = _rows(_samples(store, version.samples), megabatch, use, place, wanted)
        gone = erased(store, name, {number for number, _, _ in found.rows})
        items = [Sample(version.number, number, id, done, gone(number, id)) for number, id, done in found.rows]
        return items, found.further

    return _page(store, name, ref, lineage, after, limit, look)


def open_record(store: Store, name: str, ref: str, part: Part) -> OpenRecord:
    """The file that says what a version was made from, or what it answered.

    Raises:
        UnknownModel, UnknownVersion: there is no such model or version.
        NotRecorded: the version was made before this was written down.
        MissingBlob, CorruptBlob: its bytes are gone or changed; never served.
    """
    with store.reading() as tx:
        version = tx.ledger.version(name, ref)
    digest: Digest | None = getattr(version, part)
    if digest is None:
        raise not_recorded(version, part)
    path = store.blobs.verified(digest)
    return OpenRecord(path, digest, path.stat().st_size, version)


def erased(store: Store, name: str, numbers: set[int]) -> Callable[[int, int], bool]:
    """Whether a sample of one of these megabatches was erased, by the megabatch's number and its own id."""
    with store.reading() as tx:
        rows = tx.buffer.training_set(tx.ledger.model(name), numbers)
    whole = {megabatch.number for megabatch in rows if megabatch.status is MegabatchStatus.ERASED}
    left = {m.number: ids_of(store.blobs, m.ids) for m in rows if m.erasures and m.number not in whole}
    return lambda number, id: number in whole or (number in left and not _holds(left[number], id))


def erased_from(store: Store, found: EvaluationSet, ids: Iterable[int]) -> frozenset[int]:
    """Which of these examples, which were in this revision of an evaluation set, were erased from it."""
    left = ids_of(store.blobs, found.ids)
    return frozenset(id for id in ids if not _holds(left, id))


def _holds(ids: npt.NDArray[np.uint64], id: int) -> bool:
    """Whether sorted ids hold this one."""
    at = int(np.searchsorted(ids, np.uint64(id)))
    return at < len(ids) and int(ids[at]) == id


def not_recorded(version: Version, part: Part) -> NotRecorded:
    """Why a version cannot say this."""
    return NotRecorded(
        f"version {version.number} of {version.model!r} was made before {part} were written down: "
        f"ask for a later one; the audit entries of cycle {version.cycle} say which megabatches it was made of"
    )


# -- inside ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """(megabatch, id, use) of some samples, and the place of the next one that is wanted, if there is one."""

    rows: list[tuple[int, int, int]]
    further: int | None


def _page(
    store: Store,
    name: str,
    ref: str,
    lineage: bool,
    after: Place | None,
    limit: int,
    look: Callable[[Version, int, int], tuple[list[T], int | None]],
) -> LinePage[T]:
    """Look into one version after another until the page is full, or enough were looked into."""
    start, place = (None, 0) if after is None else after
    items: list[T] = []
    unrecorded: list[int] = []
    version = None
    for version in islice(_line(store, name, ref, start, lineage), _ANCESTORS):
        found, further = look(version, place, limit - len(items))
        place = 0
        items += found
        if version.samples is None:
            unrecorded.append(version.number)
        if further is not None:
            return LinePage(tuple(items), (version.number, further), tuple(unrecorded))
        if len(items) == limit:
            break
    further = version.parent if version is not None and lineage else None
    return LinePage(tuple(items), None if further is None else (further, 0), tuple(unrecorded))


def _line(store: Store, name: str, ref: str, start: int | None, lineage: bool) -> Iterator[Version]:
    """A version, and with ``lineage`` its ancestors, from ``start`` on."""
    with store.reading() as tx:
        version = tx.ledger.version(name, ref)
        page = tx.ledger.ancestry(name, version.number if start is None else start, _ANCESTORS if lineage else 1)
    yield from page.items


def _samples(store: Store, digest: Digest) -> Samples:
    try:
        return decode_samples(store.blobs.read(digest))
    except CustodyMismatch as error:
        raise CorruptBlob(f"{digest}: {error}") from error


def _counts(samples: Samples | None, megabatch: int) -> dict[Use, int] | None:
    if samples is None:
        return None
    use = samples[megabatch][1] if megabatch in samples else np.zeros(0, np.uint8)
    return {flag: int(np.count_nonzero(use & flag)) for flag in Use}


def _rows(samples: Samples, megabatch: int | None, use: int, place: int, wanted: int) -> _Rows:
    """At most ``wanted`` samples from ``place`` on, where all samples of the version are counted through."""
    rows: list[tuple[int, int, int]] = []
    begin = 0
    for number, (ids, uses) in samples.items():
        first = max(0, place - begin)
        if megabatch in (None, number) and first < len(ids):
            fit = first + np.flatnonzero((uses[first:] & use) > 0 if use else np.ones(len(ids) - first, np.bool_))
            taken = fit[: wanted - len(rows)]
            rows += [(number, int(ids[at]), int(uses[at])) for at in taken]
            if len(taken) < len(fit):
                return _Rows(rows, begin + int(fit[len(taken)]))
        begin += len(ids)
    return _Rows(rows, None)
