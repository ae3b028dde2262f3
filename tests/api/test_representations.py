"""Ranges and conditions as values, and files as they are sent."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from app.api import representations
from app.api.dependencies import decode_number, encode_cursor
from app.api.problems import HttpProblem
from app.api.representations import CheckpointFile, parse_range, structured_digest
from app.errors import CorruptBlob, InvalidCursor, MissingBlob


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=0-", (0, 9)),
        ("bytes=5-100", (5, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-100", (0, 9)),
        ("bytes=-0", (10, 10)),
        ("bytes=10-", (10, 9)),
        ("bytes=3-2", None),
        ("bytes=-", None),
        ("bytes=0-1,2-3", None),
        ("bytes=" + "9" * 19 + "-", None),
        ("", None),
    ],
)
def test_ranges_of_ten_bytes(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


def test_a_digest_as_rfc_9530_writes_it() -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert structured_digest(empty) == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.mark.parametrize("key", [0, 1, 2**31 - 1])
def test_cursors_go_round(key: int) -> None:
    assert decode_number("cycles", encode_cursor("cycles", key)) == key


@pytest.mark.parametrize("key", ["x", "-1", 2**31, "1.5", "١", ""])
def test_cursors_of_numbers_hold_numbers(key: object) -> None:
    with pytest.raises(InvalidCursor):
        decode_number("cycles", encode_cursor("cycles", key))


# -- files -------------------------------------------------------------------------------------------------------------

DATA = random.Random(0).randbytes(3 * 256 * 1024 + 17)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(params=["at hand", "from the disk"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of several chunks, on a system that can tell what it has at hand, and on one that cannot."""
    if request.param == "from the disk":
        monkeypatch.setattr(representations, "_NOWAIT", None)
    file = tmp_path / "blob"
    file.write_bytes(DATA)
    return file


def sent(file: CheckpointFile, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], list[bytes]]:
    """Status, headers and chunks, for a client that stays to the end."""
    messages: list[Message] = []
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "headers": lines, "asgi": {"spec_version": "2.4"}}

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is to be received")

    asyncio.run(file(scope, receive, send))
    begun: dict[str, Any] = dict(messages[0])
    shown = {name.decode(): value.decode() for name, value in begun["headers"]}
    return begun["status"], shown, [bytes(message["body"]) for message in messages[1:]]


def checkpoint_file(path: Path, size: int = len(DATA), offload: str = "") -> CheckpointFile:
    return CheckpointFile(path, DIGEST, size, "gas-1.safetensors", {"Cache-Control": "no-cache"}, offload)


def test_a_file_comes_in_chunks_and_in_order(path: Path) -> None:
    status, headers, chunks = sent(checkpoint_file(path))
    assert (status, b"".join(chunks), headers["content-length"]) == (200, DATA, str(len(DATA)))
    assert max(map(len, chunks)) == 256 * 1024
    status, headers, chunks = sent(checkpoint_file(path), range="bytes=10-600000")
    assert (status, b"".join(chunks)) == (206, DATA[10:600_001])
    assert headers["content-range"] == f"bytes 10-600000/{len(DATA)}"
    status, headers, chunks = sent(checkpoint_file(path), method="HEAD")
    assert (status, b"".join(chunks), headers["content-length"]) == (200, b"", str(len(DATA)))


def test_a_file_that_is_not_whole_is_not_begun(path: Path) -> None:
    with pytest.raises(CorruptBlob):
        sent(checkpoint_file(path, len(DATA) + 1))
    path.unlink()
    with pytest.raises(MissingBlob):
        sent(checkpoint_file(path))


def test_a_file_that_ends_early_is_not_ended_as_if_it_were_whole(path: Path) -> None:
    with path.open("r+b") as file:
        opened = checkpoint_file(path)._opened()
        file.truncate(300_000)
    got = bytearray()

    async def read() -> None:
        async for chunk in representations._chunks(opened, 0, len(DATA) - 1):
            got.extend(chunk)

    with opened, pytest.raises(CorruptBlob, match="300000"):
        asyncio.run(read())
    assert got == DATA[:300_000]


def test_a_proxy_is_told_where_the_file_is(path: Path) -> None:
    file = checkpoint_file(path, offload="/internal-blobs/sha256/ab/cd")
    status, headers, chunks = sent(file)
    assert (status, b"".join(chunks)) == (200, b"")
    assert headers["x-accel-redirect"] == "/internal-blobs/sha256/ab/cd"
    assert headers["repr-digest"] == headers["content-digest"] == structured_digest(DIGEST)
    assert (headers["etag"], headers["cache-control"]) == (f'"{DIGEST}"', "no-cache")


def test_a_proxy_is_given_those_ranges_alone_that_it_reads_as_we_do(path: Path) -> None:
    offload = "/internal-blobs/sha256/ab/cd"
    _, headers, _ = sent(checkpoint_file(path, offload=offload), range="bytes=5-9", if_range=f'"{DIGEST}"')
    assert "x-accel-redirect" in headers and "content-digest" not in headers
    for given in ({"range": "bytes=0-1,4-5"}, {"range": "lines=1-2"}, {"range": "bytes=5-9", "if_range": '"other"'}):
        status, headers, chunks = sent(checkpoint_file(path, offload=offload), **given)
        assert (status, b"".join(chunks)) == (200, DATA)
        assert "x-accel-redirect" not in headers
    with pytest.raises(HttpProblem, match="bytes"):
        sent(checkpoint_file(path, offload=offload), range=f"bytes={len(DATA)}-")
