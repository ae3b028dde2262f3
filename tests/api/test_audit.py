"""The log over HTTP."""

from __future__ import annotations

import pytest

from espalier.formats.note import VerifierKey, opened
from espalier.formats.proof import merkle_root, verify_consistency, verify_inclusion, verify_log
from tests.api.conftest import WORKER, House, problem


def test_entries_verify_on_the_client(house: House) -> None:
    house.create()
    house.publish()
    entries = house.http.get("/v1/audit?limit=1000").json()["items"]
    head = house.http.get("/v1/audit/head").json()
    assert head["size"] == len(entries)
    verify_log(entries, head["size"], head["root"])
    assert house.http.get("/v1/audit/verify").json() == {**head, "verified": True}
    one = house.http.get(f"/v1/audit/{entries[1]['seq']}").json()
    assert one == entries[1]


def test_filters_and_cursors(house: House) -> None:
    house.create("a")
    house.create("b")
    house.upload(name="a")
    kinds = [entry["kind"] for entry in house.http.get("/v1/audit?model=a").json()["items"]]
    assert kinds[0] == "model.created"
    assert "megabatch.accepted" in kinds
    created = house.http.get("/v1/audit?kind=model.created").json()["items"]
    assert [entry["model"] for entry in created] == ["a", "b"]
    page = house.http.get("/v1/audit?limit=1").json()
    rest = house.http.get(f"/v1/audit?limit=1000&cursor={page['next_cursor']}").json()["items"]
    assert [entry["seq"] for entry in page["items"] + rest] == [
        entry["seq"] for entry in house.http.get("/v1/audit?limit=1000").json()["items"]
    ]
    assert house.http.get("/v1/audit?kind=no.such").json()["items"] == []


@pytest.mark.parametrize("query", ["model=%00", "model=UPPER", "kind=%00", "kind=A", "kind=a..b", "kind=' OR 1=1"])
def test_filters_that_cannot_be(house: House, query: str) -> None:
    problem(house.http.get(f"/v1/audit?{query}"), 422, "invalid-request")


# -- checkpoints, proofs, tiles ----------------------------------------------------------------------------------------


def test_a_checkpoint_is_signed_cached_and_opened(house: House) -> None:
    house.create()
    answer = house.http.get("/v1/audit/checkpoint")
    assert answer.headers["Content-Type"].startswith("text/plain")
    keys = [VerifierKey.parse(text) for text in house.http.get("/v1/audit/keys").json()["keys"]]
    found = opened(answer.text, keys)
    head = house.http.get("/v1/audit/head").json()
    assert (found.size, found.root.hex()) == (head["size"], head["root"])
    again = house.http.get("/v1/audit/checkpoint", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_every_entry_is_proved_to_be_under_the_signed_checkpoint(house: House) -> None:
    house.create()
    house.publish(1)
    keys = [VerifierKey.parse(text) for text in house.http.get("/v1/audit/keys").json()["keys"]]
    signed = opened(house.http.get("/v1/audit/checkpoint").text, keys)
    for seq in range(1, signed.size + 1):
        proof = house.http.get(f"/v1/audit/proofs/inclusion?seq={seq}").json()
        leaf = bytes.fromhex(house.http.get(f"/v1/audit/{seq}").json()["leaf"])
        assert (proof["size"], proof["leaf"]) == (signed.size, leaf.hex())
        verify_inclusion(leaf, seq, signed.size, [bytes.fromhex(item) for item in proof["path"]], signed.root)
    for first in range(signed.size + 1):
        proof = house.http.get(f"/v1/audit/proofs/consistency?first={first}").json()
        roots = bytes.fromhex(proof["first_root"]), bytes.fromhex(proof["second_root"])
        assert roots[1] == signed.root
        verify_consistency(first, signed.size, *roots, [bytes.fromhex(item) for item in proof["path"]])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("proofs/inclusion?seq=0", 422),
        ("proofs/inclusion", 422),
        ("proofs/inclusion?seq=9999", 404),
        ("proofs/inclusion?seq=1&size=9999", 404),
        ("proofs/inclusion?seq=2&size=1", 404),
        ("proofs/consistency?first=9999", 404),
        ("proofs/consistency?first=2&second=1", 404),
        ("proofs/consistency?first=-1", 422),
        ("tile/0/000", 404),
        ("tile/0/000.p/0", 404),
        ("tile/0/000.p/999", 404),
        ("tile/0/0", 404),
        ("tile/0/x000/001.p/1", 404),
        ("tile/0/..%2f000", 404),
        ("tile/9/000", 422),
        ("tile/x/000", 422),
    ],
)
def test_proofs_and_tiles_that_are_not_there(house: House, path: str, status: int) -> None:
    house.create()
    answer = house.http.get(f"/v1/audit/{path}")
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_tiles_hold_the_leaves_and_the_roots_above_them(house: House) -> None:
    with house.store.transaction(WORKER) as tx:
        for _ in range(300):
            tx.audit.append("test", model=None)
    with house.store.reading() as tx:
        leaves = [bytes.fromhex(e.leaf) for e in tx.audit.entries(None, None, 300).items]
    whole = house.http.get("/v1/audit/tile/0/000")
    assert whole.content == b"".join(leaves[:256]) and "immutable" in whole.headers["Cache-Control"]
    assert house.http.get("/v1/audit/tile/0/001.p/44").content == b"".join(leaves[256:])
    assert house.http.get("/v1/audit/tile/1/000.p/1").content == merkle_root(leaves[:256])
