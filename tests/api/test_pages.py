"""The dashboard without a browser: what pages say, to whom, and what their forms do."""

from __future__ import annotations

import ast
import hashlib
import html
import json
import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from httpx import Response

import app
from app.api.routes import hooking, pages
from app.api.web.assets import ASSETS, STATIC
from app.api.web.drawing import spark, tree
from app.api.web.estimates import Estimate
from app.api.web.forms import local_path
from app.api.web.rendering import NAVIGATION, POLICY, TEMPLATES
from app.api.web.speech import CATALOGUE, LANGUAGES, Speech, preferred
from app.api.web.telling import tell
from app.api.web.verdicts import reasons_of, tripped
from app.api.web.version_page import _LATENCIES, _PLAIN, _POINTS, _SECONDS, _SHARES
from app.domain import AuditEntry, DeliveryState, Phase, Scope, VersionStatus
from app.learning.recipe import ClassFloor, Guardrail
from app.learning.recipe.guardrails import limits_of
from app.learning.watches import _WATCHES
from app.service import access, overview
from app.service.decisions import RECORDED
from app.service.keyring import LOCAL
from docs import generate
from tests.api.conftest import WORKER, House, TestClient, problem
from tests.api.test_polling import statements
from tests.lineages import Lineage

WEB = TEMPLATES.parent
RULED = tuple(get_args(rule.model_fields["name"].annotation)[0] for rule in get_args(get_args(Guardrail)[0]))
"""Names of every guardrail."""
BROWSER = {"Accept": "text/html,application/xhtml+xml"}
PART = {"HX-Request": "true"}
SAME = {"Origin": "http://localhost:8000"}


@pytest.fixture
def grown(house: House) -> House:
    """A model with three versions, a rollback and a withheld version."""
    line = Lineage(house.store)
    for _ in range(3):
        line.publish()
    line.publish(passed=False)
    return house


def text_of(answer: Response) -> str:
    """What a reader sees, on one line."""
    assert answer.status_code == 200, answer.text
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


# -- words -------------------------------------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    files = [*TEMPLATES.rglob("*.html"), *WEB.glob("*.py"), *Path(pages.__file__).parent.glob("*.py")]
    return {str(path): path.read_text(encoding="utf-8") for path in files}


def spoken() -> set[str]:
    """Every key that templates and code name in full, and every one that they put together."""
    whole = "\n".join(sources().values())
    found = set(re.findall(r"""\b(?:t|t\.marked|self)\(\s*["']([a-z][\w.-]*[\w])["']\s*[,)]""", whole))
    found |= set(re.findall(r"""\("(first\.\w+)", """, whole)) | set(re.findall(r'refusal="([\w.]+)"', whole))
    built = {
        "action": ("withhold", "retry", "hold", "restore"),
        "divider": ("items", "sentences"),
        "done": ("paused", "resumed", "pinned", "unpinned"),
        "done.decided": ("open", "carried-out", "rejected"),
        "drift": ("inputs", "labels", "accuracy"),
        "entry.part": ("inputs", "parameters", "outputs", "code"),
        "event": tuple(key.removeprefix("event.") for key in CATALOGUE["en"] if key.startswith("event.")),
        "failure.title": tuple(key[14:] for key in CATALOGUE["en"] if key.startswith("failure.title.")),
        "deliveries.state": tuple(DeliveryState),
        "health": tuple(overview.Health),
        "keys.state": ("valid", "expired", "revoked"),
        "language": LANGUAGES,
        "metric": (*_SHARES, *_POINTS, *_PLAIN, *_LATENCIES, *_SECONDS),
        "nav": tuple(place.key for place in NAVIGATION),
        "phase": tuple(Phase),
        "reason": tuple(f"{rule}{part}" for rule in RULED for part in ("", ".do")),
        "recipe.side": ("before", "after"),
        "phase.state": ("done", "now", "next"),
        "scope": tuple(Scope),
        "series": ("validation", "arrival", "evaluation", "gap", "density", "bytes", "target", "megabatch"),
        "sign": ("promoted", "withheld", "back", "kept", "champion", "published"),
        "status": ("accepted", "quarantined", "erased"),
        "upload.refused": (*generate.megabatch_reasons(), *REFUSED),
    }
    moves = get_args(hooking.Move)
    built["webhook.ask"] = tuple(f"{move}{part}" for move in moves for part in ("", ".what", ".do"))
    built["webhook.done"] = ("made", "rotated", "redeliver", *(move for move in moves if move != "rotate"))
    texts = CATALOGUE["en"].items()
    written = {
        key
        for key, text in texts
        if key.startswith("recorded.")
        and (with_bare_holes(unescaped(text.removeprefix("{pointer}: "))) in recorded() or text.endswith(JSON_PLACE))
    }
    return found | written | {f"{group}.{name}" for group, names in built.items() for name in names}


REFUSED = ("upload-too-large", "megabatch-erased", "megabatch-quarantined")
"""Problems that end an upload, beside those with what it holds."""


