"""``espalier batch``: push, look at and pin megabatches, and keep them from training: for a while, or for good."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.waiting import wait_for
from espalier.console import NONE, count, plural, share, size, when
from espalier.download import BLOCK
from espalier.records import CHAMPION, Drift, Erased, Megabatch, Prequential, Shift, SortedMegabatch
from espalier.session import UNPUBLISHED, Limit, ModelName, Reason, Session, command, group

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Number of the megabatch.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    batch = group(app, "batch", "Megabatches: push, list, show, pin, unpin, quarantine, release, erase.")
    command(batch, "push")(push)
    command(batch, "list")(list_megabatches)
    command(batch, "show")(show)
    command(batch, "pin")(pin)
    command(batch, "unpin")(unpin)
    command(batch, "quarantine")(quarantine)
    command(batch, "release")(release)
    command(batch, "erase")(erase)


def push(
    session: Session,
    name: ModelName,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            help="An npz file with the members x and y; a Parquet, Arrow, CSV or JSON lines file with a column of "
            "labels; a zip or tar of images, or a folder of them.",
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the cycle that it sets off has ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Longest wait in seconds.", show_default="as long as it takes")
    ] = None,
) -> None:
    """Upload a megabatch. The same content again changes nothing, so it is safe to repeat; a large file that was cut
    off, by Ctrl-C too, goes on where it was.
    """
    with session.bars() as bars:
        stage, sent = bars.stage("uploading"), _Sent()
        megabatch = session.client.upload(name, file, progress=lambda done, total: stage.at(*sent.at(done, total)))
        stage.done(f"{size(sent.total)}   {_accepted(megabatch)}")
    if megabatch.evaluation_overlap:
        session.remark(
            f"{plural(megabatch.evaluation_overlap, 'example')} left out of training: the evaluation set holds "
            f"{'it' if megabatch.evaluation_overlap == 1 else 'them'} too"
        )
    cycle, version = None, None
    if megabatch.cycle is not None and wait:
        cycle, version = wait_for(session, name, megabatch.cycle, timeout)
    elif megabatch.cycle is not None:
        session.remark(f"cycle {megabatch.cycle} is queued: `espalier cycle watch {name} {megabatch.cycle}`")
    elif wait:
        session.remark(_no_cycle(megabatch))
    if session.as_json:
        session.document({"megabatch": megabatch, "cycle": cycle, "version": version})
    if cycle is not None and cycle.state != "published":
        raise typer.Exit(UNPUBLISHED)


def list_megabatches(session: Session, name: ModelName, limit: Limit = 1000) -> None:
    """List a model's megabatches, in order of arrival."""
    megabatches = list(session.client.megabatches(name, limit))
    rows = [
        (
            megabatch.number,
            _status(megabatch),
            count(megabatch.examples),
            NONE if megabatch.evaluation_overlap is None else count(megabatch.evaluation_overlap),
            size(megabatch.bytes),
            share(megabatch.prequential.accuracy if megabatch.prequential else None),
            megabatch.prequential.version if megabatch.prequential else NONE,
            when(megabatch.received_at),
        )
        for megabatch in megabatches
    ]
    columns = ("megabatch", "status", "examples", "evaluation", "size", "on arrival", "by version", "received")
    session.table(megabatches, columns, rows, f"{name} has no megabatches yet: `espalier batch push {name} FILE`")


def show(session: Session, name: ModelName, number: Number) -> None:
    """Show one megabatch: classes, digest, how the champion did on it on arrival, how far it lies from the past."""
    megabatch = session.client.megabatch(name, number)
    tested = megabatch.prequential
    rows: dict[str, object] = {
        "megabatch": f"{megabatch.model} {megabatch.number}",
        "status": _status(megabatch),
        "digest": megabatch.digest,
        "examples": f"{count(megabatch.examples)} of {_shape(megabatch)} {megabatch.dtype or ''}",
        "size": size(megabatch.bytes),
        "in evaluation set": NONE if megabatch.evaluation_overlap is None else count(megabatch.evaluation_overlap),
        "on arrival": "not tested yet"
        if tested is None
        else f"accuracy {share(tested.accuracy)}, {_loss(tested)}, by version {tested.version}",
        "received": when(megabatch.received_at),
    }
    if tested is not None and tested.drift is not None:
        rows |= _drift(tested.drift)
    session.pairs(megabatch, rows | {f"  {label}": count(n) for label, n in megabatch.histogram.items()})


