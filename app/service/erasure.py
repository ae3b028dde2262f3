"""Erasure: values of megabatches and of single examples go for good, and what follows from that.

Knows: which rows hold a value, which versions took it in, and which ancestor did not. Must never know: HTTP, torch, or
copies outside this service: backups, downloads, exports.

Laws:
    * Rows first: one transaction, under the model's lock, says what is gone, writes it to the log, raises the model's
      generation and supersedes its open cycles. Then the bytes go (``removal``), their snapshots too.
    * What is left of a megabatch or evaluation set is kept as new blobs before any row names them.
    * A retraining moves the champion in the same transaction, to the nearest ancestor that took in nothing of what was
      erased; where there is none, nothing is built on the champion any more, and the next cycle begins afresh. That
      needs no If-Match: the target follows from the champion of that very moment, so no race can make it a wrong one.
    * The log says which rows of what went and which versions had taken them in. It never holds values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from app import crash
from app.domain import (
    CHAMPION,
    Actor,
    Alias,
    Cycle,
    CycleTrigger,
    Digest,
    MegabatchDraft,
    Model,
    VersionSummary,
)
from app.errors import BytesErased, EvaluationEmptied, Fault, StoreBusy, Unavailable
from app.service.cuts import Cut, EvaluationCut, Found, carried_out, looked
from app.service.release import move_parameters, replace_open_cycles
from app.service.removal import expect_kept, kept, remove
from app.service.state import enqueue_rest, state_of
from app.store.database import Store, Transaction

log = logging.getLogger(__name__)

MOST_SAMPLES = 10_000
MOST_MEGABATCHES = 1_000

_TRIES = 5
"""How often an erasure looks anew because rows changed while it wrote what is left."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be erased.

    Attributes:
        megabatches: their numbers.
        samples: ids of single examples, wherever they are.
        retrain: whether production is to go on from a version that took in none of it.
    """

    megabatches: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()
    retrain: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """What went from a megabatch: so many of its examples, and so many are left; ``digest`` is that of all of them."""

    megabatch: int
    digest: Digest
    erased: int
    left: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did, or would do.

    Attributes:
        megabatches: from which something went, by number.
        evaluation: examples that went from the evaluation set in force.
        absent: ids that no megabatch and no evaluation set holds, or holds any more.
        already: megabatches that were asked for, and had been erased before.
        versions: numbers of those that took in any of it, by their own cycle or by an ancestor's.
        aliases: those that name such a version, and which.
        clean: the champion's nearest ancestor, or itself, that took in nothing of it and can be used; None: none.
        champion: the move of the champion, if it moved.
        anew: whether the next cycle begins afresh.
        superseded, queued: cycles that ended, or would, and the one that waits for what is left.
        shared: blobs that stay, since other rows name the same bytes.
        pending: whether bytes are there still that the next sweep must remove.
    """

    megabatches: tuple[Gone, ...]
    evaluation: int
    absent: tuple[int, ...]
    already: tuple[int, ...]
    versions: tuple[int, ...]
    aliases: Mapping[str, int]
    clean: int | None
    champion: Alias | None = None
    anew: bool = False
    superseded: tuple[Cycle, ...] = ()
    queued: Cycle | None = None
    shared: tuple[Digest, ...] = ()
    pending: bool = False


def preview(store: Store, name: str, asked: Asked) -> Erased:
    """What an erasure would do now; changes nothing.

    Raises:
        UnknownModel, UnknownMegabatch: there is no such model or megabatch.
        EvaluationEmptied: it would leave no evaluation examples.
    """
    found = looked(store, name, asked.megabatches, asked.samples)
    _expect_evaluation(found)
    with store.reading() as tx:
        model = tx.ledger.model(name)
        stain = _Stain.of(store, tx, model, found)
        anew = asked.retrain and stain.clean is None and stain.champion is not None
        ends = found.any or anew or (asked.retrain and stain.moves)
        superseded = tuple(tx.ledger.open_cycles(model)) if ends else ()
        return _told(found, stain, anew=anew, superseded=superseded)


