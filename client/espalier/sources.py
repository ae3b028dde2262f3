"""What a user hands over to be uploaded -> bytes or a file in one of the formats that the service reads.

Knows: arrays, files and folders of images, and that columns are for ``espalier.tables``. Must never know:
the service, HTTP.

Laws:
    * Memory stays bounded beside the data: what is large goes through a temporary file, block by block.
    * Equal data give equal bytes, for arrays and for folders, so an upload that was cut off can go on.
    * Values are sent as they are; only the service judges them.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt

from espalier.errors import EspalierClientError
from espalier.formats.megabatch import encode, encode_to
from espalier.tables import ARROW, JSON_LINES, LABEL, array_of, has_columns, write_table

__all__ = ["LABEL", "OCTETS", "Data", "Source", "media_of", "prepared"]

Data = Any
"""Examples: arrays, a data frame, an Arrow table or reader, a mapping of columns, or the path of a file or folder."""

NPZ = "application/x-npz"
PARQUET = "application/vnd.apache.parquet"
TAR = "application/x-tar"
OCTETS = "application/octet-stream"

_IN_MEMORY = 32 << 20
_IGNORED = ("__MACOSX", "Thumbs.db")
_MARKS = (
    (b"PAR1", PARQUET),
    (b"ARROW1\0\0", "application/vnd.apache.arrow.file"),
    (b"\xff\xff\xff\xff", ARROW),
    (b"\x1f\x8b", TAR),
)
_SUFFIXES = {".csv": "text/csv", ".jsonl": JSON_LINES, ".ndjson": JSON_LINES}


@dataclass(frozen=True, slots=True)
class Source:
    """Something to send.

    Attributes:
        content: bytes, or the path of a file that is there while the source is prepared.
        media: its media type.
        size: its length in bytes.
        name: what a person would call it.
    """

    content: bytes | Path
    media: str
    size: int
    name: str


@contextmanager
def prepared(data: Data, labels: npt.ArrayLike | str | None = None, *, column: str = LABEL) -> Iterator[Source]:
    """Make data ready to be sent; what was made for that is gone afterwards.

    Args:
        data: examples as an array, (n, features), (n, height, width) or (n, height, width, channels); or as columns: a
            pandas or polars data frame, an Arrow table or reader, or a mapping of names to columns; or a path: of a
            file in any format of the service, or of a folder of images, with one folder for each class, or with a
            ``labels.csv`` or ``labels.jsonl``.
        labels: (n,) class numbers, for an array; for columns also class names, or the name of the column that holds
            them, or None where that is called ``column`` already. None with a path.
        column: what the column of the labels is called where it is sent.

    Raises:
        EspalierClientError: what was handed over cannot be sent; the message says what can.
    """
    if isinstance(data, str | os.PathLike):
        if labels is not None:
            raise EspalierClientError("a file or folder holds its labels itself: upload it without labels")
        path = Path(data)
        if path.is_dir():
            with _temporary() as (file, finish):
                _pack_folder(path, file)
                yield finish(f"images of {path.name or path}", TAR)
        else:
            yield _file(path)
    elif has_columns(data):
        with _temporary() as (file, finish):
            media = write_table(data, labels, column, file)
            yield finish("table", media)
    else:
        yield from _arrays(data, labels)


@contextmanager
def _temporary() -> Iterator[tuple[BinaryIO, Callable[[str, str], Source]]]:
    """A file to write, and what makes a source of it, under a name and a media type, when it is written."""
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        path = Path(folder) / "upload"
        with path.open("wb") as file:

            def finish(name: str, media: str) -> Source:
                file.flush()
                return Source(path, media, path.stat().st_size, name)

            yield file, finish


def _file(path: Path) -> Source:
    if not path.is_file():
        raise EspalierClientError(f"{path} is no file and no folder: check its name")
    return Source(path, media_of(path), path.stat().st_size, path.name)


def media_of(path: Path) -> str:
    """The media type of a file, by its first bytes; of text, by the end of its name."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[:2] == b"PK":
        length = int.from_bytes(head[26:28], "little")
        return NPZ if head[30 : 30 + length].endswith(b".npy") else "application/zip"
    if head[257:262] == b"ustar":
        return TAR
    marked = next((media for mark, media in _MARKS if head.startswith(mark)), None)
    return marked or _SUFFIXES.get(path.suffix.lower(), OCTETS)


# -- arrays -----------------------------------------------------------------------------------------------------------


def _arrays(x: npt.ArrayLike, y: npt.ArrayLike | None) -> Iterator[Source]:
    if y is None or isinstance(y, str):
        raise EspalierClientError(
            "an array needs its labels, one class number for each example: upload x and y; or upload a data frame, a "
            "mapping of columns, a file, or a folder of images"
        )
    examples, labels = array_of(x), array_of(y)
    if labels.dtype.kind in "USTO":
        raise EspalierClientError(
            "labels beside an array are class numbers, but these are names: number them, or upload a data frame or a "
            "mapping of columns, which may have names"
        )
    if examples.nbytes + labels.nbytes <= _IN_MEMORY:
        packed = _checked(lambda: encode(examples, labels))
        yield Source(packed, NPZ, len(packed), "arrays")
        return
    with _temporary() as (file, finish):
        _checked(lambda: encode_to(file, examples, labels))
        yield finish("arrays", NPZ)


def _checked(write: Any) -> Any:
    try:
        return write()
    except ValueError as error:
        raise EspalierClientError(str(error)) from error


# -- folders ----------------------------------------------------------------------------------------------------------


def _pack_folder(folder: Path, file: BinaryIO) -> None:
    """Pack a folder's files as a tar, in the order of their paths, with nothing of this machine in it."""
    paths = sorted(_files(folder))
    if not paths:
        raise EspalierClientError(f"{folder} has no files in it: upload a folder with one folder of images a class")
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            with (folder / path).open("rb") as content:
                entry = tarfile.TarInfo(path)
                entry.size = os.fstat(content.fileno()).st_size
                tar.addfile(entry, content)


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of the files, with forward slashes, but for hidden ones and the notes of file managers."""
    seen = set[Path]()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (here := Path(root).resolve()) in seen:
            raise EspalierClientError(f"{root} is a link to {here}, which is in the folder already: remove it")
        seen.add(here)
        folders[:] = [name for name in folders if not _ignored(name)]
        for name in names:
            if not _ignored(name):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED
