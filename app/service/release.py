"""Release: versions, their checkpoints, and the alias that clients follow.

Knows: what a rollback and a promotion mean. Must never know: HTTP, torch.

Laws:
    * A move of an alias compares the revision that its caller saw.
    * A rollback aims at an ancestor of the champion whose bytes are whole. Every ancestor was champion once: cycles
    start from it.
    * Nothing is deleted: the versions that were left stay, and their megabatches become eligible for the next cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from app.domain import (
    CHAMPION,
    Actor,
    Alias,
    AliasMove,
    Cycle,
    CycleTrigger,
    Digest,
    Megabatch,
    MegabatchStatus,
    Model,
    Page,
    Version,
)
from app.errors import Conflict, CorruptBlob, NotAnAncestor, PreconditionMissing, UnknownAlias, UnknownVersion
from app.service.state import enqueue_rest, state_of
from app.store.database import Store, Transaction
from espalier.formats import checkpoint

Form = Literal["sparse", "dense"]


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version, and the alias that it was asked for by, if it was."""

    version: Version
    alias: Alias | None


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A file that holds a checkpoint's bytes, and their digest."""

    path: Path
    digest: Digest
    size: int
    version: Version
    alias: Alias | None


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did."""

    alias: Alias
    previous: Version
    version: Version
    superseded: tuple[Cycle, ...]
    quarantined: tuple[int, ...]
    queued: Cycle | None


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion did."""

    alias: Alias
    previous: int | None
    version: Version


def get_version(store: Store, name: str, ref: str) -> VersionView:
    """A version by number or alias."""
    with store.reading() as tx:
        return _view(tx, name, ref)


def list_versions(store: Store, name: str, *, after: int | None, limit: int) -> Page[Version]:
    """Versions, newest first."""
    with store.reading() as tx:
        return tx.ledger.versions(name, after, limit)


def lineage(store: Store, name: str, ref: str) -> list[Version]:
    """A version and its ancestors, up to the first."""
    with store.reading() as tx:
        return tx.ledger.ancestry(name, _view(tx, name, ref).version.number)


def get_alias(store: Store, name: str, alias: str) -> Alias:
    """Where an alias points, and its revision."""
    with store.reading() as tx:
        tx.ledger.model(name)
        return tx.ledger.alias(name, alias)


def alias_at(store: Store, name: str, alias: str, at: datetime) -> AliasMove:
    """The move that was in force at a time."""
    with store.reading() as tx:
        tx.ledger.model(name)
        return tx.ledger.alias_at(name, alias, at)


def alias_history(store: Store, name: str, alias: str, *, after: int | None, limit: int) -> Page[AliasMove]:
    """Every move of an alias, newest first."""
    with store.reading() as tx:
        tx.ledger.model(name)
        return tx.ledger.alias_history(name, alias, after, limit)


def open_checkpoint(store: Store, name: str, ref: str, form: Form) -> OpenCheckpoint:
    """The file behind a version: the sparse checkpoint as published, or the same tensors dense.

    Raises:
        UnknownModel, UnknownVersion: no such version.
        MissingBlob, CorruptBlob: its bytes are gone or changed; never served.
    """
    view = get_version(store, name, ref)
    version = view.version
    if form == "sparse":
        return OpenCheckpoint(
            store.blobs.verified(version.checkpoint), version.checkpoint, version.checkpoint_bytes, version, view.alias
        )
    return OpenCheckpoint(_dense_file(store, version), version.dense, version.dense_bytes, version, view.alias)


def roll_back(
    store: Store,
    name: str,
    *,
    to: str | None,
    reason: str,
    quarantine: Sequence[int],
    expected_revision: int | None,
    actor: Actor,
) -> RolledBack:
    """Move the champion back to an ancestor; weights, mask, stage, replay and normalisation come with it.

    Open cycles are superseded; if there were any, one new cycle is enqueued for all that the restored version has not
    seen. Otherwise the champion stays as restored until the next megabatch, or a request, starts a cycle: a rollback
    must not undo itself.

    Args:
        to: number or alias; None takes the nearest ancestor that holds no quarantined megabatch.
        quarantine: megabatches that must not be trained on from now on.
        expected_revision: the champion's revision that the caller saw.

    Raises:
        PreconditionMissing, AliasMoved: the champion's revision was not given, or is another one.
        NotAnAncestor: the target is no ancestor of the champion; the message lists those that are.
        UnknownMegabatch, UnknownVersion, CorruptBlob: nothing was changed.
    """
    revision = _required(expected_revision)
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        previous = _champion(tx, name)
        # Compared first: a lost race is a lost race, whatever the target is by now.
        tx.ledger.expect_revision(model, CHAMPION, revision)
        quarantined = tx.buffer.quarantine(model, quarantine)
        target = _target(store, tx, model, previous, to)
        for digest in (target.checkpoint, target.state):
            store.blobs.verified(digest)
        alias = tx.ledger.move_alias(model, CHAMPION, target.number, expected_revision=revision, reason=reason)
        superseded, queued = replace_open_cycles(
            store, tx, model, CycleTrigger.ROLLBACK, f"rolled back to version {target.number}"
        )
        _audit_quarantine(tx, quarantined, reason)
        tx.audit.append("alias.moved", model=name, reason=reason, parameters=_move(alias, previous.number))
        tx.audit.append(
            "model.rolled_back",
            model=name,
            reason=reason,
            parameters={
                "from": previous.number,
                "to": target.number,
                "stage": target.stage,
                "density_before": previous.density,
                "density_after": target.density,
                "quarantined": [m.number for m in quarantined],
                "superseded_cycles": [c.number for c in superseded],
                "queued_cycle": queued.number if queued else None,
            },
            outputs=[target.checkpoint],
        )
    return RolledBack(alias, previous, target, superseded, tuple(m.number for m in quarantined), queued)


