"""Writes those parts of the documentation that are facts of the code.

    python docs/generate.py            rewrite every generated block
    python docs/generate.py --check    change nothing; exit 1 when a page is not current

A block stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; prose around it is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr
from pydantic_core import PydanticUndefined
from starlette.routing import Route

import espalier
from app import errors
from app.api import problems
from app.api.application import create_app
from app.api.guard import flat
from app.api.scopes import ANY_KEY, SCOPES
from app.config import Settings
from app.learning.recipe import DEFAULT_PRESET, PRESETS, Recipe
from espalier import cli

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# -- tables ------------------------------------------------------------------------------------------------------------


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; cells lose their line breaks and escape their bars."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(value: object) -> str:
    return f"`{value}`"


def _summary(thing: object) -> str:
    """First paragraph of a docstring, with Markdown's backticks instead of reStructuredText's."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].replace("``", "`").split())


# -- settings ----------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting with default and meaning."""
    properties = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        variable = f"ESPALIER_{name.upper()}"
        rows.append(
            (_code(variable), _setting_default(field), _setting_bounds(properties[name]), field.description or "")
        )
    return table(("variable", "default", "values", "meaning"), rows)


def _setting_default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, SecretStr) or value in ("", {}):
        return "unset"
    return _code(f"{value:g}" if isinstance(value, float) else value)


def _setting_bounds(schema: dict[str, Any]) -> str:
    return _bounds(schema) or {"integer": "integer", "number": "number"}.get(schema.get("type", ""), "")


# -- recipe ------------------------------------------------------------------------------------------------------------


def recipe() -> str:
    """Every option of a recipe, every choice of every option, and the presets resolved."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    parts = ["## The whole\n", _options(schema, definitions)]
    for name, field in schema["properties"].items():
        parts += list(_choices(name, field, definitions, level=2))
    parts.append("## Presets\n")
    parts.append(f"`preset` names a starting point; the default is `{DEFAULT_PRESET}`.\n")
    for name, given in PRESETS.items():
        digest = Recipe.resolve({"preset": name}).digest
        differs = f"the defaults above, except `{json.dumps(given)}`" if given else "the defaults above"
        parts.append(f"- **`{name}`**: {differs}. Digest `{digest}`.")
    document = json.dumps(Recipe.resolve(None).document(), indent=2)
    parts.append(f"\n`{DEFAULT_PRESET}` as it is stored and digested:\n\n```json\n{_flat_lists(document)}\n```\n")
    return "\n".join(parts)


def _flat_lists(document: str) -> str:
    """Lists of numbers on one line."""
    return re.sub(r"\[[\s\d.,]+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", document)


def _choices(path: str, field: dict[str, Any], definitions: dict[str, Any], level: int) -> Iterator[str]:
    """The sections below one option: one for each choice of a union, one for a plain group."""
    found = [definitions[ref] for ref in _refs(field)]
    named = [d for d in found if "const" in d["properties"].get("name", {})]
    if found:
        yield f"{'#' * level} `{path}`\n"
    if named:
        yield f"{field.get('description', '')}\n"
    for definition in found:
        if definition in named:
            yield f"{'#' * (level + 1)} {path}: `{definition['properties']['name']['const']}`\n"
        yield f"{_prose(definition.get('description', ''))}\n"
        if set(definition["properties"]) - {"name"}:
            yield _options(definition, definitions)
        for name, inner in definition["properties"].items():
            yield from _choices(f"{path}.{name}", inner, definitions, level + 1)


def _options(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    rows = [
        (_code(name), _kind(field, definitions), _default(name, field, schema), field.get("description", ""))
        for name, field in schema["properties"].items()
        if "const" not in field
    ]
    return table(("option", "values", "default", "meaning"), rows)


def _refs(field: dict[str, Any]) -> list[str]:
    """Names of the definitions that a field may hold."""
    inner = field.get("items", field)
    options = [inner, *inner.get("oneOf", ()), *inner.get("anyOf", ())]
    return [option["$ref"].rsplit("/", 1)[1] for option in options if "$ref" in option]


def _kind(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    names = [definitions[ref]["properties"].get("name", {}).get("const") for ref in _refs(field)]
    if names and all(names):
        return ("list of " if "items" in field else "") + ", ".join(_code(name) for name in names)
    if names:
        return "object"
    if "items" in field:
        each = _bounds(field["items"]).removeprefix("integer ")
        return f"list of {field['items'].get('type', 'value')}s" + (f", each {each}" if each else "")
    if "anyOf" in field:
        return " or ".join(_kind(option, definitions) for option in field["anyOf"])
    return _bounds(field) or field.get("type", "")


def _bounds(field: dict[str, Any]) -> str:
    """The values that a JSON schema admits, in words."""
    if "enum" in field:
        return ", ".join(_code(value) for value in field["enum"])
    if "pattern" in field:
        return _code("sha256:<64 hex digits>") if field["pattern"].startswith("^sha256:") else _code(field["pattern"])
    words = []
    if "minimum" in field or "exclusiveMinimum" in field:
        words.append(f"≥ {field['minimum']:g}" if "minimum" in field else f"> {field['exclusiveMinimum']:g}")
    if "maximum" in field or "exclusiveMaximum" in field:
        most = field.get("maximum", field.get("exclusiveMaximum"))
        words.append(("≤ " if "maximum" in field else "< ") + (str(most) if isinstance(most, int) else f"{most:g}"))
    kind = {"integer": "integer ", "number": ""}.get(field.get("type", ""), "")
    return (kind + ", ".join(words)) if words else ""


def _default(name: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    if name in schema.get("required", ()):
        return "required"
    value = field.get("default", PydanticUndefined)
    if value is PydanticUndefined:
        return _code("{}")
    if isinstance(value, dict):
        return _code(value["name"]) if "name" in value else "see below"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(_code(item["name"]) for item in value)
    return _code(json.dumps(value))


def _prose(text: str) -> str:
    return text.replace("``", "`")


