"""Rerun: a cycle that made a version, run once more from its pinned inputs, and compared with what the log says of it.

Knows: which entries tell of a cycle, which of its inputs are still there, how two outcomes are compared. Must never
know: HTTP, which device there is, how a report is shown.

Laws:
    * It changes nothing: no row, no entry, no blob, no lease.
    * What cannot be given once more is named, and then nothing is run.
    * Where torch, device kind, threads and what else may move last bits are the same, any difference is a finding.
      Elsewhere differences are counted; only what contradicts the log by itself is a finding there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from app.domain import AuditEntry, Digest, Event, Megabatch, MegabatchStatus, Version
from app.errors import CorruptBlob, EspalierError, MissingBlob
from app.learning.cycle import CycleResult, Observer, initial_version, pruned_to, run_cycle
from app.learning.recipe import Recipe
from app.service.custody import not_recorded
from app.service.gathering import Work, environment, given_of, replayed_rows
from app.service.inputs import Chosen, Inputs, Role, decode_inputs
from app.service.outputs import outputs_of
from app.service.removal import ERASING
from app.service.state import State, read_state
from app.store.database import Store, Transaction
from espalier.formats.canonical import exact, sha256_digest
from espalier.formats.custody import FALLEN_BEFORE, KEPT_WEIGHT, Falls, decode_falls

FILES = ("checkpoint", "state", "inputs", "samples", "answers", "falls")
"""What a cycle leaves, by the name of the version's field."""

_TOLD = ("mask.held", "mask.pruned", "network.trained", "replay.kept", "cycle.judged")
"""Kinds of entries that a cycle's events become."""

_PAGE = 500


class CannotRerun(Exception):
    """There is no such cycle to run once more; the message says why, and nothing was run."""


class Outcome(StrEnum):
    """What came of it."""

    SAME = "same"
    """Everything that was compared is the same, bit by bit."""
    DIFFERS = "differs"
    """Something is not as the log says, where it ought to be."""
    ELSEWHERE = "elsewhere"
    """It differs, but was run under conditions in which nobody may expect the same bits."""
    GONE = "gone"
    """Inputs are not there any more; nothing was run."""


@dataclass(frozen=True, slots=True)
class StepCompared:
    """One pruning step: digests of the masks after it, as its entry says and as they were found.

    Attributes:
        seq: of the entry; None where the log has none.
        differing: what of the entry is not as it was found, by name.
    """

    step: int
    seq: int | None
    logged: Digest | None
    found: Digest | None
    differing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerCompared:
    """How many weights of a layer are kept in one of the two masks alone, after the last step that was compared."""

    name: str
    total: int
    differing: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was compared, and what came of it.

    Attributes:
        until: the pruning step that it was run up to; None: the whole cycle.
        conditions: how this machine differs from the one that ran the cycle, in words.
        gone: inputs that are not there any more, and why.
        findings: what contradicts the log.
        files: by name, whether the same bytes came out; empty unless the whole cycle was run.
    """

    model: str
    version: int
    cycle: int
    until: int | None
    outcome: Outcome
    conditions: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    steps: tuple[StepCompared, ...] = ()
    layers: tuple[LayerCompared, ...] = ()
    files: Mapping[str, bool] | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A version whose cycle is run once more, with what the log tells of it.

    Attributes:
        published: the entry that tells the version; None where there is none.
        told: entries of the cycle's events, in order.
        cut: what erasures left of answers since: (version, file, file that is left), in order.
    """

    version: Version
    inputs: Inputs
    published: AuditEntry | None
    told: tuple[AuditEntry, ...]
    cut: tuple[tuple[int, Digest, Digest], ...] = ()

    @property
    def steps(self) -> int:
        """Pruning steps that the log tells of."""
        return sum(entry.kind == "mask.pruned" for entry in self.told)


def subject_of(store: Store, name: str, ref: str, cycle: int | None = None) -> Subject:
    """Find a version, its inputs and its entries.

    Args:
        ref: number or alias of the version.
        cycle: look for the version that this cycle made instead.

    Raises:
        UnknownModel, UnknownVersion, UnknownCycle: there is none.
        CannotRerun: the cycle made no version.
        NotRecorded: the version was made before inputs were written down.
        MissingBlob, CorruptBlob: its inputs are gone, or are not what was written down.
    """
    with store.reading() as tx:
        version = tx.ledger.version(name, ref if cycle is None else _made(tx, name, cycle))
    if version.inputs is None:
        raise not_recorded(version, "inputs")
    inputs = decode_inputs(store.blobs.read(version.inputs))
    return Subject(version, inputs, *_entries(store, version), _cut(store, name))


