"""The dashboard in a real browser: nothing on the console, nothing from elsewhere, axe, and the keyboard alone.

Needs a Chromium of this machine (``/usr/bin/chromium``, or one on the path); without one these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from app.api.routes import megabatch_pages
from app.config import Settings
from app.domain import Scope
from app.service import access, webhooks
from app.service.keyring import LOCAL
from app.service.opening import open_store
from app.store.migrate import migrate
from espalier.formats import megabatch
from tests.api.conftest import WORKER
from tests.api.test_pages_megabatch import take
from tests.api.test_polling import serving
from tests.lineages import INPUT, Lineage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
AXE = Path(__file__).with_name("vendor") / "axe.min.js"
PAGES = {
    "models": "/",
    "model": "/models/gas",
    "first": "/models/empty",
    "version": "/models/gas/versions/4",
    "recipe": "/models/gas/recipe",
    "megabatches": "/models/gas/megabatches",
    "pictures": "/models/pictures/megabatches/1?class=1",
    "values": "/models/values/megabatches/1",
    "rollback": "/models/gas/rollback",
    "audit": "/audit",
    "entry": "/audit/3",
    "keys": "/keys",
    "key": "/keys/new",
    "webhooks": "/webhooks",
    "webhook": "/webhooks/1",
    "sign in": "/sign-in",
    "nothing": "/models/nowhere",
}
WIDTHS, THEMES, LANGUAGES = (360, 768, 1440), ("light", "dark"), ("en", "ja")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@dataclass
class Site:
    """A service with a model of four versions, one that is empty and two with examples to look at; one that asks for
    its key; and a browser.
    """

    url: str
    locked: str
    key: str
    settings: Settings
    browser: Browser

    def publish(self) -> None:
        """Another process publishes a version."""
        store = open_store(self.settings)
        try:
            with store.transaction(WORKER) as tx:
                model = tx.ledger.lock_model("gas")
                tx.ledger.set_state(model, model.state, None)
                tx.audit.append("model.resumed", model="gas", reason="seen from elsewhere")
        finally:
            store.dispose()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("site"), refresh_seconds=0.05)
    migrate(settings.resolved_database_url)
    store = open_store(settings)
    line = Lineage(store)
    for passed in (True, True, True, False):
        line.publish(passed=passed)
    with store.transaction(WORKER) as tx:
        tx.ledger.create_model("empty", {"seed": 7}, line.model.recipe_digest, line.model.input)
        tx.audit.append("model.created", model="empty")
        for name in ("pictures", "values"):
            tx.ledger.create_model(name, {"seed": 7}, line.model.recipe_digest, INPUT)
            tx.audit.append("model.created", model=name)
    random = np.random.default_rng(3)
    take(store, random.integers(0, 256, (90, 8, 8), np.uint8), np.arange(90) % 3, "pictures")
    take(store, random.normal(size=(90, 128)).astype(np.float32), np.arange(90) % 3, "values")
    for number in (1, 2):
        url = f"https://hooks{number}.example.com/line-3"
        wanted = webhooks.Wanted(url, "The plant's board", frozenset({"version.published"}), frozenset({"gas"}))
        webhooks.create_webhook(store, settings, wanted, actor=WORKER)
    webhooks.send_test(store, 1, actor=WORKER)
    store.dispose()
    apart = Settings(data_dir=tmp_path_factory.mktemp("locked"))
    migrate(apart.resolved_database_url)
    store = open_store(apart)
    wanted = access.Wanted("anna", frozenset(Scope))
    key = access.create_key(store, wanted, caller=LOCAL, actor=WORKER).text
    access.create_key(store, access.Wanted("line-3", frozenset({Scope.INGEST})), caller=LOCAL, actor=WORKER)
    access.revoke_key(store, "line-3", reason="it was printed on a sheet", actor=WORKER)
    store.dispose()
    with serving(settings) as served, serving(apart) as locked, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield Site(served.url, locked.url, key, settings, browser)
        browser.close()


@dataclass
class Visit:
    """One page of a browser, and what went wrong on it."""

    page: Page
    site: Site
    wrong: list[str]

    @property
    def url(self) -> str:
        return self.site.url

    def to(self, path: str) -> Page:
        """A page; that of keys on the service that asks for one, signed in by the page that asks."""
        if path == PAGES["keys"]:
            self.page.goto(f"{self.site.locked}/sign-in?next={path}")
            self.page.locator("input[name=key]").fill(self.site.key)
            self.page.locator("main button.primary").click()
            expect(self.page).to_have_url(self.site.locked + path)
            return self.page
        there = (self.site.locked if path == PAGES["sign in"] else self.url) + path
        answer = self.page.goto(there)
        assert answer is not None and answer.ok == (path != PAGES["nothing"]), path
        assert self.page.url == there
        return self.page

    def serious(self) -> list[str]:
        """What axe finds that is serious."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: dict[str, Any] = self.page.evaluate(
            "axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa']})"
        )
        return [
            f"{each['id']}: {[node['target'] for node in each['nodes'][:3]]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]


@pytest.fixture
def visit(site: Site, request: pytest.FixtureRequest) -> Iterator[Visit]:
    width, theme, language = getattr(request, "param", (1440, "light", "en"))
    context = site.browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=theme,
        locale={"en": "en-GB", "ja": "ja-JP"}[language],
        timezone_id="Asia/Tokyo",
    )
    page, wrong = context.new_page(), []
    expected = "Failed to load resource: the server responded with a status of 4"
    page.on("console", lambda m: m.type in ("error", "warning") and expected not in m.text and wrong.append(m.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: r.url.startswith((site.url, site.locked, "data:")) or wrong.append(f"asked {r.url}"))
    yield Visit(page, site, wrong)
    context.close()
    assert not wrong


def look(visit: Visit, name: str) -> None:
    page = visit.to(PAGES[name])
    if name == "model":
        expect(page.locator("#timeline canvas")).to_have_count(4)
    wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1], "the page is wider than the screen"
    assert visit.serious() == []


