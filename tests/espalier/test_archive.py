"""Plain zips: one spelling, read by every unzip program, and nothing else is taken for one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from espalier.errors import ProofRejected
from espalier.formats import archive
from espalier.formats.archive import Archive, Member, Writer

MEMBERS = [("README.txt", b"hello\n"), ("audit/entries.jsonl", b'{"a":1}\n{"b":2}\n'), ("empty", b"")]


def packed(members: Sequence[tuple[str, bytes]] = MEMBERS) -> bytes:
    file = io.BytesIO()
    writer = Writer(file)
    for name, data in members:
        writer.add(name, [data[:3], data[3:]])
    writer.close()
    return file.getvalue()


def read(path: Path, data: bytes) -> dict[str, bytes]:
    path.write_bytes(data)
    with Archive(path) as found:
        return {name: found.read(name, 1 << 20) for name in found.members}


def test_the_same_members_give_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    assert packed() == packed()
    assert list(read(tmp_path / "a.zip", packed()).items()) == MEMBERS


def test_other_programs_read_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed())) as other:
        assert other.testzip() is None
        assert [(item.filename, other.read(item)) for item in other.infolist()] == MEMBERS
        assert {item.date_time for item in other.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {item.external_attr >> 16 for item in other.infolist()} == {0o100644}, "plain files: no links"


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    whole = packed()
    for place in range(len(whole)):
        for bit in (0x01, 0x80):
            with pytest.raises(ProofRejected):
                read(tmp_path / "a.zip", whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])


def test_every_cut_and_every_addition_is_refused(tmp_path: Path) -> None:
    whole = packed()
    for length in range(len(whole)):
        with pytest.raises(ProofRejected):
            read(tmp_path / "a.zip", whole[:length])
    for other in (whole + b"\0", b"\0" + whole, whole + whole):
        with pytest.raises(ProofRejected):
            read(tmp_path / "a.zip", other)


@pytest.mark.parametrize(
    "name", ["../up", "/root", "a\\b", "a/b/c", "", ".hidden", "a//b", "a/../b", "C:x", "ü", "a\n", "x" * 200]
)
def test_names_that_lead_elsewhere_are_neither_written_nor_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a member"):
        packed([(name, b"x")])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as other:
        other.writestr(name or "/", b"x")
    with pytest.raises(ProofRejected):
        read(tmp_path / "a.zip", file.getvalue())


def test_a_bomb_and_a_packed_zip_are_refused_before_anything_unfolds(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as other:
        other.writestr("README.txt", bytes(50_000_000))
    with pytest.raises(ProofRejected, match="download"):
        read(tmp_path / "a.zip", file.getvalue())


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    for data in (b"one", b"two"):
        writer.add("same", [data])
        writer._members[-1] = Member("same", 3, writer._members[-1].crc, writer._members[-1].at)
        with pytest.raises(ValueError, match="cannot name a member"):
            writer.add("same", [b"three"])
        break
    one = writer._members[0]
    file.seek(0, io.SEEK_END)
    again = Member("same", 3, one.crc, one.start + 3)
    file.write(again.header() + b"one" + archive._end([one, again], again.start + 3))
    with pytest.raises(ProofRejected, match="one name"):
        read(tmp_path / "a.zip", file.getvalue())


def test_a_member_of_4_gib_is_spelled_wide() -> None:
    wide = Member("big", 1 << 33, 7, 1 << 34)
    assert len(wide.header()) == 30 + 3 + 20
    assert len(wide.entry()) == 46 + 3 + 28
    end = archive._end([wide], (1 << 34) + (1 << 33))
    assert end.count(b"PK\6\6") == end.count(b"PK\6\7") == 1


@pytest.mark.slow
def test_a_member_of_4_gib_comes_back(tmp_path: Path) -> None:
    path, block = tmp_path / "big.zip", bytes(1 << 24)
    with path.open("x+b") as file:
        writer = Writer(file)
        writer.add("first", [b"x"])
        writer.add("big", (block for _ in range(257)), 257 << 24)
        writer.add("last", [b"y"])
        writer.close()
    with Archive(path) as found:
        assert {name: member.size for name, member in found.members.items()} == {
            "first": 1,
            "big": 257 << 24,
            "last": 1,
        }
        assert found.read("last", 1) == b"y"
        assert sum(map(len, found.blocks("big"))) == 257 << 24
    with zipfile.ZipFile(path) as other:
        assert other.getinfo("big").file_size == 257 << 24
        assert other.read("last") == b"y"


def test_lines_are_bounded_and_end(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(packed([("lines", b"one\ntwo\n"), ("cut", b"one\ntwo")]))
    with Archive(tmp_path / "a.zip") as found:
        assert list(found.lines("lines", 3)) == [b"one", b"two"]
        with pytest.raises(ProofRejected, match="more than 2 bytes"):
            list(found.lines("lines", 2))
        with pytest.raises(ProofRejected, match="cut off"):
            list(found.lines("cut", 3))
        with pytest.raises(ProofRejected, match="more than the 3"):
            found.read("lines", 3)
        with pytest.raises(ProofRejected, match="missing"):
            found.read("nothing", 3)