def rerun(store: Store, subject: Subject, *, until: int | None, device: torch.device, observe: Observer) -> Report:
    """Run the cycle of a version once more, and compare.

    Args:
        until: stop after this pruning step, from 1; None runs the whole cycle.
        device: where to run; torch's threads are set already.
        observe: may look at the progress.

    Raises:
        CannotRerun: the cycle made fewer pruning steps.
    """
    version, inputs = subject.version, subject.inputs
    if until is not None and not 1 <= until <= subject.steps:
        raise CannotRerun(f"cycle {version.cycle} of {version.model!r} made {subject.steps} pruning steps, not {until}")
    about = Report(version.model, version.number, version.cycle, until, Outcome.SAME, _conditions(inputs, device))
    there = _look(store, subject)
    if there.gone:
        outcome = Outcome.DIFFERS if there.findings else Outcome.GONE
        return replace(about, outcome=outcome, gone=there.gone, findings=there.findings)
    if there.work is None:
        return replace(about, outcome=Outcome.DIFFERS, findings=there.findings)
    try:
        ran = _run(there.work, until, device, observe)
    except EspalierError as error:
        ended = f"the cycle does not end as it did: {type(error).__name__}: {error}"
        return _judged(replace(about, findings=there.findings), [ended])
    return _compared(store, subject, there.findings, ran, about)


# -- what there is -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _There:
    """What a cycle can be given once more. ``work`` is None where it cannot."""

    work: Work | None
    gone: tuple[str, ...]
    findings: tuple[str, ...]


def _made(tx: Transaction, name: str, cycle: int) -> str:
    found = tx.ledger.cycle(name, cycle)
    if found.version is None:
        raise CannotRerun(
            f"cycle {cycle} of {name!r} made no version (it is {found.state}): inputs are written down with a version"
        )
    return str(found.version)


def _entries(store: Store, version: Version) -> tuple[AuditEntry | None, tuple[AuditEntry, ...]]:
    """The entry that tells a version, and those of the events of the attempt that made it."""
    published: AuditEntry | None = None
    told: list[AuditEntry] = []
    for entry in _of_model(store, version.model):
        said = entry.document["parameters"]
        if said.get("cycle") != version.cycle:
            continue
        if entry.kind == "cycle.failed":
            told.clear()  # what an attempt did that failed is in no version
        elif entry.kind in _TOLD:
            told.append(entry)
        elif entry.kind in ("version.published", "version.withheld") and said.get("version") == version.number:
            published = entry
            break
    return published, tuple(told)


def _cut(store: Store, name: str) -> tuple[tuple[int, Digest, Digest], ...]:
    """What erasures took out of answers."""
    entries = (entry for kind in ERASING for entry in _of_model(store, name, kind))
    rows = [(entry.seq, row) for entry in entries for row in entry.document["parameters"].get("answers", ())]
    return tuple((version, file, left) for _, (version, file, left) in sorted(rows))


def _of_model(store: Store, name: str, kind: str | None = None) -> Iterator[AuditEntry]:
    after: int | None = None
    while True:
        with store.reading() as tx:
            page = tx.audit.entries(name, after, _PAGE, kind)
        yield from page.items
        if page.next is None:
            return
        after = int(page.next)


def _look(store: Store, subject: Subject) -> _There:
    """What is there of the inputs, and what contradicts the log before anything is run."""
    findings = [*_against_the_log(subject)]
    with store.reading() as tx:
        revision = tx.ledger.recipe(subject.version.model, subject.inputs.recipe_revision)
        megabatches = tx.buffer.training_set(
            tx.ledger.model(subject.version.model), [fed.number for fed in subject.inputs.megabatches]
        )
        gone = [*_gone(store, tx, subject.inputs, megabatches)]
    try:
        recipe = Recipe.resolve(revision.document)
        same = recipe.digest == subject.inputs.recipe_digest == subject.version.recipe_digest
    except EspalierError:
        same = False
    if not same:
        findings.append(
            f"revision {subject.inputs.recipe_revision} of the recipe is not the one that the cycle was given"
        )
    if gone or not same:
        return _There(None, tuple(gone), tuple(findings))
    return _brought(store, subject.inputs, recipe, megabatches, findings)


