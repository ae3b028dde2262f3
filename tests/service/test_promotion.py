"""Promotion: verdicts that hold, aliases of one's own, and moves that several people make together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain import CHAMPION, Actor, Proposal, ProposalState
from app.errors import (
    AliasMoved,
    Conflict,
    InvalidName,
    PreconditionMissing,
    ProposalClosed,
    SelfApproval,
    UnknownProposal,
    VerdictStands,
)
from app.service import history, promotion, release
from app.service.promotion import Moved
from app.store.blobs import Blobs
from app.store.database import Store
from tests.builders import Clock, make_model, make_version

MEI, KOFI, ANA = Actor("mei"), Actor("kofi"), Actor("ana")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database_url: str, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """Versions 1 and 2, of which the second is champion, and 3, which was withheld."""
    store = Store(database_url, Blobs(tmp_path / "data" / "blobs"), clock)
    model = make_model(store)
    make_version(store, model)
    make_version(store, model)
    make_version(store, model, passed=False)
    yield store
    store.dispose()


def revision(store: Store, alias: str = CHAMPION) -> int:
    return release.get_alias(store, "gas", alias).revision


def promote(store: Store, number: int, actor: Actor = MEI, *, override: bool = False) -> Moved | Proposal:
    seen = revision(store)
    return promotion.promote(
        store, "gas", number, reason="seen to work", override=override, expected_revision=seen, actor=actor
    )


def propose(store: Store, number: int, actor: Actor = MEI, *, override: bool = False) -> Proposal:
    done = promote(store, number, actor, override=override)
    assert isinstance(done, Proposal)
    return done


def approve(store: Store, number: int, actor: Actor) -> Proposal:
    return promotion.approve(store, "gas", number, reason="I looked, too", actor=actor)


def protect(store: Store, *, approvals: int = 1, automatic: bool = True, alias: str = CHAMPION) -> None:
    promotion.protect(store, "gas", alias, approvals=approvals, automatic=automatic, reason="line 3", actor=ANA)


def champion(store: Store) -> int:
    return release.get_alias(store, "gas", CHAMPION).version


def kinds(store: Store) -> list[str]:
    with store.reading() as tx:
        return [entry.kind for entry in tx.audit.entries("gas", None, 1000).items]


def last(store: Store, kind: str) -> dict[str, object]:
    with store.reading() as tx:
        return dict(tx.audit.entries("gas", None, 1000, kind).items[-1].document)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_a_withheld_version_becomes_champion_only_when_that_is_said(store: Store) -> None:
    before = kinds(store)
    with pytest.raises(VerdictStands, match=r"accuracy fell by 0.1.*\"override\": true"):
        promote(store, 3)
    assert (kinds(store), champion(store)) == (before, 2)
    done = promote(store, 3, override=True)
    assert isinstance(done, Moved) and (done.previous, champion(store)) == (2, 3)
    overridden = last(store, "guardrail.overridden")
    assert (overridden["actor"], overridden["reason"]) == ("mei", "seen to work")
    assert kinds(store)[-2:] == ["guardrail.overridden", "alias.moved"]


def test_nothing_is_overridden_where_the_verdict_passed(store: Store) -> None:
    promote(store, 1, override=True)
    assert "guardrail.overridden" not in kinds(store)


def test_promote_moves_to_any_version_and_back(store: Store) -> None:
    done = promote(store, 1)
    assert isinstance(done, Moved) and (done.previous, champion(store)) == (2, 1)
    with pytest.raises(Conflict, match="already"):
        promote(store, 1)
    moves = release.alias_history(store, "gas", CHAMPION, after=None, limit=10).items
    assert [(move.previous, move.version, move.actor) for move in moves][0] == (2, 1, "mei")
    with pytest.raises(PreconditionMissing):
        promotion.promote(store, "gas", 2, reason="x", expected_revision=None, actor=MEI)
    with pytest.raises(AliasMoved):
        promotion.promote(store, "gas", 2, reason="x", expected_revision=1, actor=MEI)


# -- aliases of one's own ----------------------------------------------------------------------------------------------


def test_an_alias_of_ones_own_is_made_moved_and_leaves_running_cycles_alone(store: Store) -> None:
    with store.reading() as tx:
        generation = tx.ledger.model("gas").generation
    made = promotion.point(store, "gas", "line-3", 1, reason="until the audit", expected_revision=0, actor=MEI)
    assert isinstance(made, Moved) and (made.previous, made.alias.revision) == (None, 1)
    view = release.get_version(store, "gas", "line-3")
    assert view.alias is not None and (view.version.number, view.alias.revision) == (1, 1)
    with pytest.raises(AliasMoved):
        promotion.point(store, "gas", "line-3", 2, reason="x", expected_revision=0, actor=MEI)
    promotion.point(store, "gas", "line-3", 2, reason="after it", expected_revision=1, actor=MEI)
    with store.reading() as tx:
        assert tx.ledger.model("gas").generation == generation
    assert champion(store) == 2
    assert last(store, "alias.moved")["parameters"] == {"alias": "line-3", "revision": 2, "from": 1, "to": 2}


@pytest.mark.parametrize("alias", ["champion", "latest", "7", "Not-A-Name"])
def test_names_that_no_one_may_point(store: Store, alias: str) -> None:
    with pytest.raises(InvalidName):
        promotion.point(store, "gas", alias, 1, reason="x", expected_revision=0, actor=MEI)


def test_an_alias_of_ones_own_keeps_to_verdicts_too(store: Store) -> None:
    with pytest.raises(VerdictStands):
        promotion.point(store, "gas", "line-3", 3, reason="x", expected_revision=0, actor=MEI)
    promotion.point(store, "gas", "line-3", 3, reason="x", override=True, expected_revision=0, actor=MEI)
    assert last(store, "guardrail.overridden")["parameters"]["alias"] == "line-3"  # type: ignore[index]  # a document


# -- several people ----------------------------------------------------------------------------------------------------


def test_a_protected_champion_moves_when_another_person_approves(store: Store) -> None:
    protect(store)
    proposal = propose(store, 1)
    assert (proposal.number, proposal.state, champion(store)) == (1, ProposalState.OPEN, 2)
    with pytest.raises(SelfApproval, match="'mei' proposed this"):
        approve(store, 1, MEI)
    done = approve(store, 1, KOFI)
    assert (done.state, done.decided_by, champion(store)) == (ProposalState.CARRIED_OUT, "kofi", 1)
    moved = last(store, "alias.moved")
    assert moved["actor"] == "kofi"
    named = {key: moved["parameters"][key] for key in ("proposed_by", "approved_by")}  # type: ignore[index]  # a document
    assert named == {"proposed_by": "mei", "approved_by": ["kofi"]}
    assert kinds(store)[-3:] == ["promotion.proposed", "promotion.approved", "alias.moved"]
    with pytest.raises(ProposalClosed, match="carried out"):
        approve(store, 1, ANA)
    assert history.examine(store) == []


def test_three_people(store: Store) -> None:
    protect(store, approvals=2)
    propose(store, 1)
    assert approve(store, 1, KOFI).state is ProposalState.OPEN
    with pytest.raises(SelfApproval, match="approved this already"):
        approve(store, 1, KOFI)
    assert champion(store) == 2
    assert approve(store, 1, ANA).state is ProposalState.CARRIED_OUT
    assert champion(store) == 1


def test_a_proposal_can_be_withdrawn_and_expires(store: Store, clock: Clock) -> None:
    protect(store)
    propose(store, 1)
    rejected = promotion.reject(store, "gas", 1, reason="not yet", actor=MEI)
    assert (rejected.state, rejected.decided_by) == (ProposalState.REJECTED, "mei")
    propose(store, 1)
    clock.advance(7 * 24 * 3600)
    assert promotion.get_proposal(store, "gas", 2).state is ProposalState.EXPIRED
    for number, why in ((1, "rejected"), (2, "expired")):
        with pytest.raises(ProposalClosed, match=why):
            approve(store, number, KOFI)
    assert champion(store) == 2


def test_another_move_overtakes_a_proposal(store: Store) -> None:
    protect(store)
    propose(store, 1)
    release.roll_back(store, "gas", to="1", reason="worse", quarantine=(), expected_revision=revision(store), actor=MEI)
    with pytest.raises(ProposalClosed, match="was moved since"):
        approve(store, 1, KOFI)
    found = promotion.list_proposals(store, "gas", after=None, limit=5).items
    assert [proposal.state for proposal in found] == [ProposalState.OVERTAKEN]
    with pytest.raises(UnknownProposal):
        approve(store, 2, KOFI)


def test_a_rollback_is_one_persons_to_do(store: Store) -> None:
    protect(store, approvals=3, automatic=False)
    release.roll_back(
        store, "gas", to=None, reason="worse", quarantine=(), expected_revision=revision(store), actor=MEI
    )
    assert champion(store) == 1


def test_a_verdict_is_overridden_by_several_people_together(store: Store) -> None:
    protect(store)
    with pytest.raises(VerdictStands):
        promote(store, 3)
    propose(store, 3, override=True)
    approve(store, 1, KOFI)
    assert champion(store) == 3
    assert last(store, "guardrail.overridden")["actor"] == "kofi"


def test_protection_is_audited_and_says_what_it_was(store: Store) -> None:
    assert promotion.protection_of(store, "gas", CHAMPION).approvals == 0
    protect(store, approvals=2, automatic=False)
    entry = last(store, "alias.protected")
    assert entry["parameters"] == {
        "alias": "champion",
        "before": {"approvals": 0, "automatic": True},
        "after": {"approvals": 2, "automatic": False},
    }
    protect(store, approvals=0)
    assert isinstance(promote(store, 1), Moved)
