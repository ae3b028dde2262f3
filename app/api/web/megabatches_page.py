"""The page of megabatches: what each row shows.

Knows: megabatches, in words and drawings. Must never know: HTTP, or their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.api.web.drawing import Columns, columns
from app.api.web.model_page import Past, past_of
from app.api.web.speech import Speech
from app.domain import Digest, InputSpec, Megabatch, MegabatchStatus
from app.service.overview import MegabatchesView

_NAMED = 12
"""Classes that a histogram's label names."""


@dataclass(frozen=True, slots=True)
class Row:
    """A megabatch in one row of the table.

    Attributes:
        histogram: one column a class; ``classes`` says it in words.
        tone: of its status.
        cut: whether single examples of it were erased.
    """

    past: Past
    digest: Digest
    histogram: Columns
    classes: str
    status: str
    tone: str
    pinned: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class MegabatchesPage:
    """Everything that the page shows; ``older`` is the number to go on before, None where there are no more."""

    model: str
    rows: Sequence[Row]
    total: int
    older: int | None


def shown(view: MegabatchesView, t: Speech) -> MegabatchesPage:
    """A page of megabatches, ready for its template."""
    known = view.champion.report.get("megabatches", {}) if view.champion else {}
    rows = [row_of(each, view.model.input, known, t) for each in view.megabatches]
    return MegabatchesPage(view.model.name, rows, view.total, rows[-1].past.number if view.older else None)


_TONES = {MegabatchStatus.ACCEPTED: "good", MegabatchStatus.QUARANTINED: "warn", MegabatchStatus.ERASED: "mute"}


def row_of(megabatch: Megabatch, spec: InputSpec, known: Mapping[str, Any], t: Speech) -> Row:
    """A megabatch in words and drawings.

    Args:
        megabatch: that is shown.
        spec: of its model.
        known: what the champion's report says of megabatches, by number.
        t: the language.
    """
    status = megabatch.status
    return Row(
        past=past_of(megabatch, known.get(str(megabatch.number)), t),
        digest=megabatch.digest,
        histogram=columns(megabatch.histogram),
        classes=_classes(megabatch.histogram, spec.classes or (), t),
        status=t(f"status.{status.value}"),
        tone=_TONES[status],
        pinned=megabatch.pinned,
        cut=bool(megabatch.erasures) and status is not MegabatchStatus.ERASED,
    )


def _classes(counts: Sequence[int], names: Sequence[str], t: Speech) -> str:
    named = [f"{class_name(names, i)}: {t.number(count)}" for i, count in enumerate(counts[:_NAMED])]
    return ", ".join([*named, *(["…"] if len(counts) > _NAMED else [])])


def class_name(names: Sequence[str], label: int) -> str:
    """What a label means; its number where nothing says."""
    return names[label] if 0 <= label < len(names) else str(label)
