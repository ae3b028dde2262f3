"""Faults: what a document gets wrong, as a JSON pointer and words that say what to send instead.

Knows: how pydantic reports what does not fit a tree of options. Must never know: what an option means.

Laws:
    * The words are JSON's and ours, not Python's: they stay when the library under them moves.
    * Of an unknown key or name, the known ones are listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.learning.recipe.options import Options

Fault = tuple[str, str]
"""JSON pointer into the recipe, and what is wrong there, with the remedy."""

_WORDS: Mapping[str, str] = {
    "missing": "is missing: it has no default",
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), "must be an object"),
    "tuple_type": "must be a list",
    "too_long": "too many items: at most {max_length}",
    "too_short": "too few items: {actual_length}, and at least {min_length} are needed",
    "string_type": "must be a string",
    "string_too_short": "too few characters: at least {min_length}",
    "string_too_long": "too many characters: at most {max_length}",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be one of: {expected}",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
}
"""By the error's type, as pydantic's documentation lists them; what is not here keeps pydantic's own words."""


def faults_of(root: type[Options], error: ValidationError) -> list[Fault]:
    """What keeps a document from being options of a type, one fault each."""
    return [_fault(root, item) for item in error.errors()]


def _fault(root: type[Options], item: ErrorDetails) -> Fault:
    *around, last = item["loc"] or ("",)
    path, kind = _follow(root, item["loc"])
    match item["type"]:
        case "extra_forbidden":
            known = _known_keys(root, _follow(root, around)[1])
            message = f"unknown key {last!r} (known keys: {', '.join(known)})"
        case "union_tag_invalid" if isinstance(item["input"].get("name"), str):
            message = f"unknown name {item['ctx']['tag']!r} (choose one of: {', '.join(choices(kind))})"
        case "union_tag_invalid" | "union_tag_not_found":
            message = f"needs a name, one of: {', '.join(choices(kind))}"
        case known_type if known_type in _WORDS:
            message = _WORDS[known_type].format_map(_listed(item.get("ctx", {})))
        case _:
            message = item["msg"].removeprefix("Value error, ")
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path), message


def _listed(context: Mapping[str, Any]) -> Mapping[str, Any]:
    """What differs in an error, with choices divided by commas alone, whatever the language."""
    return {key: value.replace("' or '", "', '") if key == "expected" else value for key, value in context.items()}


def _follow(root: type[Options], where: Sequence[str | int]) -> tuple[list[str], Any]:
    """Walk a pydantic location through the types: the JSON path, and the type that it ends at.

    Pydantic puts the name of a chosen option, or the type that it tried, into its locations; a JSON pointer must hold
    neither.
    """
    path: list[str] = []
    here: Any = root
    for part in where:
        if (chosen := choices(here).get(str(part))) is not None:
            here = chosen
        elif tried := _plain_union(here):
            here = next(
                (member for member in tried if str(part).startswith(f"{get_origin(member).__name__.lower()}[")), None
            )
        else:
            path.append(str(part))
            here = _inside(here, part)
    return path, here


def _inside(kind: Any, part: str | int) -> Any:
    """The type of a field of options, or of an element of a tuple; None past the leaves."""
    if isinstance(kind, type) and issubclass(kind, Options):
        field = kind.model_fields.get(str(part))
        return field and field.annotation
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _plain_union(kind: Any) -> list[Any]:
    """The generic types of a union that has no names to choose by, such as a literal or a tuple."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) and not choices(kind) else ()
    generic = [member for member in members if get_origin(member) in (Literal, tuple)]
    return generic if len(generic) > 1 else []


def choices(kind: Any) -> dict[str, type[Options]]:
    """Name to options type, of a union of options; empty for any other type."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    members = get_args(kind) if get_origin(kind) is Union else ()
    return {
        member.model_fields["name"].default: member
        for member in members
        if isinstance(member, type) and issubclass(member, Options)
    }


def _known_keys(root: type[Options], kind: Any) -> list[str]:
    fields = list(kind.model_fields)
    return ["preset", *fields] if kind is root else fields
