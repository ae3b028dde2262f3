"""Models and initial weights over HTTP."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from app.learning.recipe import Recipe
from tests.api.conftest import OCTETS, RECIPE, House, content_digest, problem


def test_a_model_is_created_once(house: House) -> None:
    answer = house.create(input={"classes": 3})
    assert (answer.status_code, answer.headers["Location"]) == (201, "/v1/models/gas")
    body = answer.json()
    assert body["recipe"] == Recipe.resolve(RECIPE).document()
    assert body["input"]["classes"] == ["0", "1", "2"]
    assert body["input"]["shape"] is None
    assert (body["champion"], body["champion_revision"], body["megabatches"]) == (None, None, 0)
    assert (body["state"], body["queued_cycles"], body["running_cycle"]) == ("active", 0, None)
    assert body["created_at"].endswith("Z")
    again = house.create(input={"classes": 3})
    assert (again.status_code, again.json()) == (200, body)
    assert house.http.get("/v1/models/gas").json() == body
    problem(house.create(input={"classes": 4}), 409, "model-exists")


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "-a", "a" * 64, "ä", "../a"])
def test_names(house: House, name: str) -> None:
    assert "lower-case" in problem(house.http.post("/v1/models", json={"name": name}), 422, "invalid-name")["detail"]


def test_a_name_of_absurd_length(house: House) -> None:
    answer = house.http.post("/v1/models", json={"name": "a" * 201})
    assert problem(answer, 422, "invalid-request")["errors"][0]["pointer"] == "/name"


def test_a_declared_input_comes_back(house: House) -> None:
    given = {
        "shape": [2],
        "dtype": "float32",
        "classes": ["a", "b"],
        "normalisation": {"name": "fixed", "signed_log": True, "clip": None, "mean": [0.5, 1], "std": [1, 2]},
        "unseen_classes": "extend",
        "label": "kind",
        "features": ["height", "width"],
        "resize": "reject",
    }
    assert house.create(input=given).json()["input"] == given


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"dtype": "int8"}, "/input/dtype"),
        ({"classes": 1}, "/input/classes"),
        ({"shape": [0]}, "/input/shape/0"),
        ({"shape": "x"}, "/input/shape"),
        ({"normalisation": {"name": "guess"}}, "/input/normalisation/name"),
    ],
)
def test_inputs_that_cannot_be(house: House, given: dict[str, object], pointer: str) -> None:
    document = problem(house.create(input=given), 422, "invalid-request")
    assert pointer in {fault["pointer"] for fault in document["errors"]}


def test_models_are_listed_by_name(house: House) -> None:
    for name in ("c", "a", "b"):
        house.create(name)
    page = house.http.get("/v1/models?limit=2").json()
    rest = house.http.get(f"/v1/models?limit=2&cursor={page['next_cursor']}").json()
    assert [model["name"] for model in page["items"] + rest["items"]] == ["a", "b", "c"]
    assert rest["next_cursor"] is None


def test_pause_and_resume(house: House) -> None:
    house.create()
    paused = house.http.post("/v1/models/gas/pause", json={"reason": "holiday"}).json()
    assert (paused["state"], paused["paused_reason"]) == ("paused", "holiday")
    house.upload()
    problem(house.http.post("/v1/models/gas/cycles"), 409, "model-paused")
    resumed = house.http.post("/v1/models/gas/resume", json={"reason": "back"}).json()
    assert (resumed["state"], resumed["paused_reason"]) == ("active", None)
    problem(house.http.post("/v1/models/other/pause", json={"reason": "x"}), 404, "unknown-model")
    problem(house.http.post("/v1/models/gas/pause", json={}), 422, "invalid-request")


def test_the_champion_stands_in_the_model(house: House) -> None:
    house.create()
    house.publish()
    body = house.http.get("/v1/models/gas").json()
    assert (body["champion"]["number"], body["champion_revision"]) == (1, 1)
    version = house.http.get("/v1/models/gas/versions/1").json()
    assert body["champion"] == {key: version[key] for key in body["champion"]}


def test_initial_weights(house: House) -> None:
    data = save({"0.weight": np.zeros((2, 3), np.float32)})
    answer = house.http.post(
        "/v1/initial-weights", content=data, headers={**OCTETS, "Content-Digest": content_digest(data)}
    )
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body["bytes"] == len(data)
    assert body["tensors"] == [{"name": "0.weight", "shape": [2, 3], "dtype": body["tensors"][0]["dtype"]}]
    assert house.store.blobs.read(body["digest"]) == data
    assert house.staged() == []


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x80\x04pickle", json.dumps({}).encode()])
def test_initial_weights_that_are_none(house: House, data: bytes) -> None:
    problem(house.http.post("/v1/initial-weights", content=data, headers=OCTETS), 422, "invalid-weights")
    assert house.staged() == []


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_previewed_revised_listed_and_compared(house: House) -> None:
    house.create()
    path = "/v1/models/gas/recipe"
    first = house.http.get(path).json()
    assert (first["revision"], first["digest"]) == (1, house.http.get("/v1/models/gas").json()["recipe_digest"])
    asked = {"recipe": {"schedule": {"name": "factor", "target": 0.5, "stages": 1}}}
    seen = house.http.post(f"{path}/preview", json=asked)
    assert seen.status_code == 200 and seen.json()["revision"] == 2
    assert seen.json()["planned"] == [{"cycle": 1, "stage": 1, "density": 0.5}]
    assert house.http.get(path).json() == first

    done = house.http.post(path, json={**asked, "reason": "half is enough"})
    assert done.status_code == 201 and done.headers["Location"] == f"{path}?revision=2"
    assert done.json()["digest"] == seen.json()["digest"] and done.json()["changes"] == seen.json()["changes"]
    assert house.http.get(done.headers["Location"]).json()["recipe"] == seen.json()["recipe"]
    assert house.http.get(f"{path}?revision=1").json() == first
    assert [found["revision"] for found in house.http.get("/v1/models/gas/recipes").json()["items"]] == [2, 1]
    compared = house.http.get("/v1/models/gas/recipes/1/diff/2").json()
    assert compared == {"before": 1, "after": 2, "changes": done.json()["changes"]}


def test_recipes_that_cannot_be_put_in_force(house: House) -> None:
    house.create()
    path = "/v1/models/gas/recipe"
    refused = house.http.post(path, json={"recipe": {"network": {"name": "cnn"}}, "reason": "r"})
    problem(refused, 422, "invalid-recipe")
    assert [fault["pointer"] for fault in refused.json()["errors"]] == ["/recipe/network"]
    problem(house.http.post(path, json={"recipe": {}, "reason": "r"}), 409, "recipe-unchanged")
    problem(house.http.post(path, json={"recipe": {}}), 422, "invalid-request")
    problem(house.http.get(f"{path}?revision=2"), 404, "unknown-revision")
    problem(house.http.get("/v1/models/gas/recipes/1/diff/9"), 404, "unknown-revision")
    problem(house.http.post("/v1/models/none/recipe/preview", json={"recipe": {}}), 404, "unknown-model")