# -- errors ------------------------------------------------------------------------------------------------------------


def problem_kinds() -> dict[str, tuple[problems.Kind, str]]:
    """Every kind of problem by slug, with what it means."""
    found = {kind.slug: (kind, _summary(error)) for error, kind in problems.TABLE.items()}
    for kind in vars(problems).values():
        if isinstance(kind, problems.Kind):
            found.setdefault(kind.slug, (kind, ""))
    return found


def error_table() -> str:
    """Every slug with its status."""
    rows = [
        (_code(slug), str(kind.status), kind.title, meaning)
        for slug, (kind, meaning) in sorted(problem_kinds().items(), key=lambda item: (item[1][0].status, item[0]))
    ]
    return table(("`urn:espalier:problem:` …", "status", "title", "meaning"), rows)


def megabatch_reasons() -> set[str]:
    """The stable words of ``InvalidMegabatch``, as the code says them."""
    calls = (
        node
        for path in (ROOT / "app").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and node.args and _refuses(node.func, path)
    )
    first = (call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant))
    return {word for word in first if isinstance(word, str) and re.fullmatch(r"[a-z]+(-[a-z]+)*", word)}


def _refuses(function: ast.expr, path: Path) -> bool:
    """Whether a call refuses a megabatch: by the error's own name, or by the decoders' short form of raising it."""
    name = getattr(function, "id", getattr(function, "attr", ""))
    return name == errors.InvalidMegabatch.__name__ or (name in ("refuse", "_refuse") and path.parent.name == "intake")


def reasons() -> str:
    """The reasons, as one line."""
    return ", ".join(_code(reason) for reason in sorted(megabatch_reasons())) + "\n"


# -- HTTP --------------------------------------------------------------------------------------------------------------


def operations() -> list[tuple[str, str, str]]:
    """(method, path, summary) of every operation that OpenAPI describes."""
    paths = create_app(Settings()).openapi()["paths"]
    return [
        (method.upper(), path, f"**{operation['summary']}.** {operation.get('description', '')}")
        for path, item in paths.items()
        for method, operation in item.items()
        if method in ("get", "head", "post", "put", "patch", "delete")
    ]


def endpoints() -> str:
    """Every operation with its meaning."""
    rows = [(method, _code(path), _prose(text.split("\n\n")[0])) for method, path, text in operations()]
    return table(("", "path", "meaning"), rows)


# -- scopes ------------------------------------------------------------------------------------------------------------


def scopes() -> str:
    """What each route asks of a key, in the order of the table."""
    words = {None: "no key", ANY_KEY: "any key"}
    places: dict[str, list[str]] = {}
    for route in flat(create_app(Settings()).routes):
        if isinstance(route, Route):
            methods = sorted((route.methods or set()) - {"HEAD"}) or ["HEAD"]
            places.setdefault(route.name, []).extend(f"{method} {route.path}" for method in methods)
    rows = []
    for name, needs in SCOPES.items():
        shown = [place for place in dict.fromkeys(places[name]) if not (len(places[name]) > 1 and place[:4] == "HEAD")]
        rows.append((_code(name), ", ".join(map(_code, shown)), words.get(needs) or _code(needs)))
    return table(("route", "is", "needs"), rows)


# -- commands ----------------------------------------------------------------------------------------------------------


