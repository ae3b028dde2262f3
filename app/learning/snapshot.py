"""Snapshots: where a cycle stands, as bytes.

Knows: named tensors and plain values <-> safetensors with JSON metadata; never pickle. Must never know: what they mean.

Laws:
    * ``decode(encode(tensors, facts))`` gives the same bits back.
    * A snapshot says under which torch, device kind and number of threads it was taken; elsewhere it does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_KEY = "espalier-snapshot-2"


def environment(device: torch.device) -> dict[str, Any]:
    """What may move the last bits of a run: torch's version, the kind of device, the number of threads."""
    return {"torch": torch.__version__, "device": device.type, "threads": torch.get_num_threads()}


def encode(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], device: torch.device) -> bytes:
    """Pack tensors and JSON values.

    Args:
        tensors: by name, on any device.
        facts: plain JSON values.
        device: where the run is, for ``snapshot_fits``.
    """
    text = json.dumps({"environment": environment(device), "facts": dict(facts)})
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(plain, {_KEY: text})


def decode(snapshot: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the values."""
    return load(snapshot), _document(snapshot)["facts"]


def snapshot_fits(snapshot: bytes, device: torch.device) -> str | None:
    """Why a run cannot be resumed here from this snapshot with the same bits; None when it can."""
    try:
        taken = _document(snapshot)["environment"]
    except (ValueError, KeyError, SafetensorError) as error:
        return f"it is not a snapshot: {error}"
    here = environment(device)
    differing = [f"{key} was {taken.get(key)} and is {value}" for key, value in here.items() if taken.get(key) != value]
    return "; ".join(differing) or None


def _document(snapshot: bytes) -> dict[str, Any]:
    """The JSON in the safetensors header, which starts with its length in eight little-endian bytes."""
    length = int.from_bytes(snapshot[:8], "little")
    if len(snapshot) < 8 + length:
        raise ValueError("the header is cut off")
    document: dict[str, Any] = json.loads(json.loads(snapshot[8 : 8 + length])["__metadata__"][_KEY])
    return document
