"""Release: versions, their checkpoints, and the alias that clients follow.

Knows: what a rollback and a promotion mean. Must never know: HTTP, torch.

Laws:
    * A move of an alias compares the revision that its caller saw.
    * A rollback aims at an ancestor of the champion whose bytes are whole. Every ancestor was champion once: cycles
    start from it.
    * Nothing is deleted: the versions that were left stay, and their megabatches become eligible for the next cycle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, Literal

from app.domain import (
    CHAMPION,
    Actor,
    Alias,
    AliasMove,
    Cycle,
    CycleTrigger,
    Digest,
    Megabatch,
    Model,
    Page,
    Version,
    VersionSummary,
)
from app.errors import (
    CorruptBlob,
    Fault,
    MissingBlob,
    NotAnAncestor,
    NotFound,
    PreconditionMissing,
    UnknownAlias,
    UnknownVersion,
)
from app.service.state import enqueue_rest, state_of
from app.store.database import Store, Transaction
from app.store.releases import expect_bytes
from espalier.formats import checkpoint

Form = Literal["sparse", "dense"]

_LISTED = 20
"""Ancestors that a refusal names."""


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


def get_version(store: Store, name: str, ref: str) -> VersionView:
    """A version by number or alias."""
    with store.reading() as tx:
        return _view(tx, name, ref)


def list_versions(store: Store, name: str, *, after: int | None, limit: int) -> Page[Version]:
    """Versions, newest first."""
    with store.reading() as tx:
        return tx.ledger.versions(name, after, limit)


def get_manifest(store: Store, name: str, ref: str) -> tuple[VersionView, Mapping[str, Any]]:
    """A version by number or alias, and the manifest that stands in its checkpoint."""
    with store.reading() as tx:
        view = _view(tx, name, ref)
        return view, tx.ledger.manifest(name, view.version.number)


def lineage(store: Store, name: str, ref: str, *, start: int | None, limit: int) -> Page[Version]:
    """A version and its ancestors, up to the first.

    Args:
        start: go on from this ancestor.
        limit: at most this many.
    """
    with store.reading() as tx:
        number = _view(tx, name, ref).version.number
        return tx.ledger.ancestry(name, number if start is None else start, limit)


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
        UnknownModel, UnknownVersion, VersionSwept: no such version, or its bytes were given up.
        MissingBlob, CorruptBlob: its bytes are gone or changed; never served.
    """
    view = get_version(store, name, ref)
    try:
        return _open_sparse(store, view) if form == "sparse" else _open_dense(store, view)
    except MissingBlob:
        expect_bytes(get_version(store, name, ref).version)  # it may have been swept between the look and the open
        raise


def _open_sparse(store: Store, view: VersionView) -> OpenCheckpoint:
    version = view.version
    expect_bytes(version)
    path = store.blobs.verified(version.checkpoint)
    return OpenCheckpoint(path, version.checkpoint, version.checkpoint_bytes, version, view.alias)


