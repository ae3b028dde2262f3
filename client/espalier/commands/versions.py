"""``espalier version``: results, and their bytes."""

from __future__ import annotations

import shlex
import subprocess
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier.commands.waiting import champion_of, standing, version_line
from espalier.console import NONE, count, plural, share, size, when
from espalier.errors import CheckpointMismatch, DigestMismatch, EspalierClientError
from espalier.formats.canonical import sha256_digest
from espalier.formats.checkpoint import decode, mask_digest
from espalier.records import CHAMPION, AuditEntry, Version
from espalier.session import Limit, ModelName, Ref, Session, command, group


class Form(StrEnum):
    """How a checkpoint's tensors are written."""

    SPARSE = "sparse"
    DENSE = "dense"
    BUNDLE = "bundle"


_FORMS: dict[Form, Literal["sparse", "dense", "bundle"]] = {
    Form.SPARSE: "sparse",
    Form.DENSE: "dense",
    Form.BUNDLE: "bundle",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    version = group(app, "version", "Versions: list, show, pull, verify, watch.")
    command(version, "list")(list_versions)
    command(version, "show")(show)
    command(version, "pull")(pull)
    command(version, "verify")(verify)
    command(version, "watch")(watch)


def list_versions(session: Session, name: ModelName, limit: Limit = 20) -> None:
    """List a model's versions, newest first."""
    versions = list(session.client.versions(name, limit))
    champion = champion_of(session, name)
    rows = [
        (
            version.number,
            NONE if version.parent is None else version.parent,
            version.status + (f", {CHAMPION}" if version.number == champion else ""),
            version.stage,
            share(version.density),
            share(version.metrics.get("validation_accuracy")),
            share(version.metrics.get("prequential_accuracy")),
            share(version.metrics.get("generalization_gap")),
            size(version.checkpoint.bytes),
            size(version.checkpoint.dense_bytes),
            when(version.created_at),
        )
        for version in versions
    ]
    columns = (
        "version", "parent", "status", "stage", "density", "validation", "on arrival", "gap", "size", "dense", "created"
    )  # fmt: skip
    session.table(versions, columns, rows, f"{name} has no versions yet: `espalier batch push {name} FILE --wait`")


def show(session: Session, version: Ref) -> None:
    """Show one version: verdict, metrics, layers, digests."""
    found = session.client.version(version)
    rows: dict[str, object] = {
        "version": f"{found.model}:{found.number}",
        "status": standing(session, found),
        "parent": NONE if found.parent is None else f"version {found.parent}",
        "stage": f"{found.stage} (cycle {found.cycle}, {plural(found.megabatches, 'megabatch', 'megabatches')})",
        "density": f"{share(found.density)} (target {share(found.target_density)})",
        "checkpoint": f"{size(found.checkpoint.bytes)} (dense {size(found.checkpoint.dense_bytes)})",
        "digest": found.checkpoint.digest,
        "masks": found.mask_digest or NONE,
        "recipe": f"revision {found.recipe_revision}, {found.recipe_digest}",
        "created": when(found.created_at),
    }
    rows |= {f"  {name.replace('_', ' ')}": f"{value:.4g}" for name, value in found.metrics.items()}
    rows |= {
        f"  {layer.name}": f"{' x '.join(map(str, layer.shape))}   density {share(layer.density)}   "
        f"{count(layer.kept)} of {count(layer.total)}"
        for layer in found.layers
    }
    session.pairs(found, rows)


def pull(
    session: Session,
    version: Ref,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File, or folder for NAME-NUMBER.safetensors, or .zip.")
    ] = Path(),
    format: Annotated[
        Form,
        typer.Option(
            help="Mask bits and kept values; plain safetensors; or a zip of the first with its lineage, signed."
        ),
    ] = Form.SPARSE,
    proof: Annotated[
        bool, typer.Option("--proof", help="Prove too that the audit log's signed checkpoint covers it.")
    ] = False,
) -> None:
    """Download a checkpoint: resumed where an earlier try broke off, verified, then renamed into its place."""
    found = session.client.version(version)
    proved = proof or bool(session.client.log.given and format is not Form.DENSE)
    with session.bars() as bars:
        stage = bars.stage("downloading")
        path = session.client.download(
            found,
            output,
            format=_FORMS[format],
            verify="log" if proved else "digest",
            progress=lambda got, total: stage.at(got, total, f"{size(got)} of {size(total or got)}"),
        )
        how = "digest verified, and proved to be in the log" if proved else "digest verified"
        stage.done(f"{size(path.stat().st_size)}   {how}")
    document = {"path": str(path), "format": format.value, "bytes": path.stat().st_size, "version": found}
    session.result(document | {"proved": proved}, f"{found.model}:{found.number} -> {path}")
    if format is Form.BUNDLE:
        session.remark(f"check it anywhere, without this service: espalier verify {path} --key KEY")


