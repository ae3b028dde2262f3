"""``espalier evaluation``: a model's evaluation set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.console import count, plural, size, when
from espalier.records import EvaluationSet
from espalier.session import ModelName, Session, command, group


def register(app: typer.Typer) -> None:
    """Add the commands."""
    evaluation = group(app, "evaluation", "Evaluation set: push, show.")
    command(evaluation, "push")(push)
    command(evaluation, "show")(show)


def push(
    session: Session,
    name: ModelName,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="An npz file with the members x and y.")
    ],
) -> None:
    """Set a model's evaluation set, instead of the one before. The same content again changes nothing."""
    with session.bars() as bars:
        stage = bars.stage("uploading")
        found = session.client.set_evaluation(
            name, file, progress=lambda sent, total: stage.at(sent, total, f"{size(sent)} of {size(total or sent)}")
        )
        stage.done(f"{size(file.stat().st_size)}   {_taken(found)}")
    if found.overlap:
        session.remark(
            f"{plural(found.overlap, 'example')} of {name}'s megabatches {'is' if found.overlap == 1 else 'are'} in it "
            f"too and will not be trained on: `espalier batch list {name}` says which megabatches hold them"
        )
    if session.as_json:
        session.document(found)


def show(session: Session, name: ModelName) -> None:
    """Show a model's evaluation set: classes, digest, and how many training examples are in it too."""
    found = session.client.evaluation_set(name)
    rows: dict[str, object] = {
        "evaluation set": f"{found.model}, revision {found.revision}",
        "digest": found.digest,
        "examples": f"{count(found.examples)} of {' x '.join(map(str, found.shape or ()))} {found.dtype or ''}",
        "size": size(found.bytes),
        "in megabatches": plural(found.overlap, "example") if found.overlap else "none of its examples",
        "set": when(found.set_at),
    }
    session.pairs(found, rows | {f"  {label}": count(n) for label, n in found.histogram.items()})


def _taken(found: EvaluationSet) -> str:
    present = sum(1 for examples in found.histogram.values() if examples)
    content = f"{plural(found.examples, 'example')}, {plural(present, 'class', 'classes')}"
    if found.replayed:
        return f"in force already as revision {found.revision} ({content})"
    return f"in force as revision {found.revision} ({content})"