def erase(store: Store, name: str, asked: Asked, *, reason: str, actor: Actor) -> Erased:
    """Erase megabatches and single examples. What is erased already stays so, and is not audited again.

    Args:
        reason: for the log.

    Raises:
        UnknownModel, UnknownMegabatch: nothing was changed.
        EvaluationEmptied: the evaluation set in force would have no examples left; nothing was changed.
        StoreBusy: rows kept changing; nothing was changed.
        StorageFull, StorageUnreachable, StorageRefused, CorruptBlob: nothing was changed.
    """
    for _ in range(_TRIES):
        found = looked(store, name, asked.megabatches, asked.samples)
        _expect_evaluation(found)
        with store.reading() as tx:
            logged = tx.audit.head().size
            _fetch_ahead(store, _Stain.of(store, tx, tx.ledger.model(name), found))
        found = carried_out(store.blobs, found)
        with suppress(BytesErased):  # what is left was erased elsewhere while it was kept: kept anew
            if (done := _marked(store, found, asked, logged, reason, actor)) is not None:
                crash.point("erasure.marked")
                return _removed(store, *done, actor)
    raise StoreBusy(f"megabatches of {name!r} keep changing: try again; nothing was erased")


def _marked(
    store: Store, found: Found, asked: Asked, logged: int, reason: str, actor: Actor
) -> tuple[Erased, list[Digest]] | None:
    """What was done, and the blobs that were given up; None: somebody trained, uploaded or erased meanwhile."""
    with kept(store, found.kept, actor), store.transaction(actor) as tx:
        model = tx.ledger.lock_model(found.model.name)
        if not found.holds(tx, model):
            return None
        expect_kept(tx, logged, found.kept)
        return _erase(store, tx, model, found, asked, reason)


def _erase(
    store: Store, tx: Transaction, model: Model, found: Found, asked: Asked, reason: str
) -> tuple[Erased, list[Digest]]:
    """The transaction: rows, log, champion, cycles. Returns what was done, and the blobs that were given up."""
    stain = _Stain.of(store, tx, model, found)
    why = "values that it was trained on were erased" if found.any else "it was trained on values that were erased"
    snapshots = tx.ledger.snapshots(model) if found.any else []
    if found.any:
        tx.ledger.bump_generation(model)
        _mark(tx, model, found)
    moved, anew = _leave(store, tx, model, stain, reason) if asked.retrain else (None, False)
    superseded: tuple[Cycle, ...] = ()
    queued: Cycle | None = None
    if found.any or moved or anew:
        superseded, queued = replace_open_cycles(store, tx, model, CycleTrigger.ERASURE, why)
    if asked.retrain and queued is None and not tx.ledger.open_cycles(model):
        queued = _request(store, tx, model, reason)
    given_up = _write_down(tx, model, found, stain, snapshots, reason)
    told = _told(found, stain, champion=moved, anew=anew, superseded=superseded, queued=queued)
    return told, given_up


def _mark(tx: Transaction, model: Model, found: Found) -> None:
    for megabatch in found.whole:
        tx.buffer.erase(model, megabatch)
    for cut in found.cuts:
        assert cut.left is not None
        tx.buffer.shorten(model, cut.megabatch, cut.removed, cut.left, cut.overlap)
    for part in found.evaluation:
        assert part.left is not None
        tx.buffer.shorten_evaluation(model, part.found, part.left)
    for answers in found.answers:
        tx.custody.replace_answers(model, answers.version, answers.kept)
    if (present := found.in_force) is not None and present.left is not None:
        left = present.left
        draft = MegabatchDraft(present.digest, left.x, left.y, left.ids, left.examples, left.bytes, left.histogram)
        tx.buffer.set_evaluation(model, draft)


def _removed(store: Store, done: Erased, given_up: Sequence[Digest], actor: Actor) -> Erased:
    """The bytes go; whatever happens there, the erasure is done: the next sweep takes what is left."""
    try:
        return replace(done, shared=tuple(remove(store, given_up, actor)))
    except (Unavailable, Fault, OSError) as trouble:
        log.warning("erased values stay until the next sweep: %s", trouble)
        return replace(done, pending=True)


