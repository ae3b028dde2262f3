"""Decisions: keeping with the service what was decided with which version.

Knows: stamps, batches, and how a batch is sent so that it is kept once. Must never know: whether a decision was right.

Laws:
    * What ``log`` returns for is kept; what it raises for was not, but for the batches that the error's note names.
    * Sending the very same decisions again keeps them once, as long as the service remembers the first time.
    * A buffer drops nothing: what could not be sent stays in it, and closing it raises rather than forgets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from espalier.errors import DigestMismatch, EspalierClientError
from espalier.formats.stamp import Decision, Stamp, batch_digest, spelled
from espalier.records import Record
from espalier.resources import every
from espalier.transport import Transport, json_of, path_of

MOST_ROWS, MOST_BYTES = 5000, 900_000
"""Decisions, and about the bytes of their JSON, in one request: the service takes 10,000 and 1 MiB."""


@dataclass(frozen=True)
class Recorded(Record):
    """A batch that was kept: how many, the digest of the batch, and the numbers of the first and the last."""

    count: int
    digest: str
    first: int
    last: int


@dataclass(frozen=True)
class KeptDecision(Record):
    """A decision, as the service keeps it."""

    id: int
    version: int
    checkpoint: str
    example: str | None
    answer: str
    confidence: float | None
    made_at: datetime
    actor: str
    received_at: datetime


class Decisions:
    """``client.decisions``."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def log(
        self,
        decisions: Stamp | Iterable[Decision],
        answers: Sequence[str] | None = None,
        *,
        confidences: Sequence[float] | None = None,
        examples: Sequence[str] | None = None,
        made_at: datetime | None = None,
    ) -> list[Recorded]:
        """Have decisions kept: those that ``Checkpoint.decide`` gave, or answers under a stamp.

        Args:
            decisions: decisions, of any models; or the stamp of the version that gave the answers.
            answers: with a stamp, what was decided: names of classes.
            confidences: with a stamp, the probability of each answer.
            examples: with a stamp, your own name for what each was decided about.
            made_at: when (aware), where a decision does not say; by default now.

        Returns:
            What was kept, batch by batch.

        Raises:
            ApiProblem: with status 422 when a stamp is not of this service's versions.
            DigestMismatch: the service kept something else than was sent.
            ValueError: the columns have different lengths, or a time has no zone.
        """
        rows = _stamped(decisions, answers, confidences, examples) if isinstance(decisions, Stamp) else list(decisions)
        now = made_at or datetime.now(UTC)
        rows = [row if row.made_at is not None else replace(row, made_at=now) for row in rows]
        kept: list[Recorded] = []
        for batch in batches(rows):
            try:
                kept.append(self.send(batch))
            except EspalierClientError as error:
                if kept:
                    error.add_note(f"{sum(done.count for done in kept)} of {len(rows)} decisions were kept before that")
                raise
        return kept

    def send(self, batch: Sequence[Decision]) -> Recorded:
        """Have one batch kept, whole or not at all: decisions of one model, each with its time."""
        digest = batch_digest(map(_document, batch))
        body = {
            "checkpoints": {str(row.stamp.version): row.stamp.digest for row in batch},
            "decisions": [_json(row) for row in batch],
        }
        answer = self._http.request(
            "POST",
            path_of("models", batch[0].stamp.model, "decisions"),
            json=body,
            headers={"Idempotency-Key": f"decisions-{digest}"},
            repeatable=True,
        )
        kept = Recorded.from_json(json_of(answer))
        if (kept.digest, kept.count) != (digest, len(batch)):
            raise DigestMismatch(f"the service kept {kept.count} decisions as {kept.digest}, but {digest} was sent")
        return kept

    def list(
        self,
        name: str,
        *,
        version: int | None = None,
        example: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[KeptDecision]:
        """Decisions of a model, those made last first.

        Args:
            name: the model.
            version: made with this version only.
            example: about this example only.
            since, until: made at or after, and before; aware.
            limit: at most this many; None: all.
        """
        times = {key: None if at is None else spelled(at) for key, at in (("since", since), ("until", until))}
        chosen: dict[str, Any] = {"version": version, "example": example, **times}
        return every(self._http, KeptDecision, path_of("models", name, "decisions"), limit, **chosen)

    def buffer(self, size: int = 1000) -> Buffer:
        """A buffer in front of ``log``, as a context manager: it sends when ``size`` decisions wait, and at the end."""
        return Buffer(self, size)


class Buffer:
    """Decisions that wait to be sent together.

    Attributes:
        waiting: decisions that were not kept yet, in order.
    """

    def __init__(self, decisions: Decisions, size: int) -> None:
        self._decisions = decisions
        self._size = size
        self.waiting: list[Decision] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, decisions: Iterable[Decision]) -> None:
        """Take decisions in; send what waits when it is enough.

        Raises:
            EspalierClientError: what waited could not be sent; it waits on, these decisions too.
        """
        now = datetime.now(UTC)
        self.waiting += [row if row.made_at is not None else replace(row, made_at=now) for row in decisions]
        if len(self.waiting) >= self._size:
            self.flush()

    def flush(self) -> None:
        """Send everything that waits.

        Raises:
            EspalierClientError: it could not be sent; what was not kept waits on.
        """
        for batch in batches(self.waiting):
            self._decisions.send(batch)
            sent = {id(row) for row in batch}
            self.waiting = [row for row in self.waiting if id(row) not in sent]


def batches(rows: Sequence[Decision]) -> Iterator[Sequence[Decision]]:
    """Decisions in parts that fit a request, each of one model and one digest a version, in their order."""
    by_model: dict[str, list[Decision]] = {}
    for row in rows:
        by_model.setdefault(row.stamp.model, []).append(row)
    for of_model in by_model.values():
        batch: list[Decision] = []
        size, digests = 0, dict[int, str]()
        for row in of_model:
            octets = len(json.dumps(_json(row))) + 2
            other = digests.get(row.stamp.version, row.stamp.digest) != row.stamp.digest
            if batch and (len(batch) == MOST_ROWS or size + octets > MOST_BYTES or other or len(digests) == 100):
                yield batch
                batch, size, digests = [], 0, {}
            batch.append(row)
            size += octets
            digests[row.stamp.version] = row.stamp.digest
        yield batch


def _stamped(
    stamp: Stamp,
    answers: Sequence[str] | None,
    confidences: Sequence[float] | None,
    examples: Sequence[str] | None,
) -> list[Decision]:
    if answers is None:
        raise ValueError("a stamp needs answers beside it: log(stamp, answers)")
    none: list[None] = [None] * len(answers)
    rows = zip(
        answers, none if confidences is None else confidences, none if examples is None else examples, strict=True
    )
    return [Decision(stamp, answer, sure, name) for answer, sure, name in rows]


def _json(row: Decision) -> dict[str, Any]:
    return {
        "version": row.stamp.version,
        "example": row.example,
        "answer": row.answer,
        "confidence": None if row.confidence is None else float(row.confidence),
        "made_at": None if row.made_at is None else spelled(row.made_at),
    }


def _document(row: Decision) -> dict[str, Any]:
    """As the digest of its batch is taken of it."""
    sure = None if row.confidence is None else float(row.confidence)
    told = {"version": row.stamp.version, "checkpoint": row.stamp.digest, "example": row.example, "answer": row.answer}
    return {**told, "confidence": sure, "made_at": row.made_at}
