"""Health over HTTP."""

from __future__ import annotations

from pathlib import Path

from tests.api.conftest import House, problem


def test_alive_without_a_database(house: House) -> None:
    house.store.dispose()
    del house.app.state.store
    assert house.http.get("/livez").json() == {"status": "alive"}
    assert house.http.head("/livez").status_code == 200


def test_ready(house: House) -> None:
    body = house.http.get("/readyz").json()
    assert body["status"] == "ready"
    assert body["database"] in ("sqlite", "postgresql")
    assert body["worker"] == {"last_heartbeat": None, "queued_cycles": 0, "running_cycles": 0}
    house.create()
    house.upload()
    assert house.http.get("/readyz").json()["worker"]["queued_cycles"] == 1


def test_not_ready_without_the_schema(house: House, tmp_path: Path) -> None:
    if house.store.dialect != "sqlite":
        return
    house.store.dispose()
    database = Path(house.settings.resolved_database_url.removeprefix("sqlite:///"))
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()
    answer = house.http.get("/readyz")
    assert "espalier migrate" in problem(answer, 503, "schema-mismatch")["detail"]
    assert "Retry-After" in answer.headers
