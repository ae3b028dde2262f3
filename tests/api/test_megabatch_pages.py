"""The page of megabatches: what each row says, and that its dialogs say what they will do, and do it."""

from __future__ import annotations

import html
import re

import pytest

from app.api.routes import megabatch_pages
from app.api.web.drawing import columns
from app.domain import Prequential, Scope
from tests.api.conftest import WORKER, House, problem
from tests.api.test_pages import PART, SAME, key_of, sign_in, text_of
from tests.lineages import Lineage

PATH = "/models/gas/megabatches"
FORM = {**SAME, **PART}
SHIFT = {"statistic": 0.6, "p_value": 0.0001, "effect": 0.62, "alarm": True, "examples": 9, "reference": 18}


@pytest.fixture
def grown(house: House) -> House:
    """A model with two versions, and a third megabatch that waits."""
    line = Lineage(house.store)
    line.publish()
    line.publish()
    line._megabatch()
    with house.store.transaction(WORKER) as tx:
        drift = {"inputs": None, "labels": SHIFT, "accuracy": {**SHIFT, "alarm": False}}
        tx.buffer.record_prequential(line.model, 2, Prequential(1, 0.6667, 1.1, 9, drift))
        tx.audit.append("cycle.judged", model="gas", parameters={"cycle": 2, "passed": True})
    return house


def status_of(house: House, number: int) -> tuple[str, bool]:
    found = house.http.get(f"/v1/models/gas/megabatches/{number}").json()
    return found["status"], found["pinned"]


def test_columns_are_as_high_as_their_counts() -> None:
    assert columns([4, 2, 0, 1], width=40, height=20).boxes == [
        (0.0, 0.0, 9.0, 20.0),
        (10.0, 10.0, 9.0, 10.0),
        (20.0, 20.0, 9.0, 0.0),
        (30.0, 15.0, 9.0, 5.0),
    ]
    assert columns([1, 1000], height=20).boxes[0][3] == 1.0
    assert columns([]).boxes == [] and columns([0]).boxes[0][3] == 0.0


def test_rows_say_what_came(grown: House) -> None:
    assert f'href="{PATH}"' in grown.http.get("/models/gas").text
    answer = grown.http.get(PATH)
    page = text_of(answer)
    for said in (
        "3 megabatches",
        "accepted",
        "66.7 %",
        "n 9",
        "labels: effect 0.62, p < 0.001",
        "dog|<b>: 3",
        "sha256:",
    ):
        assert said in page, said
    assert "<b>:" not in answer.text and answer.text.count("<rect") == 9


def test_rows_are_paged_from_the_newest_on(grown: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megabatch_pages, "ROWS", 2)
    first = grown.http.get(PATH).text
    assert re.findall(r'<th scope="row"><a[^>]*>(\d+)', first) == ["3", "2"]
    older = html.unescape(re.findall(r'href="([^"]+before=[^"]+)"', first)[-1])
    last = grown.http.get(older).text
    assert re.findall(r'<th scope="row"><a[^>]*>(\d+)', last) == ["1"] and "Next page" not in last


def test_a_model_without_megabatches_says_so(house: House) -> None:
    house.create()
    assert "No megabatches yet" in text_of(house.http.get(PATH))
    problem(house.http.get("/models/nowhere/megabatches"), 404, "unknown-model")


def test_a_quarantine_says_what_it_will_do_and_did(grown: House) -> None:
    question = text_of(grown.http.get(f"{PATH}/2/quarantine", headers=PART))
    assert "no cycle trains on its 9 examples" in question and "cycle 3 is superseded" in question
    form = {"state": "quarantined", "reason": "wrong labels"}
    done = grown.http.post(f"{PATH}/2/quarantine", data=form, headers=FORM)
    assert "Megabatch 2 is quarantined. Cycle 3 was superseded." in text_of(done)
    assert done.headers["HX-Trigger"] == "espalier-changed" and status_of(grown, 2) == ("quarantined", False)
    assert "quarantined" in text_of(grown.http.get(PATH))
    assert "may train on its 9 examples again" in text_of(grown.http.get(f"{PATH}/2/quarantine", headers=PART))
    released = grown.http.post(f"{PATH}/2/quarantine", data={**form, "state": "accepted"}, headers=FORM)
    assert "Megabatch 2 is released" in text_of(released) and status_of(grown, 2) == ("accepted", False)
    events = text_of(grown.http.get("/models/gas"))
    assert "Megabatch 2 released from quarantine “wrong labels”" in events


def test_a_pin_and_its_end(grown: House) -> None:
    assert "replays all of its 9 examples" in text_of(grown.http.get(f"{PATH}/1/pin", headers=PART))
    form = {"state": "pinned", "reason": "rare fault"}
    assert "Megabatch 1 is pinned." in text_of(grown.http.post(f"{PATH}/1/pin", data=form, headers=FORM))
    assert status_of(grown, 1) == ("accepted", True) and "Unpin…" in text_of(grown.http.get(PATH))
    form["state"] = "unpinned"
    assert "Megabatch 1 is unpinned." in text_of(grown.http.post(f"{PATH}/1/pin", data=form, headers=FORM))
    assert status_of(grown, 1) == ("accepted", False)


def test_an_erasure_says_what_it_will_do_and_did(grown: House) -> None:
    question = text_of(grown.http.get(f"{PATH}/2/erase", headers=PART))
    assert "9 examples go" in question and "v2 took it in" in question and "the champion stays" in question
    leaving = text_of(grown.http.get(f"{PATH}/2/erase?retrain=true", headers=PART))
    assert "production goes on from v1" in leaving and status_of(grown, 2)[0] == "accepted"
    form = {"retrain": "true", "reason": "asked for by its owner"}
    done = text_of(grown.http.post(f"{PATH}/2/erase", data=form, headers=FORM))
    assert "Megabatch 2: 9 examples are erased." in done and "v1 is the" in done
    assert status_of(grown, 2)[0] == "erased"
    assert grown.http.get("/v1/models/gas/aliases/champion").json()["version"] == 1
    page = grown.http.get(PATH).text
    assert f"{PATH}/2/" not in page and f"{PATH}/3/erase" in page
    assert grown.http.get(f"{PATH}/2/quarantine", headers=PART).status_code == 409


@pytest.mark.parametrize("move", ["quarantine", "pin", "erase"])
def test_a_move_without_a_reason_changes_nothing(grown: House, move: str) -> None:
    form = {"state": {"quarantine": "quarantined", "pin": "pinned"}.get(move, ""), "reason": " "}
    assert grown.http.post(f"{PATH}/1/{move}", data=form, headers=FORM).status_code == 422
    assert status_of(grown, 1) == ("accepted", False)
    assert grown.http.get(f"{PATH}/9/{move}", headers=PART).status_code == 404


def test_actions_are_shown_to_those_who_may(grown: House) -> None:
    def seen(*scopes: Scope) -> list[str]:
        sign_in(grown, key_of(grown, "-".join(["who", *scopes]), Scope.READ, *scopes))
        page = grown.http.get(PATH).text
        return [part for part in ("data-upload", "1/quarantine", "1/pin", "1/erase") if part in page]

    assert seen() == []
    assert grown.http.get(f"{PATH}/1/pin", headers=PART).status_code == 403
    assert seen(Scope.INGEST) == ["data-upload"]
    assert seen(Scope.TRAIN) == ["1/quarantine", "1/pin"]
    assert grown.http.get(f"{PATH}/1/erase", headers=PART).status_code == 403
