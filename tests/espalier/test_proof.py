"""The audit log's arithmetic against the test vectors of certificate transparency, and tampered logs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from espalier.errors import ProofRejected
from espalier.formats.canonical import canonical_json
from espalier.formats.proof import EMPTY_ROOT, Frontier, leaf_hash, merkle_root, node_hash, verify_log

LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    assert merkle_root([leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size]


def test_leaf_and_node_are_told_apart() -> None:
    assert leaf_hash(b"ab") == hashlib.sha256(b"\x00ab").digest()
    assert node_hash(b"a", b"b") == hashlib.sha256(b"\x01ab").digest()
    assert merkle_root([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()


def naive_root(hashes: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node_hash(naive_root(hashes[:split]), naive_root(hashes[split:]))


def test_frontier_agrees_with_the_recursion_at_every_size() -> None:
    hashes = [leaf_hash(bytes([n % 256, n // 256])) for n in range(300)]
    frontier = Frontier()
    for size, leaf in enumerate(hashes):
        assert frontier.root() == naive_root(hashes[:size])
        assert frontier == Frontier(size, frontier.hashes), "it is rebuilt from what is stored"
        assert len(frontier.hashes) == size.bit_count()
        frontier = frontier.append(leaf)
    assert frontier == Frontier().extend(hashes)


def test_append_makes_a_new_value() -> None:
    before = Frontier().append(leaf_hash(b"a"))
    before.append(leaf_hash(b"b"))
    assert before.size == 1
    assert before.root() == leaf_hash(b"a")


@pytest.mark.parametrize(("size", "hashes"), [(1, ()), (3, (b"\0" * 32,)), (1, (b"short",)), (-1, (b"\0" * 32,))])
def test_an_impossible_frontier_is_refused(size: int, hashes: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="frontier"):
        Frontier(size, hashes)


def entry(seq: int) -> dict[str, Any]:
    document = {
        "seq": seq,
        "time": f"2026-01-01T00:00:{seq:02}+00:00",
        "kind": "mask.pruned",
        "actor": "worker",
        "request_id": None,
        "model": "line-3",
        "inputs": [],
        "parameters": {"density": "0.25"},
        "outputs": ["sha256:" + "0" * 64],
        "reason": None,
        "code": {"espalier": "0.1.0"},
    }
    copies = {key: document[key] for key in ("seq", "kind", "actor", "request_id", "model")}
    time = f"2026-01-01T00:00:{seq:02}Z"
    return {**copies, "time": time, "document": document, "leaf": leaf_hash(canonical_json(document)).hex()}


LOG = [entry(seq) for seq in range(1, 8)]
ROOT = merkle_root([bytes.fromhex(item["leaf"]) for item in LOG]).hex()


def test_an_honest_log_is_accepted() -> None:
    assert verify_log(iter(LOG), 7, ROOT) == 7
    assert verify_log([], 0, EMPTY_ROOT.hex()) == 0


def test_a_bare_log_without_copies_is_accepted() -> None:
    assert verify_log([{"document": item["document"], "leaf": item["leaf"]} for item in LOG], 7, ROOT) == 7


def tampered(change: Callable[[list[dict[str, Any]]], object]) -> list[dict[str, Any]]:
    log = copy.deepcopy(LOG)
    change(log)
    return log


@pytest.mark.parametrize(
    ("change", "seq"),
    [
        (lambda log: log[3]["document"]["parameters"].update(density="0.26"), 4),
        (lambda log: log[3]["document"].update(reason="because"), 4),
        (lambda log: log[3]["document"].update(reason=0.5), 4),
        (lambda log: log[3].update(leaf=log[2]["leaf"]), 4),
        (lambda log: log[3].update(leaf=None), 4),
        (lambda log: log[3].update(document=None), 4),
        (lambda log: log[3].update(kind="alias.moved"), 4),
        (lambda log: log[3].update(model=None), 4),
        (lambda log: log[3].update(seq=5), 4),
        (lambda log: log[3].update(time="2026-01-01T00:00:05Z"), 4),
        (lambda log: log[3].update(time=7), 4),
        (lambda log: log.pop(3), 4),
        (lambda log: log.insert(3, log[3]), 5),
        (lambda log: log.reverse(), 1),
        (lambda log: log.append(entry(8)), 8),
        (lambda log: log.pop(), None),
        (lambda log: log.__setitem__(3, entry(4) | {"document": entry(4)["document"]}) or log.pop(6), None),
    ],
)
def test_a_tampered_log_is_rejected_at_the_first_bad_entry(change: Callable[..., object], seq: int | None) -> None:
    with pytest.raises(ProofRejected) as caught:
        verify_log(tampered(change), 7, ROOT)
    assert caught.value.seq == seq
    if seq is not None and seq < 8:
        assert f"entry {seq}" in str(caught.value)


def test_a_log_replaced_as_a_whole_is_rejected_by_its_root() -> None:
    other = copy.deepcopy(LOG)
    other[2]["document"]["actor"] = other[2]["actor"] = "mallory"
    other[2]["leaf"] = leaf_hash(canonical_json(other[2]["document"])).hex()
    with pytest.raises(ProofRejected, match="root") as caught:
        verify_log(other, 7, ROOT)
    assert caught.value.seq is None
