"""Inputs: everything that a cycle was given, written down so that it can be given once more.

Knows: digests, numbers and choices, and their one spelling as bytes (docs/custody.md). Must never know: torch, HTTP,
how inputs are chosen, or what a cycle makes of them.

Laws:
    * A cycle that was killed and resumed has the same inputs, byte for byte, as one that was not.
    * Nothing of an example stands here but digests over many: an erasure leaves this as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain import Digest, EvaluationSet, InputSpec, Megabatch
from app.errors import CorruptBlob
from app.store.rows import input_document, input_of
from espalier.formats.canonical import sha256_digest

FORMAT = "espalier-inputs-1"


class Role(StrEnum):
    """Why a megabatch is there."""

    NEW = "new"
    """No ancestor has taken it in."""
    PINNED = "pinned"
    """Replayed whole."""
    REPLAYED = "replayed"
    """Some of its rows are in the parent's replay buffer."""
    RELEASED = "released"
    """Pinned no longer: the replay policy chooses among all of its rows again."""
    ASKED = "asked"
    """Its validation examples alone are asked, to measure forgetting."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows of a megabatch: how many, and the SHA-256 of them as bits, eight a byte, the first in the highest bit."""

    count: int
    digest: Digest

    @classmethod
    def of(cls, rows: npt.NDArray[np.bool_]) -> Chosen:
        """Of (n,) bool."""
        return cls(int(rows.sum()), sha256_digest(np.packbits(rows).tobytes()))


@dataclass(frozen=True, slots=True)
class Fed:
    """A megabatch that a cycle was given, as it was then.

    Attributes:
        digest: of the arrays as they were accepted.
        x, y, ids: blobs.
        pinned: whether it is replayed whole, in this cycle and in those to come.
        untested: whether no champion was tested on it before.
        rows: those that are replayed; None unless its role is ``replayed``.
    """

    number: int
    digest: Digest
    x: Digest
    y: Digest
    ids: Digest
    examples: int
    role: Role
    pinned: bool
    untested: bool
    rows: Chosen | None

    @classmethod
    def of(cls, megabatch: Megabatch, role: Role, *, pinned: bool, rows: Chosen | None) -> Fed:
        """As it is now."""
        m, untested = megabatch, role is Role.NEW and megabatch.prequential is None
        return cls(m.number, m.digest, m.x, m.y, m.ids, m.examples, role, pinned, untested, rows)


@dataclass(frozen=True, slots=True)
class Asked:
    """The evaluation set that a cycle was given."""

    revision: int
    digest: Digest
    x: Digest
    y: Digest
    ids: Digest
    examples: int

    @classmethod
    def of(cls, found: EvaluationSet) -> Asked:
        """As it is now."""
        return cls(found.revision, found.digest, found.x, found.y, found.ids, found.examples)


@dataclass(frozen=True, slots=True)
class Origin:
    """The version that a cycle started from. ``passed``: whether its guardrails let it pass."""

    version: int
    checkpoint: Digest
    state: Digest
    stage: int
    depth: int
    passed: bool


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a cycle was given.

    Attributes:
        version: the number of the version that it makes.
        attempt: retries with changed options.
        seed: the recipe's, from which every other one is derived.
        input: what the network is fed.
        parent: None in the first cycle of a fresh network.
        initial_weights: blob of the weights to start from, where the cycle starts from uploaded ones.
        megabatches: by number.
        holds: guardrails that hold pruning beside the parent's history.
        scale: share of the planned pruning step to take.
        architecture: where the user's own network comes from, as the settings said: ``module:factory``.
        environment: what may move last bits: ``torch, device, threads, machine, kernels``; and ``espalier, zstd``.
    """

    model: str
    version: int
    cycle: int
    attempt: int
    recipe_revision: int
    recipe_digest: Digest
    seed: int
    input: InputSpec
    parent: Origin | None
    initial_weights: Digest | None
    megabatches: tuple[Fed, ...]
    evaluation: Asked | None
    holds: tuple[Mapping[str, Any], ...]
    scale: float
    architecture: str | None
    environment: Mapping[str, Any]

    @property
    def new(self) -> frozenset[int]:
        """Numbers of the megabatches that no ancestor has taken in."""
        return frozenset(fed.number for fed in self.megabatches if fed.role is Role.NEW)

    @property
    def pinned(self) -> frozenset[int]:
        """Numbers of the megabatches that are replayed whole."""
        return frozenset(fed.number for fed in self.megabatches if fed.pinned)

    def among(self, numbers: Sequence[int]) -> list[Fed]:
        """Those of some numbers."""
        return [fed for fed in self.megabatches if fed.number in numbers]

    def encode(self) -> bytes:
        """As JSON: ASCII, keys in order, no spaces, floats in the shortest digits that give the same double back."""
        document = {"format": FORMAT, **asdict(self), "input": input_document(self.input)}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_inputs(data: bytes) -> Inputs:
    """What ``encode`` gave.

    Raises:
        CorruptBlob: it is not that.
    """
    try:
        document = json.loads(data)
        if document.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        inputs = Inputs(**document | _parts(document))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptBlob(f"this is no {FORMAT} file, or it is damaged: {error}") from error
    return inputs


def _parts(document: Mapping[str, Any]) -> dict[str, Any]:
    parent, evaluation = document["parent"], document["evaluation"]
    return {
        "input": input_of(document["input"]),
        "parent": Origin(**parent) if parent else None,
        "evaluation": Asked(**evaluation) if evaluation else None,
        "megabatches": tuple(map(_fed, document["megabatches"])),
        "holds": tuple(document["holds"]),
    }


def _fed(document: Mapping[str, Any]) -> Fed:
    rows = document["rows"]
    return Fed(**{**document, "role": Role(document["role"]), "rows": Chosen(**rows) if rows else None})
