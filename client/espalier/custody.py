"""Custody: which data went into which version, and which answers differ between two.

Knows: what an auditor asks about megabatches, samples and answers. Must never know: how any of it was written down; the
service does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from espalier.download import fetch
from espalier.errors import EspalierClientError
from espalier.formats.custody import Answers, Falls, Samples, decode_answers, decode_falls, decode_samples
from espalier.formats.stamp import spelled
from espalier.records import CHAMPION, Alias, Record, Reference, Version
from espalier.resources import PAGE, every, one
from espalier.transport import Transport, json_of, path_of

Part = Literal["inputs", "samples", "answers", "falls"]
Wanted = Version | Reference | str

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class VersionUse(Record):
    """A version that a megabatch went into, and what its cycle did with samples of it."""

    version: int
    uses: tuple[str, ...]


@dataclass(frozen=True)
class MegabatchUse(Record):
    """A megabatch that went into a version. ``counts``: samples by use; None for versions older than this record."""

    version: int
    megabatch: int
    status: str
    uses: tuple[str, ...]
    counts: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sample(Record):
    """A sample that a version's cycle used. ``id`` is an unsigned 64-bit integer in decimal digits."""

    version: int
    megabatch: int
    id: str
    uses: tuple[str, ...]
    erased: bool = False


@dataclass(frozen=True)
class Both(Record):
    """A figure of both versions."""

    before: float
    now: float


@dataclass(frozen=True)
class BothAnswers(Record):
    """The answers of both versions."""

    before: str
    now: str


@dataclass(frozen=True)
class Tally(Record):
    """How many examples changed their answer, and how."""

    examples: int
    fixed: int
    broken: int
    changed: int
    unchanged: int
    accuracy: Both | None = None


@dataclass(frozen=True)
class SourceTally(Record):
    """What changed among the examples of one source; ``by_class`` holds a tally as JSON for each true class."""

    source: str
    total: Tally
    by_class: Mapping[str, Any]
    p_value: float
    only_before: int
    only_now: int


@dataclass(frozen=True)
class Change(Record):
    """An example and both answers to it; where it was erased, nothing but its id and kind."""

    source: str
    id: str
    kind: str
    label: str | None = None
    answers: BothAnswers | None = None
    confidence: Both | None = None
    erased: bool = False


@dataclass(frozen=True)
class MetricChange(Record):
    """A figure of both versions, and ``now - before``."""

    before: float | None = None
    now: float | None = None
    change: float | None = None


