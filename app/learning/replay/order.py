"""Order: in which order an epoch shows the rows that a cycle trains on.

Knows: how many rows there are, where each array of them ends, which are new. Must never know: what a row is, or how it
is read.

Laws:
    * The order follows from the seed and the rows alone, so a fit that is taken up within an epoch goes on in it.
    * Without a share of new rows every row is shown exactly once.
    * By blocks, rows that are shown soon after one another lie in few places: those of one pool's blocks, or of two
      pools' where new and replayed rows are mixed by a share.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.learning.recipe import BlockReading, Reading
from app.learning.seeds import generator, permutation

Bounds = npt.NDArray[np.int64]


def epoch_order(
    new: npt.NDArray[np.bool_], share: float | None, seed: int, reading: Reading, bounds: Bounds, row_bytes: int
) -> Tensor:
    """Positions in the order in which an epoch shows them: (n,) int64, n = len(new).

    Args:
        new: which rows belong to new megabatches.
        share: of new rows among those shown, the rest being replayed ones, each kind repeated or left out at random to
            fit: two rows of a kind are shown equally often, or one of them once more. None shows every row once.
        seed: of the epoch.
        reading: the recipe's.
        bounds: (megabatches, 2) positions [first, last) of each megabatch's rows, which lie side by side.
        row_bytes: bytes of one row as stored.
    """
    if pooled := isinstance(reading, BlockReading) and len(new) * row_bytes > reading.pool_bytes:
        order = by_blocks(reading, bounds, row_bytes, seed)
    else:
        order = permutation(len(new), seed)
    if share is None or new.all() or not new.any():
        return order
    fresh = torch.from_numpy(new)[order]
    wanted = max(1, min(len(new) - 1, round(share * len(new))))
    kinds = _cycled(order[fresh], wanted), _cycled(order[~fresh], len(new) - wanted)
    turns = permutation(len(new), seed ^ 1)
    return _merged(*kinds, turns < wanted) if pooled else torch.cat(kinds)[turns]


def by_blocks(reading: BlockReading, bounds: Bounds, row_bytes: int, seed: int) -> Tensor:
    """Every position once, in pools of blocks: (n,) int64.

    Each megabatch's rows are cut into blocks of ``block_bytes``, the last one shorter. Blocks come in random order, cut
    into pools of about ``pool_bytes``, and the rows of a pool in random order.
    """
    block, pool = (max(1, size // row_bytes) for size in (reading.block_bytes, reading.pool_bytes))
    counts = -(-(bounds[:, 1] - bounds[:, 0]) // block)
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a block in its megabatch
    firsts = np.repeat(bounds[:, 0], counts) + index * block
    lasts = np.minimum(firsts + block, np.repeat(bounds[:, 1], counts))
    random = generator(seed)
    turn = torch.randperm(len(firsts), generator=random).numpy()
    firsts, lengths = firsts[turn], (lasts - firsts)[turn]
    ends = np.cumsum(lengths)
    order = torch.from_numpy(np.arange(ends[-1]) + np.repeat(firsts - ends + lengths, lengths))
    pools = np.append(ends[np.flatnonzero(np.diff((ends - 1) // pool))], ends[-1]).tolist()
    for first, last in zip([0, *pools[:-1]], pools, strict=True):
        order[first:last] = order[first:last][torch.randperm(last - first, generator=random)]
    return order


def _cycled(positions: Tensor, count: int) -> Tensor:
    return positions.repeat(-(-count // len(positions)))[:count]


def _merged(fresh: Tensor, replayed: Tensor, which: Tensor) -> Tensor:
    """Both in their own order, each where ``which`` says: mixed at random, and still read by blocks."""
    merged = torch.empty(len(which), dtype=torch.int64)
    merged[which], merged[~which] = fresh, replayed
    return merged
