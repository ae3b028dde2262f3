"""The device: where a worker's cycles run, and how far their numbers repeat there.

Knows: torch's switches. Must never know: cycles, the store.

Laws:
    * ``auto`` never fails: a GPU where there is one, else the processor. A device that was asked for by name and is not
      there is an error with the remedy, never a silent fallback.
    * After ``settle`` the same work on the same device kind, threads and torch version gives the same bits. An
      operation that has no deterministic form on a GPU (a custom network may bring one) runs all the same and is named
      by a warning in the log: only the bits of that network may then differ between two runs.
"""

from __future__ import annotations

import os
import re

import torch

# cuBLAS reads this when its first handle is made; without it matrix products on a GPU may differ from run to run.
_CUBLAS_WORKSPACE = ":4096:8"


class NoSuchDevice(Exception):
    """The device that the settings name is not on this machine; the message says which are."""


def choose(name: str) -> torch.device:
    """The device for a name: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.

    Raises:
        NoSuchDevice: it is not there, or is no device's name.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if found else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    wanted = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if wanted is None:
        raise NoSuchDevice(f"ESPALIER_DEVICE={name!r} is no device's name: use auto, cpu, cuda or cuda:<n>")
    index = int(wanted[1] or 0)
    if index >= found:
        raise NoSuchDevice(f"ESPALIER_DEVICE={name}: {_what_is_there(found)}; use auto to take what is there")
    return torch.device("cuda", index)


def settle(threads: int) -> None:
    """Set threads and determinism for the whole process, before any cycle runs.

    Args:
        threads: torch's threads for one operation; 0 leaves torch's own choice.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # it picks kernels by timing them, which is another kernel on another day
    torch.backends.cudnn.allow_tf32 = False  # a recipe that says float32 gets float32
    if threads:
        torch.set_num_threads(threads)


def warm_up(where: torch.device) -> None:
    """Make one optimizer step on a single weight: torch loads a good second's worth of itself at its first one.

    Done before a worker says that it is ready, so that the first cycle does not wait for it.
    """
    weight = torch.ones(1, device=where, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0, fused=where.type in ("cpu", "cuda"))
    (weight * weight).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()


def answers(where: torch.device) -> bool:
    """Whether the device still computes. A CUDA error can leave a process's context unusable for good."""
    try:
        return bool(torch.ones(2, device=where).sum().item() == 2.0)
    except (RuntimeError, AssertionError):  # AssertionError: this torch is built without the device's kind
        return False


def _what_is_there(found: int) -> str:
    if found:
        return f"this machine has {found} CUDA device(s), cuda:0 to cuda:{found - 1}"
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return "torch finds no CUDA device (is the driver installed, and CUDA_VISIBLE_DEVICES not empty?)"