EVERY = [(width, theme, language) for width in WIDTHS for theme in THEMES for language in LANGUAGES]


@pytest.mark.parametrize("visit", [(360, "dark", "ja"), (1440, "light", "en")], indirect=True, ids=str)
def test_pages_are_sound(visit: Visit) -> None:
    for name in PAGES:
        look(visit, name)


@pytest.mark.slow
@pytest.mark.parametrize("visit", EVERY, indirect=True, ids=str)
@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_sound_everywhere(visit: Visit, name: str) -> None:
    look(visit, name)


def test_a_rollback_by_keyboard_alone(visit: Visit) -> None:
    page = visit.to(PAGES["model"])
    page.locator("#open-rollback").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("What will happen")
    expect(page.locator("dialog textarea")).to_be_focused()
    assert visit.serious() == []
    page.keyboard.press("Escape")
    expect(page.locator("#open-rollback")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("dialog textarea")).to_be_focused()
    page.keyboard.type("line 3 was miscalibrated")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Champion v3 → v2")
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator("#title .pill")).to_contain_text("champion v2")
    page.goto(visit.url + "/models/gas/versions/3")
    page.locator("#open-promote").focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog textarea")).to_be_focused()
    page.keyboard.type("it was right after all")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Champion v2 → v3.")
    assert visit.serious() == []


def test_the_focus_comes_back_to_what_was_pressed(visit: Visit) -> None:
    page = visit.to(PAGES["audit"])
    page.locator("#verify-log").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("The log holds")
    page.keyboard.press("Escape")
    expect(page.locator("#verify-log")).to_be_focused()


def test_the_page_of_what_was_deleted_is_left(visit: Visit) -> None:
    page = visit.to("/webhooks/2")
    page.locator("#open-delete").click()
    page.locator("dialog .button.danger").click()
    expect(page.get_by_role("dialog")).to_contain_text("is deleted")
    page.keyboard.press("Escape")
    expect(page).to_have_url(visit.url + "/webhooks")


