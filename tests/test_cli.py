"""The server's commands: what they print, refuse and return."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from app import cli
from app.cli import deployment, serving
from app.config import Settings
from app.domain import Actor
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import newest_revision
from tests.builders import make_model, make_version


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Commands put their options into the environment, for child processes; here, other tests come after."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("ESPALIER_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def run(*arguments: object) -> Result:
    app = typer.Typer()
    cli.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_command_is_there_and_says_what_it_does() -> None:
    shown = run("--help").output
    for name in ("serve", "work", "migrate", "doctor", "demo"):
        assert name in shown
        assert run(name, "--help").exit_code == 0


def test_serve_refuses_other_machines_without_a_key(tmp_path: Path) -> None:
    done = run("serve", "--host", "0.0.0.0", "--data-dir", tmp_path)
    assert done.exit_code == 1
    assert "set ESPALIER_API_KEY" in done.stderr
    assert f"espalier admin-key --data-dir {tmp_path}\n" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "keys", "said"),
    [
        (None, False, "open to everyone on this machine; `espalier admin-key` closes it"),
        (None, True, "with a key\n"),
        ("s3cret-key", False, "with the key in ESPALIER_API_KEY"),
        ("s3cret-key", True, "with a key or with the key in ESPALIER_API_KEY"),
    ],
)
def test_serve_says_who_may_come_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str | None, keys: bool, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving._announce(Settings(data_dir=tmp_path, api_key=key), listener, "SQLite", keys=keys, worker=True)
    announced = capsys.readouterr().out
    assert said in announced
    assert "s3cret-key" not in announced


def test_serve_refuses_a_database_that_is_not_migrated(tmp_path: Path) -> None:
    os.environ["ESPALIER_DATABASE_URL"] = f"sqlite:///{tmp_path / 'own.db'}"
    done = run("serve", "--data-dir", tmp_path, "--port", 0)
    assert done.exit_code == 1
    assert "run `espalier migrate`" in done.stderr


def test_serve_says_when_the_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--data-dir", tmp_path, "--port", taken.getsockname()[1])
    assert done.exit_code == 1
    assert "choose another with --port" in done.stderr


def test_a_setting_that_cannot_be_is_named() -> None:
    done = run("serve", "--workers", 0)
    assert done.exit_code == 2
    assert done.stderr.startswith("espalier: ESPALIER_WORKERS: ")


def test_options_win_over_the_environment_and_reach_child_processes(tmp_path: Path) -> None:
    os.environ["ESPALIER_PORT"] = "1"
    os.environ["ESPALIER_WORKERS"] = "3"
    settings = deployment.settings_of(port=2, data_dir=tmp_path / "a" / ".." / "b", host=None)
    assert (settings.port, settings.workers) == (2, 3)
    assert Settings().port == 2
    assert Path(os.environ["ESPALIER_DATA_DIR"]).is_absolute()


def test_migrate_says_what_it_did(tmp_path: Path) -> None:
    first, second = run("migrate", "--data-dir", tmp_path), run("migrate", "--data-dir", tmp_path)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert f"applied {newest_revision()}" in first.output and f"now at {newest_revision()}" in first.output
    assert "applied" not in second.output and f"already at {newest_revision()}" in second.output


def test_migrate_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = run("migrate", "--data-dir", tmp_path / "file")
    assert done.exit_code == 1
    assert "could not migrate" in done.stderr
    assert "Traceback" not in done.output


def test_doctor_finds_rot(tmp_path: Path) -> None:
    assert run("migrate", "--data-dir", tmp_path).exit_code == 0
    healthy = run("doctor", "--data-dir", tmp_path)
    assert healthy.exit_code == 0 and "all is well" in healthy.output

    store = Store(f"sqlite:///{tmp_path / 'espalier.db'}", Blobs(tmp_path / "blobs"))
    with store.transaction(Actor("tester")) as tx:
        tx.audit.append("data.swept", model=None, parameters={"blobs": 1})
    store.dispose()
    break_the_log(tmp_path / "espalier.db")
    sick, as_json = run("doctor", "--data-dir", tmp_path), run("doctor", "--data-dir", tmp_path, "--json")
    assert (sick.exit_code, as_json.exit_code) == (1, 1)
    assert "log: audit log:" in sick.output and "1 findings" in sick.output
    assert [finding["kind"] for finding in json.loads(as_json.output)] == ["log"]


def break_the_log(database: Path) -> None:
    """Change one byte of the entry where it lies in the file: SQL would be refused."""
    for path in (database, database.with_name(database.name + "-wal")):
        data = path.read_bytes() if path.exists() else b""
        if b"data.swept" in data:
            path.write_bytes(data.replace(b"data.swept", b"data.swepT"))


def test_doctor_on_a_database_that_is_not_there(tmp_path: Path) -> None:
    done = run("doctor", "--data-dir", tmp_path)
    assert done.exit_code == 1
    assert "espalier migrate" in done.stderr


def test_doctor_on_a_database_file_that_is_damaged(tmp_path: Path) -> None:
    assert run("migrate", "--data-dir", tmp_path).exit_code == 0
    with (tmp_path / "espalier.db").open("r+b") as file:
        file.truncate(40_000)
    done = run("doctor", "--data-dir", tmp_path)
    assert done.exit_code == 1
    assert "malformed" in done.stderr and "restore it from a backup" in done.stderr


def test_doctor_tells_of_blobs_that_no_row_names(tmp_path: Path) -> None:
    assert run("migrate", "--data-dir", tmp_path).exit_code == 0
    Blobs(tmp_path / "blobs").put(b"an orphan")
    done = run("doctor", "--data-dir", tmp_path)
    assert done.exit_code == 0
    assert "no row names 1 blobs of 9 bytes" in done.output


def test_retention_shows_what_would_go_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("migrate", "--data-dir", tmp_path).exit_code == 0
    store = Store(f"sqlite:///{tmp_path / 'espalier.db'}", Blobs(tmp_path / "blobs"))
    model = make_model(store)
    for _ in range(3):
        make_version(store, model)
    store.dispose()
    assert "every version is kept" in run("retention", "--data-dir", tmp_path).output
    monkeypatch.setenv("ESPALIER_KEEP_VERSIONS", "1")
    for _ in "twice":
        as_json = run("retention", "--data-dir", tmp_path, "--json")
        assert json.loads(as_json.output) == [{"model": "gas", "number": 1, "checkpoint_bytes": 40}]
    told = run("retention", "--data-dir", tmp_path).output
    assert "gas 1: 40 bytes" in told and "1 versions would lose 40 bytes" in told


def test_a_place_for_blobs_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_BLOBS_URL", "http://bucket")
    done = run("doctor", "--data-dir", tmp_path)
    assert done.exit_code == 2 and "ESPALIER_BLOBS_URL" in done.stderr


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    settings = Settings(database_url="postgresql+psycopg://me:secret@db/espalier", data_dir=tmp_path)
    assert deployment.database_name(settings) == "postgresql+psycopg://me:***@db/espalier"


def test_demo_refuses_what_is_no_network() -> None:
    assert run("demo", "--network", "wide").exit_code == 2


def test_demo_says_what_is_wrong_with_the_data(tmp_path: Path) -> None:
    done = run("demo", "--data", tmp_path / "nowhere.npz")
    assert done.exit_code == 1
    assert "cannot read" in done.output
