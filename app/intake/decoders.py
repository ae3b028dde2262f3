"""Hostile bytes -> validated arrays on disk, whatever the format.

Knows: which decoder takes which format. Must never know: SQL, torch, or that it runs in a sandbox.

Law: a format is known by its bytes. A declared media type may only agree with them, or tell formats without any mark of
their own (CSV, JSON lines) apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.intake.arrays import DecodedFiles, Limits, Reading
from app.intake.arrow import decode_arrow, decode_csv, decode_parquet
from app.intake.formats import recognise
from app.intake.images import decode_images
from app.intake.jsonl import decode_jsonl
from app.intake.npz import decode_npz

Decoder = Callable[[Path, Path, Limits, Reading], DecodedFiles]

_DECODERS: dict[str, Decoder] = {
    "npz": decode_npz,
    "parquet": decode_parquet,
    "arrow": decode_arrow,
    "csv": decode_csv,
    "jsonl": decode_jsonl,
    "images": decode_images,
}


def decode(path: Path, work: Path, limits: Limits, reading: Reading, media: str | None = None) -> DecodedFiles:
    """Decode an upload into ``work/x.npy``, ``work/y.npy`` and ``work/ids.npy``.

    Args:
        path: the upload; nothing about it is trusted.
        work: an empty folder; on a refusal it may hold partial files.
        limits: ``max_bytes`` and ``memory_bytes`` are kept here, the deadline by the sandbox.
        reading: what the model's input says about reading it.
        media: the declared media type, if one was.

    Raises:
        InvalidMegabatch: with one of the reasons of ``formats``, ``arrays`` or the format's own decoder.
    """
    with path.open("rb") as file:
        format = recognise(file, media)
    return _DECODERS[format](path, work, limits, reading)
