"""Retention: which versions keep their bytes, and how the others lose them.

Knows: the policy of a deployment, and what it spares. Must never know: where bytes lie, when it is time, HTTP, torch.

Laws:
    * Without a rollback window in the settings, every version is kept for ever.
    * What an alias names is kept, with as many of its ancestors as the window has versions; so is what an open cycle
      needs, and all that the policy counts. Everything else loses checkpoint and state, and nothing more.
    * A version is marked and audited in one transaction, under its model's lock; its bytes go after that, by the orphan
      sweep, which spares what any other row names. Killed in between, the next sweep goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from typing import Self

from app.config import Settings
from app.domain import Actor, Model, Version
from app.service.history import model_names
from app.store.database import Store, Transaction

_AT_ONCE = 100
"""Versions that one transaction marks: writers do not wait for more than these."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept beside the versions that are needed.

    Attributes:
        versions: so many of the newest versions, and so many ancestors of what each alias names.
        days: versions that are younger than this.
        every: versions whose number this divides; 0 for none.
    """

    versions: int
    days: float
    every: int

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The policy of a deployment; None where every version is kept."""
        if not settings.keep_versions and not settings.keep_days:
            return None
        return cls(settings.keep_versions, settings.keep_days, settings.keep_every)

    def __str__(self) -> str:
        """In words, for the log and for people."""
        kept = [f"the newest {self.versions}"] if self.versions else []
        kept += [f"those younger than {self.days:g} days"] if self.days else []
        kept += [f"those whose number {self.every} divides"] if self.every else []
        return f"retention keeps {', '.join(kept)}, and what is needed"


def retain(store: Store, settings: Settings, actor: Actor) -> int:
    """Give up the bytes of every version that the policy does not keep. Returns how many versions that were."""
    policy = Policy.of(settings)
    if policy is None:
        return 0
    return sum(_retain(store, policy, actor, name) for name in model_names(store))


def planned(store: Store, settings: Settings) -> list[Version]:
    """The versions that ``retain`` would sweep now, by model and number."""
    policy = Policy.of(settings)
    if policy is None:
        return []
    return [version for name in model_names(store) for version in _planned(store, policy, name)]


def _planned(store: Store, policy: Policy, name: str) -> list[Version]:
    with store.reading() as tx:
        return [tx.ledger.version(name, number) for number in _outside(tx, tx.ledger.model(name), policy)]


def _retain(store: Store, policy: Policy, actor: Actor, name: str) -> int:
    swept = 0
    while _any(store, policy, name):
        with store.transaction(actor) as tx:
            model = tx.ledger.lock_model(name)
            numbers = list(islice(_outside(tx, model, policy), _AT_ONCE))
            for number in numbers:
                _sweep(tx, model, number, policy)
        swept += len(numbers)
    return swept


def _any(store: Store, policy: Policy, name: str) -> bool:
    """Whether anything is to be done: a look keeps no writer waiting."""
    with store.reading() as tx:
        return next(_outside(tx, tx.ledger.model(name), policy), None) is not None


def _sweep(tx: Transaction, model: Model, number: int, policy: Policy) -> None:
    version = tx.ledger.sweep_version(model, number, str(policy))
    tx.audit.append(
        "data.swept",
        model=model.name,
        reason=str(policy),
        parameters={"version": number, "checkpoint_bytes": version.checkpoint_bytes, "policy": asdict(policy)},
        outputs=[version.checkpoint, version.state],
    )


def _outside(tx: Transaction, model: Model, policy: Policy) -> Iterator[int]:
    """Numbers of the versions that are kept by nothing, oldest first."""
    there = tx.ledger.unswept(model)
    spared = tx.ledger.needed(model) | _window(tx, model, policy)
    newest = {number for number, _ in there[len(there) - policy.versions :]} if policy.versions else set()
    since = tx.now - timedelta(days=policy.days)
    for number, made_at in there:
        kept = number in newest or made_at > since or (policy.every and number % policy.every == 0)
        if not kept and number not in spared:
            yield number


def _window(tx: Transaction, model: Model, policy: Policy) -> set[int]:
    """What aliases name, and the ancestors that a rollback from there can reach."""
    return {
        version.number
        for named in tx.ledger.named(model)
        for version in islice(tx.ledger.ancestors(model, named), policy.versions + 1)
    }