# -- versions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stain:
    """Which versions took in what is erased, and which one did not.

    Attributes:
        versions: their numbers.
        champion: number of the version that cycles start from now.
        clean: see ``Erased``.
    """

    versions: tuple[int, ...]
    aliases: Mapping[str, int]
    champion: int | None
    clean: VersionSummary | None

    @property
    def moves(self) -> bool:
        """Whether a retraining moves the champion."""
        return self.clean is not None and self.clean.number != self.champion

    @classmethod
    def of(cls, store: Store, tx: Transaction, model: Model, found: Found) -> _Stain:
        versions = _saw(store, tx, model, found.numbers)
        stained = set(versions)
        pointed = tx.ledger.pointed(model)
        ground = tx.ledger.ground(model)
        number = None if ground is None else ground.number
        clean = None if number is None else _clean(store, tx, model, number, stained, found.numbers)
        aliases = {alias: version for alias, version in pointed.items() if version in stained}
        return cls(tuple(versions), aliases, number, clean)


def _saw(store: Store, tx: Transaction, model: Model, numbers: Sequence[int]) -> list[int]:
    """Every version whose lineage took in any of these megabatches: by the index of uses, or by what it hands on."""
    if not numbers:
        return []
    heirs = {used.version for used in tx.custody.heirs_of(model, numbers)}
    found: set[int] = set()
    for version in tx.ledger.made_of(model, min(numbers)):
        known = version.number in heirs or version.parent in found
        if known or (version.swept_at is None and _took_in(store, version, numbers)):
            found.add(version.number)
    return sorted(found | heirs)


def _took_in(store: Store, version: VersionSummary, numbers: Sequence[int]) -> bool:
    """Whether a version hands on that it has seen any of these; one whose state cannot be read may have."""
    try:
        seen = state_of(store.blobs, version).seen
    except Fault:
        return True
    return any(number in seen for number in numbers)


def _clean(
    store: Store, tx: Transaction, model: Model, champion: int, stained: set[int], numbers: Sequence[int]
) -> VersionSummary | None:
    """The nearest of the champion and its ancestors that took in nothing of this, nothing that was erased before and
    nothing in quarantine, and whose bytes retention has left.
    """
    shunned = {*numbers, *tx.buffer.quarantined(model), *tx.buffer.erased(model)}
    line = (v for v in tx.ledger.ancestors(model, champion) if v.number not in stained and v.swept_at is None)
    if champion not in stained:
        return next(iter(islice(tx.ledger.ancestors(model, champion), 1)), None)
    return next((version for version in line if not _took_in(store, version, sorted(shunned))), None)


def _leave(store: Store, tx: Transaction, model: Model, stain: _Stain, reason: str) -> tuple[Alias | None, bool]:
    """Let production go on from a clean version: the move of the champion, or whether the next cycle begins afresh."""
    if stain.champion is None or (stain.clean is not None and not stain.moves):
        return None, False
    if stain.clean is None:
        tx.ledger.begin_anew(model)
        about = {"champion": stain.champion, "versions": list(stain.versions)}
        tx.audit.append("model.begins-anew", model=model.name, reason=reason, parameters=about)
        return None, True
    for digest in (stain.clean.checkpoint, stain.clean.state):
        store.blobs.verified(digest)
    alias = tx.ledger.move_alias(model, CHAMPION, stain.clean.number, expected_revision=None, reason=reason)
    about = move_parameters(alias, stain.champion)
    tx.audit.append("alias.moved", model=model.name, reason=reason, parameters=about, outputs=[stain.clean.checkpoint])
    return alias, False


def _fetch_ahead(store: Store, stain: _Stain) -> None:
    """Fetch and hash before the transaction what it will look at; what is wrong with it, the transaction says."""
    if stain.clean is not None:
        with suppress(Fault):
            for digest in (stain.clean.checkpoint, stain.clean.state):
                store.blobs.verified(digest)


def _request(store: Store, tx: Transaction, model: Model, reason: str) -> Cycle | None:
    cycle = enqueue_rest(store, tx, model, CycleTrigger.ERASURE)
    if cycle is not None:
        about = {"cycle": cycle.number, "trigger": cycle.trigger, "through": cycle.through}
        tx.audit.append("cycle.requested", model=model.name, reason=reason, parameters=about)
    return cycle


