"""Whatever the bytes are, a decoder gives a megabatch or refuses one: no other error leaves it, and nothing is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidMegabatch
from app.intake.arrays import Limits, Reading
from app.intake.decoders import decode
from espalier.formats.megabatch import encode
from tests.intake.hostile_tables import to_file, to_parquet, to_stream

LIMITS = Limits(max_bytes=1 << 20, seconds=10, memory_bytes=256 << 20)
N = 20

TABLE = pa.table(
    {
        "a": pa.array([n / 4 for n in range(N)]),
        "b": pa.array(range(N), pa.int16()),
        "flag": pa.array([n % 2 == 0 for n in range(N)]),
        "label": pa.array(["u", "v"] * (N // 2)),
    }
)
LISTS = pa.table({"x": pa.array([[1.0, 2.0]] * N, pa.list_(pa.float32(), 2)), "y": pa.array([0, 1] * (N // 2))})
CSV = "a,b,label\n" + "".join(f"{n / 4},{n},{'uv'[n % 2]}\n" for n in range(N))

VALID: dict[str, bytes] = {
    "npz": encode([[1.0, 2.0]] * N, [0, 1] * (N // 2)),
    "Parquet": to_parquet(TABLE, compression="zstd"),
    "Parquet of lists": to_parquet(LISTS, use_dictionary=False, compression="none"),
    "Arrow stream": to_stream(TABLE),
    "Arrow stream, packed": to_stream(LISTS, compression="lz4"),
    "Arrow file": to_file(TABLE),
    "CSV": CSV.encode(),
    "JSON lines": b"".join(b'{"x":[%d,2],"y":%d}\n' % (n, n % 2) for n in range(N)),
}


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a few of them changed, left out or put in, or cut off."""
    change = st.tuples(st.integers(0, len(data) - 1), st.integers(0, 3), st.binary(max_size=6))

    def mutated(changes: list[tuple[int, int, bytes]], end: int) -> bytes:
        out = bytearray(data)
        for at, cut, put in changes:
            out[at : at + cut] = put
        return bytes(out[:end])

    return st.builds(mutated, st.lists(change, min_size=1, max_size=4), st.sampled_from([len(data) // 2, 1 << 30]))


def outcome(data: bytes) -> str:
    """The digest of what was decoded, or the message of the refusal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "upload")
        path.write_bytes(data)
        try:
            return decode(path, Path(folder), LIMITS, Reading()).digest
        except InvalidMegabatch as refusal:
            return f"{refusal.reason}: {refusal}"


@pytest.mark.parametrize("name", VALID)
def test_valid_uploads_are_decoded(name: str) -> None:
    assert outcome(VALID[name]).startswith("sha256:")


@pytest.mark.parametrize("name", VALID)
@settings(max_examples=100)
@given(data=st.data())
def test_damaged_uploads_are_decoded_or_refused(name: str, data: st.DataObject) -> None:
    assert outcome(data.draw(mutations(VALID[name]))).isprintable()


@pytest.mark.parametrize("mark", [b"", b"PK\x03\x04", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"{", b"a,label\n"])
@settings(max_examples=100)
@given(noise=st.binary(max_size=400))
def test_noise_is_decoded_or_refused(mark: bytes, noise: bytes) -> None:
    assert outcome(mark + noise).isprintable()
