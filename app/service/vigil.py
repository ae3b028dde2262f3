"""Vigil: which workers have fallen silent, by what this process has seen itself.

Knows: how long a lease went without a heartbeat while somebody looked. Must never know: what time it is.

Laws:
    * No two clocks are compared. Machines may disagree about the time, and any clock may be set while cycles run.
    * Only time during which this process looked counts: after it was stopped, or the whole machine was, a worker that
      was stopped with it has the time to speak up first.
    * A lease whose worker goes on renewing it is never called silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from app.config import Settings
from app.domain import HeldLease

_LOOKS = 2
"""A look speaks for at most so many heartbeats before it; with the one that may just be due, that is within a lease."""


class Vigil:
    """Watches leases, look by look."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Have seen nothing yet.

        Args:
            settings: how long a lease lasts, and how often it is renewed.
            clock: seconds that only grow.
        """
        self._lease, self._most = settings.lease_seconds, _LOOKS * settings.heartbeat_seconds
        self._clock = clock
        self._looked = clock()
        self._silence: dict[HeldLease, float] = {}

    def silent(self, held: Sequence[HeldLease]) -> list[HeldLease]:
        """Look once: which of these have not been renewed for a whole lease.

        Args:
            held: every lease that somebody holds now.
        """
        now = self._clock()
        passed, self._looked = min(now - self._looked, self._most), now
        self._silence = {lease: self._silence[lease] + passed if lease in self._silence else 0.0 for lease in held}
        return [lease for lease, seconds in self._silence.items() if seconds >= self._lease]