def verify(
    session: Session,
    version: Ref,
    file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A sparse checkpoint on this machine, instead of the service's."
        ),
    ] = None,
) -> None:
    """Check a checkpoint: its bytes, its masks, and that the audit log, checked whole, says the same."""
    found = session.client.version(version)
    data = session.client.checkpoint_bytes(found) if file is None else file.read_bytes()
    if (digest := sha256_digest(data)) != found.checkpoint.digest:
        raise DigestMismatch(
            f"{file} hashes to {digest}, but {found.model}:{found.number} is {found.checkpoint.digest}: "
            f"it is another version or damaged; `espalier version pull {found.model}:{found.number}` fetches it"
        )
    checkpoint = decode(data)
    if found.mask_digest not in (None, mask_digest(checkpoint.masks)):
        raise CheckpointMismatch("the checkpoint's masks are not those that the service recorded for this version")
    entries: list[int] = []

    def note(entry: AuditEntry, _: int) -> None:
        if entry.model == found.model and digest in entry.fact.get("outputs", ()):
            entries.append(entry.seq)

    size_of_log = session.client.verify_log(note)
    if not entries:
        raise DigestMismatch(f"no audit entry names {digest} as an output: the log does not know this checkpoint")
    session.result(
        {"version": found, "digest": digest, "density": checkpoint.density, "entries": entries, "log": size_of_log},
        f"{found.model}:{found.number} is sound: {size(len(data))} hash to {digest}, "
        f"density {share(checkpoint.density)} counted,",
        f"named by audit {'entry' if len(entries) == 1 else 'entries'} {', '.join(map(str, entries))} "
        f"of a log of {count(size_of_log)} that was checked whole",
    )


def watch(
    session: Session,
    version: Ref,
    pull: Annotated[
        Path | None, typer.Option("--pull", "-d", file_okay=False, help="Folder to download each version to.")
    ] = None,
    execute: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="CMD",
            help="Command to run for each version; {model}, {number} and {path} in its words are filled in. "
            "One that fails ends the watch.",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks, where the service does not wait by itself.")
    ] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="End after the first version.")] = False,
) -> None:
    """Say which version an alias names, and again whenever it names another one, until interrupted."""
    words = _words(execute)
    stop = threading.Event()

    def changed(found: Version, path: Path | None) -> None:
        if session.as_json:
            session.document({"path": None if path is None else str(path), "version": found}, compact=True)
        else:
            session.result(found, version_line(session, found) + ("" if path is None else f"   -> {path}"))
        if words:
            _execute([word.format(model=found.model, number=found.number, path=path or "") for word in words])
        if once:
            stop.set()

    session.client.watch(version, changed, interval=interval, stop=stop, directory=pull)


def _words(command: str | None) -> list[str]:
    try:
        words = shlex.split(command or "")
        for word in words:
            word.format(model="", number=0, path="")
    except (ValueError, LookupError, AttributeError) as error:
        message = f"{command}: {error}; {{model}}, {{number}} and {{path}} are filled in, other braces are doubled"
        raise typer.BadParameter(message, param_hint="--exec") from error
    return words


def _execute(words: list[str]) -> None:
    """Run a command to its end.

    Raises:
        EspalierClientError: it cannot be run, or ended with another status than 0.
    """
    try:
        status = subprocess.run(words, check=False).returncode
    except OSError as error:
        raise EspalierClientError(f"cannot run {words[0]}: {error.strerror}") from error
    if status:
        raise EspalierClientError(f"{shlex.join(words)} ended with status {status}: the watch ends too")
