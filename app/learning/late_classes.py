"""Late classes: a parent's weights and masks, grown for classes that came after it.

Knows: named arrays, and that a class is a row of a tensor's first axis. Must never know: which network they are of, or
where the new classes come from.

Laws:
    * What the parent knew is there bit for bit: weights, masks, and the order of its classes.
    * New rows come from the network as it was freshly initialised, and enter kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def grown(arrays: Arrays, fresh: Arrays, before: int, now: int) -> dict[str, npt.NDArray[Any]]:
    """Extend the tensors that have one row a class.

    Args:
        arrays: the parent's tensors, by name.
        fresh: those of a fresh network for all classes; names that it does not have are left as they are.
        before: classes that the parent knows.
        now: classes that there are; > ``before``.

    Returns:
        By name; a tensor of shape (before, ...) where the fresh one is (now, ...) has the fresh one's rows appended.
    """
    found = dict(arrays)
    for name, old in arrays.items():
        new = fresh.get(name)
        if new is not None and _shapes(old, new) == ((before, *old.shape[1:]), (now, *old.shape[1:])):
            found[name] = np.concatenate([old, np.asarray(new[before:]).astype(old.dtype)])
    return found


def _shapes(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(old.shape), tuple(new.shape)