def walk(
    command: Any = None, path: tuple[str, ...] = ("espalier",), above: typer.Context | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of ``espalier``, as it is where the server is installed, with its words."""
    command = command or typer.main.get_command(cli.app)
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    context = typer.Context(command, parent=above)  # the server's commands join groups by way of the root
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if not inner.hidden:
            yield from walk(inner, (*path, name), context)


_SHARED = ("url", "key", "as_json", "quiet")


def commands() -> str:
    """Every command with its arguments and options; those that every client command has, once."""
    shared = [parameter for parameter in typer.main.get_command(cli.app).params if parameter.name in _SHARED]
    common = {parameter.name for parameter in shared}
    parts = [
        "Before or after any client command:\n",
        table(("option", "default", "meaning"), [*map(_parameter, shared)]),
    ]
    for path, command in walk():
        parts.append(f"### `{' '.join(path)}`\n\n{_prose(inspect.cleandoc(command.help or ''))}\n")
        client = common <= {parameter.name for parameter in command.params}
        hidden = {"help", *(common if client else ())}
        rows = [_parameter(p) for p in command.params if p.name not in hidden and not getattr(p, "hidden", False)]
        if rows:
            parts.append(table(("argument", "default", "meaning"), rows))
    return "\n".join(parts)


def _parameter(parameter: Any) -> tuple[str, str, str]:
    option = parameter.param_type_name == "option"
    name = ", ".join(_code(word) for word in [*parameter.opts, *parameter.secondary_opts]) if option else ""
    default = parameter.default
    given = isinstance(default, int | float | str) and default not in ("", False)
    shown = "required" if parameter.required else _code(default) if given else ""
    return name or _code((parameter.metavar or parameter.name).upper()), shown, parameter.help or ""


# -- the Python package ------------------------------------------------------------------------------------------------


def python() -> str:
    """Every public name with its signature; every public method of its classes."""
    parts = []
    for name in espalier.__all__:
        thing = getattr(espalier, name)
        if name.startswith("__"):
            parts.append(f"### `espalier.{name}`\n\nThe version of the package.\n")
            continue
        parts.append(f"### `espalier.{name}`\n")
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            parts.append(f"Exception. {_summary(thing)}\n")
            continue
        parts.append(f"```text\n{name}{_signature(thing)}\n```\n\n{_summary(thing)}\n")
        if inspect.isclass(thing):
            members = [(n, m) for n, m in vars(thing).items() if not n.startswith("_") and _documented(m)]
            rows = [(_code(_member(n, m)), _summary(_unwrapped(m))) for n, m in members]
            if rows:
                parts.append(table(("member", "meaning"), rows))
    return "\n".join(parts)


def _documented(member: object) -> bool:
    return callable(member) or isinstance(member, property | classmethod | staticmethod)


def _unwrapped(member: Any) -> Any:
    return member.__func__ if isinstance(member, classmethod | staticmethod) else member


def _member(name: str, member: Any) -> str:
    return name if isinstance(member, property) else name + _signature(_unwrapped(member))


def _signature(thing: Any) -> str:
    """Parameters and defaults; their types stand in the code."""
    shown = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(thing).parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    return str(inspect.Signature(shown)).replace("<factory>", "{}")


# -- faults ------------------------------------------------------------------------------------------------------------

FAULTS = DOCS / "evidence" / "faults.json"
_FIGURES = {
    "injected": "faults injected",
    "crash_states": "crash states enumerated",
    "kills": "kills survived",
    "bad_inputs": "bad inputs tried",
    "schemathesis": "requests made by schemathesis",
    "lost": "lost",
    "doubled": "doubled",
    "unaudited": "unaudited",
    "tests": "tests",
    "failed": "of them failed",
}


def faults() -> str:
    """What a run of the fault suite counted."""
    if not FAULTS.exists():
        return "No run is recorded yet.\n"
    found = json.loads(FAULTS.read_text())
    return table(("count", "figure"), [(said, f"{found[name]:,}") for name, said in _FIGURES.items()])


# -- pages -------------------------------------------------------------------------------------------------------------

BLOCKS: dict[str, Callable[[], str]] = {
    "faults": faults,
    "settings": settings,
    "recipe": recipe,
    "errors": error_table,
    "reasons": reasons,
    "endpoints": endpoints,
    "scopes": scopes,
    "commands": commands,
    "python": python,
}


def render(page: str) -> str:
    """A page with every generated block made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", page)


def stale() -> dict[Path, str]:
    """Pages that are not current, with what they should be."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
    rendered = {path: render(text) for path, text in pages.items()}
    return {path: text for path, text in rendered.items() if text != pages[path]}


def main() -> int:
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description="Rewrite the generated blocks of docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is not current")
    check = parser.parse_args().check
    pages = stale()
    for path, text in pages.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        print(
            f"{path.relative_to(ROOT)}: {'not current: run `make reference`' if check else 'rewritten'}",
            file=sys.stderr,
        )
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