@pytest.mark.slow
def test_a_file_is_sent_in_parts_and_goes_on_after_a_break(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(megabatch_pages, "PART_BYTES", 1000)
    x = np.random.default_rng(5).normal(size=(30, 32)).astype(np.float32)
    data = megabatch.encode(x, np.arange(30, dtype=np.int64) % 3)
    (tmp_path / "good.npz").write_bytes(data)
    sent: list[tuple[str, str | None]] = []

    def pass_on(route: Route) -> None:
        sent.append((route.request.method, route.request.headers.get("upload-offset")))
        broken = sent[-1] == ("PATCH", "1000") and sent.count(sent[-1]) == 1
        route.abort("connectionreset") if broken else route.continue_()

    page = visit.page
    page.route("**/v1/uploads/*", pass_on)
    visit.to(PAGES["megabatches"])
    page.locator("#upload input").set_input_files(tmp_path / "good.npz")
    expect(page.locator("#upload li")).to_contain_text("Accepted as megabatch 5", timeout=60_000)
    assert sent[:4] == [("PATCH", "0"), ("PATCH", "1000"), ("HEAD", None), ("PATCH", "1000")]
    expect(page.locator("#megabatches tbody tr")).to_have_count(5)
    page.evaluate(
        """() => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array([0, 159, 146, 150, 0, 7])], "bad.npz"));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: held, bubbles: true, cancelable: true}));
        }"""
    )
    bad = page.locator("#upload li").first
    expect(bad).to_contain_text("Refused: it is in none of the formats that are read", timeout=60_000)
    expect(bad.locator("small[lang=en]")).to_contain_text("send npz, Parquet")
    expect(page.locator("#megabatches tbody tr")).to_have_count(5)
    assert visit.serious() == []
    visit.wrong[:] = [each for each in visit.wrong if "ERR_CONNECTION_RESET" not in each]


@pytest.mark.slow
def test_a_file_goes_on_where_it_stopped_after_the_page_was_loaded_anew(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(megabatch_pages, "PART_BYTES", 1000)
    x = np.random.default_rng(6).normal(size=(30, 32)).astype(np.float32)
    (tmp_path / "good.npz").write_bytes(megabatch.encode(x, np.arange(30, dtype=np.int64) % 3))
    sent: list[tuple[str, str | None]] = []
    cut = True

    def pass_on(route: Route) -> None:
        sent.append((route.request.method, route.request.headers.get("upload-offset")))
        broken = cut and (sent[-1] == ("PATCH", "2000") or len(sent) > 4)
        route.abort("connectionreset") if broken else route.continue_()

    page = visit.page
    for address in ("**/v1/models/gas/uploads", "**/v1/uploads/*"):
        page.route(address, pass_on)
    visit.to(PAGES["megabatches"])
    page.locator("#upload input").set_input_files(tmp_path / "good.npz")
    expect(page.locator("#upload li .warn")).to_be_visible()
    assert sent[:4] == [("POST", None), ("PATCH", "0"), ("PATCH", "1000"), ("PATCH", "2000")]
    page.reload()
    expect(page.locator("#upload li")).to_have_count(0)
    cut = False
    sent.clear()
    page.locator("#upload input").set_input_files(tmp_path / "good.npz")
    expect(page.locator("#upload li")).to_contain_text("Accepted as megabatch", timeout=60_000)
    assert sent[:3] == [("HEAD", None), ("PATCH", "2000"), ("PATCH", "3000")]
    assert "POST" not in dict(sent)
    visit.wrong[:] = [each for each in visit.wrong if "ERR_CONNECTION_RESET" not in each]


def test_what_happens_elsewhere_is_seen(visit: Visit, site: Site) -> None:
    page = visit.to(PAGES["model"])
    expect(page.locator("#timeline canvas")).to_have_count(4)
    before = page.locator("#timeline canvas").first.element_handle()
    page.wait_for_timeout(300)
    site.publish()
    expect(page.locator("#events")).to_contain_text("seen from elsewhere")
    assert before is not None and before.evaluate("element => element.isConnected"), "the drawing jumped"


def test_a_page_that_was_opened_before_anything_came_grows_with_its_model(visit: Visit, site: Site) -> None:
    store = open_store(site.settings)
    line = Lineage(store, "newcomer")
    page = visit.to("/models/newcomer")
    expect(page.locator(".first")).to_be_visible()
    page.wait_for_timeout(300)
    for version in ("v1", "v2"):
        line.publish()
        expect(page.locator("#lines")).to_contain_text(version)
        expect(page.locator("#timeline canvas")).to_have_count(4)
    expect(page.locator(".first")).to_have_count(0)
    store.dispose()


def test_a_lost_connection_says_so_and_since_when(visit: Visit) -> None:
    page = visit.page
    page.route("**/events", lambda route: route.fulfill(status=204))
    visit.to(PAGES["model"])
    expect(page.locator("#stale")).to_be_visible()
    assert page.locator("#stale time").get_attribute("datetime")
    visit.wrong.clear()


def test_the_theme_is_kept(visit: Visit) -> None:
    page = visit.to("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Use the dark theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_figures_are_drawn_as_they_are_written(visit: Visit) -> None:
    page = visit.to(PAGES["model"])
    figures = json.loads(page.locator("#lines").get_attribute("data-figures") or "")
    page.locator("#timeline .u-over").first.hover(position={"x": 6, "y": 60})
    expect(page.locator(".tip")).to_contain_text(f"v{figures['version'][0]}")
