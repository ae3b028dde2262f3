"""The OpenAPI document: complete, true, and changed only on purpose.

After a change that is meant, write the snapshot anew and look at the difference::

    python -m tests.architecture.test_openapi
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, TypeAdapter

from app.api import schemas
from app.api.application import create_app
from app.config import Settings
from app.learning.recipe import Recipe

SNAPSHOT = Path(__file__).with_name("openapi.json")
DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
OPERATIONS = [
    (f"{method.upper()} {path}", operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
WIRE = [
    found
    for _, found in inspect.getmembers(schemas, inspect.isclass)
    if issubclass(found, BaseModel)
    and found.__module__.startswith(schemas.__name__)
    and not found.__name__.startswith("_")
]

operations = pytest.mark.parametrize("operation", [o for _, o in OPERATIONS], ids=[name for name, _ in OPERATIONS])


def written() -> str:
    """The document as the snapshot holds it."""
    return json.dumps(DOCUMENT, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_document_is_the_snapshot() -> None:
    assert SNAPSHOT.read_text() == written(), "if the change is meant: python -m tests.architecture.test_openapi"


@operations
def test_operations_are_described(operation: dict[str, Any]) -> None:
    assert operation["summary"] and not operation["summary"].endswith(".")
    assert operation["description"]
    assert set(operation["tags"]) <= {tag["name"] for tag in DOCUMENT["tags"]}
    for parameter in operation.get("parameters", ()):
        assert parameter.get("description"), parameter["name"]
        for example in parameter["schema"].get("examples", ()):
            assert not isinstance(example, str) or re.search(parameter["schema"].get("pattern", ""), example)


@operations
def test_operations_declare_their_problems(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    assert operation.get("security") == [] or {"401", "422", "503"} <= set(responses)
    for status, response in responses.items():
        assert response["description"]
        if status >= "400":
            assert list(response["content"]) == ["application/problem+json"]
            assert response["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


@operations
def test_operations_that_name_something_can_miss_it(operation: dict[str, Any]) -> None:
    """But for the answers to OPTIONS, which say what would be possible."""
    if operation["operationId"] in ("uploads_offered", "upload_offered"):
        return
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", ())):
        assert "404" in operation["responses"]


def test_operation_ids_are_unique_words() -> None:
    ids = [operation["operationId"] for _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    assert all(found.isidentifier() for found in ids)


def test_every_field_has_a_description() -> None:
    silent = [
        f"{name}.{key}"
        for name, schema in DOCUMENT["components"]["schemas"].items()
        for key, value in schema.get("properties", {}).items()
        if not value.get("description") and "const" not in value
    ]
    assert not silent


def test_every_reference_leads_somewhere() -> None:
    for reference in _references(DOCUMENT):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_the_whole_recipe_is_shown() -> None:
    assert set(DOCUMENT["components"]["schemas"]["Recipe"]["properties"]) == set(Recipe.model_fields)


@pytest.mark.parametrize("schema", WIRE, ids=lambda schema: schema.__name__)
def test_examples_work(schema: type[BaseModel]) -> None:
    extra = schema.model_config.get("json_schema_extra")
    examples = extra.get("examples", ()) if isinstance(extra, dict) else ()
    for example in examples if isinstance(examples, list) else ():
        parsed = schema.model_validate(example)
        again = json.loads(parsed.model_dump_json(by_alias=True, exclude_unset=True))
        secret = {name: value.get_secret_value() for name, value in parsed if isinstance(value, SecretStr)}
        assert again | secret == example


def test_bodies_have_examples() -> None:
    for name, operation in OPERATIONS:
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None:
            schema = next(_references(body))
            assert DOCUMENT["components"]["schemas"][schema.rpartition("/")[2]].get("examples"), name


def test_recipes_in_examples_work() -> None:
    for example in DOCUMENT["components"]["schemas"]["NewModel"]["examples"]:
        assert TypeAdapter(Recipe).validate_python(Recipe.resolve(example.get("recipe")))


def test_requests_refuse_unknown_keys_and_say_so() -> None:
    for name in ("NewModel", "NewInput", "NewNormalisation", "NewCycle", "NewRollback", "Reason"):
        assert DOCUMENT["components"]["schemas"][name]["additionalProperties"] is False


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref" and isinstance(inner, str):
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


if __name__ == "__main__":
    SNAPSHOT.write_text(written())
