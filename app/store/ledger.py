"""``tx.ledger``: models, cycles, versions, aliases. This part holds the cycles: the database is the queue.

Knows: how a cycle is claimed, kept, and ended, and what a worker must still hold to end it. Must never know: what a
cycle computes, or when it is time for one.

Laws:
    * A model's cycles run one at a time, in the order of their numbers; one that waits for a retry holds up the later
      ones.
    * A claim is worth its fencing token: whoever ends a cycle must hold the newest one, or ``LeaseLost``.
    * Publication also compares the model's generation, so nothing that began before an alias moved is published after.
    * Locks are taken in one order: the model's row, then cycles and leases; the log's head comes last, at commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.domain import (
    HOLDING,
    Claim,
    Cycle,
    CycleState,
    CycleTrigger,
    Digest,
    EvaluationSet,
    HeldLease,
    MegabatchStatus,
    Model,
    ModelState,
    Page,
    Progress,
    Version,
    VersionDraft,
    VersionStatus,
)
from app.errors import LeaseLost, UnknownCycle
from app.store.lineages import Lineages
from app.store.rows import (
    cycle_of,
    evaluation_set_of,
    input_document,
    input_of,
    model_of,
    progress_document,
    version_values,
)
from app.store.tables import (
    LARGEST,
    PINNED,
    QUEUED,
    RUNNING,
    cycles,
    evaluation_sets,
    leases,
    megabatches,
    models,
    recipes,
    uses,
    versions,
    workers,
)

_CHUNK = 500
_HEAD = 20
_FORGOTTEN = timedelta(days=1)

_NAMING = (
    megabatches.c.x,
    megabatches.c.y,
    megabatches.c.ids,
    evaluation_sets.c.x,
    evaluation_sets.c.y,
    evaluation_sets.c.ids,
    versions.c.checkpoint,
    versions.c.state,
    versions.c.inputs,
    versions.c.samples,
    versions.c.answers,
    versions.c.falls,
    leases.c.snapshot,
    recipes.c.initial_weights,
)
"""Every column that names a blob."""

_NUMBER: Mapping[str, sa.Column[int]] = {
    megabatches.name: megabatches.c.number,
    evaluation_sets.name: evaluation_sets.c.revision,
    versions.name: versions.c.number,
    leases.name: cycles.c.number,
    recipes.name: recipes.c.revision,
}
_WORDS = {
    megabatches.name: "megabatch",
    evaluation_sets.name: "evaluation set",
    versions.name: "version",
    leases.name: "snapshot of cycle",
    recipes.name: "initial weights of recipe",
}


class Ledger(Lineages):
    """Models, cycles, versions and aliases, as one transaction sees them."""

    # -- queue ---------------------------------------------------------------------------------------------------------

    def enqueue_cycle(self, model: Model, trigger: CycleTrigger, through: int, *, attempt: int = 0) -> Cycle:
        """Add a cycle to the end of the queue.

        Args:
            model: what it trains.
            trigger: why it is due.
            through: the last megabatch that it may train on, 0 for none.
            attempt: retries with changed options.
        """
        present = self._locked(model)
        newest = sa.select(sa.func.max(cycles.c.number)).where(cycles.c.model_id == model.id)
        number = (self._connection.execute(newest).scalar_one() or 0) + 1
        self._connection.execute(
            sa.insert(cycles).values(
                model_id=model.id,
                number=number,
                state=CycleState.QUEUED.value,
                trigger=trigger.value,
                through=through,
                recipe_revision=present.recipe_revision,
                attempt=attempt,
                failures=0,
                created_at=self._now,
            )
        )
        return self.cycle(model.name, number)

    def cycle(self, name: str, number: int) -> Cycle:
        """One cycle with its progress.

        Raises:
            UnknownModel, UnknownCycle: there is no such model or cycle.
        """
        model = self.model(name)
        row = None
        if 0 < number <= LARGEST:
            wanted = _all().where(cycles.c.model_id == model.id, cycles.c.number == number)
            row = self._connection.execute(wanted).one_or_none()
        if row is None:
            raise UnknownCycle(f"model {name!r} has no cycle {number}")
        return cycle_of(row)

    def cycles(self, name: str, after: int | None, limit: int) -> Page[Cycle]:
        """Cycles, newest first.

        Args:
            name: of the model.
            after: go on below this number.
            limit: at most this many.
        """
        wanted = _all().where(cycles.c.model_id == self.model(name).id).order_by(cycles.c.number.desc())
        if after is not None:
            wanted = wanted.where(cycles.c.number < min(after, LARGEST))
        items = tuple(map(cycle_of, self._connection.execute(wanted.limit(limit + 1))))
        return Page(items[:limit], str(items[limit - 1].number) if len(items) > limit else None)

    def open_cycles(self, model: Model) -> list[Cycle]:
        """Cycles that wait or run, by number."""
        # Two partial indexes serve the two halves; one condition over both states would read every cycle of the model.
        halves = (_all().where(cycles.c.model_id == model.id, state) for state in (RUNNING, QUEUED))
        found = [cycle_of(row) for half in halves for row in self._connection.execute(half)]
        return sorted(found, key=lambda cycle: cycle.number)

    def queue(self, model: Model) -> tuple[int, Cycle | None]:
        """How many cycles of a model wait, and the one that runs."""
        waiting = sa.select(sa.func.count()).select_from(cycles).where(cycles.c.model_id == model.id, QUEUED)
        running = self._connection.execute(_all().where(cycles.c.model_id == model.id, RUNNING)).one_or_none()
        return self._connection.execute(waiting).scalar_one(), None if running is None else cycle_of(running)

    def covered(self, model: Model) -> int:
        """The last megabatch that any cycle was enqueued for, however it ended; 0 for none."""
        last = sa.select(sa.func.max(cycles.c.through)).where(cycles.c.model_id == model.id)
        return self._connection.execute(last).scalar_one() or 0

    def attempt_before(self, cycle: Cycle) -> Cycle | None:
        """The attempt that a cycle tries again with changed options; None of a first attempt."""
        wanted = _all().where(
            cycles.c.model_id == self.model(cycle.model).id,
            cycles.c.number < cycle.number,
            cycles.c.through == cycle.through,
            cycles.c.attempt == cycle.attempt - 1,
        )
        row = self._connection.execute(wanted.order_by(cycles.c.number.desc()).limit(1)).one_or_none()
        return None if row is None else cycle_of(row)

    def supersede_cycles(self, model: Model, reason: str) -> list[Cycle]:
        """End every cycle that waits or runs: the ground that they stood on has moved.

        Returns:
            The cycles as they are now, by number.
        """
        self._locked(model)
        open_cycles = self.open_cycles(model)
        if open_cycles:
            ended = {"state": CycleState.SUPERSEDED.value, "reason": reason, "finished_at": self._now}
            for state in (RUNNING, QUEUED):
                these = sa.select(cycles.c.id).where(cycles.c.model_id == model.id, state)
                self._connection.execute(sa.delete(leases).where(leases.c.cycle_id.in_(these)))
                self._connection.execute(sa.update(cycles).where(cycles.c.model_id == model.id, state).values(**ended))
        return [self.cycle(model.name, cycle.number) for cycle in open_cycles]

    def abandon_cycle(self, cycle: Cycle, reason: str) -> Cycle:
        """End a queued cycle as failed.

        Raises:
            LeaseLost: it is not queued any more.
        """
        model = self.lock_model(cycle.model)
        queued = sa.update(cycles).where(cycles.c.model_id == model.id, cycles.c.number == cycle.number, QUEUED)
        ended = queued.values(state=CycleState.FAILED.value, reason=reason, finished_at=self._now, not_before=None)
        if self._connection.execute(ended).rowcount != 1:
            raise LeaseLost(f"cycle {cycle.number} of {cycle.model!r} is not queued any more")
        self._connection.execute(sa.delete(leases).where(leases.c.cycle_id == _id_of(model, cycle.number)))
        return self.cycle(cycle.model, cycle.number)

    # -- claims --------------------------------------------------------------------------------------------------------

    def claim_cycle(self, worker: str, lease_seconds: float) -> Claim | None:
        """Take the oldest cycle that may run, and pin what it starts from: recipe, parent, generation, input spec,
        evaluation set, pinned megabatches. A cycle that goes on from a snapshot keeps what it had pinned.

        Args:
            worker: who will run it.
            lease_seconds: how long the claim lasts without ``renew``.

        Returns:
            The claim; None when nothing may run now, or others are at it.
        """
        while (candidate := self._candidate()) is not None:
            # Another worker may have claimed it between the look and the lock: look again, under the lock.
            again = _ready(self._now, _first_of(candidate.model_id))
            row = self._connection.execute(again).first()
            if row is not None:
                return self._claim(row.id, row.model_id, worker, timedelta(seconds=lease_seconds))
        return None

    def renew(self, claim: Claim, progress: Progress | None, lease_seconds: float) -> Claim:
        """Extend a lease, and show how far the cycle is.

        Raises:
            LeaseLost: the cycle is no longer this claim's.
        """
        expires_at = self._now + timedelta(seconds=lease_seconds)
        values: dict[str, Any] = {"expires_at": expires_at, "heartbeat_at": self._now}
        if progress is not None:
            values["progress"] = progress_document(progress)
        self._hold(claim, sa.update(leases).values(**values))
        shown = claim.cycle if progress is None else replace(claim.cycle, progress=progress)
        return replace(claim, cycle=shown, expires_at=expires_at)

    def attach_snapshot(self, claim: Claim, digest: Digest) -> Claim:
        """Name the blob to resume from, should this worker fall.

        Raises:
            LeaseLost: the cycle is no longer this claim's.
        """
        self._hold(claim, sa.update(leases).values(snapshot=digest, advanced=True))
        return replace(claim, snapshot=digest)

    def release_cycle(self, claim: Claim) -> Cycle:
        """Give a cycle back to the queue, with its snapshot: nothing failed.

        Raises:
            LeaseLost: the cycle is no longer this claim's.
        """
        self._locked(claim.model)
        self._hold(claim, sa.update(leases).values(worker=None, expires_at=None))
        return self._end(claim, CycleState.QUEUED)

    def held_leases(self) -> list[HeldLease]:
        """Every lease that a worker holds, as it stands now."""
        held = sa.select(leases.c.cycle_id, leases.c.token, leases.c.heartbeat_at).where(leases.c.worker.is_not(None))
        return [HeldLease(*row) for row in self._connection.execute(held)]

    def reclaim(self, silent: Sequence[HeldLease]) -> list[Cycle]:
        """Put the cycles of workers that fell silent back into the queue, with their snapshots.

        One that left no new snapshot since it was claimed counts a failure: a cycle that kills its workers must not run
        for ever.

        Args:
            silent: their leases, as they were seen; one that was renewed since is left alone.

        Returns:
            The cycles as they are now.
        """
        seen = {lease.cycle: lease for lease in silent}
        stalled = (
            sa.select(leases.c.cycle_id, leases.c.advanced, cycles.c.number, models)
            .join(cycles, cycles.c.id == leases.c.cycle_id)
            .join(models, models.c.id == cycles.c.model_id)
            .where(leases.c.cycle_id.in_(seen))
            .order_by(models.c.id)  # locks are taken in one order
        )
        rows = self._connection.execute(stalled).all()
        return [cycle for row in rows if (cycle := self._reclaim(row, seen[row.cycle_id])) is not None]

    # -- ends ----------------------------------------------------------------------------------------------------------

    def publish_version(self, claim: Claim, draft: VersionDraft) -> Version:
        """Turn a claimed cycle into the version that it has made.

        Raises:
            LeaseLost: the claim, the model's generation or the next version number is another one by now.
        """
        model = self._locked(claim.model)
        if model.generation != claim.generation:
            raise LeaseLost(
                f"{model.name!r} changed while cycle {claim.cycle.number} ran: "
                "its champion moved, or megabatches were quarantined or erased"
            )
        if self._next_version(model, claim.cycle.trigger) != claim.next_version:
            raise LeaseLost(f"version {claim.next_version} of {model.name!r} was published by another cycle")
        self._hold(claim, sa.delete(leases))
        state = CycleState.PUBLISHED if draft.status is VersionStatus.PUBLISHED else CycleState.WITHHELD
        self._end(claim, state, finished_at=self._now, version=claim.next_version, reason=None, not_before=None)
        self._connection.execute(
            sa.insert(versions).values(
                model_id=model.id,
                number=claim.next_version,
                parent=claim.cycle.parent,
                cycle=claim.cycle.number,
                recipe_revision=claim.recipe.revision,
                recipe_digest=claim.recipe.digest,
                created_at=self._now,
                **_held(draft, claim.cycle.parent),
                **version_values(draft),
            )
        )
        here = {"model_id": model.id, "version": claim.next_version}
        if used := [{**here, "megabatch": number, "use": use} for number, use in sorted(draft.uses.items())]:
            self._connection.execute(sa.insert(uses), used)
        return self.version(model.name, claim.next_version)

    def fail_cycle(self, claim: Claim, reason: str, retry_at: datetime | None) -> Cycle:
        """End a claimed cycle as failed; with ``retry_at``, queue it again from its beginning.

        Raises:
            LeaseLost: the cycle is no longer this claim's.
        """
        self._locked(claim.model)
        counted = {"reason": reason, "failures": cycles.c.failures + 1, "not_before": retry_at}
        if retry_at is None:
            self._hold(claim, sa.delete(leases))
            return self._end(claim, CycleState.FAILED, finished_at=self._now, **counted)
        afresh = sa.update(leases).values(worker=None, expires_at=None, snapshot=None, progress=None)
        self._hold(claim, afresh)
        return self._end(claim, CycleState.QUEUED, started_at=None, **counted)

    def supersede_claim(self, claim: Claim, reason: str) -> Cycle:
        """End a claimed cycle that may not publish.

        Raises:
            LeaseLost: the cycle is no longer this claim's; whoever took it away has ended it.
        """
        self._locked(claim.model)
        self._hold(claim, sa.delete(leases))
        return self._end(claim, CycleState.SUPERSEDED, finished_at=self._now, reason=reason)

    # -- across models -------------------------------------------------------------------------------------------------

    def beat(self, worker: str) -> None:
        """Note that a worker is alive, busy or not; workers that fell silent a day ago are forgotten."""
        here = workers.c.name == worker
        if self._connection.execute(sa.update(workers).where(here).values(heartbeat_at=self._now)).rowcount == 0:
            self._connection.execute(sa.delete(workers).where(workers.c.heartbeat_at < self._now - _FORGOTTEN))
            self._connection.execute(sa.insert(workers).values(name=worker, heartbeat_at=self._now))

    def activity(self) -> tuple[int, int, datetime | None]:
        """How many cycles wait, how many run, and the newest heartbeat of any worker."""
        queued, running = (
            self._connection.execute(sa.select(sa.func.count()).select_from(cycles).where(state)).scalar_one()
            for state in (QUEUED, RUNNING)
        )
        newest = sa.select(sa.func.max(workers.c.heartbeat_at))
        return queued, running, self._connection.execute(newest).scalar_one()

    def references(self, digests: Iterable[Digest]) -> set[Digest]:
        """Which of these blobs any row names: arrays, checkpoints, states, snapshots, initial weights. A version that
        was swept, or a megabatch that was erased, names nothing any more.
        """
        wanted = list(digests)
        named: set[Digest] = set()
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            for column in _NAMING:
                named.update(self._connection.execute(_naming(column).where(column.in_(chunk))).scalars())
        return named

    def named_blobs(self, *, snapshots: bool = True) -> set[Digest]:
        """Every blob that any row names; without those of cycles under way, if so wanted."""
        columns = [column for column in _NAMING if snapshots or column is not leases.c.snapshot]
        return {digest for column in columns for digest in self._connection.execute(_naming(column)).scalars()}

    def blobs_of(self, model: Model) -> Iterator[tuple[str, Digest]]:
        """Every blob that a model's rows name, with the row that does, in words."""
        for column in _NAMING:
            table = column.table
            wanted = _naming(column).add_columns(_NUMBER[table.name])
            if table is leases:
                wanted = wanted.join(cycles, cycles.c.id == leases.c.cycle_id).where(cycles.c.model_id == model.id)
            else:
                wanted = wanted.where(table.c.model_id == model.id)
            for digest, number in self._connection.execute(wanted.order_by(_NUMBER[table.name])):
                yield f"{_WORDS[table.name]} {number} of {model.name}", digest

    def dense_forms(self, model: Model) -> list[tuple[int, Digest]]:
        """Numbers of versions, and the digests of their dense forms, which need not be there."""
        wanted = sa.select(versions.c.number, versions.c.dense).where(versions.c.model_id == model.id)
        return [(row.number, row.dense) for row in self._connection.execute(wanted.order_by(versions.c.number))]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _candidate(self) -> sa.Row[Any] | None:
        """A cycle that seems to be ready, its model's row locked.

        The head of the queue is looked at first: the whole of it only where nothing there may run, as when one busy
        model has thousands that wait.
        """
        for among in (_head_of_the_queue(), _firsts()):
            ready = _ready(self._now, among).with_for_update(of=models, skip_locked=True)
            if (row := self._connection.execute(ready).first()) is not None:
                return row
        return None

    def _claim(self, cycle_id: int, model_id: int, worker: str, lease: timedelta) -> Claim:
        """Claim a cycle that is known to be ready, under its model's lock."""
        model = model_of(self._connection.execute(sa.select(models).where(models.c.id == model_id)).one())
        parent = self.ground(model)
        before = self._connection.execute(_all().where(cycles.c.id == cycle_id)).one()
        pinned = {"parent": parent.number if parent else None, "recipe_revision": model.recipe_revision}
        same_ground = all(getattr(before, name) == value for name, value in pinned.items())
        token, snapshot, inputs = self._write_lease(cycle_id, model, worker, self._now + lease, resume=same_ground)
        self._connection.execute(
            sa.update(cycles)
            .where(cycles.c.id == cycle_id)
            .values(
                **pinned,
                evaluation_revision=inputs["evaluation"],
                state=CycleState.RUNNING.value,
                started_at=before.started_at or self._now,
                not_before=None,
                reason=None,
            )
        )
        cycle = cycle_of(self._connection.execute(_all().where(cycles.c.id == cycle_id)).one())
        return Claim(
            cycle=cycle,
            model=replace(model, input=input_of(inputs["input"])),
            recipe=self._recipe(model, model.recipe_revision),
            worker=worker,
            token=token,
            generation=model.generation,
            next_version=self._next_version(model, cycle.trigger),
            parent=parent,
            pinned=frozenset(inputs["pinned"]),
            evaluation=self._evaluation(model, inputs["evaluation"]),
            snapshot=snapshot,
            expires_at=self._now + lease,
        )

    def _write_lease(
        self, cycle_id: int, model: Model, worker: str, expires_at: datetime, *, resume: bool
    ) -> tuple[int, Digest | None, dict[str, Any]]:
        """The next token, the snapshot to go on from, which is only worth something on the same ground, and the inputs
        that the cycle pins, or has pinned before that snapshot was taken.
        """
        here = leases.c.cycle_id == cycle_id
        before = self._connection.execute(sa.select(leases).where(here)).one_or_none()
        values: dict[str, Any] = {
            "token": 1,
            "generation": model.generation,
            "worker": worker,
            "expires_at": expires_at,
            "heartbeat_at": self._now,
            "advanced": False,
            "inputs": self._inputs(model),
        }
        if before is None:
            self._connection.execute(sa.insert(leases).values(cycle_id=cycle_id, **values))
            return 1, None, values["inputs"]
        values["token"] = before.token + 1
        resumes = resume and before.generation == model.generation and before.inputs is not None
        snapshot = before.snapshot if resumes else None
        if snapshot is None:
            values.update(snapshot=None, progress=None)
        else:
            values.update(inputs=before.inputs)
        self._connection.execute(sa.update(leases).where(here).values(**values))
        return before.token + 1, snapshot, values["inputs"]

    def _inputs(self, model: Model) -> dict[str, Any]:
        """What a claim pins beside recipe and parent, as JSON."""
        newest = sa.select(sa.func.max(evaluation_sets.c.revision)).where(evaluation_sets.c.model_id == model.id)
        pinned = sa.select(megabatches.c.number).where(
            megabatches.c.model_id == model.id,
            PINNED,
            megabatches.c.status == MegabatchStatus.ACCEPTED.value,
        )
        return {
            "input": input_document(model.input),
            "evaluation": self._connection.execute(newest).scalar_one(),
            "pinned": sorted(self._connection.execute(pinned).scalars()),
        }

    def _evaluation(self, model: Model, revision: int | None) -> EvaluationSet | None:
        wanted = sa.select(evaluation_sets).where(
            evaluation_sets.c.model_id == model.id, evaluation_sets.c.revision == revision
        )
        row = None if revision is None else self._connection.execute(wanted).one_or_none()
        return None if row is None else evaluation_set_of(row, model.name)

    def _hold(self, claim: Claim, change: sa.Update | sa.Delete) -> None:
        """Change the lease of a claim, if it is still this claim's."""
        held = change.where(
            leases.c.cycle_id == _id_of(claim.model, claim.cycle.number),
            leases.c.token == claim.token,
            leases.c.worker == claim.worker,
        )
        if self._connection.execute(held).rowcount != 1:
            raise LeaseLost(
                f"cycle {claim.cycle.number} of {claim.model.name!r} is no longer held by {claim.worker!r}: "
                "it was superseded, or its lease ran out and another worker has it"
            )

    def _end(self, claim: Claim, state: CycleState, **values: object) -> Cycle:
        """Move a running cycle, whose lease was just given up, to another state."""
        running = sa.update(cycles).where(
            cycles.c.model_id == claim.model.id, cycles.c.number == claim.cycle.number, RUNNING
        )
        if self._connection.execute(running.values(state=state.value, **values)).rowcount != 1:
            raise LeaseLost(f"cycle {claim.cycle.number} of {claim.model.name!r} does not run any more")
        return self.cycle(claim.model.name, claim.cycle.number)

    def _reclaim(self, stalled: sa.Row[Any], seen: HeldLease) -> Cycle | None:
        """Take one stalled cycle back, unless its worker spoke up, or somebody else was faster."""
        model = self._locked(model_of(stalled))
        silent = sa.update(leases).where(
            leases.c.cycle_id == seen.cycle,
            leases.c.token == seen.token,
            leases.c.heartbeat_at == seen.heartbeat_at,
            leases.c.worker.is_not(None),
        )
        if self._connection.execute(silent.values(worker=None, expires_at=None)).rowcount != 1:
            return None
        failed = 0 if stalled.advanced else 1
        self._connection.execute(
            sa.update(cycles)
            .where(cycles.c.id == stalled.cycle_id)
            .values(state=CycleState.QUEUED.value, failures=cycles.c.failures + failed)
        )
        return self.cycle(model.name, stalled.number)

    def _next_version(self, model: Model, trigger: CycleTrigger) -> int:
        newest = sa.select(sa.func.max(versions.c.number)).where(versions.c.model_id == model.id)
        number = self._connection.execute(newest).scalar_one()
        if number is None:
            return 0 if trigger is CycleTrigger.INITIAL_WEIGHTS else 1
        return int(number) + 1


