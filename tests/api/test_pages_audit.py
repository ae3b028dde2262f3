"""The audit pages: what they show of the log, to whom, and what they say of a log that does not hold."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from app.api.routes import auditing
from app.domain import Actor, Scope
from app.store import audit as log
from tests.api.conftest import House
from tests.api.test_pages import BROWSER, PART, SAME, key_of, sign_in, text_of
from tests.lineages import Lineage


@pytest.fixture
def grown(house: House) -> House:
    """A log with a model's first versions."""
    line = Lineage(house.store)
    line.publish()
    line.publish(passed=False)
    return house


def falsify(house: House, seq: int) -> None:
    """Somebody changes a row behind the service's back."""
    engine = sa.create_engine(house.settings.resolved_database_url)
    off = {
        "sqlite": "DROP TRIGGER audit_entries_refuse_update",
        "postgresql": "ALTER TABLE audit_entries DISABLE TRIGGER USER",
    }[engine.dialect.name]
    forge = """UPDATE audit_entries SET document = replace(document, '"actor":"', '"actor":"not-') WHERE seq = :seq"""
    with engine.begin() as connection:
        connection.exec_driver_sql(off)
        assert connection.execute(sa.text(forge), {"seq": seq}).rowcount == 1
    engine.dispose()


def test_entries_are_told_newest_first_and_paged(grown: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "ROWS", 2)
    size, path, seen = grown.http.get("/v1/audit/head").json()["size"], "/audit", []
    while path:
        page = grown.http.get(path, headers=BROWSER).text
        seen += [int(number) for number in re.findall(r'<th scope="row"><a href="/audit/(\d+)"', page)]
        older = re.findall(r'href="([^"]+before=\d+)"', page)
        path = html.unescape(older[0]) if older else ""
    assert seen == list(range(size, 0, -1))
    assert "v2 withheld" in text_of(grown.http.get("/audit"))


def numbers(page: str) -> list[int]:
    return [int(number) for number in re.findall(r'<th scope="row"><a href="/audit/(\d+)"', page)]


def test_entries_are_found_by_model_and_kind(grown: House) -> None:
    grown.create("other")
    assert "No. 1 " not in text_of(grown.http.get("/audit?model=other&kind="))
    both = grown.http.get("/audit?model=gas&kind=version.withheld").text
    assert len(numbers(both)) == 1
    assert "No entry is like this" in text_of(grown.http.get("/audit?model=other&kind=version.withheld"))


def test_entries_are_found_by_actor_time_and_text_and_paging_keeps_what_was_asked(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "ROWS", 2)
    for module in (log, auditing):
        monkeypatch.setattr(module, "LOOKED", 3)
    for day, name in enumerate(("anna", "ben", "anna", "ben", "anna", "anna", "ben"), 1):
        clock = datetime(2026, 3, day, 12, tzinfo=UTC)
        monkeypatch.setattr(house.store, "clock", lambda clock=clock: clock)
        with house.store.transaction(Actor(name)) as tx:
            tx.audit.append("test", model=None, reason=f"Line <{day % 2}> & more", parameters={"version": day})

    def pages(query: str) -> list[list[int]]:
        path, seen = f"/audit?{query}", []
        while path:
            page = house.http.get(path, headers=BROWSER).text
            seen.append(numbers(page))
            older = re.findall(r'href="([^"]+before=\d+)"', page)
            path = html.unescape(older[0]) if older else ""
        return seen

    assert pages("actor=anna") == [[6, 5], [3, 1]]
    assert pages("since=2026-03-02T12:00&until=2026-03-05T12:00") == [[4, 3], [2]]
    assert pages("text=LINE+%3C1%3E") == [[7, 5], [3], [1]]  # three entries are looked through at a time
    assert pages("text=version+4") == [[], [4], []]
    assert pages("actor=anna&since=2026-03-03&text=line+%3C1%3E") == [[5], [3]]
    api = house.http.get("/v1/audit", params={"actor": "anna", "since": "2026-03-03T13:00:00+01:00", "text": "<1>"})
    assert [entry["seq"] for entry in api.json()["items"]] == [3, 5]
    page = house.http.get("/audit?actor=ben&text=more&since=2026-03-02", headers=BROWSER).text
    assert 'name="actor" value="ben"' in page and 'name="since" value="2026-03-02"' in page
    assert 'href="/audit?actor=ben&amp;since=2026-03-02&amp;text=more&amp;before=' in page
    assert '<a class="button" href="/audit">' in page
    none = text_of(house.http.get("/audit?text=nowhere"))
    assert "None among the 3 entries" in none and "Look further back" in none
    assert "No entry is like this" in text_of(house.http.get("/audit?actor=carl"))


@pytest.mark.parametrize(
    "query",
    [
        *("model=%00", "model=UPPER", "kind=%00", "kind=' OR 1=1", "before=0", "before=x"),
        *("actor=%00", "text=%00", "since=yesterday", "until=2026-02-31"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(house: House, query: str) -> None:
    assert house.http.get(f"/audit?{query}", headers=BROWSER).status_code == 422


def test_an_entry_shows_what_it_says_and_its_proof(grown: House) -> None:
    entry = grown.http.get("/v1/audit?kind=version.withheld").json()["items"][0]
    page = text_of(grown.http.get(f"/audit/{entry['seq']}"))
    root = grown.http.get("/v1/audit/head").json()["root"]
    for said in ("v2 withheld", "version.withheld", "worker", '"version": 2', "Proved", entry["leaf"], root):
        assert said in page, said
    assert grown.http.get("/audit/4711", headers=BROWSER).status_code == 404


def test_a_falsified_entry_is_not_called_proved(grown: House) -> None:
    grown.http.get("/v1/audit/checkpoint").raise_for_status()
    falsify(grown, 2)
    page = text_of(grown.http.get("/audit/2"))
    assert "This entry could not be proved" in page and "Proved:" not in page
    assert "Proved:" in text_of(grown.http.get("/audit/1"))


def test_the_whole_log_is_verified_when_somebody_asks(grown: House) -> None:
    head = grown.http.get("/v1/audit/head").json()
    done = text_of(grown.http.post("/audit/verify", headers={**SAME, **PART}))
    assert f"all {head['size']} entries" in done and head["root"] in done and re.search(r"in \d\.\d\d s", done)
    falsify(grown, 2)
    found = grown.http.post("/audit/verify", headers=SAME)
    assert "<html" in found.text
    assert "The log does not hold" in text_of(found) and "entry 2" in text_of(found)
    assert "The log holds" not in text_of(found)


def test_the_log_is_for_those_who_may_audit(grown: House) -> None:
    reader, auditor = key_of(grown, "reader-1", Scope.READ), key_of(grown, "anna", Scope.READ, Scope.AUDIT)
    sign_in(grown, reader)
    assert 'href="/audit"' not in grown.http.get("/").text
    for path in ("/audit", "/audit/1"):
        assert grown.http.get(path, headers=BROWSER).status_code == 403
    assert grown.http.post("/audit/verify", headers={**SAME, **PART}).status_code == 403
    sign_in(grown, auditor)
    assert 'href="/audit"' in grown.http.get("/").text
    assert "監査ログ" in grown.http.get("/audit", headers={"Accept-Language": "ja"}).text


def test_nobody_elsewhere_makes_the_service_work(grown: House) -> None:
    assert grown.http.post("/audit/verify", headers={"Origin": "https://evil.example"}).status_code == 403
