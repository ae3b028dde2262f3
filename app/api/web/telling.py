"""Telling: audit entries in words.

Knows: which sentence an entry of each kind is told in, and its sign. Must never know: how an entry is found.

Laws:
    * A kind without a sentence is told by its name: nothing is left out because nobody thought of it.
    * A sentence names parameters of its entry, as they stand there.
    * A run of the same step is told as one sentence.
    * A reason that somebody wrote is repeated as it was written; what a guardrail found is told from its figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from app.api.web.recorded import heard
from app.api.web.speech import Speech
from app.api.web.verdicts import why
from app.domain import CHAMPION, AuditEntry

_SIGNS: Mapping[str, tuple[str, str]] = {
    "version.published": ("published", "good"),
    "version.withheld": ("withheld", "bad"),
    "guardrail.tripped": ("withheld", "bad"),
    "guardrail.overridden": ("warning", "warn"),
    "mask.held": ("held", "warn"),
    "model.rolled_back": ("back", "blue"),
    "alias.moved": ("promoted", "good"),
    "invariant.broken": ("warning", "bad"),
    "webhook.disabled": ("held", "warn"),
    "cycle.failed": ("warning", "bad"),
    "cycle.started": ("running", "mute"),
    "cycle.requested": ("queued", "mute"),
    "cycle.superseded": ("queued", "mute"),
    "megabatch.accepted": ("megabatch", "mute"),
    "megabatch.quarantined": ("warning", "warn"),
    "megabatch.rejected": ("warning", "warn"),
    "megabatch.released": ("megabatch", "good"),
    "megabatch.erased": ("warning", "warn"),
    "samples.erased": ("warning", "warn"),
    "model.paused": ("held", "warn"),
    "model.resumed": ("running", "good"),
    "promotion.proposed": ("proposal", "blue"),
    "promotion.approved": ("proposal", "good"),
    "promotion.rejected": ("proposal", "bad"),
}


_STEPS = frozenset({"mask.pruned"})
"""Kinds of which many come in a row; they are told as one."""


@dataclass(frozen=True, slots=True)
class Told:
    """An entry as a person reads it: a sign, its tone, a sentence, and why."""

    seq: int
    sign: str
    tone: str
    text: str
    reason: Markup
    actor: str
    time: datetime


def tell(entry: AuditEntry, t: Speech) -> Told:
    """One entry in words."""
    sign, tone = _SIGNS.get(entry.kind, ("entry", "mute"))
    parameters: Mapping[str, Any] = entry.document["parameters"]
    sentence, reason = _sentence(entry.kind, parameters, t), _reason(entry, parameters, t)
    return Told(entry.seq, sign, tone, sentence, reason, entry.actor, entry.time)


def _reason(entry: AuditEntry, parameters: Mapping[str, Any], t: Speech) -> Markup:
    recorded = entry.document["reason"] or ""
    if entry.kind == "mask.held":
        recorded = str(parameters.get("reason") or "")
    if entry.kind == "guardrail.tripped" and (said := why(str(parameters["rule"]), parameters.get("figures") or {}, t)):
        return escape(said)
    return heard(recorded, t)


def tell_all(entries: Iterable[AuditEntry], t: Speech) -> list[Told]:
    """Entries in words, without those that only repeat another one: the move that a rollback makes."""
    kept: Sequence[AuditEntry] = list(entries)
    backs = {_move(entry) for entry in kept if entry.kind == "model.rolled_back"}
    told = [entry for entry in kept if entry.kind != "alias.moved" or _move(entry) not in backs]
    runs = [list(run) for _, run in groupby(told, key=lambda entry: (entry.kind, entry.seq)[entry.kind not in _STEPS])]
    return [tell(run[0], t) if len(run) == 1 else _drawn_together(run, t) for run in runs]


def _drawn_together(run: Sequence[AuditEntry], t: Speech) -> Told:
    return replace(tell(run[0], t), text=t(f"event.{run[0].kind}.all", n=len(run)))


def _move(entry: AuditEntry) -> tuple[object, object, datetime]:
    parameters = entry.document["parameters"]
    return parameters.get("from"), parameters.get("to"), entry.time


def _sentence(kind: str, parameters: Mapping[str, Any], t: Speech) -> str:
    match kind, parameters:
        case "alias.moved", {"alias": alias, "to": to} if alias == CHAMPION:
            before = parameters.get("from")
            return t("event.promoted.first", to=to) if before is None else t("event.promoted", before=before, to=to)
        case "alias.moved", {"alias": alias, "to": to}:
            return t("event.pointed", alias=alias, to=to)
        case "model.rolled_back", {"from": before, "to": to}:
            return t("event.rolled_back", before=before, to=to)
        case "version.published", {"version": version, "kept": kept, "total": total}:
            return t("event.published", version=version, density=t.density(kept / total))
        case "version.withheld", {"version": version}:
            return t("event.withheld", version=version)
        case "guardrail.tripped", {"rule": rule, "action": action}:
            return t("event.tripped", rule=rule, action=t(f"action.{action}"))
        case "megabatch.accepted", {"megabatch": number, "examples": examples}:
            return t("event.accepted", number=number, examples=t.number(examples))
        case "data.swept", {"version": version}:
            return t("event.data.swept.version", version=version)
        case "decisions.recorded", {"count": count}:
            return t("event.decisions.recorded", n=count, count=t.number(count))
    try:
        return t(f"event.{kind}", **parameters)
    except KeyError:  # no sentence, or an entry without what its sentence names
        return kind
