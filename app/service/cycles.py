"""Cycles: ask for one, look at them, enqueue those that a clock asks for.

Knows: when a cycle may be asked for. Must never know: what a cycle does (``training``), HTTP, torch.
"""

from __future__ import annotations

from datetime import UTC, datetime

from croniter import croniter

from app.domain import Actor, Cycle, CycleTrigger, Model, ModelState, Page
from app.errors import ModelPaused, NothingToTrain
from app.learning.recipe import Cron, Recipe
from app.service.state import enqueue_rest
from app.store.database import Store, Transaction

_PAGE = 200


def get_cycle(store: Store, name: str, number: int) -> Cycle:
    """One cycle with its progress."""
    with store.reading() as tx:
        return tx.ledger.cycle(name, number)


def list_cycles(store: Store, name: str, *, after: int | None, limit: int) -> Page[Cycle]:
    """Cycles, newest first."""
    with store.reading() as tx:
        return tx.ledger.cycles(name, after, limit)


def request_cycle(store: Store, name: str, *, reason: str | None, actor: Actor) -> Cycle:
    """Train now: a cycle over every eligible megabatch, or the one that is queued for them already.

    Raises:
        ModelPaused: resume it first.
        NothingToTrain: the champion has seen every accepted megabatch.
    """
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        if model.state is ModelState.PAUSED:
            raise ModelPaused(f"model {name!r} is paused ({model.paused_reason}): resume it first")
        covering = [c for c in tx.ledger.open_cycles(model) if c.through >= tx.buffer.last_number(model) > 0]
        if covering:
            return covering[-1]
        cycle = enqueue_rest(store, tx, model, CycleTrigger.MANUAL)
        if cycle is None:
            raise NothingToTrain(
                f"the champion of {name!r} has seen every accepted megabatch: upload another one first"
            )
        tx.audit.append("cycle.requested", model=name, reason=reason, parameters=_enqueued(cycle))
    return cycle


def enqueue_due(store: Store, actor: Actor) -> list[Cycle]:
    """Enqueue the cycles of cron triggers that have come due. Missed times coalesce into one; any number of callers
    enqueue it once.
    """
    cycles: list[Cycle] = []
    for model, cron in _scheduled(store):
        with store.transaction(actor) as tx:
            cycle = _enqueue_one(store, tx, tx.ledger.lock_model(model.name), cron)
            if cycle is not None:
                cycles.append(cycle)
    return cycles


def _scheduled(store: Store) -> list[tuple[Model, Cron]]:
    found: list[tuple[Model, Cron]] = []
    after: str | None = None
    with store.reading() as tx:
        while True:
            page = tx.ledger.models(after, _PAGE)
            for model in page.items:
                trigger = Recipe.resolve(tx.ledger.recipe(model.name).document).trigger
                due = isinstance(trigger, Cron) and _due_time(tx, model, trigger) > _last(tx, model)
                if due and isinstance(trigger, Cron) and model.state is ModelState.ACTIVE:
                    found.append((model, trigger))
            if page.next is None:
                return found
            after = page.next


def _enqueue_one(store: Store, tx: Transaction, model: Model, cron: Cron) -> Cycle | None:
    due = _due_time(tx, model, cron)
    if due <= _last(tx, model) or not tx.ledger.tick(model, due):
        return None
    if tx.ledger.open_cycles(model):
        return None
    cycle = enqueue_rest(store, tx, model, CycleTrigger.CRON)
    if cycle is not None:
        tx.audit.append("cycle.requested", model=model.name, parameters={**_enqueued(cycle), "due": due.isoformat()})
    return cycle


def _due_time(tx: Transaction, model: Model, cron: Cron) -> datetime:
    """The newest time of the schedule that is not in the future."""
    previous = croniter(cron.expression, tx.now.astimezone(UTC)).get_prev(datetime)
    at_now = tx.now.replace(second=0, microsecond=0)
    return at_now if croniter.match(cron.expression, at_now) else previous


def _last(tx: Transaction, model: Model) -> datetime:
    """The newest time that was taken up, or the model's creation: times before it were never missed."""
    return tx.ledger.last_tick(model) or model.created_at


def _enqueued(cycle: Cycle) -> dict[str, object]:
    return {"cycle": cycle.number, "trigger": cycle.trigger, "through": cycle.through}
