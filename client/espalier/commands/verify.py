"""``espalier verify``: a bundle, checked on this machine without a service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from espalier.console import count, plural, size
from espalier.errors import EspalierClientError, ProofRejected
from espalier.evidence import read_keys
from espalier.formats import bundle, statement
from espalier.formats.archive import Archive
from espalier.formats.bundle import VerifiedBundle, verify_bundle
from espalier.formats.note import VerifierKey
from espalier.session import AsJson, Quiet, Session


def register(app: typer.Typer) -> None:
    """Add the command. It needs no service, so ``--key`` is the log's here."""
    app.command("verify")(verify)


def verify(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A bundle, as downloaded.")],
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            "--log-key",
            help="Public key of the service's audit log, or a file with it [env: ESPALIER_LOG_KEY].",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle with the log's public key alone: no service, no network.

    The checkpoint, its manifest, its whole lineage and the card must be those that the service signed, and the lineage
    must stand in its log. Without a key nothing can be called verified: the exit code is 4 then, too.
    """
    outer = ctx.obj if isinstance(ctx.obj, Session) else Session()
    with outer.with_options(None, None, as_json, quiet) as session:
        chosen = key or os.environ.get("ESPALIER_LOG_KEY")
        keys = read_keys(chosen) if chosen else _untrusted(file)
        with session.bars() as bars:
            stage = bars.stage("verifying")
            found = verify_bundle(
                file, keys, progress=lambda at, total: stage.at(at, total, f"{size(at)} of {size(total)}")
            )
            if chosen:
                stage.done("every member is what was signed, and every entry is in the log")
        if not chosen:
            raise ProofRejected(
                f"{file} is NOT verified: it agrees with itself, but nobody knows who signed it. Give the key of the "
                f"log with --key, from a source that you trust; the bundle says that it is {keys[0].text}"
            )
        session.result(document_of(found), *_lines(found))


def _untrusted(file: Path) -> tuple[VerifierKey, ...]:
    """The keys that a bundle names itself: enough to find damage, and to be told what to ask for."""
    with Archive(file) as archive:
        text = archive.read(bundle.KEYS, 1 << 20).decode("utf-8", "replace")
    try:
        return read_keys(text)
    except EspalierClientError as error:
        raise ProofRejected(f"{bundle.KEYS}: {error}") from None


def document_of(found: VerifiedBundle) -> dict[str, object]:
    """What was verified, for programs."""
    return {
        "verified": True,
        "model": found.model,
        "version": found.version,
        "checkpoint": {"name": found.checkpoint, "digest": found.digest, "bytes": found.bytes},
        "signers": [key.text for key in found.signers],
        "log": {"origin": found.log.origin, "size": found.log.size, "root": found.log.root.hex()},
        "entries": found.entries,
        "lineage": [made.version for made in found.lineage],
        "pruning_steps": found.pruning_steps,
        "grown": list(found.grown),
    }


def _lines(found: VerifiedBundle) -> list[str]:
    line = found.lineage
    came = "the first of its line" if len(line) == 1 else f"down from version {line[-1].version}, without a gap"
    lines = [
        f"{found.model}:{found.version} is verified",
        f"signed by   {', '.join(statement.key_id(key) for key in found.signers)}",
        f"checkpoint  {found.checkpoint}: {size(found.bytes)} hash to {found.digest}",
        "manifest    the one in the checkpoint is the one that was signed",
        f"log         {plural(found.entries, 'entry', 'entries')}, each in the log of {count(found.log.size)} of "
        f"{found.log.origin}",
        f"lineage     {plural(len(line), 'version')}, {came}",
        f"masks       follow from one another over {plural(found.pruning_steps, 'pruning step')}",
    ]
    if found.grown:
        numbers = ", ".join(map(str, sorted(found.grown)))
        lines.append(f"            but for version {numbers}, where a class was added: masks cannot be compared there")
    return lines
