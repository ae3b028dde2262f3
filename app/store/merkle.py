"""The Merkle tree over the log's entries: any proof, at any size, from a few hundred rows.

Knows: RFC 9162's proofs, and where hashes are stored: leaves beside their entries, and in ``log_nodes`` the roots of
complete subtrees of 256, 256 ** 2, ... leaves. Must never know: what an entry says, or who signs a root.

Laws:
    * The tree of a size never changes: a proof for it is the same for ever.
    * A proof reads at most two tiles of 256 hashes a level, however long the log is; ``fetch`` reads all of them in one
      statement.
    * What is missing is a ``Fault``; nothing is made up. Whether a stored hash is right, ``Audit.checked`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from app.errors import Fault
from app.store.tables import audit_entries, log_nodes
from espalier.formats.proof import EMPTY_ROOT, node_hash

HEIGHT = 8
"""Levels of the tree that one level of tiles spans (C2SP tlog-tiles)."""

WIDTH = 1 << HEIGHT


class Tree:
    """The tree, as one transaction sees it. Tiles that were read are remembered: many proofs together cost little."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._tiles: dict[tuple[int, int], list[bytes]] = {}
        self._roots: dict[tuple[int, int], bytes] = {}

    def fetch(self, leaf: int, size: int) -> None:
        """Read the tiles that the proofs of a place at a size need, all in one statement.

        Every hash on the way from a leaf to the root, and each of their neighbours, lies in the tiles above that leaf;
        those of the last subtrees lie in the tiles above the log's end.

        Args:
            leaf: its index.
            size: of the log.
        """
        levels = range(1 + max(0, size.bit_length() - 1) // HEIGHT)
        wanted = {(level, at >> HEIGHT * (level + 1)) for level in levels for at in (leaf, size)} - self._tiles.keys()
        if not wanted:
            return
        tiles = sorted(wanted)
        found: list[list[tuple[int, str]]] = [[] for _ in tiles]
        first = {f"first{place}": _first(*tile) for place, tile in enumerate(tiles)}
        for number, hashed, place in self._connection.execute(_tiles(tuple(level for level, _ in tiles)), first):
            found[place].append((number, hashed))
        for tile, rows in zip(tiles, found, strict=True):
            self._tiles[tile] = _hashes(*tile, sorted(rows))

    def root(self, size: int) -> bytes:
        """The root over the first ``size`` leaves."""
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion(self, seq: int, size: int) -> list[bytes]:
        """The inclusion proof of an entry (RFC 9162, section 2.1.3.1), from the leaf's neighbour up.

        Args:
            seq: the entry, from 1.
            size: of the log that it is proved to be in.
        """
        low, high, index = 0, size, seq - 1
        path = []
        while high - low > 1:
            middle = low + _largest_power_below(high - low)
            if index < middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low = middle
        return path[::-1]

    def consistency(self, first: int, second: int) -> list[bytes]:
        """The proof that the log of ``second`` entries continues that of ``first`` (RFC 9162, section 2.1.4.1)."""
        if first in (0, second):
            return []
        low, high = 0, second
        path = []
        while high != first:
            middle = low + _largest_power_below(high - low)
            if first <= middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low = middle
        return [*([self._range(low, high)] if low else []), *path[::-1]]

    def tile(self, level: int, index: int, width: int) -> list[bytes]:
        """The first ``width`` hashes of a tile: roots of neighbouring complete subtrees of ``256 ** level`` leaves."""
        found = self._tiles.get((level, index))
        if found is None or len(found) < width:
            found = self._tiles[level, index] = self._read(level, index)
        if len(found) < width:
            raise Fault(f"the audit log's hashes are incomplete at level {level}, tile {index}: run `espalier doctor`")
        return found[:width]

    def _read(self, level: int, index: int) -> list[bytes]:
        rows = self._connection.execute(_tile(level, "first"), {"first": _first(level, index)})
        return _hashes(level, index, sorted(map(tuple, rows)))

    def _range(self, low: int, high: int) -> bytes:
        """The root over the leaves from ``low`` to before ``high``, as the tree is cut there."""
        count = high - low
        if count & (count - 1) == 0 and low % count == 0:
            return self._complete(count.bit_length() - 1, low)
        middle = low + _largest_power_below(count)
        return node_hash(self._range(low, middle), self._range(middle, high))

    def _complete(self, height: int, low: int) -> bytes:
        """The root of a complete subtree, from the stored hashes below it, all of one tile."""
        if (known := self._roots.get((height, low))) is not None:
            return known
        level, rest = divmod(height, HEIGHT)
        index, start = divmod(low >> (HEIGHT * level), WIDTH)
        hashes = self.tile(level, index, start + (1 << rest))[start:]
        while len(hashes) > 1:
            hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
        self._roots[height, low] = hashes[0]
        return hashes[0]


@cache
def _tiles(levels: tuple[int, ...]) -> sa.Select[Any]:
    """Numbers, hashes and places of what is stored of some tiles of these levels; it is put together once, since that
    costs as much as asking does.
    """
    parts = [_tile(level, f"first{place}").add_columns(sa.literal(place)) for place, level in enumerate(levels)]
    return sa.select(sa.union_all(*parts).subquery())


@cache
def _tile(level: int, first: str) -> sa.Select[Any]:
    """Numbers and hashes of what is stored of a tile of a level, whose first number is this parameter."""
    if level == 0:
        wanted, at = sa.select(audit_entries.c.seq, audit_entries.c.leaf), audit_entries.c.seq
    else:
        at = log_nodes.c.index
        wanted = sa.select(at, log_nodes.c.hash).where(log_nodes.c.level == level)
    low = sa.bindparam(first, type_=sa.BigInteger)
    return wanted.where(at >= low, at < low + WIDTH)


def _first(level: int, index: int) -> int:
    """Number of a tile's first hash: entries are counted from 1, nodes from 0."""
    return index * WIDTH + (level == 0)


def _hashes(level: int, index: int, rows: Sequence[tuple[Any, ...]]) -> list[bytes]:
    first = _first(level, index)
    if [number for number, _ in rows] != list(range(first, first + len(rows))):
        raise Fault(f"the audit log's hashes have a gap at level {level}, tile {index}: run `espalier doctor`")
    return [bytes.fromhex(hashed) for _, hashed in rows]


def completed(size: int, carries: list[bytes]) -> list[dict[str, Any]]:
    """The nodes to store when the leaf came that made the log this long.

    Args:
        size: of the log with it.
        carries: as ``Frontier.carries`` gave them.
    """
    return [
        {"level": height // HEIGHT, "index": (size >> height) - 1, "hash": carries[height].hex()}
        for height in range(HEIGHT, len(carries), HEIGHT)
    ]


def nodes_of(size: int) -> int:
    """How many nodes a log of this size has stored."""
    count = 0
    while size := size >> HEIGHT:
        count += size
    return count


def _largest_power_below(count: int) -> int:
    """The largest power of two that is smaller than ``count``, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)
