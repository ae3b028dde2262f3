"""Overviews and previews: what pages are made of, on every database."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.domain import Actor, ModelState, Phase, Progress
from app.errors import AliasMoved, Conflict, NotAnAncestor, UnknownAlias
from app.service import overview, previews, release
from app.service.lease import _Curve
from app.service.overview import Health, glance_at_models, rollback_choices, view_model, view_queue, view_version
from app.store.database import Store
from tests.builders import claim, make_cycle, make_megabatch, make_model
from tests.lineages import Lineage

ACTOR = Actor("tester")


def glance(store: Store, name: str) -> overview.Glance:
    found = glance_at_models(store, after=None, limit=10, only=[name])
    assert found.total == 1
    return found.page.items[0]


def test_health_is_the_worst_that_is_true(store: Store) -> None:
    model = make_model(store, "ph")
    assert glance(store, "ph").health is Health.EMPTY
    make_megabatch(store, model)
    assert glance(store, "ph").health is Health.WAITING
    make_cycle(store, model)
    assert glance(store, "ph").health is Health.NO_WORKER
    held = claim(store)
    assert held is not None
    with store.transaction(ACTOR) as tx:
        tx.ledger.beat("worker-1")
        tx.ledger.fail_cycle(held, "the disk is full", tx.now + timedelta(hours=1))
        tx.audit.append("cycle.failed", model="ph")
    assert (glance(store, "ph").health, glance(store, "ph").why) == (Health.FAILING, "the disk is full")
    with store.transaction(ACTOR) as tx:
        tx.ledger.set_state(tx.ledger.lock_model("ph"), ModelState.PAUSED, "maintenance")
        tx.audit.append("model.paused", model="ph")
    assert (glance(store, "ph").health, glance(store, "ph").why) == (Health.PAUSED, "maintenance")


def test_a_row_is_about_its_own_model(store: Store) -> None:
    lines = {name: Lineage(store, name) for name in ("a", "b")}
    for name, times in (("a", 3), ("b", 1)):
        for _ in range(times):
            lines[name].publish()
    lines["b"].publish(passed=False)
    a, b = glance_at_models(store, after=None, limit=10, only=None).page.items
    assert [v.number for v in a.recent] == [1, 2, 3] and [v.number for v in b.recent] == [1, 2]
    assert a.champion is not None and b.champion is not None
    assert (a.champion.number, b.champion.number, a.megabatches, b.megabatches) == (3, 1, 3, 2)
    assert (a.health, b.health) == (Health.HEALTHY, Health.WITHHELD)
    assert a.last is not None and (a.last.model, a.last.kind) == ("a", "alias.moved")
    assert b.last is not None and (b.last.model, b.last.kind) == ("b", "version.withheld")


def test_models_are_listed_by_name_whatever_it_holds(store: Store) -> None:
    for name in ("gas", "gas-2", "ph"):
        make_model(store, name)
    found = glance_at_models(store, after="gas", limit=1, only=None, containing="a")
    assert ([g.model.name for g in found.page.items], found.page.next, found.total) == (["gas-2"], None, 2)
    assert glance_at_models(store, after=None, limit=5, only=None, containing="_").total == 0
    assert glance_at_models(store, after=None, limit=5, only=[], containing="").total == 0


def test_a_time_line_is_the_newest_columns_and_goes_on_before_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "COLUMNS", 2)
    line = Lineage(store)
    for _ in range(3):
        line.publish()
    view = view_model(store, "gas")
    assert ([c.version.number for c in view.columns], view.older) == ([2, 3], True)
    assert [c.through for c in view.columns] == [2, 3]
    assert sorted(view.layers) == [2, 3]
    older = view_model(store, "gas", before=2)
    assert ([c.version.number for c in older.columns], older.older) == ([1], False)


def test_the_queue_shows_what_runs_or_else_what_is_next(store: Store) -> None:
    model = make_model(store)
    assert view_queue(store, "gas").cycle is None
    first, second = make_cycle(store, model), make_cycle(store, model)
    waiting = view_queue(store, "gas")
    assert waiting.cycle is not None and (waiting.cycle.number, waiting.queued) == (first.number, 2)
    assert claim(store) is not None
    running = view_queue(store, "gas")
    assert running.cycle is not None and (running.cycle.state, running.queued) == ("running", 1)
    assert second.number == 2


def test_a_preview_of_a_rollback_is_what_it_does(store: Store) -> None:
    line = Lineage(store)
    line.publish(passed=False)
    with pytest.raises(UnknownAlias):
        previews.preview_rollback(store, "gas", 1)
    versions = [line.publish() for _ in range(3)]
    first, newest = versions[0].number, versions[-1].number
    preview = previews.preview_rollback(store, "gas", first)
    assert (preview.champion.number, preview.target.number) == (newest, first)
    assert preview.released == (first + 1, newest)
    with pytest.raises(NotAnAncestor):
        previews.preview_rollback(store, "gas", newest)
    assert [choice.number for choice in rollback_choices(store, "gas")] == [first + 1, first]
    given = {"to": str(first), "reason": "worse", "quarantine": [], "actor": ACTOR}
    done = release.roll_back(store, "gas", expected_revision=preview.alias.revision, **given)  # type: ignore[arg-type]
    assert (done.previous.number, done.version.number) == (newest, first)
    assert tuple(cycle.number for cycle in done.superseded) == preview.superseded
    with pytest.raises(AliasMoved):
        release.roll_back(store, "gas", expected_revision=preview.alias.revision, **given)  # type: ignore[arg-type]


def test_a_preview_of_a_promotion_names_what_stands_against_it(store: Store) -> None:
    line = Lineage(store)
    champion, withheld = line.publish(), line.publish(passed=False)
    preview = previews.preview_promotion(store, "gas", withheld.number)
    assert preview.withheld and preview.champion is not None and preview.champion.number == champion.number
    with pytest.raises(Conflict):
        previews.preview_promotion(store, "gas", champion.number)


def test_a_version_stands_in_its_family(store: Store) -> None:
    line = Lineage(store)
    for passed in (True, True, False, True):
        line.publish(passed=passed)
    page = view_version(store, "gas", "2")
    assert [(kin.number, kin.parent) for kin in page.family] == [(4, 2), (3, 2), (2, 1), (1, None)]
    assert page.is_ancestor and page.before is not None and page.before.number == 1
    assert not view_version(store, "gas", "3").is_ancestor
    assert (page.newest, page.oldest) == (4, 1)


def test_a_curve_is_means_of_equal_runs_and_stays_short() -> None:
    curve = _Curve()
    for step in range(1, 601):
        shown = curve.at(Progress(Phase.TRAIN, step=step, steps=600, loss=float(step)))
        curve.at(Progress(Phase.TRAIN, step=step, steps=600, loss=1e9))  # the same step again
    assert len(shown) == 60
    assert shown[:2] == (5.5, 15.5)
    assert curve.at(Progress(Phase.JUDGE, step=601, steps=600)) == shown