def _brought(store: Store, inputs: Inputs, recipe: Recipe, megabatches: list[Megabatch], findings: list[str]) -> _There:
    """The inputs in memory."""
    try:
        before = read_state(store.blobs, inputs.parent.state) if inputs.parent else State()
        replayed = {fed.number: fed.rows for fed in inputs.megabatches if fed.role is Role.REPLAYED}
        rows = replayed_rows(before, [megabatch for megabatch in megabatches if megabatch.number in replayed])
        for number, mask in rows.items():
            if Chosen.of(mask) != replayed[number]:
                findings.append(f"the rows of megabatch {number} that are replayed are not those of then")
        given = given_of(store, inputs, recipe, before, rows)
    except MissingBlob as missing:
        return _There(None, (str(missing),), tuple(findings))
    except (CorruptBlob, KeyError) as corrupt:
        return _There(None, (), (*findings, f"an input is not what it was: {corrupt}"))
    return _There(Work(inputs, given, before), (), tuple(findings))


def _against_the_log(subject: Subject) -> Iterator[str]:
    """What the version's row says, and the log does not."""
    version, entry = subject.version, subject.published
    if entry is None:
        yield f"no entry of the log tells version {version.number}"
        return
    outputs, said = {*entry.document["outputs"]}, entry.document["parameters"]
    for of, file, left in subject.cut:
        outputs |= {left} if of == version.number and file in outputs else set()
    for name in FILES:
        if getattr(version, name) not in outputs:
            yield f"entry {entry.seq} does not name the version's {name}"
    if said.get("mask_digest") != version.mask_digest:
        yield f"entry {entry.seq} says that the version's masks are {said.get('mask_digest')}"
    inputs = subject.inputs
    if (inputs.model, inputs.version, inputs.cycle) != (version.model, version.number, version.cycle):
        yield "the inputs are those of another version"


def _gone(store: Store, tx: Transaction, inputs: Inputs, megabatches: list[Megabatch]) -> Iterator[str]:
    """Inputs that are not there any more, and why."""
    if (origin := inputs.parent) is not None:
        parent = tx.ledger.version(inputs.model, str(origin.version))
        if parent.swept_at is not None:
            why = f"given up on {parent.swept_at:%Y-%m-%d}: {parent.swept_reason}"
            yield f"checkpoint and state of version {origin.version}, its parent ({why})"
    now = {megabatch.number: megabatch for megabatch in megabatches}
    for fed in inputs.megabatches:
        found = now[fed.number]
        if found.status is MegabatchStatus.ERASED:
            yield f"megabatch {fed.number} (erased{_when(found)})"
        elif (found.x, found.y, found.ids) != (fed.x, fed.y, fed.ids):
            yield f"{fed.examples - found.examples} examples of megabatch {fed.number} (erased{_when(found)})"
    if (asked := inputs.evaluation) is not None:
        sets = {found.revision: found for found in tx.buffer.evaluation_sets(tx.ledger.model(inputs.model))}
        present = sets.get(asked.revision)
        if present is None or (present.x, present.y, present.ids) != (asked.x, asked.y, asked.ids):
            yield f"examples of the evaluation set, revision {asked.revision} (erased)"
    if inputs.initial_weights is not None and not store.blobs.has(inputs.initial_weights):
        yield f"the initial weights ({inputs.initial_weights})"


def _when(megabatch: Megabatch) -> str:
    return f" on {megabatch.erased_at:%Y-%m-%d}" if megabatch.erased_at else ""


def _conditions(inputs: Inputs, device: torch.device) -> tuple[str, ...]:
    here = environment(device)
    return tuple(
        f"{key} was {inputs.environment.get(key)} and is {value}"
        for key, value in here.items()
        if inputs.environment.get(key) != value
    )


# -- running and comparing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ran:
    """What came out. ``files``: digests by name, where the whole cycle was run."""

    events: tuple[Event, ...]
    falls: Falls
    files: Mapping[str, Digest] | None