@dataclass(frozen=True)
class Comparison(Record):
    """Two versions side by side. ``items`` are the examples that were asked for."""

    model: str
    before: int
    now: int
    density: Both
    answers: tuple[SourceTally, ...]
    items: tuple[Change, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def metric(self, name: str) -> MetricChange:
        """A metric of both versions."""
        return MetricChange.from_json(self.metrics[name])


class Custody:
    """``client.custody``."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def versions_of(self, name: str, megabatch: int, *, inherited: bool = False) -> Iterator[VersionUse]:
        """Every version that a megabatch went into, oldest first.

        Args:
            name: the model.
            megabatch: its number.
            inherited: also versions that only descend from one whose cycle used it.
        """
        path = path_of("models", name, "megabatches", megabatch, "versions")
        return every(self._http, VersionUse, path, inherited=inherited)

    def megabatches_of(
        self, version: Wanted, *, lineage: bool = False, unrecorded: list[int] | None = None
    ) -> Iterator[MegabatchUse]:
        """Every megabatch of which a version's cycle used samples.

        Args:
            version: a reference, or a version.
            lineage: what its ancestors' cycles used, too.
            unrecorded: gets the versions that were passed and are older than the record of samples.
        """
        return self._line(MegabatchUse, _at(version, "megabatches"), unrecorded, lineage=lineage)

    def samples(
        self,
        version: Wanted,
        *,
        megabatch: int | None = None,
        use: str | None = None,
        lineage: bool = False,
        unrecorded: list[int] | None = None,
    ) -> Iterator[Sample]:
        """The very samples that a version's cycle used.

        Args:
            version: a reference, or a version.
            megabatch: of this one only.
            use: put to this use only: ``trained, validation, test, replayed, kept, new, scored``.
            lineage: what its ancestors' cycles used, too.
            unrecorded: gets the versions that were passed and are older than the record of samples.
        """
        chosen = {"lineage": lineage, "megabatch": megabatch, "use": use}
        return self._line(Sample, _at(version, "samples"), unrecorded, **chosen)

    def diff(
        self,
        before: Wanted,
        now: Wanted,
        *,
        kinds: Collection[str] = (),
        label: str | None = None,
        source: str | None = None,
        limit: int | None = None,
    ) -> Comparison:
        """Which examples changed their answer from one version to another.

        Args:
            before, now: references to two versions of one model, or versions.
            kinds: of ``fixed, broken, changed, unchanged``; by default all but the last.
            label: examples of this true class only.
            source: examples from here only: ``evaluation`` or ``validation``.
            limit: at most this many examples; None: all.

        Raises:
            EspalierClientError: the versions are of two models.
        """
        (model, first), (other, second) = _named(before), _named(now)
        if model != other:
            raise EspalierClientError(f"{before} and {now} are versions of two models, which answer nothing in common")
        path = path_of("models", model, "versions", first, "diff", second)
        chosen = {"kind": list(kinds) or None, "class": label, "source": source}
        document, items, cursor = self._page(path, chosen, limit, None)
        while cursor is not None and (limit is None or len(items) < limit):
            _, more, cursor = self._page(path, chosen, None if limit is None else limit - len(items), cursor)
            items += more
        return Comparison.from_json({**document, "items": items[:limit], "next_cursor": None})

    def download(self, version: Wanted, part: Part, path: str | Path) -> Path:
        """Download what was written down about a version, whole: compared with its digest, then renamed into place.

        Args:
            version: a reference, or a version.
            part: ``inputs``, ``samples``, ``answers`` or ``falls``; ``espalier.formats.custody`` reads the last three.
            path: the file.
        """
        return fetch(self._http, _at(version, "records", part), Path(path), params={}, expected=None, progress=None)

    def all_samples(self, version: Wanted) -> Samples:
        """The samples that a version's cycle used, as arrays by megabatch."""
        return decode_samples(self._record(version, "samples"))

    def answers(self, version: Wanted) -> Answers:
        """What a version answered when it was judged, as arrays."""
        return decode_answers(self._record(version, "answers"))

    def falls(self, version: Wanted) -> Falls:
        """At which pruning step each weight fell, as arrays by tensor."""
        return decode_falls(self._record(version, "falls"))

    def alias_at(self, name: str, at: datetime, alias: str = CHAMPION) -> Alias:
        """Which version an alias named at a time, since when, who had moved it there, and why.

        Args:
            name: the model.
            at: aware.
            alias: by default the champion.

        Raises:
            ApiProblem: with status 404 when the alias did not exist yet.
        """
        return one(self._http, Alias, path_of("models", name, "aliases", alias), at=spelled(at))

    def _record(self, version: Wanted, part: Part) -> bytes:
        return self._http.request("GET", _at(version, "records", part)).content

    def _page(
        self, path: str, chosen: Mapping[str, Any], limit: int | None, cursor: str | None
    ) -> tuple[dict[str, Any], list[Any], str | None]:
        params = {**chosen, "limit": PAGE if limit is None else max(1, min(limit, PAGE)), "cursor": cursor}
        document = json_of(self._http.request("GET", path, params=params))
        return document, list(document["items"]), document.get("next_cursor")

    def _line(self, kind: type[R], path: str, unrecorded: list[int] | None, **chosen: Any) -> Iterator[R]:
        cursor = None
        while True:
            document, items, cursor = self._page(path, chosen, None, cursor)
            if unrecorded is not None:
                unrecorded += [number for number in document.get("unrecorded", ()) if number not in unrecorded]
            yield from map(kind.from_json, items)
            if cursor is None:
                return


def _named(version: Wanted) -> tuple[str, str]:
    if isinstance(version, Version):
        return version.model, str(version.number)
    found = version if isinstance(version, Reference) else Reference.parse(version)
    return found.model, found.ref


def _at(version: Wanted, *parts: str) -> str:
    model, ref = _named(version)
    return path_of("models", model, "versions", ref, *parts)
