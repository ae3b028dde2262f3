"""Stamps: which version, by which bytes, made a decision.

Knows: what identifies a version's bytes, and how a batch of decisions is hashed (docs/custody.md). Must never know: a
service, or how a network answers.

Laws:
    * A stamp's digest is of the sparse checkpoint's bytes, also in a dense file, which carries it.
    * Equal decisions in the same order have the same batch digest, on every machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from espalier.errors import CheckpointMismatch
from espalier.formats import reader
from espalier.formats.canonical import canonical_json, exact, sha256_digest

CARRIED = "checkpoint"
"""Of a dense file's manifest: digest of the sparse checkpoint that it was made from."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which version made a decision: the model, the version's number, and the digest of its sparse checkpoint."""

    model: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.model}:{self.version} {self.digest}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, and by which version.

    Attributes:
        stamp: of the version that decided.
        answer: the name of a class.
        confidence: probability in [0, 1] that the version gave its answer; None where none is known.
        example: your own name for what was decided about.
        made_at: when, aware.
    """

    stamp: Stamp
    answer: str
    confidence: float | None = None
    example: str | None = None
    made_at: datetime | None = None


def stamp_of(manifest: Mapping[str, Any], digest: str) -> Stamp:
    """The stamp of a checkpoint with this manifest and digest.

    Raises:
        CheckpointMismatch: they do not say which version it is.
    """
    model, version = manifest.get("model"), manifest.get("version")
    if not isinstance(model, str) or type(version) is not int or not digest:
        raise CheckpointMismatch(
            "this checkpoint cannot stamp a decision: it does not say which version of which model it is, "
            "or it was not read from a file; download a version with `espalier version pull`"
        )
    return Stamp(model, version, digest)


def read_stamp(path: str | os.PathLike[str]) -> Stamp:
    """The stamp of a downloaded file, sparse or dense, without unfolding it.

    Raises:
        CheckpointMismatch: it is neither, is damaged, or does not carry a stamp.
        OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        manifest, stored = reader.container(data, json.loads)
        dense = any(layer["name"] in stored for layer in manifest.get("layers", ()))
    except (UnicodeError, LookupError, OverflowError, RecursionError, ValueError, *reader.STRANGE) as error:
        raise CheckpointMismatch(f"this is no checkpoint, or it is damaged: {error}") from None
    if dense and not isinstance(manifest.get(CARRIED), str):
        raise CheckpointMismatch(
            "this dense file does not carry the digest of its checkpoint: the version is older than that; "
            "download it with format=sparse"
        )
    return stamp_of(manifest, manifest[CARRIED] if dense else sha256_digest(data))


def batch_digest(decisions: Iterable[Mapping[str, Any]]) -> str:
    """Digest of a batch: of the canonical JSON of a list of objects, one a decision, in their order.

    Args:
        decisions: ``version``, ``checkpoint`` (its digest), ``example`` (or None), ``answer``, ``confidence`` (or None)
            and ``made_at`` (aware), which is spelled in UTC with six digits after the second and ``Z``; the confidence
            is a string of its shortest digits.
    """
    rows = [{**decision, "made_at": spelled(decision["made_at"])} for decision in decisions]
    return sha256_digest(canonical_json(exact(rows)))


def spelled(time: datetime) -> str:
    """A time in UTC: ``2026-03-02T09:30:00.000000Z``.

    Raises:
        ValueError: it does not say in which time zone it is.
    """
    if time.tzinfo is None:
        raise ValueError(f"{time.isoformat()} does not say in which time zone it is: give an aware time")
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