def _naming(column: sa.Column[str]) -> sa.Select[Any]:
    """The blobs that a column names; a version that was swept has given up its checkpoint and its state, and an erased
    megabatch everything.
    """
    named = sa.select(column).where(column.is_not(None))
    if column.table is megabatches:
        return named.where(megabatches.c.status != MegabatchStatus.ERASED.value)
    given_up = column.table is versions and column.name in ("checkpoint", "state")
    return named.where(versions.c.swept_at.is_(None)) if given_up else named


def _all() -> sa.Select[Any]:
    return (
        sa.select(cycles, models.c.name.label("model"), leases.c.progress)
        .join(models, models.c.id == cycles.c.model_id)
        .outerjoin(leases, leases.c.cycle_id == cycles.c.id)
    )


def _ready(now: datetime, among: sa.Select[Any]) -> sa.Select[Any]:
    """The oldest of these cycles whose model is active and runs nothing, and that waits for nothing."""
    busy, found = cycles.alias("busy"), among.subquery()
    runs = sa.exists().where(busy.c.model_id == models.c.id, busy.c.state == sa.literal_column("'running'"))
    return (
        sa.select(cycles.c.id, cycles.c.model_id)
        .join(found, found.c.id == cycles.c.id)
        .join(models, models.c.id == cycles.c.model_id)
        .where(
            QUEUED,
            models.c.state == ModelState.ACTIVE.value,
            sa.or_(cycles.c.not_before.is_(None), cycles.c.not_before <= now),
            ~runs,
        )
        .order_by(cycles.c.id)
        .limit(1)
    )


