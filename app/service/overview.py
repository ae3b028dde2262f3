"""Overview: what a person asks of all models, of one, and of one version, each read in one transaction.

Knows: which figures belong together, and what makes a model's health. Must never know: HTTP, torch, words or colours.

Laws:
    * Nothing is changed.
    * How many statements a page takes does not depend on how many models or versions there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any

from app.domain import (
    CHAMPION,
    Alias,
    AliasMove,
    AuditEntry,
    Cycle,
    CycleState,
    EvaluationSet,
    Layer,
    Megabatch,
    Model,
    ModelState,
    Page,
    Proposal,
    ProposalState,
    Protection,
    RecipeRevision,
    Version,
    VersionStatus,
    VersionSummary,
)
from app.errors import UnknownAlias
from app.learning.recipe import Recipe, final_density
from app.learning.recipe.guardrails import limits_of
from app.service.release import alias_or_none
from app.store.database import Store, Transaction
from app.store.overviews import Column, Kin

TOLD = (
    *("alias.moved", "alias.protected", "cycle.failed", "cycle.started", "cycle.superseded", "cycle.requested"),
    *("evaluation.set", "guardrail.overridden", "guardrail.tripped", "mask.held", "megabatch.accepted"),
    *("megabatch.erased", "megabatch.pinned", "megabatch.quarantined", "megabatch.rejected", "megabatch.released"),
    *("megabatch.unpinned", "model.begins-anew", "recipe.revised", "samples.erased"),
    *("model.classes-extended", "model.created", "model.paused", "model.resumed", "model.rolled_back"),
    *("promotion.approved", "promotion.proposed", "promotion.rejected", "version.published", "version.withheld"),
)
"""Kinds of audit entries that a person is told of; the others are steps within these."""

SPARKLINE = 24
COLUMNS = 1000
"""Versions on a time line at once."""

_HEATED = 40
_EVENTS = 12
_PAST = 200
_ANCESTORS = 8
_NEAR = 12
_CHOICES = 50
_VERSIONS = 50
_SILENT = timedelta(minutes=2)
"""A worker that was not heard of for so long is not there."""


class Health(StrEnum):
    """How a model is, the worst first."""

    PAUSED = "paused"
    FAILING = "failing"
    NO_WORKER = "no-worker"
    WITHHELD = "withheld"
    WAITING = "waiting"
    EMPTY = "empty"
    HEALTHY = "healthy"


@dataclass(frozen=True, slots=True)
class Glance:
    """A model in one row.

    Attributes:
        recent: the newest versions, oldest first, withheld ones too.
        queued: cycles that wait; ``running`` the one that runs.
        health: the worst that is true of it; ``why`` in words, where somebody wrote them.
    """

    model: Model
    champion: VersionSummary | None
    recent: Sequence[VersionSummary]
    queued: int
    running: Cycle | None
    megabatches: int
    last: AuditEntry | None
    health: Health
    why: str | None


@dataclass(frozen=True, slots=True)
class Glances:
    """A page of models, how many there are in all, and when a worker was last heard of."""

    page: Page[Glance]
    total: int
    heard_of: datetime | None


@dataclass(frozen=True, slots=True)
class ModelView:
    """Everything that a model's page shows.

    Attributes:
        champion_alias: for its revision.
        target: density that the recipe ends at.
        columns: the newest versions, oldest first, ``COLUMNS`` at most; ``older`` says whether there are more.
        moves: of the champion, newest first, as many as there are columns.
        layers: of some of the columns, evenly spread, by number.
        megabatches: the newest, newest first.
        events: newest first.
        proposals: those that are open, newest first.
        waiting: the cycle that is next to run.
    """

    glance: Glance
    recipe: RecipeRevision
    target: float
    champion: Version | None
    champion_alias: Alias | None
    evaluation: EvaluationSet | None
    columns: Sequence[Column]
    older: bool
    moves: Sequence[AliasMove]
    layers: Mapping[int, tuple[Layer, ...]]
    megabatches: Sequence[Megabatch]
    events: Sequence[AuditEntry]
    proposals: Sequence[Proposal]
    protection: Protection
    waiting: Cycle | None
    heard_of: datetime | None


@dataclass(frozen=True, slots=True)
class QueueView:
    """The cycle that runs, or else the next that waits; how many wait; and when a worker was last heard of."""

    cycle: Cycle | None
    queued: int
    heard_of: datetime | None


@dataclass(frozen=True, slots=True)
class MegabatchesView:
    """A page of megabatches, newest first, how many there are in all, and what the champion knows of each now.

    Attributes:
        older: whether there are more.
    """

    model: Model
    megabatches: Sequence[Megabatch]
    older: bool
    total: int
    champion: Version | None


@dataclass(frozen=True, slots=True)
class MegabatchView:
    """A megabatch, the champion, and the first versions whose own cycle used it, oldest first.

    Attributes:
        more_versions: whether there are more.
    """

    model: Model
    megabatch: Megabatch
    champion: Version | None
    versions: Sequence[int]
    more_versions: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What the guardrails found in a version.

    Attributes:
        reasons: in words, as they were recorded, each with the name of its rule before it.
        rules: what each rule found: its name, whether it tripped, breaches in a row, figures.
        limits: what the recipe accepts, by rule.
    """

    reasons: Sequence[str]
    rules: Sequence[Mapping[str, Any]]
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Everything that a version's page shows.

    Attributes:
        before: the version that it started from.
        ancestors: it, its parent, and so on, some of them.
        family: versions of numbers near its own, and some ancestors, newest first.
        inherited: layers of its parent.
        is_ancestor: whether the champion descends from it, so that a rollback may go there.
        entries: of the log about it, oldest first.
        aliases: that point to it.
        newest, oldest: numbers of the model's last and first version.
    """

    model: Model
    version: Version
    champion: VersionSummary | None
    champion_alias: Alias | None
    before: Version | None
    ancestors: Sequence[Version]
    family: Sequence[Kin]
    is_ancestor: bool
    aliases: Sequence[str]
    evaluation: EvaluationSet | None
    entries: Sequence[AuditEntry]
    judged: Judged
    newest: int
    oldest: int


# -- all models --------------------------------------------------------------------------------------------------------


def glance_at_models(
    store: Store, *, after: str | None, limit: int, only: Collection[str] | None, containing: str = ""
) -> Glances:
    """Models by name, one row each.

    Args:
        after: go on after this name.
        limit: at most this many.
        only: of these names; None: all.
        containing: whose name contains this.
    """
    with store.reading() as tx:
        page = tx.overviews.models(after, limit, only, containing)
        heard_of = tx.ledger.activity()[2]
        items = tuple(_glances(tx, page.items, heard_of))
        return Glances(Page(items, page.next), tx.overviews.count(only, containing), heard_of)


def _glances(tx: Transaction, shown: Sequence[Model], heard_of: datetime | None) -> list[Glance]:
    champions, recent = tx.overviews.champions(shown), tx.overviews.recent(shown, SPARKLINE)
    queues, last_cycles = tx.overviews.queues(shown), tx.overviews.last_cycles(shown)
    arrived, entries = tx.overviews.arrived(shown), tx.overviews.last_entries(shown, TOLD)
    silent = heard_of is None or tx.now - heard_of > _SILENT
    found = []
    for model in shown:
        queued, running = queues.get(model.name, (0, None))
        champion = champions[model.name][1] if model.name in champions else None
        versions, last = recent.get(model.name, []), last_cycles.get(model.name)
        megabatches = arrived.get(model.name, 0)
        health, why = _health(model, champion, versions, last, queued, megabatches, silent)
        found.append(
            Glance(model, champion, versions, queued, running, megabatches, entries.get(model.name), health, why)
        )
    return found


def _health(
    model: Model,
    champion: VersionSummary | None,
    versions: Sequence[VersionSummary],
    last: Cycle | None,
    queued: int,
    megabatches: int,
    silent: bool,
) -> tuple[Health, str | None]:
    if model.state is ModelState.PAUSED:
        return Health.PAUSED, model.paused_reason
    if last is not None and last.failures and last.state in (CycleState.QUEUED, CycleState.FAILED):
        return Health.FAILING, last.reason
    if queued and silent:
        return Health.NO_WORKER, None
    if versions and versions[-1].status is VersionStatus.WITHHELD:
        return Health.WITHHELD, None
    if champion is not None:
        return Health.HEALTHY, None
    return (Health.WAITING if megabatches else Health.EMPTY), None


# -- one model ---------------------------------------------------------------------------------------------------------


def view_model(store: Store, name: str, *, before: int | None = None) -> ModelView:
    """One model.

    Args:
        name: of the model.
        before: show versions below this number; None: the newest.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        heard_of = tx.ledger.activity()[2]
        glance = _glances(tx, [model], heard_of)[0]
        recipe = tx.ledger.recipe(name)
        columns = tx.overviews.columns(model, before=before, limit=COLUMNS + 1)
        shown = columns[-COLUMNS:]
        return ModelView(
            glance=glance,
            recipe=recipe,
            target=final_density(Recipe.resolve(recipe.document).schedule),
            champion=tx.ledger.version(name, glance.champion.number) if glance.champion else None,
            champion_alias=alias_or_none(tx, name, CHAMPION),
            evaluation=tx.buffer.evaluation(model),
            columns=shown,
            older=len(columns) > COLUMNS,
            moves=_moves(tx, name),
            layers=tx.overviews.layers(model, _spread([column.version.number for column in shown], _HEATED)),
            megabatches=tx.overviews.newest_megabatches(model, _PAST),
            events=tx.overviews.latest_entries(model, TOLD, _EVENTS),
            proposals=_open_proposals(tx, model),
            protection=tx.approvals.protection(model, CHAMPION),
            waiting=_waiting(tx, model) if glance.queued else None,
            heard_of=heard_of,
        )


