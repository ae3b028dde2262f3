"""Which format an upload is in.

Knows: the media types and the first bytes of every format. Must never know: how any of them is decoded.

Laws:
    * Bytes decide. A declared media type may agree with them, or be refused; it decides only between formats without
      any mark of their own (CSV, JSON lines), and a file's name never does.
    * A zip whose first member is an npy array is npz; any other holds images.

Reasons of refusal: unknown-format, wrong-media-type.
"""

from __future__ import annotations

from typing import BinaryIO, NoReturn

from app.intake.arrays import refuse

MEDIA_TYPES: dict[str, str] = {
    "application/x-npz": "npz",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.arrow.file": "arrow",
    "text/csv": "csv",
    "application/csv": "csv",
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/zip": "zip",
    "application/x-tar": "tar",
}
"""Media type -> format. ``zip`` is npz or an archive of images, as its members say; ``tar`` holds images."""

_HEAD = 4096
_TAR = 257
_LOCAL_NAME = 30
_STREAM = b"\xff\xff\xff\xff"

_MARKS = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PAR1", "parquet"),
    (b"ARROW1\0\0", "arrow"),
    (_STREAM, "arrow"),
    (b"\x1f\x8b", "tar"),
)
_OTHERS = (
    (b"\x93NUMPY", "one .npy array: pack x and y with np.savez"),
    (b"\x89PNG", "one PNG image: pack images in a zip or tar archive"),
    (b"\xff\xd8\xff", "one JPEG image: pack images in a zip or tar archive"),
    (b"RIFF", "one WebP image or a sound: pack images in a zip or tar archive"),
    (b"GIF8", "one GIF image: pack PNG or JPEG images in a zip or tar archive"),
    (b"FEA1", "Feather of version 1: write version 2, which is Arrow"),
    (b"\x89HDF", "HDF5"),
    (b"\x80", "a pickle, which is never read"),
    (b"SQLite", "SQLite"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\xfd7zXZ", "xz"),
    (b"\xff\xfe", "UTF-16 text: write UTF-8"),
    (b"\xfe\xff", "UTF-16 text: write UTF-8"),
)
_TAKEN = "send npz, Parquet, Arrow IPC, CSV, JSON lines, or a zip or tar archive of images"


def recognise(file: BinaryIO, media: str | None = None) -> str:
    """The format of an upload: ``npz``, ``parquet``, ``arrow``, ``csv``, ``jsonl`` or ``images``.

    Args:
        file: at its beginning; it stands elsewhere afterwards.
        media: the declared media type; None, or one that ``MEDIA_TYPES`` lacks, declares nothing.

    Raises:
        InvalidMegabatch: ``unknown-format`` or ``wrong-media-type``.
    """
    head = file.read(_HEAD)
    declared = None if media is None else MEDIA_TYPES.get(media.partition(";")[0].strip().lower())
    marked = _marked(head)
    if marked is None:
        return _unmarked(head, declared)
    if declared not in (None, marked) and not (declared == "npz" and marked == "zip"):
        _refuse_media(declared, marked)
    if marked == "zip":
        return "npz" if declared == "npz" or _first_is_npy(head) else "images"
    return "images" if marked == "tar" else marked


def _marked(head: bytes) -> str | None:
    if head[_TAR : _TAR + 5] == b"ustar":
        return "tar"
    return next((format for mark, format in _MARKS if head.startswith(mark)), None)


def _unmarked(head: bytes, declared: str | None) -> str:
    """The format of bytes without a mark: text, or nothing that is taken."""
    found = next((what for mark, what in _OTHERS if head.startswith(mark)), None)
    if found is not None:
        refuse("unknown-format", f"the upload looks like {found}: {_TAKEN}")
    if not head.strip():
        refuse("unknown-format", f"the upload is empty: {_TAKEN}")
    if not _is_text(head):
        refuse("unknown-format", f"the upload is in none of the formats that are taken: {_TAKEN}")
    text = "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else "csv"
    if declared not in (None, "csv", "jsonl"):
        _refuse_media(declared, "text")
    return declared or text


def _is_text(head: bytes) -> bool:
    """Whether this may be the beginning of UTF-8 text; a character may be cut off at its end."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) or error.reason != "unexpected end of data":
            return False
    return b"\0" not in head


def _first_is_npy(head: bytes) -> bool:
    """Whether the first member of a zip archive is an npy file; an archive without members counts as npz."""
    length = int.from_bytes(head[26:28], "little")
    return head.startswith(b"PK\x05\x06") or head[_LOCAL_NAME : _LOCAL_NAME + length].endswith(b".npy")


def _refuse_media(declared: str | None, found: str) -> NoReturn:
    refuse(
        "wrong-media-type",
        f"the upload was declared as {declared}, but its bytes are {found}: send the Content-Type of what it is, or "
        "application/octet-stream",
    )