def _run(work: Work, until: int | None, device: torch.device, observe: Observer) -> _Ran:
    if until is not None:
        return _Ran(*pruned_to(work.given, until, device=device, observe=observe), None)
    result: CycleResult = (
        initial_version(work.given, device=device)
        if work.given.initial is not None
        else run_cycle(work.given, device=device, observe=observe)
    )
    made = outputs_of(work, result)
    return _Ran(result.events, result.falls, {name: sha256_digest(getattr(made, name)) for name in FILES})


def _compared(store: Store, subject: Subject, found: tuple[str, ...], ran: _Ran, about: Report) -> Report:
    """Compare what came out with the log and with the files."""
    steps = tuple(_steps(subject, ran.events, about.until))
    differences = [
        f"pruning step {step.step} is not as entry {step.seq} says: {', '.join(step.differing)}"
        for step in steps
        if step.differing
    ]
    files = None
    if ran.files is not None:
        files = {name: getattr(subject.version, name) == digest for name, digest in ran.files.items()}
        differences += [*_others(subject, ran.events)]
        differences += [f"its {name} is not the version's" for name, same in files.items() if not same]
    layers, why = _layers(store, subject.version, ran.falls, about.until)
    about = replace(about, findings=found, steps=steps, layers=layers, files=files)
    return _judged(about, [*differences, *why])


def _judged(about: Report, differences: list[str]) -> Report:
    """The outcome: under other conditions differences are no findings."""
    if about.conditions and not about.findings:
        return replace(about, outcome=Outcome.ELSEWHERE) if differences else about
    findings = (*about.findings, *differences)
    return replace(about, outcome=Outcome.DIFFERS if findings else Outcome.SAME, findings=findings)


def _steps(subject: Subject, events: tuple[Event, ...], until: int | None) -> Iterator[StepCompared]:
    """Every pruning step that was made, or that the log tells of."""
    logged = [entry for entry in subject.told if entry.kind == "mask.pruned"][:until]
    made = [_parameters(event, subject.version.cycle) for event in events if event.kind == "mask.pruned"]
    for number in range(1, max(len(logged), len(made)) + 1):
        entry = logged[number - 1] if number <= len(logged) else None
        said = entry.document["parameters"] if entry else {}
        found = made[number - 1] if number <= len(made) else {}
        names = sorted(name for name in said.keys() | found.keys() if said.get(name) != found.get(name))
        logged_as, found_as = (each.get("mask_digest_after") for each in (said, found))
        yield StepCompared(number, entry.seq if entry else None, logged_as, found_as, tuple(names))


def _others(subject: Subject, events: tuple[Event, ...]) -> Iterator[str]:
    """Entries of other kinds that are not as they were found."""
    for kind in _TOLD:
        if kind != "mask.pruned":
            logged = [entry.document["parameters"] for entry in subject.told if entry.kind == kind]
            made = [_parameters(event, subject.version.cycle) for event in events if event.kind == kind]
            if logged != made:
                yield f"{kind} is not as the log says"


def _parameters(event: Event, cycle: int) -> dict[str, Any]:
    """An event as its entry holds it."""
    said: dict[str, Any] = exact({"cycle": cycle, **event.parameters})
    return said


def _layers(
    store: Store, version: Version, falls: Falls, until: int | None
) -> tuple[tuple[LayerCompared, ...], list[str]]:
    """Differences by layer after the last step, from the version's own file; and what is wrong with that file."""
    try:
        assert version.falls is not None, "they are written down with the inputs"
        logged = decode_falls(store.blobs.read(version.falls))
    except (EspalierError, ValueError) as error:
        return (), [f"the version's falls cannot be read: {error}"]
    if {name: array.shape for name, array in logged.items()} != {name: array.shape for name, array in falls.items()}:
        return (), ["the version has other layers"]
    layers = tuple(
        LayerCompared(name, array.size, int((_standing(array, until) != _standing(logged[name], until)).sum()))
        for name, array in falls.items()
    )
    many = [f"{layer.name} ({layer.differing} of {layer.total} weights)" for layer in layers if layer.differing]
    return layers, [f"masks differ: {', '.join(many)}"] if many else []


def _standing(falls: npt.NDArray[np.uint16], until: int | None) -> npt.NDArray[np.bool_]:
    """Which weights are kept after a pruning step, or at the end."""
    later = (falls > until) & (falls != FALLEN_BEFORE) if until is not None else np.zeros(falls.shape, np.bool_)
    return np.asarray((falls == KEPT_WEIGHT) | later)
