"""Custody on the wire: which data went into which version, and which answers differ between two.

Knows: how uses, samples and compared answers look. Ids of samples are decimal strings: unsigned 64-bit integers are not
exact in every JSON reader. Must never know: where any of it is kept.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.dependencies import encode_cursor
from app.api.schemas.wire import Page, example
from app.service import comparison, custody
from app.service.comparison import Kind
from espalier.formats.custody import Use, use_names

UseName = Literal["trained", "validation", "test", "replayed", "kept", "new", "scored", "inherited"]
KindName = Literal["fixed", "broken", "changed", "unchanged"]
SourceName = Literal["validation", "evaluation"]

_USES = (
    "`trained`: the optimizer saw it. `validation`, `test`: in that split. `new`: of a megabatch that no ancestor had "
    "taken in. `replayed`: from the parent's replay buffer, or pinned. `kept`: in the replay buffer afterwards. "
    "`scored`: the scores of a pruning step were computed on it."
)
_USED = {"version": 5, "uses": ["trained", "validation", "new"]}
_SEEN = {**_USED, "megabatch": 3, "status": "accepted", "counts": {"trained": 96, "validation": 24, "new": 120}}
_SAMPLE = {
    "version": 5,
    "megabatch": 3,
    "id": "11400714819323198485",
    "uses": ["trained", "new"],
    "erased": False,
}
_TALLY = {
    "examples": 200,
    "fixed": 7,
    "broken": 2,
    "changed": 1,
    "unchanged": 190,
    "accuracy": {"before": 0.9, "now": 0.925},
}
_CHANGE = {
    "source": "evaluation",
    "id": "11400714819323198485",
    "kind": "broken",
    "label": "dog",
    "answers": {"before": "dog", "now": "cat"},
    "confidence": {"before": 0.81, "now": 0.55},
    "erased": False,
}


class VersionUse(BaseModel):
    """A version that a megabatch went into."""

    model_config = example(_USED)

    version: int = Field(description="Number of the version.")
    uses: list[UseName] = Field(
        description=f"What its cycle did with samples of the megabatch. {_USES} `inherited`: only an ancestor's cycle."
    )

    @classmethod
    def from_domain(cls, used: domain.Used) -> Self:
        """From the domain's value."""
        names: list[Any] = use_names(used.use) or ["inherited"]
        return cls(version=used.version, uses=names)


class MegabatchVersions(Page[VersionUse]):
    """Versions that a megabatch went into, oldest first."""

    model_config = example({"items": [_USED], "next_cursor": None, "megabatch": 3, "status": "accepted"})

    megabatch: int = Field(description="Number of the megabatch.")
    status: domain.MegabatchStatus = Field(description="What it is now; of an `erased` one the values are gone.")

    @classmethod
    def of(cls, listing: str, megabatch: domain.Megabatch, page: domain.Page[domain.Used]) -> Self:
        """From the domain's values."""
        following = None if page.next is None else encode_cursor(listing, page.next)
        items = [VersionUse.from_domain(used) for used in page.items]
        return cls(items=items, next_cursor=following, megabatch=megabatch.number, status=megabatch.status)


class MegabatchUse(BaseModel):
    """A megabatch that went into a version."""

    model_config = example(_SEEN)

    version: int = Field(description="The version whose cycle used it: the one asked for, or an ancestor.")
    megabatch: int = Field(description="Number of the megabatch.")
    status: domain.MegabatchStatus = Field(description="What it is now; of an `erased` one the values are gone.")
    uses: list[UseName] = Field(description=f"What the cycle did with samples of it. {_USES}")
    counts: dict[UseName, int] | None = Field(
        description="How many samples were put to each use; null for versions that are older than this record."
    )

    @classmethod
    def from_domain(cls, seen: custody.Seen) -> Self:
        """From the service's value."""
        counts: Any = None if seen.counts is None else {use_names(u)[0]: n for u, n in seen.counts.items() if n}
        names: list[Any] = use_names(seen.used.use)
        number = seen.used.megabatch
        return cls(version=seen.used.version, megabatch=number, status=seen.status, uses=names, counts=counts)


