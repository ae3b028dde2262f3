from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from espalier.client import Client
from espalier.errors import (
    ApiProblem,
    CycleFailed,
    CycleUnfinished,
    DigestMismatch,
    EspalierClientError,
    ProofRejected,
    ServiceUnreachable,
)
from espalier.formats.megabatch import encode
from espalier.records import Cycle, Reference, Version
from tests.espalier.conftest import RECIPE, Faulty, Service, answering, examples, refused, serving, tampered


@pytest.fixture
def through(service: Service) -> Iterator[Any]:
    """Clients that meet faults on the way."""
    opened: list[Client] = []

    def connect(*faults: Any, retries: int = 4, timeout: float = 30.0) -> tuple[Client, Faulty]:
        network = Faulty(*faults)
        opened.append(Client(service.url, retries=retries, timeout=timeout, transport=network))
        return opened[-1], network

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def waiting(idle: Service) -> Iterator[Client]:
    """A client of the service without a worker."""
    with Client(idle.url) as connected:
        yield connected


# -- models ------------------------------------------------------------------------------------------------------------


def test_a_model_is_made_once(client: Client) -> None:
    made = client.create_model("made-once", {"schedule": {"name": "constant"}}, input={"classes": ["a", "b"]})
    assert (made.name, made.state, made.champion, made.replayed) == ("made-once", "active", None, False)
    assert made.recipe["schedule"] == {"name": "constant"}
    assert made.input.classes == ("a", "b")
    assert client.create_model("made-once", preset="dense", input={"classes": ["a", "b"]}).replayed
    assert client.model("made-once") == made
    with pytest.raises(ApiProblem, match="exists already") as raised:
        client.create_model("made-once", preset="app-paper")
    assert raised.value.status == 409


def test_models_are_listed_over_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.resources.PAGE", 2)
    wanted = [f"paged-{number}" for number in range(5)]
    for name in wanted:
        client.create_model(name)
    assert [model.name for model in client.models() if model.name.startswith("paged-")] == wanted


def test_a_recipe_that_cannot_work_is_refused_with_every_fault(client: Client) -> None:
    with pytest.raises(ApiProblem) as raised:
        client.create_model("cannot-work", {"schedule": {"tau": 1000}, "sed": 1})
    assert raised.value.type == "urn:espalier:problem:invalid-recipe"
    assert {fault["pointer"] for fault in raised.value.errors} == {"/recipe/schedule/tau", "/recipe/sed"}
    assert "seed" in str(raised.value)


def test_pause_and_resume(waiting: Client) -> None:
    waiting.create_model("paused", RECIPE)
    model = waiting.pause("paused", "line 3 is being recalibrated")
    assert (model.state, model.paused_reason) == ("paused", "line 3 is being recalibrated")
    assert waiting.upload("paused", *examples(1)).number == 1
    model = waiting.resume("paused", "mended")
    assert (model.state, model.paused_reason, model.queued_cycles) == ("active", None, 1)


def test_a_paused_model_is_not_waited_for(waiting: Client) -> None:
    waiting.create_model("stuck", RECIPE)
    cycle = waiting.upload("stuck", *examples(1)).cycle
    assert cycle is not None
    waiting.pause("stuck", "line 3 is being recalibrated")
    with pytest.raises(CycleFailed, match=r"line 3 is being recalibrated.*\n.*espalier model resume stuck"):
        waiting.wait_for_cycle("stuck", cycle, timeout=60)


def test_initial_weights_become_version_0(client: Client, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {"layers.0": (24, 16), "layers.1": (3, 24)}
    described = {"shape": [16], "dtype": "float32", "classes": 3}
    with pytest.raises(ApiProblem, match="safetensors"):
        client.upload_weights(_file(tmp_path / "bad", b"\x80\x04pickle"))
    weights = {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    kept = client.upload_weights(tmp_path / "weights.safetensors")
    assert client.upload_weights(weights).bytes > 0
    assert {tensor["name"] for tensor in kept.tensors} == set(weights)
    model = client.create_model(
        "given-weights", RECIPE, input=described, initial_weights=tmp_path / "weights.safetensors"
    )
    assert model.recipe["initial_weights"] == kept.digest


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- megabatches and cycles --------------------------------------------------------------------------------------------


def test_arrays_and_files_are_the_same_megabatch(client: Client, tmp_path: Path) -> None:
    client.create_model("same", {**RECIPE, "trigger": {"name": "manual"}})
    x, y = examples(1)
    first = client.upload("same", x, y)
    assert (first.number, first.examples, first.shape, first.replayed, first.cycle) == (1, 120, (16,), False, None)
    assert first.histogram == {"0": 40, "1": 40, "2": 40}
    np.savez_compressed(tmp_path / "packed.npz", x=x, y=y)
    again = client.upload("same", tmp_path / "packed.npz")
    assert (again.number, again.replayed, again.digest) == (1, True, first.digest)
    assert [megabatch.number for megabatch in client.megabatches("same")] == [1]
    assert client.megabatch("same", 1).digest == first.digest


def test_an_evaluation_set_is_set_replaced_and_shown(client: Client, tmp_path: Path) -> None:
    client.create_model("evaluated", {**RECIPE, "trigger": {"name": "manual"}})
    with pytest.raises(ApiProblem, match="upload a megabatch first") as raised:
        client.set_evaluation("evaluated", *examples(9))
    assert raised.value.type == "urn:espalier:problem:input-unknown"
    x, y = examples(1)
    client.upload("evaluated", x, y)
    with pytest.raises(ApiProblem) as raised:
        client.evaluation_set("evaluated")
    assert raised.value.type == "urn:espalier:problem:unknown-evaluation-set"
    seen: list[tuple[int, int | None]] = []
    found = client.set_evaluation("evaluated", x[:20], y[:20], progress=lambda *at: seen.append(at))
    assert (found.revision, found.examples, found.overlap, found.shape, found.replayed) == (1, 20, 20, (16,), False)
    assert seen[-1][0] == seen[-1][1]
    assert client.evaluation_set("evaluated") == found
    assert client.megabatch("evaluated", 1).evaluation_overlap == 20
    np.savez(tmp_path / "same.npz", x=x[:20], y=y[:20])
    assert client.set_evaluation("evaluated", tmp_path / "same.npz").replayed
    other = client.set_evaluation("evaluated", *examples(9))
    assert (other.revision, other.overlap) == (2, 0)
    with pytest.raises(EspalierClientError, match="x and y"):
        client.set_evaluation("evaluated", x)


def test_an_evaluation_set_outlives_a_bad_network(through: Any, client: Client) -> None:
    client.create_model("evaluated-badly", RECIPE, input={"shape": [16], "dtype": "float32", "classes": 3})

    def answer_lost(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        inner.handle_request(request).read()
        raise httpx.ReadError("connection reset by peer")

    shaky, network = through(refused, answering(502), answer_lost)
    found = shaky.set_evaluation("evaluated-badly", *examples(9))
    assert [request.method for request in network.requests] == ["PUT"] * 4
    assert (found.revision, found.replayed) == (1, True)


def test_pins_come_and_go(client: Client) -> None:
    client.create_model("pins", {**RECIPE, "trigger": {"name": "manual"}})
    client.upload("pins", *examples(1))
    assert not client.megabatch("pins", 1).pinned
    assert client.pin("pins", 1, "the rare failures of March").pinned
    assert [megabatch.pinned for megabatch in client.megabatches("pins")] == [True]
    assert not client.unpin("pins", 1, "they are frequent now").pinned
    kinds = [entry.kind for entry in client.audit("pins")]
    assert kinds[-2:] == ["megabatch.pinned", "megabatch.unpinned"]


def test_classes_that_come_late_extend_the_model_where_they_may(client: Client) -> None:
    recipe = {**RECIPE, "trigger": {"name": "manual"}}
    client.create_model("late-no", recipe, input={"classes": 2})
    with pytest.raises(ApiProblem, match=r"label 2 .*unseen_classes"):
        client.upload("late-no", *examples(1))
    made = client.create_model("late", recipe, input={"classes": 2, "unseen_classes": "extend"})
    assert made.input.unseen_classes == "extend"
    assert list(client.upload("late", *examples(1)).histogram) == ["0", "1", "class-2"]
    assert client.model("late").input.classes == ("0", "1", "class-2")


def test_an_upload_is_streamed_and_says_how_far_it_is(client: Client, tmp_path: Path) -> None:
    client.create_model("streamed", {**RECIPE, "trigger": {"name": "manual"}})
    x, y = examples(1, count=6000, features=64)
    path = _file(tmp_path / "large.npz", encode(x, y))
    seen: list[tuple[int, int | None]] = []
    client.upload("streamed", path, progress=lambda sent, total: seen.append((sent, total)))
    assert len(seen) > 4
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_an_upload_outlives_a_bad_network(through: Any, client: Client) -> None:
    client.create_model("bad-network", {**RECIPE, "trigger": {"name": "manual"}})

    def answer_lost(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        inner.handle_request(request).read()
        raise httpx.ReadError("connection reset by peer")

    shaky, network = through(refused, answering(502), answer_lost)
    megabatch = shaky.upload("bad-network", *examples(1))
    assert [request.method for request in network.requests].count("POST") == 4
    assert (megabatch.number, megabatch.replayed) == (1, True)  # the answer that was lost had been the first one
    assert len(list(client.megabatches("bad-network"))) == 1


def test_bytes_that_change_on_the_way_are_refused(through: Any, client: Client) -> None:
    client.create_model("changed", {**RECIPE, "trigger": {"name": "manual"}})

    def flip(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        body = bytearray(request.read())
        body[-200] ^= 1
        return inner.handle_request(
            httpx.Request(request.method, request.url, headers=request.headers, content=bytes(body))
        )

    shaky, _ = through(flip)
    with pytest.raises(ApiProblem) as raised:
        shaky.upload("changed", *examples(1))
    assert raised.value.type == "urn:espalier:problem:digest-mismatch"
    assert list(client.megabatches("changed")) == []


def test_a_file_that_shrinks_while_it_is_uploaded(client: Client, tmp_path: Path) -> None:
    client.create_model("shrinks", {**RECIPE, "trigger": {"name": "manual"}})
    path = _file(tmp_path / "file.npz", encode(*examples(1, count=6000, features=64)))

    def shrink(sent: int, total: int | None) -> None:
        with path.open("r+b") as file:
            file.truncate(sent)

    with pytest.raises(EspalierClientError, match="changed while it was uploaded"):
        client.upload("shrinks", path, progress=shrink)
    assert list(client.megabatches("shrinks")) == []


def test_what_is_no_megabatch_is_named(client: Client, tmp_path: Path) -> None:
    client.create_model("no-megabatch", RECIPE)
    with pytest.raises(ApiProblem) as raised:
        client.upload("no-megabatch", _file(tmp_path / "x.npz", b"not a zip\0file"))
    assert (raised.value.status, raised.value.extensions["reason"]) == (422, "unknown-format")
    with pytest.raises(EspalierClientError, match="x and y"):
        client.upload("no-megabatch", np.zeros((2, 2)))
    with pytest.raises(EspalierClientError, match="holds its labels itself"):
        client.upload("no-megabatch", tmp_path / "x.npz", np.zeros(2))


def test_waiting_tells_every_look(client: Client) -> None:
    client.create_model("waited", RECIPE)
    looks: list[Cycle] = []
    megabatch = client.upload("waited", *examples(1), wait=True, on_cycle=looks.append, timeout=90)
    assert megabatch.cycle == looks[0].number
    assert looks[-1].state == "published"
    assert looks[-1].version is not None
    assert client.cycle("waited", looks[-1].number).version == looks[-1].version
    assert [cycle.number for cycle in client.cycles("waited", limit=1)] == [looks[-1].number]


def test_a_wait_ends_when_its_time_is_over(waiting: Client) -> None:
    waiting.create_model("endless", RECIPE)
    cycle = waiting.upload("endless", *examples(1)).cycle
    assert cycle is not None
    with pytest.raises(CycleUnfinished, match=r"still queued after 0\.3 s; is a worker running") as raised:
        waiting.wait_for_cycle("endless", cycle, timeout=0.3)
    assert (raised.value.cycle, raised.value.state) == (cycle, "queued")


def test_an_upload_whose_answer_was_lost_finds_its_cycle_again(waiting: Client) -> None:
    waiting.create_model("answer-lost", RECIPE)
    first = [waiting.upload("answer-lost", *examples(seed)).cycle for seed in (1, 2)]
    again = [waiting.upload("answer-lost", *examples(seed)) for seed in (1, 2)]
    assert all(megabatch.replayed for megabatch in again)
    assert [megabatch.cycle for megabatch in again] == first


def test_training_on_request(client: Client) -> None:
    client.create_model("requested", {**RECIPE, "trigger": {"name": "manual"}})
    with pytest.raises(ApiProblem) as raised:
        client.train("requested")
    assert raised.value.type == "urn:espalier:problem:nothing-to-train"
    client.upload("requested", *examples(1))
    cycle = client.train("requested", reason="now")
    assert (cycle.state, cycle.trigger) == ("queued", "manual")
    assert client.wait_for_cycle("requested", cycle.number, timeout=90).state == "published"


# -- versions ----------------------------------------------------------------------------------------------------------


def test_versions_and_their_lineage(client: Client, trained: str) -> None:
    newest, first = list(client.versions(trained))
    assert client.version(f"{trained}@champion") == client.version(trained) == client.version(trained, 2) == newest
    assert client.version(f"{trained}:1") == first
    assert newest.parent == first.number
    assert newest.density < 1
    assert client.lineage(newest) == [newest, first]
    manifest = client.manifest(newest)
    assert (manifest["model"], manifest["version"]) == (trained, 2)
    with pytest.raises(ApiProblem) as raised:
        client.version(trained, 9)
    assert raised.value.type == "urn:espalier:problem:unknown-version"


def test_a_checkpoint_in_memory_predicts(client: Client, trained: str) -> None:
    checkpoint = client.checkpoint(trained)
    version = client.version(trained)
    assert checkpoint.density == pytest.approx(version.density)
    x, y = examples(7, count=300)
    assert (checkpoint.predict(x) == y).mean() > 0.5


def test_a_checkpoint_that_was_tampered_with_is_not_decoded(through: Any, trained: str) -> None:
    client, _ = through(None, tampered)
    with pytest.raises(DigestMismatch, match="promised"):
        client.checkpoint(trained)


def test_the_time_line(client: Client, trained: str) -> None:
    points = list(client.time_line(trained))
    assert [point.version for point in points] == [1, 2]
    assert [point.champion_now for point in points] == [False, True]
    assert points[0].density > points[1].density
    assert 0 <= points[1].metrics["prequential_accuracy"] <= 1


# -- watching ----------------------------------------------------------------------------------------------------------


def watch(client: Client, ref: str, until: int, folder: Path | None = None) -> list[tuple[Version, Path | None]]:
    """Watch until so many versions were handed over."""
    seen: list[tuple[Version, Path | None]] = []
    stop = threading.Event()

    def changed(version: Version, path: Path | None) -> None:
        seen.append((version, path))
        if len(seen) == until:
            stop.set()

    last = client.watch(ref, changed, interval=0.02, stop=stop, directory=folder)
    assert last == seen[-1][0]
    return seen


def test_watching_hands_over_each_new_champion_with_its_bytes(
    client: Client, service: Service, trained: str, tmp_path: Path
) -> None:
    def move() -> None:
        with Client(service.url) as other:
            other.rollback(trained, reason="back")

    back = threading.Timer(0.3, move)
    back.start()
    seen = watch(client, f"{trained}@champion", 2, tmp_path / "models")
    back.join()
    assert [version.number for version, _ in seen] == [2, 1]
    assert [path.name for _, path in seen if path] == [f"{trained}-2.safetensors", f"{trained}-1.safetensors"]
    assert all(path is not None and path.stat().st_size == version.checkpoint.bytes for version, path in seen)


@pytest.mark.slow
def test_watching_is_cheap_and_survives_a_service_that_is_away(
    through: Any, trained: str, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    not_modified: list[int] = []

    def look(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        answer = inner.handle_request(request)
        not_modified.append(answer.status_code)
        if len(not_modified) == 2:
            stop.set()
        return answer

    # A timeout of 6 s: long polls that last a second.
    client, network = through(refused, answering(500), None, refused, look, look, retries=0, timeout=6.0)
    seen: list[int] = []
    last = client.watch(f"{trained}@champion", lambda version, _: seen.append(version.number), interval=0.02, stop=stop)
    assert seen == [2]
    assert last is not None
    assert not_modified == [304, 304]
    assert network.requests[-1].headers["if-none-match"] == f'"{last.checkpoint.digest}"'
    assert caplog.text.count("the last good version stays in force") == 3


def test_a_download_that_fails_is_not_handed_over(through: Any, trained: str, tmp_path: Path) -> None:
    client, _ = through(None, tampered)
    seen = watch(client, trained, 1, tmp_path)
    assert [version.number for version, _ in seen] == [2]
    # Beside the file stands which version was handed over; nothing is left of the one that failed.
    left = {f"{trained}-2.safetensors", f".{trained}@champion.json"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_watching_starts_before_there_is_a_champion(client: Client, service: Service) -> None:
    client.create_model("early", RECIPE)

    def push() -> None:
        with Client(service.url) as other:
            other.upload("early", *examples(1))

    pushing = threading.Timer(0.2, push)
    pushing.start()
    assert [version.number for version, _ in watch(client, "early@champion", 1)] == [1]
    pushing.join()


# -- moves -------------------------------------------------------------------------------------------------------------


def test_rollback_and_promotion(client: Client, trained: str) -> None:
    before = datetime.now(UTC)
    done = client.rollback(trained, reason="line 3 was miscalibrated", quarantine=[2])
    assert (done.previous, done.version.number, done.alias.version) == (2, 1, 1)
    assert done.quarantined == (2,)
    assert done.density_before < done.density_after
    assert client.megabatch(trained, 2).status == "quarantined"
    again = client.promote(trained, 2, reason="it was not")
    assert (again.previous, again.alias.version) == (1, 2)
    assert client.alias(trained) == again.alias
    moves = list(client.alias_history(trained))
    assert [move.version for move in moves] == [2, 1, 2, 1]  # newest first
    assert moves[1].reason == "line 3 was miscalibrated"
    assert client.alias_at(trained, before) == 2
    with pytest.raises(EspalierClientError, match="time zone"):
        client.alias_at(trained, datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ApiProblem):
        client.alias_at(trained, before - timedelta(days=365))


def test_a_lost_race_is_told_and_not_run_again(through: Any, client: Client, trained: str) -> None:
    def race(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        answer = inner.handle_request(request)
        answer.read()
        client.promote(trained, 1, reason="someone else")
        return answer

    late, network = through(race)
    with pytest.raises(ApiProblem, match="espalier alias history") as raised:
        late.promote(trained, 2, reason="late")
    assert raised.value.status == 412
    assert [request.method for request in network.requests] == ["GET", "POST"]
    assert client.alias(trained).version == 1
    assert next(client.alias_history(trained)).reason == "someone else"


# -- the audit log -----------------------------------------------------------------------------------------------------


def test_the_log_is_checked_here(client: Client, trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.resources.PAGE", 3)
    head = client.audit_head()
    kinds = [entry.kind for entry in client.audit(trained)]
    assert kinds[0] == "model.created"
    assert "mask.pruned" in kinds
    assert [entry.seq for entry in client.audit(trained, kind="model.created")] == [next(client.audit(trained)).seq]
    seen: list[int] = []
    assert client.verify_log(lambda entry, total: seen.append(entry.seq)) >= head.size
    assert seen == list(range(1, len(seen) + 1))
    entry = client.audit_entry(1)
    assert entry.fact["seq"] == 1
    made = client.version_audit(trained, 2)
    assert {entry.model for entry in made} == {trained}
    assert any(client.version(trained).checkpoint.digest in (entry.fact["outputs"] or ()) for entry in made)


def test_a_log_that_was_changed_is_rejected(through: Any, trained: str) -> None:
    def forge(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        answer = inner.handle_request(request)
        text = answer.read().replace(b"model.created", b"model.deleted", 1)
        return httpx.Response(200, content=text)

    client, _ = through(None, forge)
    with pytest.raises(ProofRejected, match="entry") as raised:
        client.verify_log()
    assert raised.value.seq is not None


def test_a_log_that_lost_its_end_is_rejected(through: Any, trained: str) -> None:
    def shorten(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
        document = inner.handle_request(request)
        document.read()
        body = document.json()
        return httpx.Response(200, json={"items": body["items"][:-1], "next_cursor": None})

    client, _ = through(None, shorten)
    with pytest.raises(ProofRejected, match="the last are missing"):
        client.verify_log()


# -- where the service is ----------------------------------------------------------------------------------------------


def test_addresses_and_keys_come_from_the_environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_URL", service.url + "/")
    with Client() as client:
        assert client.url == service.url
        assert client.audit_head().size >= 0
    monkeypatch.delenv("ESPALIER_URL")
    assert Client().url == "http://127.0.0.1:8000"


def test_a_service_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "data", "--no-worker", ESPALIER_API_KEY="open-sesame-of-some-length") as locked:
        with Client(locked.url) as client, pytest.raises(ApiProblem, match="ESPALIER_KEY") as raised:
            client.create_model("gas")
        assert raised.value.status == 401
        monkeypatch.setenv("ESPALIER_KEY", "open-sesame-of-some-length")
        with Client(locked.url) as client:
            assert client.create_model("gas").name == "gas"
            locked.stop()
            with Client(locked.url, retries=1) as late, pytest.raises(ServiceUnreachable, match="espalier serve"):
                late.model("gas")


def test_the_package_is_light() -> None:
    program = (
        "import sys, espalier.cli\n"
        "heavy = {'torch', 'sqlalchemy', 'fastapi', 'pydantic', 'app', 'apscheduler'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_references_are_taken_as_they_are(client: Client, trained: str) -> None:
    assert client.version(Reference(trained, "1")).number == 1
    assert client.version(client.version(trained, 1)).number == 1