def promote(
    store: Store, name: str, number: int, *, reason: str, expected_revision: int | None, actor: Actor
) -> Promoted:
    """Make a version the champion, whatever its verdict was; overriding a withheld one is audited as such.

    Raises:
        PreconditionMissing, AliasMoved: the champion's revision was not given, or is another one.
        UnknownVersion, CorruptBlob, Conflict: nothing was changed.
    """
    revision = _required(expected_revision)
    with store.transaction(actor) as tx:
        model = tx.ledger.lock_model(name)
        version = tx.ledger.version(name, number)
        previous = _alias_or_none(tx, name)
        if previous is not None and previous.version == number:
            raise Conflict(f"version {number} of {name!r} is the champion already")
        for digest in (version.checkpoint, version.state):
            store.blobs.verified(digest)
        alias = tx.ledger.move_alias(model, CHAMPION, number, expected_revision=revision, reason=reason)
        replace_open_cycles(store, tx, model, CycleTrigger.MANUAL, f"version {number} was promoted")
        before = previous.version if previous else None
        if not version.verdict.passed:
            overridden = {"version": number, "reasons": list(version.verdict.reasons)}
            tx.audit.append("guardrail.overridden", model=name, reason=reason, parameters=overridden)
        tx.audit.append(
            "alias.moved", model=name, reason=reason, parameters=_move(alias, before), outputs=[version.checkpoint]
        )
    return Promoted(alias, before, version)


def _required(revision: int | None) -> int:
    if revision is None:
        raise PreconditionMissing(
            "a move of the champion must say which state of it was seen: send If-Match with the ETag of GET "
            ".../aliases/champion"
        )
    return revision


def _champion(tx: Transaction, name: str) -> Version:
    try:
        return tx.ledger.version(name, CHAMPION)
    except UnknownVersion:
        raise UnknownAlias(f"model {name!r} has no champion yet: nothing to roll back") from None


def _alias_or_none(tx: Transaction, name: str) -> Alias | None:
    try:
        return tx.ledger.alias(name, CHAMPION)
    except UnknownAlias:
        return None


def _target(store: Store, tx: Transaction, model: Model, champion: Version, to: str | None) -> Version:
    ancestors = tx.ledger.ancestry(model.name, champion.number)[1:]
    numbers = ", ".join(str(version.number) for version in ancestors)
    choices = f"roll back to one of {numbers}" if ancestors else "it has no ancestor to roll back to"
    if to is None:
        clean = (version for version in ancestors if not _holds_quarantined(store, tx, model, version))
        if (found := next(clean, None)) is None:
            raise NotAnAncestor(
                f"no ancestor of champion {champion.number} is free of quarantined megabatches: {choices}"
            )
        return found
    wanted = tx.ledger.version(model.name, to)
    if wanted.number == champion.number:
        raise NotAnAncestor(f"version {wanted.number} is the champion already: {choices}")
    if wanted.number not in {version.number for version in ancestors}:
        raise NotAnAncestor(
            f"version {wanted.number} is no ancestor of champion {champion.number}: {choices}, "
            f"or promote version {wanted.number} instead"
        )
    return wanted


def _holds_quarantined(store: Store, tx: Transaction, model: Model, version: Version) -> bool:
    seen = sorted(state_of(store.blobs, version).seen)
    return any(m.status is MegabatchStatus.QUARANTINED for m in tx.buffer.training_set(model, seen))


def replace_open_cycles(
    store: Store, tx: Transaction, model: Model, trigger: CycleTrigger, reason: str
) -> tuple[tuple[Cycle, ...], Cycle | None]:
    """Supersede every open cycle, since the champion moved; were there any, enqueue one for all that it has not seen.

    Returns:
        The superseded cycles, and the new one.
    """
    superseded = tuple(tx.ledger.supersede_cycles(model, reason))
    queued = enqueue_rest(store, tx, model, trigger) if superseded else None
    for cycle in superseded:
        tx.audit.append(
            "cycle.superseded",
            model=model.name,
            reason=reason,
            parameters={"cycle": cycle.number, "replaced_by": queued.number if queued else None},
        )
    return superseded, queued


def _audit_quarantine(tx: Transaction, megabatches: Sequence[Megabatch], reason: str) -> None:
    for megabatch in megabatches:
        tx.audit.append(
            "megabatch.quarantined",
            model=megabatch.model,
            reason=reason,
            parameters={"megabatch": megabatch.number, "digest": megabatch.digest},
        )


def _move(alias: Alias, previous: int | None) -> dict[str, object]:
    return {"alias": alias.name, "revision": alias.revision, "from": previous, "to": alias.version}


def _view(tx: Transaction, name: str, ref: str) -> VersionView:
    version = tx.ledger.version(name, ref)
    if ref.isascii() and ref.isdigit():
        return VersionView(version, None)
    alias = _alias_or_none(tx, name) if ref == CHAMPION else None
    return VersionView(version, alias)


def _dense_file(store: Store, version: Version) -> Path:
    """The dense form. No row names its blob: it is swept when nobody asks for it, and made anew when somebody does."""
    if not store.blobs.touch(version.dense):
        made = store.blobs.put(checkpoint.encode_dense(checkpoint.decode(store.blobs.read(version.checkpoint))))
        if made != version.dense:
            raise CorruptBlob(f"version {version.number} of {version.model!r} does not decode to what was published")
    return store.blobs.verified(version.dense)
