"""What an auditor asks, through the client and from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.config import Settings
from app.service.opening import open_store
from espalier.cli import exit_code, main
from espalier.client import Client
from espalier.errors import ApiProblem, CustodyMismatch, EspalierClientError
from espalier.formats.custody import Use
from tests.builders import make_megabatch, make_model
from tests.custody import FRESH, HELD_BACK, OLD, make_recorded
from tests.espalier.conftest import Service, serving

CAT, DOG = 0, 1


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of this file's own: `recorded` claims the next cycle, which must be of its model."""
    with serving(tmp_path_factory.mktemp("custody") / "data", "--no-worker") as running:
        yield running


@pytest.fixture(scope="module")
def recorded(idle: Service) -> str:
    """A model with two versions, as a worker would have left them."""
    store = open_store(Settings(data_dir=idle.data_dir))
    model = make_model(store, "recorded")
    for _ in range(2):
        make_megabatch(store, model)
    many = dict.fromkeys(range(600), (CAT, CAT, 0.5))
    make_recorded(store, model, {1: dict.fromkeys(range(700), FRESH)}, evaluation=many)
    changed = many | dict.fromkeys(range(510), (CAT, DOG, 0.75))
    make_recorded(store, model, {1: {5: OLD | Use.KEPT}, 2: {21: FRESH, 22: HELD_BACK}}, evaluation=changed)
    store.dispose()
    return "recorded"


@pytest.fixture
def client(idle: Service) -> Iterator[Client]:
    with Client(idle.url) as connected:
        yield connected


def test_where_a_megabatch_went(client: Client, recorded: str) -> None:
    found = list(client.custody.versions_of(recorded, 1))
    assert [(each.version, each.uses) for each in found] == [
        (1, ("trained", "new")),
        (2, ("trained", "replayed", "kept")),
    ]
    assert [each.version for each in client.custody.versions_of(recorded, 2, inherited=True)] == [2]


def test_what_went_into_a_version(client: Client, recorded: str) -> None:
    old: list[int] = []
    seen = list(client.custody.megabatches_of(f"{recorded}:2", lineage=True, unrecorded=old))
    assert [(each.version, each.megabatch) for each in seen] == [(2, 1), (2, 2), (1, 1)]
    assert (seen[1].counts, old) == ({"trained": 1, "validation": 1, "new": 2}, [])
    assert [s.id for s in client.custody.samples(f"{recorded}@champion", use="new")] == ["21", "22"]
    assert len(list(client.custody.samples(f"{recorded}:2", lineage=True))) == 703
    arrays = client.custody.all_samples(f"{recorded}:2")
    assert {number: ids.tolist() for number, (ids, _) in arrays.items()} == {1: [5], 2: [21, 22]}


def test_which_answers_changed(client: Client, recorded: str) -> None:
    found = client.custody.diff(f"{recorded}:1", f"{recorded}:2")
    (tally,) = found.answers
    assert (tally.total.broken, tally.total.unchanged, len(found.items)) == (510, 90, 510)
    assert tally.p_value < 1e-100
    assert found.metric("validation_accuracy").change == 0
    assert len(client.custody.diff(f"{recorded}:1", f"{recorded}:2", limit=7).items) == 7
    assert len(client.custody.diff(f"{recorded}:1", f"{recorded}:2", kinds=["unchanged"]).items) == 90
    with pytest.raises(EspalierClientError, match="two models"):
        client.custody.diff("other:1", f"{recorded}:2")
    answers = client.custody.answers(f"{recorded}:2")
    assert (answers.answers == DOG).sum() == 510


def test_records_whole(client: Client, recorded: str, tmp_path: Path) -> None:
    path = client.custody.download(f"{recorded}:2", "samples", tmp_path / "samples")
    assert path.read_bytes() == client._http.request("GET", f"/v1/models/{recorded}/versions/2/records/samples").content
    with pytest.raises(ApiProblem) as refusal:
        client.custody.falls(f"{recorded}:2")
    assert refusal.value.type == "urn:espalier:problem:not-recorded"


def test_the_champion_of_a_time(client: Client, recorded: str) -> None:
    moves = list(client.alias_history(recorded))
    then = client.custody.alias_at(recorded, moves[1].moved_at)
    assert (then.version, then.actor, then.reason, then.moved_at) == (1, "tester", "passed", moves[1].moved_at)
    with pytest.raises(ApiProblem) as refusal:
        client.custody.alias_at(recorded, moves[1].moved_at - timedelta(seconds=1))
    assert refusal.value.status == 404
    with pytest.raises(ValueError, match="time zone"):
        client.custody.alias_at(recorded, datetime(2030, 1, 1))  # noqa: DTZ001


def run(service: Service, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["--url", service.url, *words]) == 0, capsys.readouterr().err
    return " ".join(capsys.readouterr().out.split())


def test_the_commands(idle: Service, recorded: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "1 trained, new" in run(idle, capsys, "batch", "versions", recorded, "1")
    assert "1 trained, 1 validation, 2 new" in run(idle, capsys, "version", "megabatches", f"{recorded}:2")
    assert "22 validation, new" in run(idle, capsys, "version", "samples", f"{recorded}:2", "--megabatch", "2")
    told = run(idle, capsys, "version", "diff", f"{recorded}:1", f"{recorded}:2", "-n", "3", "--class", "cat")
    assert "600 examples, accuracy 1.000 -> 0.150; 0 fixed, 510 broken" in told
    assert "evaluation 2 broken cat cat dog 0.500 0.750" in told
    now = datetime.now(UTC) + timedelta(days=1)
    assert f"{recorded}@champion was version 2" in run(idle, capsys, "alias", "at", recorded, now.isoformat())
    out = tmp_path / "whole"
    assert str(out) in run(idle, capsys, "version", "samples", f"{recorded}:2", "-o", str(out))


@pytest.mark.parametrize(
    "words",
    [
        ("batch", "versions", "recorded", "1"),
        ("version", "megabatches", "recorded:2"),
        ("version", "samples", "recorded:2"),
        ("version", "diff", "recorded:1", "recorded:2"),
        ("alias", "at", "recorded", "2999-01-01T00:00:00Z"),
        ("decision", "list", "recorded"),
    ],
)
def test_json_of_every_command(
    idle: Service, recorded: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert main(["--url", idle.url, "--json", *words]) == 0
    json.loads(capsys.readouterr().out)


def test_a_damaged_record_ends_with_the_code_of_verification() -> None:
    assert exit_code(CustodyMismatch("damaged")) == 4
