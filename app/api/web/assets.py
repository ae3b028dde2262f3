"""Assets: style sheets, scripts and icons of the pages, under names that change with their content.

Knows: every file in ``static/``, read once. Must never know: which page uses it.

Law: a name stands for the same bytes for ever, so that browsers may keep them; what changed has another name.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

STATIC = Path(__file__).with_name("static")

IMMUTABLE = "public, max-age=31536000, immutable"

_MEDIA = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent, plain and compressed."""

    name: str
    media: str
    body: bytes
    packed: bytes


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    mark = hashlib.sha256(body).hexdigest()[:12]
    return Asset(f"{path.stem}.{mark}{path.suffix}", _MEDIA[path.suffix], body, gzip.compress(body, mtime=0))


ASSETS: Mapping[str, Asset] = MappingProxyType(
    {path.name: _read(path) for path in sorted(STATIC.rglob("*")) if path.suffix in _MEDIA}
)
"""By the name of the file."""

SERVED: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in ASSETS.values()})
"""By the name that it is asked for by."""