def pin(session: Session, name: ModelName, number: Number, reason: Reason) -> None:
    """Replay a megabatch in every cycle from now on, whatever the replay policy keeps."""
    megabatch = session.client.pin(name, number, reason)
    quarantined = "; it is quarantined, so it is not replayed" if megabatch.status == "quarantined" else ""
    session.result(megabatch, f"megabatch {number} of {name} is pinned{quarantined}")


def unpin(session: Session, name: ModelName, number: Number, reason: Reason) -> None:
    """Leave a megabatch to the replay policy again."""
    megabatch = session.client.unpin(name, number, reason)
    session.result(megabatch, f"megabatch {number} of {name} is not pinned: the replay policy decides about it")


def quarantine(session: Session, name: ModelName, number: Number, reason: Reason) -> None:
    """Keep a megabatch out of all training until it is released. Versions that saw it stay."""
    done = session.client.quarantine(name, number, reason)
    session.result(done, f"megabatch {number} of {name} is quarantined{_cycles(done)}")


def release(session: Session, name: ModelName, number: Number, reason: Reason) -> None:
    """Let a megabatch out of quarantine: the next cycle may train on it again."""
    done = session.client.release(name, number, reason)
    session.result(done, f"megabatch {number} of {name} may be trained on{_cycles(done)}")
    if done.queued_cycle is None:
        session.remark(f"no cycle is queued for it: `espalier cycle start {name}` trains now")


def erase(
    session: Session,
    name: ModelName,
    reason: Reason,
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="[NUMBER]...", min=1, help="Numbers of megabatches that go whole.")
    ] = None,
    sample: Annotated[
        list[str] | None,
        typer.Option("--sample", metavar="ID", help="Id of a single example, repeatable; it goes from wherever it is."),
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Go on from the champion's nearest ancestor that never saw it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
) -> None:
    """Remove values from the service for good: whole megabatches, or single examples. Says what will happen, and asks.

    Versions that were trained on them stay, and are listed.
    """
    samples = [_id(text) for text in sample or ()]
    if not numbers and not samples:
        raise typer.BadParameter("name megabatches by number, or single examples by --sample ID")
    if session.as_json and not (yes or dry_run):
        raise typer.BadParameter("--json cannot ask: add --yes to erase, or --dry-run to look")

    def asked(preview: bool) -> Erased:
        return session.client.erase(
            name, numbers or (), samples=samples, reason=reason, retrain=retrain, preview=preview
        )

    if dry_run:
        found = asked(True)
        session.result(found, *_told(found, retrain))
        return
    if not yes:
        session.result({}, *_told(asked(True), retrain))
        typer.confirm("Erase this for good?", abort=True)
    done = asked(False)
    session.result(done, *(_told(done, retrain) if yes else _done(done)))


class _Sent:
    """How far an upload is, in words."""

    def __init__(self) -> None:
        self.total = 0
        self._resumed = 0

    def at(self, done: int, total: int | None) -> tuple[int, int | None, str]:
        """What a bar shows."""
        if self.total == 0:
            self._resumed = done if done < (total or 0) and done > BLOCK else 0
        self.total = total or done
        resumed = f", {size(self._resumed)} of them before" if self._resumed else ""
        return done, total, f"{size(done)} of {size(self.total)}{resumed}"


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise typer.BadParameter(f"--sample {text}: an id is a number; `espalier version samples` lists them")
    return int(text)


def _cycles(done: SortedMegabatch) -> str:
    ended = f"; {plural(len(done.superseded_cycles), 'open cycle')} superseded" if done.superseded_cycles else ""
    return ended + ("" if done.queued_cycle is None else f"; cycle {done.queued_cycle} queued in its place")