class Sample(BaseModel):
    """A sample that a version's cycle used."""

    model_config = example(_SAMPLE)

    version: int = Field(description="The version whose cycle used it: the one asked for, or an ancestor.")
    megabatch: int = Field(description="The megabatch that it came with.")
    id: str = Field(description="Its id, an unsigned 64-bit integer in decimal digits; equal samples have equal ids.")
    uses: list[UseName] = Field(description=f"What the cycle did with it. {_USES}")
    erased: bool = Field(description="Whether its values were erased since.")

    @classmethod
    def from_domain(cls, sample: custody.Sample) -> Self:
        """From the service's value."""
        names: list[Any] = use_names(sample.use)
        return cls(
            version=sample.version, megabatch=sample.megabatch, id=str(sample.id), uses=names, erased=sample.erased
        )


_UNRECORDED = "Versions among those of this page that were made before samples were written down."
_MORE = (
    "Send it as `?cursor=` for the next page; null on the last one. A page may hold fewer items than were asked for."
)


class VersionMegabatches(BaseModel):
    """Megabatches that went into a version, by version from the youngest, then by number."""

    model_config = example({"items": [_SEEN], "next_cursor": None, "unrecorded": []})

    items: list[MegabatchUse] = Field(description="What is on this page.")
    next_cursor: str | None = Field(description=_MORE)
    unrecorded: list[int] = Field(description=_UNRECORDED)

    @classmethod
    def of(cls, listing: str, page: custody.LinePage[custody.Seen]) -> Self:
        """From the service's answer."""
        items = [MegabatchUse.from_domain(seen) for seen in page.items]
        return cls(items=items, next_cursor=place_cursor(listing, page.next), unrecorded=list(page.unrecorded))


class VersionSamples(BaseModel):
    """Samples that went into a version, by version from the youngest, then by megabatch and id."""

    model_config = example({"items": [_SAMPLE], "next_cursor": None, "unrecorded": []})

    items: list[Sample] = Field(description="What is on this page.")
    next_cursor: str | None = Field(description=_MORE)
    unrecorded: list[int] = Field(description=_UNRECORDED)

    @classmethod
    def of(cls, listing: str, page: custody.LinePage[custody.Sample]) -> Self:
        """From the service's answer."""
        items = [Sample.from_domain(sample) for sample in page.items]
        return cls(items=items, next_cursor=place_cursor(listing, page.next), unrecorded=list(page.unrecorded))


class Both(BaseModel):
    """A figure of both versions."""

    model_config = example({"before": 0.9, "now": 0.925})

    before: float = Field(description="Of the first version.")
    now: float = Field(description="Of the second version.")


class BothAnswers(BaseModel):
    """The answers of both versions, as names of classes."""

    model_config = example({"before": "dog", "now": "cat"})

    before: str = Field(description="Of the first version.")
    now: str = Field(description="Of the second version.")


class Tally(BaseModel):
    """How many examples changed their answer, and how."""

    model_config = example(_TALLY)

    examples: int = Field(description="Examples that both versions answered.")
    fixed: int = Field(description="Wrong before, right now.")
    broken: int = Field(description="Right before, wrong now.")
    changed: int = Field(description="Wrong before and now, with another answer.")
    unchanged: int = Field(description="The same answer.")
    accuracy: Both | None = Field(description="Share of right answers; null without examples.")

    @classmethod
    def from_domain(cls, tally: comparison.Tally) -> Self:
        """From the service's value."""
        n = tally.examples
        accuracy = Both(before=tally.right_before / n, now=tally.right_now / n) if n else None
        return cls(examples=n, accuracy=accuracy, **{kind.name.lower(): tally.kinds[kind] for kind in Kind})


class SourceTally(BaseModel):
    """What changed among the examples of one source."""

    model_config = example(
        {
            "source": "evaluation",
            "total": _TALLY,
            "by_class": {"dog": _TALLY},
            "p_value": 0.18,
            "only_before": 0,
            "only_now": 0,
        }
    )

    source: SourceName = Field(
        description="`evaluation`: the model's evaluation set; `validation`: examples that both cycles validated on."
    )
    total: Tally = Field(description="Of all of them.")
    by_class: dict[str, Tally] = Field(description="By the true class; one without examples is absent.")
    p_value: float = Field(
        description="Two-sided exact McNemar test: how likely `fixed` and `broken` differ so much by chance alone."
    )
    only_before: int = Field(description="Examples that the first version alone answered.")
    only_now: int = Field(description="Examples that the second version alone answered.")

    @classmethod
    def from_domain(cls, tally: comparison.SourceTally, classes: tuple[str, ...]) -> Self:
        """From the service's value."""
        source: Any = tally.source
        return cls(
            source=source,
            total=Tally.from_domain(tally.total),
            by_class={_name(classes, label): Tally.from_domain(found) for label, found in tally.by_class.items()},
            p_value=tally.p_value,
            only_before=tally.only_before,
            only_now=tally.only_now,
        )