# -- what is said ------------------------------------------------------------------------------------------------------


def _write_down(
    tx: Transaction, model: Model, found: Found, stain: _Stain, snapshots: Sequence[Digest], reason: str
) -> list[Digest]:
    """Append what went. Returns every blob that was given up."""
    given_up: list[Digest] = []
    spare, beside = [*snapshots, *(cut.file for cut in found.answers)], _beside(found, snapshots)
    for kind, about, inputs in _entries(found, stain):
        extra, spare = spare, []
        parameters, beside = {**about, **beside}, {}
        tx.audit.append(kind, model=model.name, reason=reason, parameters=parameters, inputs=[*inputs, *extra])
        given_up += [*inputs, *extra]
    return given_up


def _beside(found: Found, snapshots: Sequence[Digest]) -> dict[str, object]:
    """What went beside the examples themselves; the first entry tells it."""
    answers = [[cut.version, cut.file, cut.kept] for cut in found.answers]
    return {**({"snapshots": len(snapshots)} if snapshots else {}), **({"answers": answers} if answers else {})}


def _entries(found: Found, stain: _Stain) -> Iterator[tuple[str, dict[str, object], list[Digest]]]:
    for m in found.whole:
        about: dict[str, object] = {"megabatch": m.number, "digest": m.digest, "examples": m.examples}
        about |= {"bytes": m.bytes, "status_before": m.status.value, "versions": list(stain.versions)}
        yield "megabatch.erased", about, [m.x, m.y, m.ids]
    for cut in found.cuts:
        yield "samples.erased", _about_cut(cut, stain), [cut.megabatch.x, cut.megabatch.y, cut.megabatch.ids]
    for part in found.evaluation:
        yield "evaluation.erased", _about_part(part, found), [part.found.x, part.found.y, part.found.ids]


def _about_cut(cut: Cut, stain: _Stain) -> dict[str, object]:
    assert cut.left is not None
    return {
        "megabatch": cut.megabatch.number,
        "digest": cut.megabatch.digest,
        "examples_before": cut.megabatch.examples,
        "examples_after": cut.left.examples,
        "rows": [list(run) for run in cut.removed],
        "versions": list(stain.versions),
    }


def _about_part(part: EvaluationCut, found: Found) -> dict[str, object]:
    assert part.left is not None
    in_force = found.in_force is not None and found.in_force.found.revision == part.found.revision
    return {
        "revision": part.found.revision,
        "digest": part.found.digest,
        "examples_before": part.found.examples,
        "examples_after": part.left.examples,
        "replaced_by": part.found.revision + 1 if in_force else None,
    }


def _told(
    found: Found,
    stain: _Stain,
    *,
    champion: Alias | None = None,
    anew: bool = False,
    superseded: tuple[Cycle, ...] = (),
    queued: Cycle | None = None,
) -> Erased:
    gone = [Gone(m.number, m.digest, m.examples, 0) for m in found.whole]
    gone += [Gone(c.megabatch.number, c.megabatch.digest, len(c.rows), c.examples) for c in found.cuts]
    return Erased(
        megabatches=tuple(sorted(gone, key=lambda one: one.megabatch)),
        evaluation=len(found.in_force.rows) if found.in_force else 0,
        absent=found.absent,
        already=found.already,
        versions=stain.versions,
        aliases=stain.aliases,
        clean=None if stain.clean is None else stain.clean.number,
        champion=champion,
        anew=anew,
        superseded=superseded,
        queued=queued,
    )


def _expect_evaluation(found: Found) -> None:
    """Raises:
    EvaluationEmptied: nothing would be left of the evaluation set in force.
    """
    present = found.in_force
    if present is not None and present.examples == 0:
        raise EvaluationEmptied(
            f"the evaluation set of {found.model.name!r} holds nothing but these examples: send another one to "
            f"PUT /v1/models/{found.model.name}/evaluation-set first; nothing was erased"
        )
