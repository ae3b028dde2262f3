"""Keys from a client and from the command line, at a service that other machines could reach."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import typer

from espalier import cli
from espalier.client import Client
from espalier.commands.keys import _expiry
from espalier.errors import ApiProblem
from espalier.keys import Key
from tests.espalier.conftest import Service, examples, serving

KEY = re.compile(r"esp_[0-9a-f]{16}_[A-Za-z0-9_-]{43}\n")


@dataclass
class Keyed:
    """A service on every address, and the key that its administrator made."""

    service: Service
    admin: str
    log: Path

    @property
    def client(self) -> Client:
        return Client(self.service.url, self.admin)


@contextmanager
def keyed(folder: Path) -> Iterator[Keyed]:
    made = subprocess.run(
        [sys.executable, "-m", "espalier", "admin-key", "--data-dir", str(folder / "data")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert KEY.fullmatch(made.stdout), "the key stands on standard output, alone"
    assert made.stdout.strip() not in made.stderr
    more = ("--no-worker", "--workers", "2", "--host", "0.0.0.0")
    with serving(folder / "data", *more, ESPALIER_LOG_LEVEL="debug") as running:
        running.url = running.url.replace("0.0.0.0", "127.0.0.1")
        yield Keyed(running, made.stdout.strip(), folder / "service.log")


def status_of(client: Client) -> int:
    try:
        client.keys.mine()
    except ApiProblem as refused:
        return refused.status
    return 200


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with keyed(tmp_path_factory.mktemp("keyed")) as found:
        yield found


@pytest.mark.slow
def test_a_key_from_first_to_last(
    closed: Keyed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_URL", closed.service.url)

    def run(*words: str, key: str | None = closed.admin, code: int = 0) -> str:
        capsys.readouterr()
        if key is None:
            monkeypatch.delenv("ESPALIER_KEY", raising=False)
        else:
            monkeypatch.setenv("ESPALIER_KEY", key)
        found = cli.main([*words])
        out, err = capsys.readouterr()
        assert found == code, (out, err)
        return out if code == 0 else err

    assert "needs a key" in run("whoami", key=None, code=1)
    assert "admin" in run("whoami")
    run("model", "create", "gas", "--network", "mlp")
    made = run("key", "create", "line-3", "--scope", "ingest", "-s", "read", "--model", "gas", "--expires", "90d")
    assert KEY.fullmatch(made)
    line = made.strip()
    mine = json.loads(run("whoami", "--json", key=line))
    assert (mine["name"], mine["scopes"], mine["models"]) == ("line-3", ["ingest", "read"], ["gas"])
    assert "gas" in run("model", "list", key=line)
    assert "espalier whoami" in run("key", "list", key=line, code=1)
    assert "whoami" in run("rollback", "gas", "--reason", "x", key=line, code=1)
    listed = run("key", "list")
    assert "line-3" in listed and "valid" in listed and line not in listed
    assert "by admin" in run("key", "show", "line-3")
    assert "taken" in run("key", "create", "line-3", "--scope", "read", "--json", code=1)
    assert "revoked" in run("key", "revoke", "line-3", "--reason", "the box was sold")
    # Two processes: whichever answers knows it after its next look.
    with Client(closed.service.url, line, retries=0) as client:
        for _ in range(20):
            assert status_of(client) in (200, 401)
        for _ in range(500):
            if {status_of(client) for _ in range(20)} == {401}:
                break
        else:
            pytest.fail("it is still let in")
    assert "the box was sold" in run("key", "show", "line-3")
    assert "espalier key list" in run("key", "show", "nobody", code=1)
    quiet = run("key", "create", "quiet", "--scope", "read", "--quiet")
    assert KEY.fullmatch(quiet)
    assert json.loads(run("key", "create", "as-json", "-s", "read", "--json"))["key"].startswith("esp_")


@pytest.mark.slow
def test_keys_from_the_client(closed: Keyed) -> None:
    with closed.client as client:
        client.create_model("client", {"network": {"name": "mlp", "hidden": [4]}})
        made = client.keys.create("uploader", ["ingest"], models=["client"], expires=timedelta(days=1))
        assert made.key not in repr(made)
        assert made.expires_at is not None and made.state() == "valid"
        assert client.keys.get("uploader") == Key.from_json({**made.document})
        assert "uploader" in [key.name for key in client.keys.list()]
        with Client(closed.service.url, made.key) as other:
            assert other.upload("client", *examples(1)).number == 1
            with pytest.raises(ApiProblem) as refused:
                other.model("client")
            assert refused.value.status == 403
        assert client.keys.revoke("uploader", "done").state() == "revoked"


@pytest.mark.slow
def test_no_key_is_in_anything_that_the_service_writes(closed: Keyed) -> None:
    with closed.client as client:
        made = client.keys.create("leaky", ["read"])
    for path in (f"/v1/models/{made.key}", f"/{made.key}", f"/v1/models?key={made.key}"):
        for headers in ({}, {"Authorization": f"Bearer {made.key}"}, {"Authorization": f"Bearer {made.key}x"}):
            httpx.get(closed.service.url + path, headers=headers)
    httpx.post(f"{closed.service.url}/v1/session", json={"key": made.key}).raise_for_status()
    written = closed.log.read_text()
    assert "esp_[hidden]" in written and "uvicorn.access" in written
    for key in (made.key, closed.admin):
        assert key not in written and key.split("_", 2)[2] not in written
    files = [path for path in closed.service.data_dir.rglob("*") if path.is_file()]
    assert any(path.name == "espalier.db" for path in files)
    for path in files:
        assert made.key.split("_", 2)[2].encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_key_outlives_a_restart_and_a_revoked_one_does_not(tmp_path: Path) -> None:
    with keyed(tmp_path) as first, first.client as client:
        kept, gone = (client.keys.create(name, ["read"]) for name in ("kept", "gone"))
        client.keys.revoke("gone", "lost")
        client.keys.revoke("admin", "lost, too")
        assert first.service.stop() == 0
    with serving(tmp_path / "data", "--no-worker") as again:  # on loopback: it stays closed
        assert httpx.get(f"{again.url}/v1/models").status_code == 401
        for key, status in ((kept, 200), (gone, 401)):
            answer = httpx.get(f"{again.url}/v1/models", headers={"Authorization": f"Bearer {key.key}"})
            assert answer.status_code == status
        command = [sys.executable, "-m", "espalier", "admin-key", "--data-dir", str(tmp_path / "data")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and "--name admin-2" in done.stderr and done.stdout == ""
        made = subprocess.run([*command, "--name", "admin-2"], capture_output=True, text=True, check=True).stdout
        answer = None
        for _ in range(200):  # the running service takes it up by itself
            answer = httpx.get(f"{again.url}/v1/keys", headers={"Authorization": f"Bearer {made.strip()}"})
            if answer.status_code == 200:
                break
        assert answer is not None and answer.status_code == 200
        assert [key["created_by"] for key in answer.json()["items"]] == ["local", "local", "admin", "admin"]


def test_when_a_key_ends() -> None:
    assert _expiry(None) is None
    assert _expiry("90d") == timedelta(days=90)
    assert _expiry("12h") == timedelta(hours=12)
    assert _expiry("30m") == timedelta(minutes=30)
    assert _expiry("4w") == timedelta(weeks=4)
    assert _expiry("2026-12-31T00:00:00Z") == datetime(2026, 12, 31, tzinfo=UTC)
    for nonsense in ("", "0d", "90", "soon", "-1d", "1y"):
        with pytest.raises(typer.BadParameter):
            _expiry(nonsense)


def test_the_state_of_a_key() -> None:
    now = datetime.now(UTC)
    key = Key("1", "line", ("read",), None, "admin", now)
    assert key.state(now) == "valid"
    assert Key("1", "line", ("read",), None, "admin", now, expires_at=now).state(now) == "expired"
    assert Key("1", "line", ("read",), None, "admin", now, revoked_at=now).state(now) == "revoked"