def view_queue(store: Store, name: str) -> QueueView:
    """What a model's worker is at."""
    with store.reading() as tx:
        model = tx.ledger.model(name)
        queued, running = tx.ledger.queue(model)
        next_one = running or (_waiting(tx, model) if queued else None)
        return QueueView(next_one, queued, tx.ledger.activity()[2])


def view_megabatches(store: Store, name: str, *, before: int | None, limit: int) -> MegabatchesView:
    """Megabatches as their page shows them.

    Args:
        before: only those of lower numbers; None: from the newest on.
        limit: at most this many.

    Raises:
        UnknownModel: there is none of this name.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        found = tx.overviews.newest_megabatches(model, limit + 1, before)
        alias = alias_or_none(tx, name, CHAMPION)
        champion = tx.ledger.version(name, alias.version) if alias else None
        return MegabatchesView(model, found[:limit], len(found) > limit, tx.buffer.last_number(model), champion)


def view_megabatch(store: Store, name: str, number: int) -> MegabatchView:
    """One megabatch as its page shows it, without its examples.

    Raises:
        UnknownModel, UnknownMegabatch: there is no such model or megabatch.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        megabatch = tx.buffer.megabatch(name, number)
        alias = alias_or_none(tx, name, CHAMPION)
        champion = tx.ledger.version(name, alias.version) if alias else None
        used = tx.custody.versions_of(model, number, None, _VERSIONS)
    return MegabatchView(model, megabatch, champion, [each.version for each in used.items], used.next is not None)