def _firsts() -> sa.Select[Any]:
    """The first queued cycle of each model."""
    return sa.select(sa.func.min(cycles.c.id).label("id")).where(QUEUED).group_by(cycles.c.model_id)


def _first_of(model_id: int) -> sa.Select[Any]:
    return sa.select(sa.func.min(cycles.c.id).label("id")).where(cycles.c.model_id == model_id, QUEUED)


def _head_of_the_queue() -> sa.Select[Any]:
    """Those among the oldest queued cycles that are the first ones of their models."""
    oldest = sa.select(cycles.c.id, cycles.c.model_id).where(QUEUED).order_by(cycles.c.id).limit(_HEAD).subquery()
    return sa.select(sa.func.min(oldest.c.id).label("id")).group_by(oldest.c.model_id)


def _held(draft: VersionDraft, parent: int | None) -> dict[str, Any]:
    """Whether a version holds pruning, and on which champion, which has an index."""
    holds = draft.status is VersionStatus.WITHHELD and draft.verdict.action in HOLDING
    restored = draft.verdict.restored
    return {"holds": holds, "held_on": (parent if restored is None else restored) if holds else None}


def _id_of(model: Model, number: int) -> sa.ScalarSelect[Any]:
    return sa.select(cycles.c.id).where(cycles.c.model_id == model.id, cycles.c.number == number).scalar_subquery()
