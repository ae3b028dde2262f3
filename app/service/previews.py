"""Previews: what a move of the champion, or of a megabatch, would change, before anybody decides on it.

Knows: what ``release``, ``promotion`` and ``megabatches`` would do now. Must never know: HTTP, torch.

Laws:
    * Nothing is changed.
    * What would be refused is refused here, with the same error.
    * A preview of a move of the champion names the alias's revision that it is true of; the move compares it.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.domain import CHAMPION, Alias, Megabatch, Protection, Version, VersionStatus
from app.errors import Conflict, NotAnAncestor, UnknownAlias
from app.service.overview import Judged, descends, judged
from app.service.release import alias_or_none
from app.service.state import state_of
from app.store.buffer import expect_values
from app.store.database import Store
from app.store.releases import expect_bytes


@dataclass(frozen=True, slots=True)
class RollbackPreview:
    """What a rollback would do.

    Attributes:
        released: megabatches that the champion has seen and the target has not; they would be trained on again, unless
            they are quarantined.
        superseded: numbers of the cycles that would end.
    """

    alias: Alias
    champion: Version
    target: Version
    released: tuple[int, ...]
    superseded: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromotionPreview:
    """What a promotion would do.

    Attributes:
        revision: of the alias; 0 while there is no champion.
        classes: names of the model's classes, where they have any.
        withheld: what guardrails found, where they withheld the version, so that a promotion overrides them.
        superseded: numbers of the cycles that would end.
    """

    revision: int
    champion: Version | None
    version: Version
    classes: tuple[str, ...]
    withheld: Judged | None
    protection: Protection
    superseded: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SortingPreview:
    """What putting a megabatch into quarantine, or letting it out, would do.

    Attributes:
        versions: numbers of those that took it in, by their own cycle or by an ancestor's; they stay.
        superseded: numbers of the cycles that would end.
    """

    megabatch: Megabatch
    versions: tuple[int, ...]
    superseded: tuple[int, ...]


def preview_sorting(store: Store, name: str, number: int) -> SortingPreview:
    """What a quarantine, or its end, would do.

    Raises:
        UnknownModel, UnknownMegabatch, MegabatchErased: there is nothing to sort.
    """
    with store.reading() as tx:
        model, megabatch = tx.ledger.model(name), tx.buffer.megabatch(name, number)
        expect_values(megabatch)
        versions = tuple(sorted(used.version for used in tx.custody.heirs_of(model, [number])))
        return SortingPreview(megabatch, versions, tuple(cycle.number for cycle in tx.ledger.open_cycles(model)))


def preview_rollback(store: Store, name: str, number: int) -> RollbackPreview:
    """What going back to a version would do.

    Raises:
        UnknownModel, UnknownVersion, UnknownAlias, NotAnAncestor, VersionSwept: it cannot be gone back to.
    """
    with store.reading() as tx:
        model, target = tx.ledger.model(name), tx.ledger.version(name, number)
        alias = alias_or_none(tx, name, CHAMPION)
        if alias is None:
            raise UnknownAlias(f"model {name!r} has no champion yet: nothing to roll back")
        champion = tx.ledger.version(name, alias.version)
        if not descends(tx, model, champion.number, number):
            raise NotAnAncestor(
                f"version {number} is no ancestor of champion {champion.number}: promote it instead, or choose another"
            )
        expect_bytes(target)
        superseded = tuple(cycle.number for cycle in tx.ledger.open_cycles(model))
    released = set(state_of(store.blobs, champion).seen) - set(state_of(store.blobs, target).seen)
    return RollbackPreview(alias, champion, target, tuple(sorted(released)), superseded)


def preview_promotion(store: Store, name: str, number: int) -> PromotionPreview:
    """What making a version the champion would do.

    Raises:
        UnknownModel, UnknownVersion, Conflict, VersionSwept: it cannot be promoted.
    """
    with store.reading() as tx:
        model, version = tx.ledger.model(name), tx.ledger.version(name, number)
        alias = alias_or_none(tx, name, CHAMPION)
        if alias is not None and alias.version == number:
            raise Conflict(f"version {number} of {name!r} is the champion already")
        expect_bytes(version)
        return PromotionPreview(
            revision=alias.revision if alias else 0,
            champion=tx.ledger.version(name, alias.version) if alias else None,
            version=version,
            classes=tuple(model.input.classes or ()),
            withheld=judged(tx, version) if version.status is VersionStatus.WITHHELD else None,
            protection=tx.approvals.protection(model, CHAMPION),
            superseded=tuple(cycle.number for cycle in tx.ledger.open_cycles(model)),
        )
