"""What the service wrote down, told in the reader's language: every sentence, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from markupsafe import Markup, escape

from app.api.problems import HttpProblem
from app.api.strict_json import parse
from app.api.web import recorded
from app.api.web.recorded import heard
from app.api.web.speech import CATALOGUE, Speech
from app.errors import InvalidRecipe
from app.learning.recipe import Recipe
from tests.learning.test_recipe import FAULTY


def test_what_the_service_wrote_down_is_told_in_the_reader_s_language() -> None:
    ja, en = Speech("ja"), Speech("en")
    died = "its workers died again and again without getting further (out of memory?)"
    gave_up = f"cycle 7 failed for good: {died}. Mend the cause, then resume the model"
    assert heard("its worker fell silent", ja) == "ワーカーからの応答が途絶えました"
    assert heard(gave_up, en) == gave_up
    assert heard(gave_up, ja).startswith("サイクル 7 は失敗し、再試行されません：ワーカーが先へ進めないまま")
    assert heard("retention keeps the newest 5, those whose number 10 divides, and what is needed", ja) == (
        "保存ポリシーにより残すもの：最新の 5 件、番号が 10 の倍数のもの、および必要なもの"
    )
    assert heard("trained on <b>", en) == "trained on &lt;b&gt;"


SAMPLES = {
    "kind": "accuracy-drop#2",
    "rule": "class-floor",
    "rules": "accuracy-drop, forgetting#3",
    "day": "2026-11-29",
    "drift": "labels",
    "part": "embedding unit",
    "scopes": "audit and read",
    "held": "audit, read",
    "versions": "3, 2, 1",
    "older": " or older ones",
    "why": "its worker fell silent",
    "listed": "and 3 more",
    "host": "localhost",
    "pointer": "/guardrails/0/at_least",
    "key": "'epochz'",
    "known": "name, at-start, least_steps",
    "literals": "'withhold', 'hold', 'retry'",
    "pattern": "^sha256:[0-9a-f]{64}$",
    "monitor": "gap",
}


@pytest.mark.parametrize("key", sorted(key for key in CATALOGUE["en"] if key.startswith("recorded.")))
@pytest.mark.parametrize("number", ["12", "0.0312", "1e-05"])
def test_every_sentence_that_the_service_writes_is_found_again(key: str, number: str) -> None:
    sentence = CATALOGUE["en"][key]
    holes = re.findall(r"\{(\w+)\}", sentence)
    filled = {hole: SAMPLES.get(hole, number if is_number(hole) else "some-name") for hole in holes}
    if key == "recorded.kept.newest" or key == "recorded.kept.every":
        filled["n"] = "12"
    said = heard(sentence.format(**filled), Speech("ja"))
    assert 'lang="en"' not in said, said
    if not {"why", "listed", "older", "drift", "part"} & set(holes):
        assert said.striptags() == Markup(escape(CATALOGUE["ja"][key].format(**filled))).striptags()


def is_number(hole: str) -> bool:
    return hole not in recorded._HOLES


def test_sentences_within_sentences_and_several_in_a_row_are_told_too() -> None:
    ja = Speech("ja")
    drift = (
        "new inputs are unlike those of the past: megabatch 7 differs most in feature 3, its distribution by 0.412 "
        "(p = 1.2e-05), megabatch 8 differs most in embedding unit 11, its distribution by 0.300 (p = 0). Check the "
        "source of the data if that is not meant, or let the network learn them before it is pruned (breached 2 times "
        "in a row)"
    )
    drop = (
        "accuracy 0.9012 is 0.0312 below the champion's 0.9324 on the same 400 validation examples, more than the "
        "accepted 0.02 (p = 0.0021): prune in smaller steps or train longer, or quarantine the new megabatch if its "
        "labels are wrong"
    )
    classes = (
        "accuracy is below the floor 0.8, and not by chance, in 4 of 6 classes: class 0 0.5000 (5 of 10 right, 0.7000 "
        "at most), class 3 0.2000 (2 of 10 right, 0.4000 at most), and 2 more. Upload more examples of them, or set "
        "training.class_weights to balanced"
    )
    few = "the 12 validation examples are too few to halve: the epoch was selected on the verdict's own"
    held = f"held since input-drift tripped ({drift}): 1 of 3 passes"
    for text, ending in [
        (f"accuracy-drop: {drop}; class-floor#2: {classes}; input-drift: {drift}", "（2 回連続）"),
        (f"{held}; held since accuracy-drop tripped ({drop}): 0 of 2 passes", "0 / 2 回"),
        (f"input-drift tripped ({drift}); prequential-drop tripped ({drop})", "）"),
        (f"accuracy-drop: {drop}; {few}", "選びました"),
    ]:
        said = heard(text, ja)
        assert 'lang="en"' not in said and said.endswith(ending), said
    assert "メガバッチ 8：最も異なるのは" in heard(drift, ja) and "クラス 3 は 0.2000" in heard(classes, ja)


def test_what_nobody_translated_is_marked_as_english_unless_it_is_plainly_none() -> None:
    ja = Speech("ja")
    assert heard("out of <disk>", ja) == '<span lang="en">out of &lt;disk&gt;</span>'
    assert heard("TrainingDiverged: odd", ja) == 'TrainingDiverged：<span lang="en">odd</span>'
    assert heard("a spare; an é", ja) == '<span lang="en">a spare; an é</span>'
    assert heard("点検のため <b>", ja) == "点検のため &lt;b&gt;"
    assert heard("", ja) == ""


@pytest.mark.parametrize(
    "typed",
    [
        "Alice tripped (fell over a cable)",
        "sensor 3 tripped in cycle 9 yesterday",
        "Note: see ticket: 42",
        "version three was promoted",
        "held since lunch tripped (up): 1 of 3 passes",
    ],
)
def test_what_a_person_typed_is_shown_as_it_was_typed(typed: str) -> None:
    assert heard(typed, Speech("ja")).striptags() == typed


def test_sentences_hold_one_hole_for_anything_at_most() -> None:
    """Two of them, and a text of some length takes minutes to be found unfit."""
    assert max(pattern.pattern.count(".+") for _, pattern in recorded._patterns()) == 1


@pytest.mark.parametrize(
    "typed",
    [
        "TrainingDiverged: " * 200,
        "accuracy-drop: " * 2000,
        "its worker fell silent; " * 400,
        "a; " * 23 + "b" * 3000,
        "held since accuracy-drop tripped (" * 50 + "): 1 of 2 passes" * 50,
        "(breached 1 times in a row); " * 20 + "x (breached 1 times in a row)" * 80,
        "became infinite or NaN: " * 160,
        "model 'a' is paused (" * 180,
        "9" * 3990,
    ],
)
def test_hostile_texts_are_told_as_they_are_and_at_once(typed: str) -> None:
    """Depth, length and parts of a text are limited; without that, some of these take minutes, or the whole stack."""
    assert heard(typed, Speech("ja"))


BAD: tuple[Any, ...] = (
    *("x", "", "it's", "x" * 300, -1, 0, 1.5, 1e30, 10**20, None, True, False),
    *(
        [],
        ["x"],
        [[1]],
        [2] * 99,
        [{"name": "divergence"}] * 99,
        {},
        {"name": "x"},
        {"name": 3},
        {"name": None},
        {"zz": 1},
        {"a b: c": 1, 'it\'s a "key"': 2},
    ),
)


def recipes_with(value: Any) -> Iterator[dict[str, Any]]:
    """A recipe for each place of one that a value can stand in."""
    schema = Recipe.model_json_schema()

    def within(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        for branch in (*node.get("oneOf", ()), *node.get("anyOf", ())):
            yield from within(branch)
        if "items" in node:
            yield from ([value], *([inner] for inner in within(node["items"])))  # type: ignore[misc]
        named = {key: inner["const"] for key, inner in node.get("properties", {}).items() if "const" in inner}
        for key, inner in node.get("properties", {}).items():
            yield {**named, key: value}
            yield from ({**named, key: found} for found in within(inner))

    yield from within(schema)


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:30])
def test_whatever_a_recipe_gets_wrong_is_told(value: Any) -> None:
    ja, refused = Speech("ja"), set()
    for document in recipes_with(value):
        try:
            Recipe.resolve(document)
        except InvalidRecipe as error:
            refused.add(str(error))
    assert not [text for text in refused if 'lang="en"' in heard(text, ja)]
    assert refused


@pytest.mark.parametrize("document", [*(document for document, *_ in FAULTY), {"preset": 3}])
def test_what_cannot_work_together_is_told(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.resolve(document)
    assert 'lang="en"' not in heard(str(caught.value), Speech("ja")), caught.value


@pytest.mark.parametrize(
    "document",
    [{"network": {"hidden": [7]}}, {"initial_weights": f"sha256:{'0' * 64}"}, {"validation_share": 0.3}],
)
def test_what_lasts_is_told(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Recipe().revised(document)
    assert 'lang="en"' not in heard(str(caught.value), Speech("ja")), caught.value


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1", '{"seed" 1}', "{seed: 1}", '{"seed": 1} 2', '{"seed', '{"seed": "\n"}', r'{"a": "\x"}', "", "{,}"),
        *(
            '{"a": 1, "a": 2}',
            '{"a": NaN}',
            "1e999",
            "1E999",
            r'"\u12"',
            "[1,]",
            "9" * 500,
            "[" * 70 + "]" * 70,
            r'"\ud800"',
            r'"\u0000"',
        ),
        *('{"a": 1,}', "\ufeff{}"),
    ],
)
def test_what_is_no_json_is_told(text: str) -> None:
    with pytest.raises(HttpProblem) as caught:
        parse(text.encode())
    assert 'lang="en"' not in heard(caught.value.detail, Speech("ja")), caught.value.detail