class Change(BaseModel):
    """An example, and what both versions answered."""

    model_config = example(_CHANGE)

    source: SourceName = Field(description="Where the example comes from.")
    id: str = Field(description="Its id, an unsigned 64-bit integer in decimal digits.")
    kind: KindName = Field(description="What became of the answer.")
    label: str | None = Field(description="The true class; null when the example was erased.")
    answers: BothAnswers | None = Field(description="What both versions answered; null when it was erased.")
    confidence: Both | None = Field(
        description="The probability that each version gave its answer; null when it was erased."
    )
    erased: bool = Field(description="Whether the example's values were erased since.")

    @classmethod
    def from_domain(cls, change: comparison.Change, classes: tuple[str, ...]) -> Self:
        """From the service's value."""
        source: Any = change.source
        kind: Any = change.kind.name.lower()
        told, sure = change.answers, change.confidence
        return cls(
            source=source,
            id=str(change.id),
            kind=kind,
            label=None if change.label is None else _name(classes, change.label),
            answers=told and BothAnswers(before=_name(classes, told[0]), now=_name(classes, told[1])),
            confidence=sure and Both(before=sure[0], now=sure[1]),
            erased=change.label is None,
        )


class MetricChange(BaseModel):
    """A figure of both versions, and its change; null where a version does not have it."""

    model_config = example({"before": 0.9, "now": 0.925, "change": 0.025})

    before: float | None = Field(description="Of the first version.")
    now: float | None = Field(description="Of the second version.")
    change: float | None = Field(description="`now - before`.")


class Comparison(BaseModel):
    """Two versions side by side."""

    model_config = example(
        {
            "model": "gas-sensors",
            "before": 4,
            "now": 5,
            "density": {"before": 0.3, "now": 0.25},
            "metrics": {"validation_accuracy": {"before": 0.9, "now": 0.925, "change": 0.025}},
            "answers": [
                {
                    "source": "evaluation",
                    "total": _TALLY,
                    "by_class": {"dog": _TALLY},
                    "p_value": 0.18,
                    "only_before": 0,
                    "only_now": 0,
                }
            ],
            "items": [_CHANGE],
            "next_cursor": None,
        }
    )

    model: str = Field(description="Name of the model.")
    before: int = Field(description="Number of the first version.")
    now: int = Field(description="Number of the second version.")
    density: Both = Field(description="Share of prunable weights that are kept.")
    metrics: dict[str, MetricChange] = Field(description="Every metric that either version has.")
    answers: list[SourceTally] = Field(description="What changed, source by source; one without examples is absent.")
    items: list[Change] = Field(description="The examples of this page.")
    next_cursor: str | None = Field(description="Send it as `?cursor=` for the next page; null on the last one.")

    @classmethod
    def of(cls, listing: str, found: comparison.Comparison) -> Self:
        """From the service's answer."""
        before, now = found.before, found.now
        return cls(
            model=now.model,
            before=before.number,
            now=now.number,
            density=Both(before=before.density, now=now.density),
            metrics={
                name: _metric(before.metrics.get(name), now.metrics.get(name))
                for name in sorted(before.metrics.keys() | now.metrics.keys())
            },
            answers=[SourceTally.from_domain(tally, found.classes) for tally in found.tallies],
            items=[Change.from_domain(change, found.classes) for change in found.items],
            next_cursor=None if found.next is None else encode_cursor(listing, found.next),
        )


def place_cursor(listing: str, place: custody.Place | None) -> str | None:
    """The cursor of a place in a lineage."""
    return None if place is None else encode_cursor(listing, f"{place[0]}-{place[1]}")


def use_of(name: UseName | None) -> int:
    """The use of this name; 0 for none."""
    return 0 if name in (None, "inherited") else int(Use[name.upper()])


def _metric(before: float | None, now: float | None) -> MetricChange:
    change = None if before is None or now is None else now - before
    return MetricChange(before=before, now=now, change=change)


def _name(classes: tuple[str, ...], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)
