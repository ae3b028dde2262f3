"""Replays: one request an idempotency key, and its answer for whoever repeats it.

Knows: who owns a key, for how long an answer is kept. Must never know: HTTP beyond a status and a document, or what any
request does.

Laws:
    * A repeated request gets the first answer, or is told that the first one still runs; it is never run beside it.
    * The answer is kept in a transaction of its own, after the effect. A process that is killed between the two leaves
      the key to the next request, which runs again and finds the effect by its natural key: the digest of a megabatch,
      of an evaluation set or of weights; a model's name and recipe; the cycle that is queued already; the revision that
      a move of an alias names (412: it was moved). Uploads that were begun twice cost a row until they expire.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from app.domain import Actor, Digest
from app.errors import KeyInUse, KeyReused
from app.store.database import Store
from app.store.replays import Replay

CLAIM_SECONDS = 30.0
"""An owner that has not renewed its claim for so long is gone."""


def claim(store: Store, key: str, *, actor: Actor) -> Replay | None:
    """Own a key, or find what was answered under it.

    Returns:
        None: the key is the caller's, until ``CLAIM_SECONDS`` after it last renewed it. Otherwise the kept answer.

    Raises:
        KeyInUse: the first request still runs.
    """
    with store.transaction(actor) as tx:
        found = tx.replays.claim(actor.name, key, tx.now + timedelta(seconds=CLAIM_SECONDS))
    if found is not None and found.status is None:
        raise KeyInUse("the first request with this Idempotency-Key still runs: ask again when it has ended")
    return found


def renew(store: Store, key: str, *, actor: Actor) -> None:
    """Go on owning a key."""
    with store.transaction(actor) as tx:
        tx.replays.renew(actor.name, key, tx.now + timedelta(seconds=CLAIM_SECONDS))


def keep(
    store: Store,
    key: str,
    *,
    fingerprint: Digest,
    status: int,
    answer: Mapping[str, Any],
    seconds: float,
    actor: Actor,
) -> None:
    """Keep the answer of the request that owns a key."""
    with store.transaction(actor) as tx:
        until = tx.now + timedelta(seconds=seconds)
        tx.replays.keep(actor.name, key, fingerprint=fingerprint, status=status, answer=answer, until=until)


def release(store: Store, key: str, *, actor: Actor) -> None:
    """Give a key back: nothing was changed under it."""
    with store.transaction(actor) as tx:
        tx.replays.release(actor.name, key)


def check(found: Replay, fingerprint: Digest) -> None:
    """Check that a repeated request is the same one.

    Raises:
        KeyReused: it has other content.
    """
    if found.fingerprint != fingerprint:
        raise KeyReused("this Idempotency-Key came with another request before: use a new key for new content")