JSON_PLACE = ": line {line} column {column} (char {character})"
"""Where the standard library says that a text ceases to be JSON; what it says before that moves with its version."""


def unescaped(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")


def with_bare_holes(text: str) -> str:
    """A sentence whose holes have neither names nor quotes."""
    return re.sub(r"\{\w*\}", "{}", text).replace("'{}'", "{}")


@cache
def recorded() -> frozenset[str]:
    """Every sentence that the service puts together or holds, with holes for what it fills in."""
    found = set()
    for path in Path(app.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add(with_bare_holes("".join(_piece(part) for part in node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(with_bare_holes(node.value))
    for watch in _WATCHES.values():
        found.add(with_bare_holes(f"{watch.what}: {{}}. {watch.remedy}"))
    return frozenset(found)


def _piece(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    return "'{}'" if part.conversion == ord("r") else "{}"


def test_catalogues_have_the_same_keys() -> None:
    assert CATALOGUE["en"].keys() == CATALOGUE["ja"].keys()


def test_every_sentence_is_in_the_catalogues_and_none_is_left_over() -> None:
    keys = set(CATALOGUE["en"])
    assert spoken() == keys


@pytest.mark.parametrize("key", sorted(CATALOGUE["en"]))
def test_translations_fill_in_the_same_values(key: str) -> None:
    def filled(text: str) -> set[str]:
        return set(re.findall(r"\{(\w+)\}", text)) - {"n", "times", "factor"}

    asked, given = filled(CATALOGUE["en"][key].replace("|", " ")), filled(CATALOGUE["ja"][key])
    assert given <= asked <= given | {"again", "older"}


def appended() -> set[str]:
    """Every kind of audit entry that the code can append: what reads like one where entries and events are made."""
    found = set()
    for path in Path(app.__file__).parent.glob("[lsw]*/**/*.py"):  # learning, service, store, worker
        source = path.read_text(encoding="utf-8")
        made = r"""(?:\bappend|\brecord|\bEvent|\b_audit|\b_log)\(\s*(?:tx,\s*)?"([a-z]+\.[a-z-]+)\""""
        found |= set(re.findall(made, source)) | set(re.findall(r'yield "([a-z]+\.erased)"', source))
    return found | {f"version.{status}" for status in VersionStatus} | {RECORDED} | set(overview.TOLD)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_kind_has_a_sentence(house: House, language: str) -> None:
    said = (
        *("alias", "from", "to", "version", "kept", "total", "rule", "megabatch", "examples", "cycle", "blobs"),
        *("recipe_revision", "count", "revision", "message", "name", "epoch", "webhook", "origin"),
    )
    parameters = {**dict.fromkeys(said, 7), "action": "hold"}
    kinds = appended()
    assert {"key.revoked", "log.epoch-began", "webhook.secret-rotated", "mask.pruned", "invariant.broken"} <= kinds
    for kind in sorted(kinds):
        entry = AuditEntry(1, house.store.clock(), kind, "anna", None, {"parameters": parameters, "reason": None}, "")
        told = tell(entry, Speech(language)).text
        assert told != kind and "{" not in told, kind


def test_a_guardrail_that_tripped_says_why_in_the_reader_s_language(house: House) -> None:
    parameters = {"rule": "accuracy-drop", "action": "hold", "figures": {"drop": "0.031", "examples": 400}}
    document = {"parameters": parameters, "reason": "accuracy 0.9 is 0.031 below the champion's"}
    entry = AuditEntry(1, house.store.clock(), "guardrail.tripped", "worker", "gas", document, "")
    assert tell(entry, Speech("ja")).reason.striptags() == document["reason"], (
        "not without the figures that its sentence names"
    )
    parameters["figures"]["p_value"] = "0.004"
    assert "チャンピオンより精度が 3.1\xa0ポイント 低く" in tell(entry, Speech("ja")).reason
    assert "fell by 3.1\xa0pt" in tell(entry, Speech("en")).reason


@pytest.mark.parametrize(
    ("language", "told"),
    [
        (
            "en",
            [
                "class-floor: 1 of 6 classes are below the floor, worst Toluene: 71.0\xa0% of 100 examples, "
                "79.0\xa0% at most (limit 80.0\xa0%). Upload more examples of them, or balance the class weights.",
                "accuracy-floor#2: unheard of",
                "a note",
            ],
        ),
        (
            "ja",
            [
                "class-floor: 6 クラス中 1 クラスが下限未満、最低は Toluene: 100 例で 71.0\xa0%、高く見ても 79.0\xa0%"
                "（限度 80.0\xa0%）。そのクラスのデータを増やすか、クラスの重みを均等にしてください。",
                'accuracy-floor#2：<span lang="en">unheard of</span>',
                '<span lang="en">a note</span>',
            ],
        ),
    ],
)
def test_a_verdict_is_told_from_its_figures_and_what_is_not_known_as_it_was_recorded(
    language: str, told: list[str]
) -> None:
    figures = {"classes": 6, "worst_class": 1, "worst_accuracy": "0.71", "worst_examples": 100, "below": [1]}
    rule = {"name": "class-floor", "passed": False, "tripped": True, "breaches": 1, "worst_upper_bound": "0.79"}
    other = {"name": "accuracy-floor#2", "passed": False, "tripped": False, "breaches": 1, "accuracy": "unheard of"}
    reasons = ("class-floor: accuracy is below the floor", "accuracy-floor#2: unheard of", "a note")
    judged = overview.Judged(reasons, [{**rule, **figures}, other], limits_of([ClassFloor(at_least=0.8)]))
    found = reasons_of(judged, ("Acetone", "Toluene"), Speech(language))
    assert found == told


def test_why_pruning_is_held_is_told_from_the_entry(house: House) -> None:
    why = "held since accuracy-drop tripped (no whole epoch was trained, so its loss was not compared): 1 of 3 passes"
    document = {"parameters": {"stage": 2, "density": 0.5, "reason": why}, "reason": None}
    entry = AuditEntry(1, house.store.clock(), "mask.held", "worker", "gas", document, "")
    assert tell(entry, Speech("en")).reason == why
    assert "連続合格 1 / 3 回" in tell(entry, Speech("ja")).reason and "lang=" not in tell(entry, Speech("ja")).reason


def test_rules_that_tripped_are_named_alone() -> None:
    reasons = (
        "accuracy-drop: accuracy 0.9 is low: prune less (breached 2 times in a row)",
        "class-floor#2: accuracy is below the floor",
        "forgetting: much is forgotten (breached 1 of 3 times before it trips)",
        "mask-agreement: no pruning step of this cycle compared the masks of two samples",
        "there are no validation examples: nothing was compared, and the last epoch was kept",
    )
    assert tripped(reasons) == "accuracy-drop, class-floor#2"


@pytest.mark.parametrize("path", sorted(TEMPLATES.rglob("*.html")), ids=lambda path: path.name)
def test_templates_hold_no_words_of_their_own(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    source = re.sub(r"\{% set (code|ways) .*?%\}(.*?\{% endset %\})?", "", source, flags=re.DOTALL)
    source = re.sub(r"\{% block live %\}.*?\{% endblock %\}", "", source)
    bare = re.sub(r"<[^>]*>", " ", re.sub(r"\{[{%#].*?[}%#]\}", "", source, flags=re.DOTALL))
    assert not re.findall(r"[^\W\d_]+", bare)
    told = re.findall(r"""(?:aria-label|title|placeholder|alt)="([^"{]+)""", source)
    assert not told


def test_the_language_follows_the_browser_until_somebody_chooses() -> None:
    assert preferred("ja,en;q=0.8", None) == "ja"
    assert preferred("de-DE,de;q=0.9,en;q=0.1", None) == "en"
    assert preferred("en;q=0.2, ja-JP;q=0.9", None) == "ja"
    assert preferred("ja", "en") == "en"
    assert preferred("", "xx") == "en"
    assert preferred("ja;q=x," * 500, None) in LANGUAGES


def test_figures_have_their_units() -> None:
    t = Speech("en")
    assert t.percent(0.9134) == "91.3\u00a0%"
    assert t.points(-0.004, signed=True) == "\u22120.4\u00a0pt"
    assert t.points(-0.0001) == "0.0\u00a0pt"
    assert [t.size(n) for n in (17, 999, 17_344, 999_600, 1_500_000)] == [
        "17\u00a0B",
        "999\u00a0B",
        "17.3\u00a0kB",
        "1.0\u00a0MB",
        "1.5\u00a0MB",
    ]
    assert t.lasting(14) == "0:14"
    assert t.listed([1, 2, 3, 7]) == "1–3, 7"
    assert t("models.count", n=1, count="1") == "1 model"
    assert t("models.count", n=2, count="2") == "2 models"


# -- drawings ----------------------------------------------------------------------------------------------------------


def test_a_margin_is_wilsons_interval() -> None:
    half = Estimate(0.99, 100).margin
    assert half is not None and half == pytest.approx((0.99823 - 0.94551) / 2, abs=1e-4)
    assert Estimate(1.0, 10).margin == pytest.approx(0.1389, abs=2e-4)
    assert Estimate(0.5, None).margin is None


def test_a_sparkline_stays_in_its_box() -> None:
    drawn = spark([0.1, None, 0.9, 0.5])
    assert drawn is not None and drawn.points == "3.0,21.0 63.0,3.0 93.0,12.0"
    assert spark([None]) is None
    flat = spark([0.5])
    assert flat is not None and flat.points == "3.0,12.0 93.0,12.0"


def test_a_family_is_laid_out_in_lanes() -> None:
    family = tree([(9, 6), (8, 7), (7, 6), (6, 5), (5, None)])
    assert {knot.number: knot.lane for knot in family.knots} == {9: 0, 8: 1, 7: 1, 6: 0, 5: 0}
    assert family.lanes == 2
    assert tree([(3, 1)]).knots[0].cut


# -- what pages are made of --------------------------------------------------------------------------------------------


def test_vendored_files_are_what_their_list_says() -> None:
    for folder in (STATIC / "vendor", Path(__file__).with_name("vendor")):
        listed = json.loads((folder / "vendor.json").read_text())
        there = {path.name for path in folder.iterdir()} - {"vendor.json"}
        licences = {name for name in there if name.endswith(".LICENSE.txt")}
        assert {row["file"] for row in listed} == there - licences
        assert {row["file"].split(".")[0] for row in listed} == {name.split(".")[0] for name in licences}
        for row in listed:
            assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"], row["file"]


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_files_are_kept_for_ever_under_their_name(still_house: House, name: str) -> None:
    asset = ASSETS[name]
    plain = still_house.http.get(f"/static/{asset.name}", headers={"Accept-Encoding": "identity"})
    packed = still_house.http.get(f"/static/{asset.name}", headers={"Accept-Encoding": "gzip"})
    assert plain.content == packed.content == asset.body
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "immutable" in plain.headers["Cache-Control"]
    assert hashlib.sha256(asset.body).hexdigest()[:12] in asset.name
    problem(still_house.http.get(f"/static/{name}"), 404, "unknown")


def test_pages_run_and_load_what_is_ours_alone(grown: House) -> None:
    for path in (
        "/",
        "/models/gas",
        "/models/gas/versions/2",
        "/models/gas/recipe",
        "/models/gas/megabatches",
        "/models/gas/rollback",
        "/sign-in?next=/models/gas",
        "/audit",
        "/audit/2",
        "/keys",
        "/keys/new",
        "/webhooks",
        "/webhooks/new",
    ):
        answer = grown.http.get(path, headers=BROWSER)
        assert answer.status_code == 200, path
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["Cache-Control"] == "no-store"
        assert not re.findall(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:|hx-on", answer.text)
        for target in re.findall(r'(?:src|href)="([^"#]+)"', answer.text):
            assert target.startswith("/") and not target.startswith("//"), target
            if not target.startswith(("/v1/", "/static/")):
                assert grown.http.get(html.unescape(target), headers=BROWSER).status_code == 200, target


def test_what_people_wrote_is_text_and_nothing_else(grown: House) -> None:
    grown.http.post("/v1/models/gas/pause", json={"reason": "<img src=x onerror=alert(1)>"}).raise_for_status()
    for path in ("/", "/models/gas", "/models/gas/pause"):
        page = grown.http.get(path).text
        assert "<img" not in page and "&lt;img" in page


def test_links_bear_the_prefix_that_the_service_is_under(grown: House) -> None:
    http = TestClient(grown.app, base_url="http://localhost:8000", root_path="/espalier")
    page = http.get("/models/gas", headers=BROWSER).text
    targets = re.findall(r'\b(?:src|href|action|hx-get|data-live|data-events)="([^"#]+)"', page)
    assert len(targets) > 20
    assert not [target for target in targets if not target.startswith("/espalier/")]


# -- pages -------------------------------------------------------------------------------------------------------------


def test_an_empty_service_says_how_to_begin(house: House) -> None:
    page = text_of(house.http.get("/"))
    assert "No models yet" in page and "espalier model create" in page


def test_a_model_without_data_shows_three_ways_to_send_it(house: House) -> None:
    house.create()
    page = text_of(house.http.get("/models/gas"))
    assert page.count("gas") > 3
    assert "espalier batch push gas first.npz" in page and "from espalier import Client" in page and "curl" in page


def test_models_are_rows_with_what_decides(grown: House) -> None:
    page = text_of(grown.http.get("/"))
    for said in ("gas", "last version withheld", "v3", "75.0 %", "93.8 %", "v4 withheld", "1 model"):
        assert said in page, said


def test_models_are_found_by_name_and_paged(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROWS", 2)
    for name in ("gas", "gas-2", "ph"):
        house.create(name).raise_for_status()
    first = house.http.get("/").text
    assert "gas-2" in first and ">ph</a>" not in first
    after = html.unescape(re.findall(r'href="([^"]+after=[^"]+)"', first)[-1])
    assert ">ph</a>" in house.http.get(after).text
    assert "gas" not in text_of(house.http.get("/?q=PH")).replace("gas-sensors", "")
    assert "contains “%_”" in text_of(house.http.get("/?q=%25_"))


def test_how_many_statements_a_page_takes_does_not_depend_on_how_many_models(house: House) -> None:
    def asked(path: str) -> int:
        with statements(house) as seen:
            assert house.http.get(path).status_code == 200
        return len(seen)

    for name in ("a", "b"):
        Lineage(house.store, name).publish()
    two, one = asked("/"), asked("/models/a")
    for name in ("c", "d", "e", "f"):
        line = Lineage(house.store, name)
        for _ in range(3):
            line.publish()
    assert asked("/") == two
    assert asked("/models/f") == one


def test_a_model_page_answers_whether_it_is_good(grown: House) -> None:
    answer = grown.http.get("/models/gas")
    page = text_of(answer)
    for said in ("champion v3", "75.0 %", "9 examples", "93.8 %", "v4 withheld", "v3 promoted, after v2"):
        assert said in page, said
    figures = json.loads(html.unescape(re.findall(r'data-figures="([^"]+)"', answer.text)[0]))
    assert figures["version"] == [1, 2, 3, 4]
    assert figures["sign"] == ["promoted", "promoted", "promoted", "withheld"]
    assert figures["megabatches"] == ["1", "2", "3", "4"]
    assert figures["champion"] == 3 and figures["target"] == pytest.approx(0.1)


def test_live_parts_take_their_former_places(grown: House) -> None:
    parts = grown.http.get("/models/gas/live", headers=PART).text
    whole = grown.http.get("/models/gas").text
    for place in ("title", "strip", "lines", "cycle", "events", "below", "proposals"):
        assert re.search(rf'id="{place}"[^>]*hx-swap-oob="true"', parts), place
        assert f'id="{place}"' in whole
    assert "hx-swap-oob" not in whole


def test_a_page_of_an_earlier_stage_is_loaded_anew(house: House) -> None:
    house.create()
    for stage in ("empty", "waiting"):
        whole = house.http.get("/models/gas").text
        assert f'data-live="/models/gas/live?stage={stage}"' in whole
        parts = house.http.get(f"/models/gas/live?stage={stage}", headers=PART)
        assert "HX-Refresh" not in parts.headers
        assert all(f'id="{place}"' in whole for place in re.findall(r'id="(\w+)"[^>]*hx-swap-oob', parts.text))
        assert "hx-swap-oob" in parts.text
        house.upload()
    old = house.http.get("/models/gas/live?stage=empty", headers=PART)
    assert (old.headers["HX-Refresh"], old.text) == ("true", "")


def test_a_running_cycle_is_asked_for_again_until_it_ends(house: House) -> None:
    house.create()
    house.upload()
    assert "Cycle 1 · waiting" in text_of(house.http.get("/models/gas/cycle"))
    with house.store.transaction(WORKER) as tx:
        assert tx.ledger.claim_cycle("worker-1", 60) is not None
        tx.audit.append("cycle.started", model="gas", parameters={"cycle": 1})
    part = house.http.get("/models/gas/cycle").text
    assert 'hx-trigger="every 1s"' in part and "Cycle 1 · running" in part


def test_a_version_page_shows_where_it_comes_from(grown: House) -> None:
    page = text_of(grown.http.get("/models/gas/versions/3"))
    for said in ("Version 3", "champion", "All guardrails passed", "0.weight", "3 × 32", "v4 withheld", "v1 published"):
        assert said in page, said
    withheld = text_of(grown.http.get("/models/gas/versions/4"))
    assert "Withheld by guardrails" in withheld and "accuracy fell by 0.1" in withheld


def test_pages_speak_japanese(grown: House) -> None:
    page = grown.http.get("/models/gas", headers={"Accept-Language": "ja"})
    assert '<html lang="ja"' in page.text
    for said in ("密度", "メガバッチ", "到着時精度", "汎化ギャップ", "ロールバック", "保留"):
        assert said in page.text, said


# -- who ---------------------------------------------------------------------------------------------------------------


def key_of(house: House, name: str, *scopes: Scope, models: frozenset[str] | None = None) -> str:
    wanted = access.Wanted(name, frozenset(scopes), models)
    return access.create_key(house.store, wanted, caller=LOCAL, actor=WORKER).text


def sign_in(house: House, key: str, next: str = "/") -> Response:
    house.http.cookies.clear()
    form = {"key": key, "next": next}
    return house.http.post("/sign-in", data=form, headers=SAME, follow_redirects=False)


def test_a_browser_is_led_to_sign_in_and_back(grown: House) -> None:
    key = key_of(grown, "line-3", Scope.READ)
    problem(grown.http.get("/models/gas"), 401, "key-required")
    asked = grown.http.get("/models/gas?before=3", headers=BROWSER, follow_redirects=False)
    assert (asked.status_code, asked.headers["Location"]) == (303, "/sign-in?next=%2Fmodels%2Fgas%3Fbefore%3D3")
    assert 'value="/models/gas?before=3"' in grown.http.get(asked.headers["Location"], headers=BROWSER).text
    refused = sign_in(grown, "esp_nonsense")
    assert refused.status_code == 401 and "no key of this service" in refused.text
    done = sign_in(grown, key, "/models/gas?before=3")
    assert (done.status_code, done.headers["Location"]) == (303, "/models/gas?before=3")
    assert "HttpOnly" in done.headers["Set-Cookie"] and "SameSite=strict" in done.headers["Set-Cookie"]
    page = grown.http.get("/models/gas", headers=BROWSER)
    assert "line-3" in page.text and "Signed in with the key line-3" in page.text
    out = grown.http.post("/sign-out", headers=SAME, follow_redirects=False)
    assert out.headers["Location"] == "/sign-in"
    assert grown.http.get("/", headers=BROWSER, follow_redirects=False).status_code == 303


def test_a_link_on_another_site_keeps_the_session(grown: House) -> None:
    key_of(grown, "line-3", Scope.READ)
    page = grown.http.get("/models/gas", headers={**BROWSER, "Sec-Fetch-Site": "cross-site"}, follow_redirects=False)
    assert page.status_code == 200 and 'http-equiv="refresh" content="0; url=/models/gas"' in page.text


@pytest.mark.parametrize("next", ["//evil.example", "https://evil.example", "/\\evil.example", "/\x00", "", "x"])
def test_nobody_is_led_elsewhere(next: str) -> None:
    assert local_path(next) == "/"


def test_a_part_without_a_session_leads_to_sign_in(grown: House) -> None:
    key_of(grown, "line-3", Scope.READ)
    part = grown.http.get("/models/gas/live", headers=PART)
    assert (part.status_code, part.headers["HX-Redirect"]) == (401, "/sign-in")


def test_actions_are_shown_to_those_who_may(grown: House) -> None:
    reader, releaser = key_of(grown, "reader-1", Scope.READ), key_of(grown, "boss", Scope.READ, Scope.RELEASE)
    sign_in(grown, reader)
    for path in ("/models/gas", "/models/gas/versions/4"):
        page = grown.http.get(path).text
        assert "/rollback" not in page and "/promote" not in page and "/train" not in page
    assert grown.http.get("/models/gas/rollback", headers=BROWSER).status_code == 403
    sign_in(grown, releaser)
    assert "/rollback" in grown.http.get("/models/gas").text
    assert "/promote" in grown.http.get("/models/gas/versions/4").text


def test_a_key_for_one_model_sees_that_one(grown: House) -> None:
    grown.create("other")
    sign_in(grown, key_of(grown, "of-other", Scope.READ, models=frozenset({"other"})))
    page = text_of(grown.http.get("/"))
    assert page.endswith("1 model") and "gas" not in page
    assert grown.http.get("/models/gas", headers=BROWSER).status_code == 403


def test_a_key_that_may_not_read_is_told_so(grown: House) -> None:
    answer = sign_in(grown, key_of(grown, "sender", Scope.INGEST))
    assert answer.status_code == 403 and "may not look at anything" in answer.text


def test_forms_of_other_origins_are_refused(grown: House) -> None:
    elsewhere = {"Origin": "https://evil.example"}
    for path in ("/sign-in", "/preferences", "/models/gas/rollback"):
        assert grown.http.post(path, data={"key": "x"}, headers=elsewhere).status_code == 403, path


def test_choices_are_kept_in_the_browser(house: House) -> None:
    answer = house.http.post("/preferences", data={"language": "ja", "next": "/?q=a"}, headers=SAME)
    assert '<html lang="ja"' in answer.text and answer.url.query == b"q=a"
    dark = house.http.post("/preferences", data={"theme": "dark", "next": "/"}, headers=SAME)
    assert 'data-theme="dark"' in dark.text and '<html lang="ja"' in dark.text


# -- moves -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(grown: House) -> tuple[House, dict[str, str]]:
    form = dict(re.findall(r'name="(revision)" value="(\d+)"', grown.http.get("/models/gas/rollback").text))
    return grown, {**form, "to": "1", "reason": "line 3 was miscalibrated"}


def test_a_rollback_says_what_it_will_do_and_did(asked: tuple[House, dict[str, str]]) -> None:
    house, form = asked
    question = text_of(house.http.get("/models/gas/rollback?to=1", headers=PART))
    for said in ("v3 → v1", "93.8 % → 97.9 %", "megabatches 2–3 leave training", "no version is deleted"):
        assert said in question, said
    answer = house.http.post("/models/gas/rollback", data={**form, "quarantine": ["2", "3"]}, headers={**SAME, **PART})
    done = text_of(answer)
    assert "Champion v3 → v1" in done and "Megabatches 2–3 are quarantined." in done
    assert answer.headers["HX-Trigger"] == "espalier-changed"
    assert house.http.get("/v1/models/gas/aliases/champion").json()["version"] == 1
    figures = json.loads(html.unescape(re.findall(r'data-figures="([^"]+)"', house.http.get("/models/gas").text)[0]))
    assert figures["sign"] == ["promoted", "promoted", "back", "withheld"]


def test_a_rollback_that_somebody_overtook_changes_nothing(asked: tuple[House, dict[str, str]]) -> None:
    house, form = asked
    house.http.post("/v1/models/gas/rollback", json={"reason": "first", "to": 2}, headers=house.revision())
    answer = house.http.post("/models/gas/rollback", data=form, headers={**SAME, **PART})
    assert answer.status_code == 412 and "Somebody was faster" in answer.text
    assert house.http.get("/v1/models/gas/aliases/champion").json()["version"] == 2


@pytest.mark.parametrize("lacking", ["reason", "to", "revision"])
def test_a_form_that_lacks_something_changes_nothing(asked: tuple[House, dict[str, str]], lacking: str) -> None:
    house, form = asked
    answer = house.http.post("/models/gas/rollback", data={**form, lacking: " "}, headers={**SAME, **PART})
    assert answer.status_code == 422 and "Nothing was changed" in answer.text
    assert house.http.get("/v1/models/gas/aliases/champion").json()["version"] == 3


@pytest.mark.parametrize("body", [b"reason=%ff", b"a=1&" * 300, b"x" * 70_000, b"reason=a%00b&to=1&revision=3"])
def test_a_form_that_cannot_be_read_changes_nothing(asked: tuple[House, dict[str, str]], body: bytes) -> None:
    house, _ = asked
    headers = {**SAME, "Content-Type": "application/x-www-form-urlencoded"}
    assert house.http.post("/models/gas/rollback", content=body, headers=headers).status_code in (413, 422)
    assert house.http.post("/models/gas/rollback", json={"to": 1}, headers=SAME).status_code == 415


def test_a_withheld_version_is_promoted_knowingly(grown: House) -> None:
    path = "/models/gas/versions/4/promote"
    question = text_of(grown.http.get(path, headers=PART))
    assert "Guardrails withheld this version: accuracy fell by 0.1" in question
    japanese = grown.http.get("/models/gas/versions/4/promote", headers={**PART, "Accept-Language": "ja"}).text
    assert '<li><span lang="en">accuracy fell by 0.1</span></li>' in japanese
    form = {"revision": "3", "reason": "the set was mislabelled"}
    refused = grown.http.post(path, data=form, headers={**SAME, **PART})
    assert refused.status_code == 409
    done = grown.http.post(path, data={**form, "override": "yes"}, headers={**SAME, **PART})
    assert "Champion v3 → v4." in text_of(done)


def test_a_protected_champion_takes_two(grown: House) -> None:
    terms = {"approvals": 1, "automatic": False, "reason": "two pairs of eyes"}
    grown.http.put("/v1/models/gas/aliases/champion/protection", json=terms).raise_for_status()
    proposer, approver = (
        key_of(grown, "anna", Scope.READ, Scope.RELEASE),
        key_of(grown, "ben", Scope.READ, Scope.RELEASE),
    )
    sign_in(grown, proposer)
    form = {"revision": "3", "reason": "older one is steadier"}
    proposed = grown.http.post("/models/gas/versions/2/promote", data=form, headers={**SAME, **PART})
    assert "Proposal 1 for v2 waits for approval" in text_of(proposed)
    assert "anna proposes that champion points to v2" in text_of(grown.http.get("/models/gas"))
    decide = {"decision": "approve", "reason": "agreed"}
    own = grown.http.post("/models/gas/proposals/1/decide", data=decide, headers={**SAME, **PART})
    assert own.status_code == 403
    sign_in(grown, approver)
    assert "older one is steadier" in text_of(grown.http.get("/models/gas/proposals/1/decide", headers=PART))
    done = grown.http.post("/models/gas/proposals/1/decide", data=decide, headers={**SAME, **PART})
    assert "Proposal 1 is carried out: v2." in text_of(done)


def test_training_is_asked_for_paused_and_resumed(grown: House) -> None:
    form = {**SAME, **PART}
    assert "Cycle 5 is queued" in text_of(grown.http.post("/models/gas/train", data={"reason": ""}, headers=form))
    paused = grown.http.post("/models/gas/pause", data={"state": "paused", "reason": "maintenance"}, headers=form)
    assert "gas is paused" in text_of(paused)
    assert "maintenance" in text_of(grown.http.get("/models/gas"))
    resumed = grown.http.post("/models/gas/pause", data={"state": "active", "reason": "done"}, headers=form)
    assert "gas goes on" in text_of(resumed)


def test_pages_tell_what_the_service_wrote_down_in_japanese(grown: House) -> None:
    japanese = {"Accept-Language": "ja"}
    why = "cycle 5 failed for good: its workers died again and again without getting further (out of memory?)"
    form = {"state": "paused", "reason": f"{why}. Mend the cause, then resume the model"}
    grown.http.post("/models/gas/pause", data=form, headers={**SAME, **PART})
    for path in ("/", "/models/gas", "/models/gas/pause"):
        page = grown.http.get(path, headers=japanese).text
        assert "サイクル 5 は失敗し、再試行されません：ワーカーが先へ進めないまま" in page and why not in page, path
    refused = grown.http.post("/webhooks", data={"url": "ftp://example.org"}, headers={**SAME, **PART, **japanese})
    assert refused.status_code == 422 and "Webhook のアドレスは https:// または http:// で始まります" in refused.text
    gone = grown.http.get("/models/nowhere", headers={**BROWSER, **japanese})
    assert gone.status_code == 404 and "nowhere という名前のモデルはありません" in gone.text


def test_without_scripts_a_question_is_a_page(asked: tuple[House, dict[str, str]]) -> None:
    house, form = asked
    assert "<html" in house.http.get("/models/gas/rollback").text
    done = house.http.post("/models/gas/rollback", data=form, headers=SAME)
    assert "<html" in done.text and "Champion v3 → v1" in text_of(done)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_people_get_pages_and_programs_get_problems(house: House) -> None:
    page = house.http.get("/models/nowhere", headers=BROWSER)
    assert page.status_code == 404 and "Nothing is here" in page.text
    assert page.headers["Content-Security-Policy"] == POLICY
    problem(house.http.get("/models/nowhere"), 404, "unknown-model")
    problem(house.http.get("/v1/models/nowhere", headers=BROWSER), 404, "unknown-model")
    assert house.http.get("/nothing/here", headers=BROWSER).headers["Content-Type"].startswith("text/html")
    part = house.http.get("/models/nowhere/live", headers=PART)
    assert part.status_code == 404 and "<html" not in part.text


@pytest.mark.parametrize(
    ("came", "cancel"),
    [
        ("http://localhost:8000/models/gas/versions/3?x=1", "/models/gas/versions/3?x=1"),
        ("http://localhost:8000/", "/"),
        ("", "/models/gas"),
        ("http://localhost:8000/models/gas/rollback", "/models/gas"),
        ("http://evil.example/models/gas/versions/3", "/models/gas"),
        ("http://localhost:8000//evil.example", "/"),
    ],
)
def test_a_question_is_cancelled_to_where_it_was_asked(grown: House, came: str, cancel: str) -> None:
    page = grown.http.get("/models/gas/rollback", headers={"Referer": came}).text
    assert f'role="button" href="{cancel}">Cancel</a>' in page


@pytest.mark.parametrize("headers", [SAME, {**SAME, **PART}], ids=["page", "dialog"])
@pytest.mark.parametrize(
    ("path", "form", "wrong", "kept"),
    [
        (
            *("/models/gas/rollback", {"to": "1", "reason": "", "back": "/models/gas/versions/2"}),
            *("reason", ['value="1" selected', 'href="/models/gas/versions/2"']),
        ),
        (
            *("/keys", {"name": "Not A Name", "scope": "train", "models": "gas <1>", "days": "30"}, "name"),
            ['value="Not A Name"', 'value="train" checked', 'value="gas &lt;1&gt;"', 'value="30" selected'],
        ),
        (
            *("/webhooks", {"url": "ftp://x", "description": "the board", "kinds": "version.published"}, "url"),
            ['value="ftp://x"', 'value="the board"', 'value="version.published"'],
        ),
        ("/models/gas/pause", {"state": "paused", "reason": "x" * 2001}, "reason", ["x" * 2001 + "</textarea>"]),
    ],
)
def test_a_refused_form_keeps_what_was_typed_and_says_beside_the_field_what_is_wrong(
    grown: House, path: str, form: dict[str, str], wrong: str, kept: list[str], headers: dict[str, str]
) -> None:
    answer = grown.http.post(path, data={"revision": "3", **form}, headers={**BROWSER, **headers})
    assert answer.status_code == 422 and ("<html" in answer.text) == (headers == SAME)
    assert answer.headers["Content-Security-Policy"] == POLICY and "Nothing was changed" in answer.text
    field = (
        rf'<(?:input|textarea)[^>]* name="{wrong}"[^>]* aria-invalid="true" aria-describedby="wrong-{wrong}" autofocus'
    )
    assert len(re.findall(field, answer.text)) == 1 and answer.text.count("autofocus") == 1
    assert answer.text.count(f'id="wrong-{wrong}"') == 1
    for each in kept:
        assert each in answer.text, each
    if not form.get(wrong):
        japanese = grown.http.post(path, data=form, headers={**BROWSER, **headers, "Accept-Language": "ja"})
        assert "入力してください" in japanese.text


def test_a_question_that_is_asked_again_is_that_of_now(grown: House) -> None:
    form = {"to": "1", "revision": "1", "reason": "line 3 was <miscalibrated>", "back": "javascript:alert(1)"}
    answer = grown.http.post("/models/gas/rollback", data=form, headers={**SAME, **PART})
    assert answer.status_code == 412 and "Somebody was faster" in answer.text
    assert "line 3 was &lt;miscalibrated&gt;</textarea>" in answer.text and "javascript" not in answer.text
    (revision,) = re.findall(r'name="revision" value="(\d+)"', answer.text)
    again = grown.http.post("/models/gas/rollback", data={**form, "revision": revision}, headers={**SAME, **PART})
    assert "Champion v3 → v1" in text_of(again)


def test_a_recipe_that_cannot_be_read_stays_in_its_form(grown: House) -> None:
    form = {"document": '{"shedule": 1}', "target": "12.5", "preset": "dense"}
    page = grown.http.post("/models/gas/recipe/preview", data=form, headers={**BROWSER, **SAME})
    assert page.status_code == 422 and 'aria-describedby="wrong-document"' in page.text
    assert "unknown key" in page.text and html.escape(form["document"]).replace("&quot;", "&#34;") in page.text
    assert 'value="12.5"' in page.text and "<option selected>dense</option>" in page.text
    form = {"document": '{"schedule": {"stages": 4}}', "seen": "1", "reason": ""}
    asked = grown.http.post("/models/gas/recipe", data=form, headers={**SAME, **PART})
    assert asked.status_code == 422 and 'aria-describedby="wrong-reason"' in asked.text
