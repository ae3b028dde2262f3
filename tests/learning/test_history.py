from __future__ import annotations

import json

from app.learning.history import Ancestor, History, Hold

HISTORY = History(
    arrived=120,
    ancestors=(Ancestor(1, 0.8, 0.9, 12), Ancestor(2, 0.64, 0.91, 11)),
    best={1: 0.9, 12: 0.75, 2: 1.0},
    breaches={"accuracy-floor": 1, "accuracy-floor#2": 3},
    holds=(Hold("accuracy-drop", "it fell", 0, 2), Hold("forgetting", "it forgot", 1, 3)),
    evaluation_errors=7,
    evaluation_examples=100,
)


def test_a_history_goes_through_json_and_back() -> None:
    for history in (HISTORY, History()):
        document = json.loads(json.dumps(history.document()))
        assert History.from_document(document) == history


def test_a_history_says_why_pruning_is_held() -> None:
    assert History().held is None
    assert HISTORY.held == (
        "held since accuracy-drop tripped (it fell): 0 of 2 passes; "
        "held since forgetting tripped (it forgot): 1 of 3 passes"
    )


def test_a_pardon_takes_back_breaches_and_holds_alone() -> None:
    pardoned = HISTORY.pardoned()
    assert (pardoned.breaches, pardoned.holds, pardoned.held) == ({}, (), None)
    assert (pardoned.best, pardoned.ancestors, pardoned.arrived) == (HISTORY.best, HISTORY.ancestors, HISTORY.arrived)
