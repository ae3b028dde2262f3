"""Replay: which examples of past megabatches are trained on again.

A cycle trains on the parent's buffer, and on the whole of new and pinned megabatches (``buffer``). At its end a policy
chooses what of this stays for the next cycle: by numbers of megabatches, labels, random keys and losses
(``policies``), or by features (``coresets``). Pinned megabatches are no candidates: they come back whole each time.
``order`` says in which order an epoch shows what is trained on.

Knows: numbers of megabatches, rows, labels, features, losses. Must never know: how examples are stored.

Laws:
    * What is kept was there: the buffer after a cycle is a part of what the cycle trained on, under both caps.
    * A cycle trains on every row of a new megabatch (validation aside), whatever the policy.
    * The same input gives the same buffer.
"""

from __future__ import annotations

from app.learning.replay import coresets
from app.learning.replay.buffer import Buffer, composition, pool
from app.learning.replay.order import epoch_order
from app.learning.replay.policies import POLICIES, Candidates, ReplayPolicy

__all__ = ["POLICIES", "Buffer", "Candidates", "ReplayPolicy", "composition", "coresets", "epoch_order", "pool"]