def _told(found: Erased, retrain: bool) -> list[str]:
    """What an erasure would do, or did, in lines."""
    will = found.preview
    lines = [
        f"megabatch {one.megabatch}: {plural(one.erased, 'example')} {'would go' if will else 'went'}, "
        f"{count(one.left) if one.left else 'none'} left"
        for one in found.megabatches
    ]
    if found.evaluation_examples:
        lines.append(f"evaluation set: {plural(found.evaluation_examples, 'example')} {'would go' if will else 'went'}")
    lines += [f"megabatch {number}: erased before" for number in found.already]
    lines += [f"example {id}: nothing holds it" for id in found.absent]
    if found.versions:
        named = "".join(f", {alias} is {number}" for alias, number in found.aliases.items())
        lines.append(f"versions that took it in, and stay: {', '.join(map(str, found.versions))}{named}")
    if will and found.superseded_cycles:
        lines.append(f"{plural(len(found.superseded_cycles), 'open cycle')} would be superseded")
    return lines + (_ahead(found, retrain) if will else _done(found))


def _ahead(found: Erased, retrain: bool) -> list[str]:
    if found.anew:
        return ["no ancestor of the champion is clean: the next cycle would begin afresh"]
    if CHAMPION not in found.aliases or found.clean is None:
        return []
    if retrain:
        return [f"the champion would go back to version {found.clean}"]
    return [f"the champion's nearest clean ancestor is version {found.clean}: --retrain goes on from there"]


def _done(done: Erased) -> list[str]:
    """What followed."""
    parts = ["erased" if done.changes else "nothing was erased"]
    if done.champion is not None:
        parts.append(f"champion {done.aliases.get(CHAMPION, NONE)} -> {done.champion.version}")
    parts += ["the next cycle begins afresh"] if done.anew else []
    if done.superseded_cycles:
        parts.append(f"{plural(len(done.superseded_cycles), 'open cycle')} superseded")
    parts += [] if done.queued_cycle is None else [f"cycle {done.queued_cycle} queued for what is left"]
    lines = ["; ".join(parts)]
    if done.shared:
        lines.append(f"{plural(len(done.shared), 'file')} stay, since other rows name the same bytes")
    if done.pending:
        lines.append("some bytes could not be removed yet: a worker's next sweep does; `espalier doctor` names them")
    return lines


def _status(megabatch: Megabatch) -> str:
    return f"{megabatch.status}, pinned" if megabatch.pinned else megabatch.status


def _loss(tested: Prequential) -> str:
    return "none of its classes known" if tested.loss is None else f"loss {tested.loss:.3f}"


def _drift(drift: Drift) -> dict[str, object]:
    """Each figure in a line, and the features that drifted most in another."""
    rows: dict[str, object] = {}
    if drift.inputs is not None:
        part = "unit" if drift.inputs.of == "embedding" else "feature"
        most = ", ".join(f"{part} {each.index} {share(each.effect)}" for each in drift.inputs.features)
        rows |= {"input drift": _shift(drift.inputs), "most drifted": f"{most} (of {count(drift.inputs.width)})"}
    if drift.labels is not None:
        rows["label shift"] = _shift(drift.labels)
    if drift.accuracy is not None:
        rows["prequential drop"] = _shift(drift.accuracy)
    return rows


def _shift(shift: Shift) -> str:
    compared = f"{plural(shift.examples, 'example')} against {count(shift.reference)}"
    return f"{share(shift.effect)}, p = {shift.p_value:.2g}, {compared}{': ALARM' if shift.alarm else ''}"


def _accepted(megabatch: Megabatch) -> str:
    present = sum(1 for examples in megabatch.histogram.values() if examples)
    content = f"{plural(megabatch.examples, 'example')}, {plural(present, 'class', 'classes')}"
    if megabatch.replayed:
        return f"there already as megabatch {megabatch.number} ({content})"
    return f"accepted as megabatch {megabatch.number} ({content})"


def _shape(megabatch: Megabatch) -> str:
    return " x ".join(map(str, megabatch.shape or ()))


def _no_cycle(megabatch: Megabatch) -> str:
    if megabatch.replayed:
        return "nothing to wait for: it was there already, and no cycle is waiting for it"
    return (
        "nothing to wait for: the recipe's trigger is not met yet, or the model is paused; "
        f"`espalier cycle start {megabatch.model} --wait` trains now"
    )
