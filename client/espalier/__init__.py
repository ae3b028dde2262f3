"""Espalier's public package: what a client machine installs.

Knows: the service's HTTP API, and every byte format that crosses it. Must never know: torch, SQL, or the server.

    from espalier import Client, load_checkpoint

Names are resolved on first use (PEP 562): reading a file format imports numpy alone, never an HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espalier.client import Client
    from espalier.errors import EspalierClientError
    from espalier.formats.checkpoint import Checkpoint, load_checkpoint
    from espalier.formats.proof import verify_log
    from espalier.formats.stamp import Decision, Stamp, read_stamp
    from espalier.formats.webhook import verify_webhook

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Client",
    "Decision",
    "EspalierClientError",
    "Stamp",
    "load_checkpoint",
    "read_stamp",
    "verify_log",
    "verify_webhook",
]

_HOMES = {
    "Checkpoint": "espalier.formats.checkpoint",
    "Client": "espalier.client",
    "Decision": "espalier.formats.stamp",
    "EspalierClientError": "espalier.errors",
    "Stamp": "espalier.formats.stamp",
    "load_checkpoint": "espalier.formats.checkpoint",
    "read_stamp": "espalier.formats.stamp",
    "verify_log": "espalier.formats.proof",
    "verify_webhook": "espalier.formats.webhook",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
