"""Stamps on decisions, and keeping them with the service."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

import espalier
from espalier.cli import main
from espalier.client import Client
from espalier.decisions import MOST_ROWS, Buffer, Decisions, batches
from espalier.errors import ApiProblem, CheckpointMismatch, DigestMismatch, EspalierClientError, ServiceUnreachable
from espalier.formats.canonical import sha256_digest
from espalier.formats.checkpoint import Checkpoint, decode, encode, encode_dense
from espalier.formats.stamp import Decision, Stamp, batch_digest, read_stamp
from tests.espalier.conftest import Faulty, Service, examples, refused

AT = datetime(2030, 3, 2, 9, 30, tzinfo=UTC)
STAMP = Stamp("gas", 5, "sha256:" + "0f" * 32)


def small(**manifest: object) -> bytes:
    """A network of one layer: two inputs, two classes."""
    weight, mask = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.bool_)
    said = {"model": "gas", "version": 5, "network": {"name": "mlp", "hidden": []}}
    spec = {"input": {"shape": [2], "classes": ["cat", "dog"]}}
    return encode(
        {"0.weight": weight, "0.bias": np.zeros(2, np.float32)}, {"0.weight": mask}, {**said, **spec, **manifest}
    )


def test_a_checkpoint_says_which_bytes_it_is(tmp_path: Path) -> None:
    data = small()
    stamp = Stamp("gas", 5, sha256_digest(data))
    (tmp_path / "sparse").write_bytes(data)
    (tmp_path / "dense").write_bytes(encode_dense(decode(data)))
    assert decode(data).stamp == espalier.load_checkpoint(tmp_path / "sparse").stamp == stamp
    assert [read_stamp(tmp_path / name) for name in ("sparse", "dense")] == [stamp, stamp]
    assert str(stamp) == f"gas:5 {stamp.digest}"


def test_what_cannot_stamp_says_why(tmp_path: Path) -> None:
    found = decode(small())
    made = Checkpoint(found.manifest, found.arrays, found.masks)
    for without in (made, decode(small(model=None)), decode(small(version="5"))):
        with pytest.raises(CheckpointMismatch, match="cannot stamp a decision"):
            _ = without.stamp
    (tmp_path / "old").write_bytes(encode_dense(replace(found, digest="")))
    with pytest.raises(CheckpointMismatch, match="download it with format=sparse"):
        read_stamp(tmp_path / "old")
    for damaged in (b"", b"x" * 100, small()[:-1]):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(CheckpointMismatch, match="damaged"):
            read_stamp(tmp_path / "damaged")


def test_decisions_are_stamped() -> None:
    checkpoint = decode(small())
    sure, unsure = checkpoint.decide([[100.0, 0.0], [0.0, 1.0]], ids=["a", "b"])
    assert (sure.answer, sure.example, sure.confidence, sure.stamp) == ("cat", "a", 1.0, checkpoint.stamp)
    assert (unsure.answer, unsure.example) == ("dog", "b")
    assert unsure.confidence == pytest.approx(np.e / (1 + np.e))
    assert sure.made_at is not None and sure.made_at.tzinfo is not None
    assert checkpoint.decide(np.zeros((0, 2))) == []
    with pytest.raises(ValueError, match="1 ids for 2"):
        checkpoint.decide([[1.0, 0.0], [0.0, 1.0]], ids=["a"])
    with pytest.raises(CheckpointMismatch, match="logits of 2 classes"):
        checkpoint.decided([[1.0, 2.0, 3.0]])


def test_batches_fit_and_keep_models_and_files_apart() -> None:
    other = replace(STAMP, digest="sha256:" + "a7" * 32)
    rows = [Decision(stamp, "cat", made_at=AT) for stamp in (STAMP, replace(STAMP, model="air"), other, STAMP)]
    assert [[row.stamp for row in batch] for batch in batches(rows)] == [[STAMP], [other], [STAMP], [rows[1].stamp]]
    many = [Decision(STAMP, "c", made_at=AT)] * (MOST_ROWS + 1)
    assert [len(batch) for batch in batches(many)] == [MOST_ROWS, 1]
    wide = [Decision(STAMP, "c" * 255, example="é" * 255, made_at=AT)] * 2000
    assert len(list(batches(wide))) > 1
    assert list(batches([])) == []


def test_the_digest_of_a_batch() -> None:
    row = {"version": 5, "checkpoint": "sha256:0f", "example": None, "answer": "cat", "confidence": 0.1, "made_at": AT}
    spelled = (
        b'[{"answer":"cat","checkpoint":"sha256:0f","confidence":"0.1","example":null,'
        b'"made_at":"2030-03-02T09:30:00.000000Z","version":5}]'
    )
    assert batch_digest([row]) == sha256_digest(spelled)
    with pytest.raises(ValueError, match="time zone"):
        batch_digest([{**row, "made_at": AT.replace(tzinfo=None)}])


def test_columns_of_other_lengths_are_refused(client: Client) -> None:
    with pytest.raises(ValueError):
        client.decisions.log(STAMP, ["cat"], confidences=[0.5, 0.5])
    with pytest.raises(ValueError, match="answers beside it"):
        client.decisions.log(STAMP)


def test_decisions_are_kept_with_their_version(client: Client, trained: str) -> None:
    checkpoint = client.checkpoint(f"{trained}:2")
    x, _ = examples(9, 5)
    made = checkpoint.decide(x, ids=[f"e{i}" for i in range(5)])
    (kept,) = client.decisions.log(made)
    assert client.decisions.log(made) == [kept], "the very same again"
    found = list(client.decisions.list(trained))
    assert [(d.example, d.answer, d.confidence) for d in reversed(found)] == [
        (d.example, d.answer, d.confidence) for d in made
    ]
    assert {(d.version, d.checkpoint) for d in found} == {(2, checkpoint.digest)}
    client.decisions.log(checkpoint.stamp, ["0"], confidences=[0.5], examples=["by hand"], made_at=AT)
    (by_hand,) = client.decisions.list(trained, until=AT.replace(hour=10), since=AT)
    assert (by_hand.example, by_hand.made_at) == ("by hand", AT)
    assert [d.example for d in client.decisions.list(trained, example="e3", version=2)] == ["e3"]
    assert len(list(client.decisions.list(trained, limit=2))) == 2
    with pytest.raises(ApiProblem) as refusal:
        client.decisions.log(replace(checkpoint.stamp, digest=STAMP.digest), ["0"])
    assert refusal.value.status == 422


def test_a_lost_answer_does_not_keep_them_twice(service: Service, client: Client, trained: str) -> None:
    def lost(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        inner.handle_request(request).read()
        raise httpx.ReadError("connection reset by peer")

    stamp = client.checkpoint(trained).stamp
    with Client(service.url, transport=Faulty(lost)) as unlucky:
        unlucky.decisions.log(stamp, ["0", "1"], made_at=AT)
    assert len(list(client.decisions.list(trained))) == 2


def test_a_buffer_forgets_nothing(service: Service, client: Client, trained: str) -> None:
    stamp = client.checkpoint(trained).stamp
    rows = [Decision(stamp, "0", example=str(i)) for i in range(5)]
    down = Faulty(refused, times=100)
    with Client(service.url, retries=0, transport=down) as unlucky:
        buffer = Buffer(Decisions(unlucky._http), size=3)
        buffer.add(rows[:2])
        with pytest.raises(ServiceUnreachable):
            buffer.add(rows[2:])
        assert [row.example for row in buffer.waiting] == ["0", "1", "2", "3", "4"]
        with pytest.raises(ServiceUnreachable), buffer:
            pass
        down.faults.clear()
        buffer.flush()
        assert buffer.waiting == []
    with client.decisions.buffer() as another:
        another.add(rows[:1])
    assert len(list(client.decisions.list(trained))) == 6


def test_a_service_that_keeps_something_else_is_noticed(service: Service, client: Client, trained: str) -> None:
    def lying(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        return httpx.Response(201, json={"count": 1, "digest": STAMP.digest, "first": 1, "last": 1}, request=request)

    with Client(service.url, transport=Faulty(lying)) as deceived, pytest.raises(DigestMismatch, match="was sent"):
        deceived.decisions.log(client.checkpoint(trained).stamp, ["0"])


def test_what_was_kept_before_a_failure_is_said(service: Service, client: Client, trained: str) -> None:
    stamp = client.checkpoint(trained).stamp
    with pytest.raises(EspalierClientError) as failure:
        client.decisions.log(
            [Decision(stamp, "0", made_at=AT), Decision(replace(stamp, model="nobody"), "0", made_at=AT)]
        )
    assert failure.value.__notes__ == ["1 of 2 decisions were kept before that"]


def run(service: Service, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["--url", service.url, *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_decisions_from_the_command_line(
    service: Service, client: Client, trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = client.download(f"{trained}:1", tmp_path / "one.safetensors")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"answer": "0", "confidence": 0.5, "example": "a", "made_at": "2030-03-02T09:30:00Z"}\n\n')
    for _ in range(2):
        code, out, err = run(service, capsys, "decision", "log", trained, str(rows), "--stamp", str(path))
        assert (code, "1 decision kept" in out) == (0, True), err
    digest = client.version(f"{trained}:2").checkpoint.digest
    table = tmp_path / "rows.csv"
    table.write_text(f"version,checkpoint,answer,confidence,example\n2,{digest},1,,b\n2,{digest},1,0.25,\n")
    assert run(service, capsys, "decision", "log", trained, str(table))[0] == 0
    code, out, _ = run(service, capsys, "--json", "decision", "list", trained, "--until", "2031-01-01T00:00:00Z")
    assert sorted((d["version"], d["example"], d["confidence"]) for d in json.loads(out) if d["example"]) == [
        (1, "a", 0.5),
        (2, "b", None),
    ]
    _, out, _ = run(service, capsys, "decision", "list", trained, "--example", "a")
    assert "2030-03-02" in out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "does not say by which version"),
        ("[]", "an object was expected"),
        ("{", "line 1"),
        ('{"version": 1, "answer": "0", "verdict": 1}', "unknown columns"),
        ('{"version": 1, "answer": 0}', "not the name of a class"),
        ('{"version": 1, "answer": "0", "model": "other"}', "stamped with the model 'other'"),
        ('{"version": 1, "answer": "0", "made_at": "noon"}', "write a time"),
        ('{"version": 1, "answer": "0", "confidence": "high"}', "could not convert"),
    ],
)
def test_files_that_cannot_be_read_send_nothing(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(text + "\n")
    code, _, err = run(service, capsys, "decision", "log", "gas", str(rows))
    assert code == 1
    assert why in " ".join(err.split()) and "nothing was sent" in " ".join(err.split())
