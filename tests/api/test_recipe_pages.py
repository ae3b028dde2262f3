"""The page of a recipe: what is in force, what differs, what the next revision would do, and that it is then done."""

from __future__ import annotations

import re

import pytest

from app.api.web.drawing import stairs
from app.domain import Scope
from tests.api.conftest import House
from tests.api.test_pages import PART, SAME, key_of, sign_in, text_of
from tests.lineages import Lineage

PATH = "/models/gas/recipe"
FORM = {**SAME, **PART}


@pytest.fixture
def grown(house: House) -> House:
    """A model with one version, and a megabatch that waits."""
    line = Lineage(house.store)
    line.publish()
    line._megabatch()
    return house


def test_stairs_hold_each_value_on_a_log_scale() -> None:
    drawn = stairs([1.0, 0.1], 0.01, width=120, height=120, pad=10)
    assert drawn.points == "10.0,10.0 60.0,10.0 60.0,60.0 110.0,60.0" and drawn.level == 110.0
    flat = stairs([0.5], 0.5, width=120, height=120, pad=10)
    assert flat.first[1] == flat.last[1] == flat.level


def test_a_recipe_is_shown_whole_with_its_revisions(grown: House) -> None:
    assert 'href="/models/gas/recipe"' in grown.http.get("/models/gas").text
    page = text_of(grown.http.get(PATH))
    assert '"class-balanced"' in page and "Revision 1, whole" in page and "Nothing differs." in page


def test_a_preview_draws_the_schedule_and_changes_nothing(grown: House) -> None:
    asked = {"document": '{"schedule": {"stages": 4}}', "target": "20", "preset": ""}
    answer = grown.http.post(f"{PATH}/preview", data=asked, headers=FORM)
    said = text_of(answer)
    for told in ("Put revision 2 in force", "/schedule/target 0.1 → 0.2", "/schedule/stages 8 → 4", "97.9 % to 20.0 %"):
        assert told in said, told
    assert "cycle 2 is superseded" in said and "the next checkpoint takes about" in said
    assert len(re.findall(r'<polyline points="[\d., ]+"', answer.text)) == 1
    assert grown.http.get("/v1/models/gas/recipe").json()["revision"] == 1


def test_a_revision_is_put_in_force_with_a_reason(grown: House) -> None:
    asked = {"seen": "1", "document": '{"schedule": {"stages": 4}}', "reason": "10 % costs too much"}
    done = grown.http.post(PATH, data=asked, headers=FORM)
    assert "Revision 2 is in force: 1 choice differs." in text_of(done)
    assert done.headers["HX-Trigger"] == "espalier-changed"
    assert "Revision 2 of the recipe is in force “10 % costs too much”" in text_of(grown.http.get("/models/gas"))
    page = text_of(grown.http.get(PATH))
    assert "Revision 1 → 2" in page and "/schedule/stages 8 → 4" in page
    assert "/schedule/stages 4 → 8" in text_of(grown.http.get(f"{PATH}?before=2&after=1"))
    assert "Revision 1, whole" in text_of(grown.http.get(f"{PATH}?revision=1"))


def test_a_preset_takes_the_place_of_the_recipe(grown: House) -> None:
    said = text_of(grown.http.post(f"{PATH}/preview", data={"preset": "dense"}, headers=FORM))
    assert "Nothing more is pruned: density stays at 97.9 %" in said and '"constant"' in said


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"document": "{"}, 400, "Nothing was changed"),
        ({"document": "[1]"}, 422, "must be a JSON object"),
        ({"document": '{"shedule": 1}'}, 422, "unknown key"),
        ({"target": "twenty"}, 422, "number of percent"),
        ({"target": "120"}, 422, "/schedule/"),
        ({"preset": "nothing"}, 422, "unknown preset"),
        ({"document": '{"schedule": {"stages": 4}}', "reason": ""}, 422, "Fill this in"),
        ({"document": "{}", "reason": "x"}, 409, "says that already"),
        ({"document": '{"schedule": {"stages": 4}}', "seen": "7"}, 409, "look at the preview again"),
    ],
)
def test_what_cannot_be_is_refused(grown: House, asked: dict[str, str], status: int, told: str) -> None:
    answer = grown.http.post(PATH, data={"seen": "1", "reason": "why not", **asked}, headers=FORM)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text
    japanese = grown.http.post(
        PATH, data={"seen": "1", "reason": "why not", **asked}, headers={**FORM, "Accept-Language": "ja"}
    )
    assert (japanese.status_code, '<span lang="en">' in japanese.text) == (status, False), japanese.text
    assert grown.http.get("/v1/models/gas/recipe").json()["revision"] == 1


def test_whoever_may_only_look_gets_a_preview_and_no_button(grown: House) -> None:
    sign_in(grown, key_of(grown, "reader-1", Scope.READ))
    asked = {"document": '{"schedule": {"stages": 4}}', "seen": "1", "reason": "x"}
    preview = grown.http.post(f"{PATH}/preview", data=asked, headers=FORM)
    assert "needs the scope “train”" in text_of(preview) and '<form method="post"' not in preview.text
    assert grown.http.post(PATH, data=asked, headers=FORM).status_code == 403


def test_without_scripts_the_preview_is_a_page(grown: House) -> None:
    page = grown.http.post(f"{PATH}/preview", data={"target": "20"}, headers=SAME)
    assert "<html" in page.text and "Put revision 2 in force" in text_of(page)