def _open_dense(store: Store, view: VersionView) -> OpenCheckpoint:
    version = view.version
    expect_bytes(version)
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
        UnknownMegabatch, UnknownVersion, VersionSwept, CorruptBlob: nothing was changed.
    """
    revision = required_revision(expected_revision)
    fetch_ahead(store, name, to)
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
        audit_quarantine(tx, quarantined, reason)
        tx.audit.append("alias.moved", model=name, reason=reason, parameters=move_parameters(alias, previous.number))
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


def required_revision(revision: int | None) -> int:
    """The revision of an alias that a caller saw.

    Raises:
        PreconditionMissing: it did not say.
    """
    if revision is None:
        raise PreconditionMissing(
            "a move of an alias must say which state of it was seen: send If-Match with the ETag of GET "
            ".../aliases/{alias}"
        )
    return revision


def fetch_ahead(store: Store, name: str, to: str | None) -> None:
    """Fetch and hash what the transaction will look at, so that a large file or a slow bucket holds up no writer. What
    is wrong with it, the transaction says.
    """
    with suppress(NotFound, Fault):
        with store.reading() as tx:
            target: VersionSummary = tx.ledger.version(name, CHAMPION if to is None else to)
            if to is None:
                target = next(_ancestors(tx, tx.ledger.model(name), target), target)
        for digest in (target.checkpoint, target.state):
            store.blobs.verified(digest)


def _champion(tx: Transaction, name: str) -> Version:
    try:
        return tx.ledger.version(name, CHAMPION)
    except UnknownVersion:
        raise UnknownAlias(f"model {name!r} has no champion yet: nothing to roll back") from None


def alias_or_none(tx: Transaction, name: str, alias: str) -> Alias | None:
    """An alias, or None where there is none of this name."""
    try:
        return tx.ledger.alias(name, alias)
    except UnknownAlias:
        return None


def _target(store: Store, tx: Transaction, model: Model, champion: Version, to: str | None) -> Version:
    if to is None:
        quarantined = tx.buffer.quarantined(model)
        line = (version for version in _ancestors(tx, model, champion) if version.swept_at is None)
        if (found := next((v for v in line if not _holds_any(store, v, quarantined)), None)) is not None:
            return tx.ledger.version(model.name, found.number)
        raise NotAnAncestor(
            f"no ancestor of champion {champion.number} has its bytes and is free of quarantined megabatches: "
            f"{_choices(tx, model, champion)}"
        )
    wanted = tx.ledger.version(model.name, to)
    if wanted.number == champion.number:
        raise NotAnAncestor(f"version {wanted.number} is the champion already: {_choices(tx, model, champion)}")
    # A parent is always numbered before its child.
    older = dropwhile(lambda version: version.number > wanted.number, _ancestors(tx, model, champion))
    if (found := next(older, None)) is None or found.number != wanted.number:
        raise NotAnAncestor(
            f"version {wanted.number} is no ancestor of champion {champion.number}: "
            f"{_choices(tx, model, champion)}, or promote version {wanted.number} instead"
        )
    expect_bytes(wanted)
    return wanted


def _ancestors(tx: Transaction, model: Model, version: VersionSummary) -> Iterator[VersionSummary]:
    return islice(tx.ledger.ancestors(model, version.number), 1, None)


def _choices(tx: Transaction, model: Model, champion: Version) -> str:
    there = (version for version in _ancestors(tx, model, champion) if version.swept_at is None)
    nearest = [str(version.number) for version in islice(there, _LISTED + 1)]
    if not nearest:
        return "it has no ancestor to roll back to"
    return f"roll back to one of {', '.join(nearest[:_LISTED])}{' or older ones' if len(nearest) > _LISTED else ''}"


def _holds_any(store: Store, version: VersionSummary, megabatches: Sequence[int]) -> bool:
    if not megabatches:
        return False
    seen = state_of(store.blobs, version).seen
    return any(number in seen for number in megabatches)


def replace_open_cycles(
    store: Store, tx: Transaction, model: Model, trigger: CycleTrigger, reason: str
) -> tuple[tuple[Cycle, ...], Cycle | None]:
    """Supersede every open cycle, since the champion moved, or what may be trained on is another; were there any,
    enqueue one for all that the champion has not seen.

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


def audit_quarantine(tx: Transaction, megabatches: Sequence[Megabatch], reason: str) -> None:
    """Append that these megabatches are in quarantine from now on."""
    for megabatch in megabatches:
        tx.audit.append(
            "megabatch.quarantined",
            model=megabatch.model,
            reason=reason,
            parameters={"megabatch": megabatch.number, "digest": megabatch.digest},
        )


def move_parameters(alias: Alias, previous: int | None) -> dict[str, object]:
    """What an ``alias.moved`` entry says about every move."""
    return {"alias": alias.name, "revision": alias.revision, "from": previous, "to": alias.version}


def _view(tx: Transaction, name: str, ref: str) -> VersionView:
    version = tx.ledger.version(name, ref)
    if ref.isascii() and ref.isdigit():
        return VersionView(version, None)
    return VersionView(version, alias_or_none(tx, name, ref))


def _dense_file(store: Store, version: Version) -> Path:
    """The dense form. No row names its blob: it is swept when nobody asks for it, and made anew when somebody does,
    also where its bytes have changed.
    """
    if store.blobs.touch(version.dense):
        try:
            return store.blobs.verified(version.dense)
        except CorruptBlob:
            store.blobs.discard(version.dense)
    decoded = checkpoint.decode(store.blobs.read(version.checkpoint))
    made = store.blobs.put(checkpoint.encode_dense(decoded))
    if made != version.dense:  # older versions were recorded without the digest of the checkpoint in it
        made = store.blobs.put(checkpoint.encode_dense(replace(decoded, digest="")))
    if made != version.dense:
        raise CorruptBlob(f"version {version.number} of {version.model!r} does not decode to what was published")
    return store.blobs.verified(version.dense)
