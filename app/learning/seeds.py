"""Seeds by derivation: every random choice of a cycle has its own, and none depends on what ran before.

Knows: (seed, depth, attempt, purpose) -> seed. Must never know: what the seed is used for.

Laws:
    * The same four values give the same seed, on every machine; any other value gives an unrelated one.
    * Inside ``seeded`` torch's global generators are ours; outside they are as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_for(seed: int, depth: int, attempt: int, purpose: str) -> int:
    """Derive a seed for one random choice.

    Args:
        seed: the recipe's.
        depth: cycles in the version's ancestry, this one included.
        attempt: retries with changed options; resumes do not count.
        purpose: what the choice is for, such as ``epoch-3``.

    Returns:
        An integer in [0, 2**63): the first 63 bits of the SHA-256 of the four values.
    """
    text = f"{seed}/{depth}/{attempt}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int) -> torch.Generator:
    """A generator of its own, on the CPU, so that its numbers do not depend on the device."""
    return torch.Generator().manual_seed(seed)


def permutation(n: int, seed: int) -> Tensor:
    """A random order of ``range(n)``: (n,) int64 on the CPU."""
    return torch.randperm(n, generator=generator(seed))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and ``device`` within; put them back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the global generators of the CPU and ``device``."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what ``random_state`` gave; call inside ``seeded``, which restores the caller's."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
