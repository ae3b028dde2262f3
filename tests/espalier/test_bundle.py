"""Bundles: what verifies, and everything that does not."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from app.config import Settings
from app.service.bundle import open_bundle
from app.service.notary import Notary
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from espalier.errors import CheckpointMismatch, EspalierClientError, ProofRejected
from espalier.formats import bundle, statement
from espalier.formats.archive import Archive, Writer
from espalier.formats.bundle import verify_bundle
from espalier.formats.canonical import canonical_json, sha256_digest
from espalier.formats.note import LogCheckpoint, SignerKey, VerifierKey, sign
from espalier.formats.proof import Frontier, leaf_hash
from tests.lineages import Lineage

CHECKPOINT = "gas-3.safetensors"
SIGNER = SignerKey.generate("forger.example/log")


@dataclass
class Made:
    """A bundle as the service made it, and the key of its log."""

    path: Path
    keys: list[VerifierKey]

    @property
    def members(self) -> dict[str, bytes]:
        with Archive(self.path) as archive:
            return {name: archive.read(name, 1 << 30) for name in archive.members}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("bundle")
    url = f"sqlite:///{folder / 'espalier.db'}"
    migrate(url)
    store = Store(url, Blobs(folder / "blobs"))
    notary = Notary(store, Settings(data_dir=folder, database_url=url))
    line = Lineage(store)
    line.publish()
    line.publish(failed_first=True, steps=2)
    line.publish()
    with open_bundle(store, notary, "gas", "3") as found:
        found.path.rename(folder / "gas-3.zip")
    store.dispose()
    return Made(folder / "gas-3.zip", notary.verifier_keys())


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with path.open("w+b") as file:
        writer = Writer(file)
        for name, data in members.items():
            writer.add(name, [data])
        writer.close()
    return path


def test_a_bundle_verifies_with_the_public_key_alone(made: Made) -> None:
    told: list[tuple[int, int]] = []
    found = verify_bundle(made.path, made.keys, progress=lambda at, total: told.append((at, total)))
    assert (found.model, found.version, found.checkpoint) == ("gas", 3, CHECKPOINT)
    assert found.digest == sha256_digest(made.members[CHECKPOINT])
    assert [version.version for version in found.lineage] == [3, 2, 1]
    assert found.pruning_steps == 4, "those of the attempt that failed are not counted"
    assert found.grown == ()
    assert found.signers == tuple(made.keys)
    assert found.entries == made.members[bundle.ENTRIES].count(b"\n") <= found.log.size
    assert told[-1] == (len(made.members[CHECKPOINT]),) * 2


def test_any_unzip_program_reads_it(made: Made) -> None:
    with zipfile.ZipFile(made.path) as other:
        assert other.testzip() is None
        assert {item.filename: other.read(item) for item in other.infolist()} == made.members


# -- tampering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*bundle._BEFORE, CHECKPOINT, bundle.STATEMENT}))
@pytest.mark.parametrize("change", ["first", "middle", "last", "cut", "longer", "empty", "removed", "renamed"])
def test_a_changed_member_is_named(made: Made, tmp_path: Path, name: str, change: str) -> None:
    members = made.members
    data = members[name]
    middle = len(data) // 2
    changed = {
        "first": bytes([data[0] ^ 1]) + data[1:],
        "middle": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "last": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-1],
        "longer": data + b"\n",
        "empty": b"",
    }
    if change in changed:
        members[name] = changed[change]
    else:
        del members[name]
        if change == "renamed":
            members[f"x-{name.rpartition('/')[2]}"] = data
    with pytest.raises((ProofRejected, CheckpointMismatch), match=name.replace(".", r"\.")) as refused:
        verify_bundle(packed(tmp_path / "x.zip", members), made.keys)
    if name == CHECKPOINT and change in changed:
        assert isinstance(refused.value, CheckpointMismatch)


def test_a_changed_bit_anywhere_is_refused(made: Made, tmp_path: Path) -> None:
    assert _survivors(made, tmp_path, range(3, made.path.stat().st_size, 53)) == []


@pytest.mark.slow
def test_a_changed_bit_in_every_byte_is_refused(made: Made, tmp_path: Path) -> None:
    assert _survivors(made, tmp_path, range(made.path.stat().st_size)) == []


def test_every_byte_around_the_members_counts(made: Made, tmp_path: Path) -> None:
    with Archive(made.path) as archive:
        inside = {n for m in archive.members.values() for n in range(m.start, m.start + m.size)}
    outside = [place for place in range(made.path.stat().st_size) if place not in inside]
    assert len(outside) > 700
    assert _survivors(made, tmp_path, outside) == []


def _survivors(made: Made, tmp_path: Path, places: Any) -> list[int]:
    """Places where a flipped bit is not noticed."""
    whole, path, left = bytearray(made.path.read_bytes()), tmp_path / "x.zip", []
    for place in places:
        whole[place] ^= 1 << place % 8
        path.write_bytes(whole)
        try:
            verify_bundle(path, made.keys)
        except EspalierClientError:
            pass
        else:
            left.append(place)
        whole[place] ^= 1 << place % 8
    return left


def test_a_cut_bundle_is_refused(made: Made, tmp_path: Path) -> None:
    whole = made.path.read_bytes()
    for length in (0, 1, 21, 22, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.zip").write_bytes(whole[:length])
        with pytest.raises(ProofRejected):
            verify_bundle(tmp_path / "x.zip", made.keys)


def test_a_bundle_packed_anew_is_refused_and_says_so(made: Made, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as other:
        for name, data in made.members.items():
            other.writestr(name, data)
    with pytest.raises(ProofRejected, match="do not pack it anew"):
        verify_bundle(tmp_path / "x.zip", made.keys)


def test_members_in_another_order_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ProofRejected, match="in another order"):
        verify_bundle(packed(tmp_path / "x.zip", dict(reversed(made.members.items()))), made.keys)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_only_a_trusted_key_counts(made: Made) -> None:
    (key,) = made.keys
    with pytest.raises(ProofRejected, match=rf"manifest\.dsse\.json: it is signed by {key.name}.*trusted are forger"):
        verify_bundle(made.path, [SIGNER.verifier])
    with pytest.raises(ProofRejected, match="trusted are none"):
        verify_bundle(made.path, [])
    assert verify_bundle(made.path, [SIGNER.verifier, key]).signers == (key,), "one of several is enough"


def test_the_keys_inside_prove_nothing(made: Made, tmp_path: Path) -> None:
    forged = forge(made, tmp_path)
    assert verify_bundle(forged, [SIGNER.verifier]).version == 3, (
        "whoever trusts the forger is told what the forger says"
    )
    with pytest.raises(ProofRejected, match="signed by forger"):
        verify_bundle(forged, made.keys)


def test_a_name_alone_makes_no_key(made: Made, tmp_path: Path) -> None:
    (key,) = made.keys
    other = SignerKey.generate(key.name)
    with pytest.raises(ProofRejected, match="trusted are"):
        verify_bundle(forge(made, tmp_path, signer=other), made.keys)


# -- what a signer could say that does not hold ------------------------------------------------------------------------


def forge(
    made: Made,
    tmp_path: Path,
    *,
    signer: SignerKey = SIGNER,
    entries: Callable[[list[dict[str, Any]]], Any] = lambda found: None,
    proofs: Callable[[dict[str, Any]], Any] = lambda found: None,
    predicate: Callable[[dict[str, Any]], Any] = lambda found: None,
    checkpoint: Callable[[bytes], bytes] = lambda found: found,
) -> Path:
    """A bundle of another signer, with a log that holds its entries alone; all of it fits, but for what is changed."""
    members = made.members
    told = [json.loads(line) for line in members[bundle.ENTRIES].splitlines()]
    for seq, entry in enumerate(told, 1):
        entry["seq"] = seq
    entries(told)
    lines = [canonical_json(entry) for entry in told]
    leaves = [leaf_hash(line) for line in lines]
    log = LogCheckpoint(signer.name, len(leaves), Frontier().extend(leaves).root())
    shown: dict[str, Any] = {
        "size": log.size,
        "root": log.root.hex(),
        "proofs": [{"seq": n, "path": [h.hex() for h in inclusion(leaves, n)]} for n in range(1, len(leaves) + 1)],
    }
    proofs(shown)
    members[bundle.ENTRIES] = b"".join(line + b"\n" for line in lines)
    members[bundle.PROOFS] = json.dumps(shown).encode()
    members[bundle.NOTE] = sign(log.body(), [signer]).encode()
    members[bundle.KEYS] = f"{signer.verifier.text}\n".encode()
    members[CHECKPOINT] = checkpoint(members[CHECKPOINT])
    said = json.loads(base64.b64decode(json.loads(members.pop(bundle.STATEMENT))["payload"]))["predicate"]
    said["members"] = {name: sha256_digest(data) for name, data in members.items()}
    said["log"] = {"origin": log.origin, "size": log.size, "root": log.root.hex()}
    predicate(said)
    payload = statement.statement(CHECKPOINT, sha256_digest(members[CHECKPOINT]), said)
    signature = signer.sign_bytes(statement.pae(payload))
    members[bundle.STATEMENT] = statement.envelope(payload, [(signer.verifier, signature)])
    return packed(tmp_path / "forged.zip", members)


def inclusion(leaves: list[bytes], seq: int) -> list[bytes]:
    """The proof, by the definition (RFC 9162, 2.1.3.1)."""
    if len(leaves) == 1:
        return []
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    left, right = leaves[:half], leaves[half:]
    if seq <= half:
        return [*inclusion(left, seq), Frontier().extend(right).root()]
    return [*inclusion(right, seq - half), Frontier().extend(left).root()]


def refused(path: Path) -> str:
    with pytest.raises((ProofRejected, CheckpointMismatch)) as error:
        verify_bundle(path, [SIGNER.verifier])
    return str(error.value)


def of_kind(found: list[dict[str, Any]], kind: str, place: int = 0) -> dict[str, Any]:
    return [entry for entry in found if entry["kind"] == kind][place]


def test_entries_that_do_not_hang_together_are_refused(made: Made, tmp_path: Path) -> None:
    def without(version: int) -> Callable[[list[dict[str, Any]]], None]:
        def change(found: list[dict[str, Any]]) -> None:
            gone = [e for e in found if e["kind"] == "version.published" and e["parameters"]["version"] == version]
            found.remove(gone[0])
            for seq, entry in enumerate(found, 1):
                entry["seq"] = seq

        return change

    def parameter(kind: str, place: int, name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
        return lambda found: of_kind(found, kind, place)["parameters"].__setitem__(name, value)

    made_by = "version.published"
    assert "no entry tells version 1, which version 2 came from" in refused(forge(made, tmp_path, entries=without(1)))
    assert "no entry tells version 3" in refused(forge(made, tmp_path, entries=without(3)))
    said = refused(forge(made, tmp_path, entries=parameter("mask.pruned", -1, "mask_digest_before", "sha256:0")))
    assert said.startswith("audit/entries.jsonl: version 3") and "began with the masks sha256:0" in said
    said = refused(forge(made, tmp_path, entries=parameter(made_by, 1, "mask_digest", "sha256:0")))
    assert "has the masks sha256:0" in said or "began with" in said

    def other_cycle(found: list[dict[str, Any]]) -> None:
        for entry in (of_kind(found, made_by, 2), of_kind(found, "mask.pruned", -1)):
            entry["parameters"]["cycle"] = 9

    assert "says cycle 9" in refused(forge(made, tmp_path, entries=other_cycle))
    assert "does not name" in refused(
        forge(made, tmp_path, entries=lambda found: of_kind(found, made_by, 2).__setitem__("outputs", []))
    )
    assert "parent_checkpoint" in refused(
        forge(made, tmp_path, entries=lambda found: of_kind(found, made_by, 1).__setitem__("outputs", []))
    )
    assert "about the model 'other'" in refused(
        forge(made, tmp_path, entries=lambda found: found[0].__setitem__("model", "other"))
    )
    doubled = forge(
        made,
        tmp_path,
        entries=lambda found: found.insert(1, dict(found[0])),
        proofs=lambda found: found["proofs"].__setitem__(1, found["proofs"][0]),
    )
    assert "entry 1 follows entry 1: they are out of order" in refused(doubled)


def test_proofs_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    changes: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda found: found["proofs"].pop(), "the next proof is of entry None"),
        (lambda found: found["proofs"].append(found["proofs"][0]), "there is a proof of entry 1, but no such entry"),
        (lambda found: found["proofs"].reverse(), "the next proof is of entry"),
        (lambda found: found["proofs"][0]["path"].pop(), "is not in the log"),
        (lambda found: found["proofs"][0]["path"].append("00" * 32), "too long|is not in the log"),
        (lambda found: found["proofs"][0]["path"].__setitem__(0, "zz"), "a proof cannot be read"),
        (lambda found: found.__setitem__("size", 1), "they are for a log of 1 entries"),
        (lambda found: found.pop("root"), "they cannot be read"),
    ]
    for change, why in changes:
        with pytest.raises(ProofRejected, match=f"audit/proofs.json: .*({why})"):
            verify_bundle(forge(made, tmp_path, proofs=change), [SIGNER.verifier])


def test_statements_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    changes: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda said: said["manifest"].__setitem__("seed", 8), f"{CHECKPOINT}: its manifest is not the one"),
        (lambda said: said["manifest"].__setitem__("version", 4), "not one of the format"),
        (lambda said: said["manifest"].__setitem__("model", "other"), "not one of the format"),
        (lambda said: said.__setitem__("format", "espalier-bundle-9"), "not one of the format"),
        (lambda said: said.pop("manifest"), "not about a checkpoint"),
        (lambda said: said["members"].pop(bundle.CARD), "members of the file"),
        (lambda said: said["members"].__setitem__("more", "sha256:0"), "members of the file"),
        (lambda said: said["members"].__setitem__(bundle.CARD, "sha256:0"), r"MODEL_CARD\.md: its bytes hash to"),
        (lambda said: said["log"].__setitem__("size", 1), "audit/checkpoint: it is not the checkpoint"),
    ]
    for change, why in changes:
        with pytest.raises((ProofRejected, CheckpointMismatch), match=why):
            verify_bundle(forge(made, tmp_path, predicate=change), [SIGNER.verifier])


def test_a_checkpoint_without_its_manifest_is_refused(made: Made, tmp_path: Path) -> None:
    for data in (
        b"",
        b"\1",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
    ):
        assert refused(forge(made, tmp_path, checkpoint=lambda _: data)).startswith(CHECKPOINT)  # noqa: B023


def test_an_envelope_in_another_spelling_is_refused(made: Made, tmp_path: Path) -> None:
    members = made.members
    said = json.loads(members[bundle.STATEMENT])
    double = {**said, "signatures": said["signatures"] * 2}
    for text in (json.dumps(said), json.dumps(said) + "\n", canonical_json(double).decode() + "\n", "[]\n", "{", "\n"):
        members[bundle.STATEMENT] = text.encode()
        with pytest.raises(ProofRejected, match=r"manifest\.dsse\.json"):
            verify_bundle(packed(tmp_path / "x.zip", members), made.keys)


def test_another_statement_of_the_same_key_is_refused(made: Made, tmp_path: Path) -> None:
    other = canonical_json({"_type": statement.STATEMENT_TYPE, "subject": [], "predicateType": "x", "predicate": {}})
    envelope = statement.envelope(other, [(SIGNER.verifier, SIGNER.sign_bytes(statement.pae(other)))])
    members = made.members | {bundle.STATEMENT: envelope}
    assert "the statement says 'x'" in refused(packed(tmp_path / "x.zip", members))


# -- by hand, as docs/bundles.md tells it ------------------------------------------------------------------------------


def test_the_page_is_enough_to_verify_by_hand(made: Made) -> None:
    (key,) = made.keys
    members = made.members
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.text.split("+", 2)[2])[1:])
    envelope = json.loads(members["manifest.dsse.json"])
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    said = json.loads(payload)
    for name, digest in said["predicate"]["members"].items():
        assert digest == "sha256:" + hashlib.sha256(members[name]).hexdigest()
    text, _, signatures = members["audit/checkpoint"].decode().rpartition("\n\n")
    signature = base64.b64decode(signatures.split()[2])
    assert signature[:4].hex() == key.text.split("+")[1]
    public.verify(signature[4:], f"{text}\n".encode())
    _, size, root = text.split("\n")
    proofs = json.loads(members["audit/proofs.json"])["proofs"]
    for line, proof in zip(members["audit/entries.jsonl"].splitlines(), proofs, strict=True):
        found, index, last = hashlib.sha256(b"\0" + line).digest(), proof["seq"] - 1, int(size) - 1
        for sibling in map(bytes.fromhex, proof["path"]):
            if index % 2 or index == last:
                found = hashlib.sha256(b"\1" + sibling + found).digest()
                while index % 2 == 0 and index:
                    index, last = index // 2, last // 2
            else:
                found = hashlib.sha256(b"\1" + found + sibling).digest()
            index, last = index // 2, last // 2
        assert (found, last) == (base64.b64decode(root), 0)
