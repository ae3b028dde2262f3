"""A format is known by its bytes; a declared media type agrees, or is refused."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from app.errors import InvalidMegabatch
from app.intake.formats import MEDIA_TYPES, recognise
from docs import generate
from espalier.formats.megabatch import encode
from tests.intake.hostile_tables import A, labelled, to_file, to_parquet, to_stream

TABLE = labelled(A)


def zipped(name: str = "cats/1.png") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("cats/1.png"))
    return file.getvalue()


SAMPLES = {
    "npz": encode(np.zeros((2, 2), np.float32), [0, 1]),
    "parquet": to_parquet(TABLE),
    "arrow": to_stream(TABLE),
    "csv": "größe,label\n1,ä\n".encode(),
    "jsonl": b'{"a": 1, "label": 0}\n',
    "zip": zipped(),
    "tar": tarred(),
}
FOUND = {format: "images" if format in ("zip", "tar") else format for format in SAMPLES}


@pytest.mark.parametrize("media", [None, "application/octet-stream", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("format", SAMPLES)
def test_bytes_say_what_they_are(format: str, media: str | None) -> None:
    assert recognise(io.BytesIO(SAMPLES[format]), media) == FOUND[format]


@pytest.mark.parametrize("media", MEDIA_TYPES)
@pytest.mark.parametrize("format", SAMPLES)
def test_a_declared_media_type_agrees_or_is_refused(format: str, media: str) -> None:
    declared = MEDIA_TYPES[media]
    text = {"csv", "jsonl"}
    if declared == format or {declared, format} == {"npz", "zip"}:
        expected = "npz" if "npz" in (declared, format) else FOUND[format]
    elif declared in text and format in text:
        expected = declared
    else:
        with pytest.raises(InvalidMegabatch, match="octet-stream") as caught:
            recognise(io.BytesIO(SAMPLES[format]), media)
        assert caught.value.reason == "wrong-media-type"
        return
    assert recognise(io.BytesIO(SAMPLES[format]), f"{media.upper()}; charset=utf-8") == expected


def test_an_arrow_file_and_an_archive_of_arrays_are_told_apart() -> None:
    assert recognise(io.BytesIO(to_file(TABLE))) == "arrow"
    assert recognise(io.BytesIO(zipped("data.npy"))) == "npz"
    assert recognise(io.BytesIO(zipped("labels.csv"))) == "images"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"\x93NUMPY\x01\x00", "np.savez"),
        (b"\x89PNG\r\n\x1a\n", "archive"),
        (b"\xff\xd8\xff\xe0", "archive"),
        (b"\x80\x04\x95", "pickle"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"SQLite format 3\0", "SQLite"),
        (b"a,label\n1,\0\n", "none of the formats"),
        (b"\xe4,label\n1,0\n", "none of the formats"),
        (bytes(range(256)), "none of the formats"),
    ],
)
@pytest.mark.parametrize("media", [None, "text/csv"])
def test_other_bytes_are_refused_by_what_they_look_like(data: bytes, word: str, media: str | None) -> None:
    with pytest.raises(InvalidMegabatch, match=word) as caught:
        recognise(io.BytesIO(data), media)
    assert caught.value.reason == "unknown-format"
    assert "send npz, Parquet" in str(caught.value)


def test_a_character_may_be_cut_off_where_the_head_ends() -> None:
    text = ("a,label\n" + "ä" * 5000).encode()
    for shift in range(2):
        assert recognise(io.BytesIO(b"x" * shift + text)) == "csv"


def test_the_page_knows_every_media_type_and_every_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "megabatch-formats.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([^`\n]+)`", page))
    aliases = {"application/x-parquet", "application/csv"}
    assert set(MEDIA_TYPES) - aliases <= told
    assert generate.megabatch_reasons() <= told
