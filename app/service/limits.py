"""Limits: how often somebody may ask, in one process.

Knows: buckets of tokens that fill with time. Must never know: who asks, or for what.

Laws:
    * A bucket of n a minute lets n through at once, and then one every 60/n seconds.
    * Addresses take bounded memory: the one that was quiet for longest gives way.
    * Every process counts for itself: with four processes four times as much gets through.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict

_MOST_ADDRESSES = 10_000
_MINUTE = 60.0


class Bucket:
    """What one caller has left."""

    __slots__ = ("_at", "_per_second", "_tokens", "per_minute")

    def __init__(self, per_minute: int) -> None:
        """Full.

        Args:
            per_minute: 0 lets everything through.
        """
        self.per_minute = per_minute
        self._per_second = per_minute / 60
        self._tokens = float(per_minute)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take a token, if there is one.

        Args:
            now: seconds that only grow.
        """
        if self.per_minute == 0:
            return True
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def empty(self, now: float) -> bool:
        """Whether there is none to take."""
        self._fill(now)
        return self._tokens < 1.0

    def full(self, now: float) -> bool:
        """Whether it is as good as new."""
        self._fill(now)
        return self._tokens >= self.per_minute

    def seconds(self) -> int:
        """How long it takes until there is one again, at most; at least 1."""
        return max(1, math.ceil((1.0 - self._tokens) / self._per_second))

    def _fill(self, now: float) -> None:
        self._tokens = min(float(self.per_minute), self._tokens + max(0.0, now - self._at) * self._per_second)
        self._at = now


class Failures:
    """Addresses that showed wrong keys. IPv6 addresses count by their network of 64 bits, which one machine may have
    all of.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._last = 0.0

    def __len__(self) -> int:
        return len(self._buckets)

    def lately(self, now: float) -> bool:
        """Whether any address is remembered; after a quiet minute none is, because every bucket is full again."""
        if self._buckets and now - self._last >= _MINUTE:
            self._buckets.clear()
        return bool(self._buckets)

    def refuses(self, address: str, now: float) -> int:
        """Seconds for which nothing more is heard from an address; 0: it may try."""
        if not self._buckets:
            return 0
        place = _place(address)
        bucket = self._buckets.get(place)
        if bucket is None:
            return 0
        if bucket.full(now):
            del self._buckets[place]
            return 0
        return bucket.seconds() if bucket.empty(now) else 0

    def count(self, address: str, now: float) -> None:
        """Remember one more."""
        place = _place(address)
        bucket = self._buckets.pop(place, None) or Bucket(self._per_minute)
        bucket.take(now)
        self._last = now
        self._buckets[place] = bucket
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)


def _place(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