def rollback_choices(store: Store, name: str) -> list[VersionSummary]:
    """The nearest ancestors of the champion whose bytes are there, nearest first; none without a champion."""
    with store.reading() as tx:
        model = tx.ledger.model(name)
        alias = alias_or_none(tx, name, CHAMPION)
        if alias is None:
            return []
        line = islice(tx.ledger.ancestors(model, alias.version), 1, _CHOICES + 1)
        return [version for version in line if version.swept_at is None]


def _waiting(tx: Transaction, model: Model) -> Cycle | None:
    return next((cycle for cycle in tx.ledger.open_cycles(model) if cycle.state is CycleState.QUEUED), None)


def _moves(tx: Transaction, name: str) -> Sequence[AliasMove]:
    try:
        return tx.ledger.alias_history(name, CHAMPION, None, COLUMNS).items
    except UnknownAlias:
        return ()


def _open_proposals(tx: Transaction, model: Model) -> list[Proposal]:
    newest = tx.approvals.proposals(model, None, 20).items
    return [proposal for proposal in newest if proposal.state is ProposalState.OPEN]


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly spread, the first and the last included."""
    if len(numbers) <= most:
        return list(numbers)
    last = len(numbers) - 1
    return [numbers[round(place * last / (most - 1))] for place in range(most)]


# -- one version -------------------------------------------------------------------------------------------------------


def view_version(store: Store, name: str, ref: str) -> VersionPage:
    """One version, with its family.

    Raises:
        UnknownModel, UnknownVersion: there is no such model or version.
    """
    with store.reading() as tx:
        model = tx.ledger.model(name)
        version = tx.ledger.version(name, ref)
        alias = alias_or_none(tx, name, CHAMPION)
        ancestors = tx.ledger.ancestry(name, version.number, _ANCESTORS).items
        first = max(0, min(version.number - _NEAR, ancestors[-1].number))
        entries = tx.audit.about(name, [("cycle", version.cycle), ("version", version.number)])
        return VersionPage(
            model=model,
            version=version,
            champion=tx.ledger.summary(model, alias.version) if alias else None,
            champion_alias=alias,
            before=ancestors[1] if len(ancestors) > 1 else None,
            ancestors=ancestors,
            family=_family(tx, model, version.number, first, {each.number for each in ancestors}),
            is_ancestor=alias is not None and descends(tx, model, alias.version, version.number),
            aliases=[each for each, number in tx.ledger.pointed(model).items() if number == version.number],
            evaluation=tx.buffer.evaluation(model),
            entries=entries,
            judged=_judged(tx, version, entries),
            newest=_newest(tx, name),
            oldest=_oldest(tx, name, version.number),
        )


def judged(tx: Transaction, version: Version) -> Judged:
    """What the guardrails found in a version."""
    return _judged(tx, version, tx.audit.about(version.model, [("cycle", version.cycle)]))


def _judged(tx: Transaction, version: Version, entries: Sequence[AuditEntry]) -> Judged:
    found = [entry.document["parameters"] for entry in entries if entry.kind == "cycle.judged"]
    recipe = Recipe.resolve(tx.ledger.recipe(version.model, version.recipe_revision).document)
    return Judged(version.verdict.reasons, found[-1].get("rules", ()) if found else (), limits_of(recipe.guardrails))


def _family(tx: Transaction, model: Model, number: int, first: int, line: Collection[int]) -> list[Kin]:
    """Those near in number, and ancestors beyond; the rest of a long line is left out."""
    near = tx.overviews.family(model, max(first, number - 4 * _NEAR), number + _NEAR)
    return [kin for kin in near if abs(kin.number - number) <= _NEAR or kin.number in line]


def _newest(tx: Transaction, name: str) -> int:
    newest = tx.ledger.versions(name, None, 1).items
    return newest[0].number if newest else 0


def _oldest(tx: Transaction, name: str, number: int) -> int:
    first = tx.ledger.time_line(name, None, 1).items
    return first[0].number if first else number


def descends(tx: Transaction, model: Model, champion: int, number: int) -> bool:
    """Whether a version is an ancestor of the champion."""
    if number >= champion:
        return False
    line = islice(tx.ledger.ancestors(model, champion), 1, None)
    nearest = next((version.number for version in line if version.number <= number), None)
    return nearest == number
