"""A whole log outside its service: exported, gone on with, verified, tampered with."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import Settings
from app.domain import Actor
from espalier import export
from espalier.client import Client
from espalier.errors import EspalierClientError, ProofRejected
from espalier.formats.canonical import canonical_json
from espalier.formats.logfile import LogFiles, entries_name, verify_files
from espalier.formats.note import LogCheckpoint, SignerKey, VerifierKey, sign
from espalier.formats.proof import Frontier, leaf_hash
from tests.api.conftest import House, opened

URL = "http://localhost:8000"


@pytest.fixture
def house(tmp_path: Path, migrated: dict[str, str]) -> Iterator[House]:
    settings = Settings(data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    shutil.copyfile(migrated["sqlite"], settings.data_dir / "espalier.db")
    with opened(settings) as found:
        grow(found, 7)
        yield found


@pytest.fixture
def client(house: House) -> Client:
    return Client(URL, transport=house.http._transport, retries=0)


def grow(house: House, entries: int) -> None:
    for number in range(entries):
        with house.store.transaction(Actor("ana")) as tx:
            tx.audit.append("test", model=None, parameters={"number": number, "text": "grün\n"})


def keys(client: Client) -> tuple[VerifierKey, ...]:
    return client.log.trusted()


SIGNER = SignerKey.generate("example.com/log")


def written(folder: Path, *sizes: int, entries: int | None = None) -> Path:
    """An exported log without a service, in files of these sizes."""
    frontier, added = Frontier(), []
    folder.parent.mkdir(exist_ok=True, parents=True)
    for place, size in enumerate(sizes):
        first, lines = frontier.size + 1, []
        for seq in range(first, first + size):
            lines.append(canonical_json({"kind": "test", "seq": seq}))
            frontier = frontier.append(leaf_hash(lines[-1]))
        source = folder.parent / f"part-{place}"
        source.write_bytes(b"".join(line + b"\n" for line in lines))
        added.append((entries_name(first, frontier.size), source))
    note = sign(LogCheckpoint("example.com/log", entries or frontier.size, frontier.root()).body(), [SIGNER])
    LogFiles(folder).commit(added, (), note, f"{SIGNER.verifier.text}\n")
    return folder


@pytest.mark.parametrize("name", ["log", "log.tar"])
def test_an_export_is_verified_and_gone_on_with(house: House, client: Client, tmp_path: Path, name: str) -> None:
    path, told = tmp_path / "out" / name, list[tuple[int, int]]()
    added, there = client.export_log(path, progress=lambda at, total: told.append((at, total)))
    assert added == there == told[-1][0] == told[-1][1]
    first = verify_files(path, keys(client))[0]
    assert first == client.log_checkpoint()
    assert client.export_log(path) == (0, there)
    grow(house, 3)
    assert client.export_log(path) == (3, there + 3)
    second, frontier, names = verify_files(path, keys(client))
    assert (second.size, frontier.root()) == (there + 3, second.root)
    assert names == [entries_name(1, there), entries_name(there + 1, there + 3)]
    assert sorted(item.name for item in path.parent.iterdir()) == [name], "nothing is left beside it"


def test_a_log_of_many_files(house: House, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_FILE", 3)
    _, there = client.export_log(tmp_path / "log")
    log, _, names = verify_files(tmp_path / "log", keys(client))
    assert log.size == there
    assert len(names) == -(-there // 3)


def test_a_log_that_was_rewritten_is_not_added_to(house: House, client: Client, tmp_path: Path) -> None:
    written(tmp_path / "log", 3)
    with pytest.raises(ProofRejected, match="trusted are"):
        client.export_log(tmp_path / "log")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "log").rglob("*") if path.is_file())
    key = client.log.trusted()
    other = Client(URL, transport=house.http._transport, retries=0, log_key=f"{key[0].text} {SIGNER.verifier.text}")
    with pytest.raises(ProofRejected, match="rewound or begun anew"):
        other.export_log(tmp_path / "log")
    assert before == sorted((p.name, p.read_bytes()) for p in (tmp_path / "log").rglob("*") if p.is_file())


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("name", ["log", "log.tar"])
def test_every_changed_byte_of_the_entries_is_refused(tmp_path: Path, name: str, sizes: tuple[int, ...]) -> None:
    path = written(tmp_path / name, *sizes)
    assert verify_files(path, [SIGNER.verifier])[0].size == 5
    found = path if name == "log.tar" else path / entries_name(1, sizes[0])
    whole = found.read_bytes()
    inside = range(512, 512 + 24 * sizes[0]) if name == "log.tar" else range(len(whole))
    for place in inside:
        found.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ProofRejected):
            verify_files(path, [SIGNER.verifier])


def test_entries_that_are_missing_doubled_or_moved_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "log", 2, 3)
    second = path / entries_name(3, 5)
    lines = second.read_bytes().splitlines(keepends=True)
    for changed in (lines[:2], lines + lines[2:], [lines[1], lines[0], lines[2]], [*lines, b"{}\n"], [*lines, b"{}"]):
        second.write_bytes(b"".join(changed))
        with pytest.raises(ProofRejected):
            verify_files(path, [SIGNER.verifier])
    second.unlink()
    with pytest.raises(ProofRejected, match="holds entries 1 to 2, but its checkpoint says 5"):
        verify_files(path, [SIGNER.verifier])


def test_numbers_must_be_those_of_the_places(tmp_path: Path) -> None:
    line = canonical_json({"kind": "test", "seq": 2})
    source = tmp_path / "part"
    source.write_bytes(line + b"\n")
    log = LogCheckpoint("example.com/log", 1, leaf_hash(line))
    LogFiles(tmp_path / "log").commit(
        [(entries_name(1, 1), source)], (), sign(log.body(), [SIGNER]), f"{SIGNER.verifier.text}\n"
    )
    with pytest.raises(ProofRejected, match="entry 1 is not where it belongs"):
        verify_files(tmp_path / "log", [SIGNER.verifier])


def test_the_signature_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "log", 3)
    with pytest.raises(ProofRejected, match="trusted are"):
        verify_files(path, [SignerKey.generate("example.com/log").verifier])
    note = path / "checkpoint"
    whole = note.read_bytes()
    for place in range(len(whole)):
        note.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ProofRejected):
            verify_files(path, [SIGNER.verifier])


def test_what_an_export_that_was_cut_off_left_does_not_count(house: House, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "log"
    _, there = client.export_log(path)
    left = path / entries_name(there + 1, there + 9)
    left.write_text("half an ent")
    assert verify_files(path, keys(client))[0].size == there
    grow(house, 2)
    assert client.export_log(path) == (2, there + 2)
    assert not left.exists()


@pytest.mark.parametrize("name", ["log", "log.tar"])
def test_what_is_no_export_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EspalierClientError, match="holds no exported log"):
        verify_files(tmp_path / name, [SIGNER.verifier])
    if name == "log.tar":
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ProofRejected, match="no tar of a log"):
            verify_files(tmp_path / name, [SIGNER.verifier])
        with tarfile.open(tmp_path / name, "w:"):
            pass
        with pytest.raises(ProofRejected, match="checkpoint is missing"):
            verify_files(tmp_path / name, [SIGNER.verifier])
