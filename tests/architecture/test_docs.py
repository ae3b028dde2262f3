"""The documentation says what the code does: every setting, option, command, error, endpoint and public name."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import espalier
from app.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "deploy").glob("*.md")])
SNIPPET = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)

WORDS = [
    "model", "network", "recipe", "megabatch", "minibatch", "replay buffer / policy", "cycle", "stage / pruning step",
    "schedule", "criterion / score", "density", "mask", "version / checkpoint", "alias", "guardrail / verdict",
    "audit entry / log / head", "lease", "blob / digest",
]  # fmt: skip


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def _page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_generated_pages_are_current(generate: ModuleType) -> None:
    stale = [str(path.relative_to(ROOT)) for path in generate.stale()]
    assert not stale, f"run `make reference`; not current: {stale}"


def test_generation_sees_a_stale_page(generate: ModuleType) -> None:
    page = _page("configuration.md")
    assert generate.render(page.replace("| `ESPALIER_PORT` | `8000`", "| `ESPALIER_PORT` | `1234`")) == page


def test_every_setting_is_documented() -> None:
    page = _page("configuration.md")
    missing = [name for name in Settings.model_fields if f"`ESPALIER_{name.upper()}`" not in page]
    assert not missing


def test_no_setting_without_a_description() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


def test_every_variable_in_the_docs_is_a_setting() -> None:
    """A setting that was renamed must not live on in prose."""
    known = {f"ESPALIER_{name.upper()}" for name in Settings.model_fields} | {
        "ESPALIER_KEY",
        "ESPALIER_URL",
        "ESPALIER_CACHE_DIR",
        "ESPALIER_LOG_KEY",
        "ESPALIER_PINS",
        "ESPALIER_TEST_DATABASE_URL",
    }
    deployed = [ROOT / "docker-compose.yml", ROOT / "Dockerfile", *(ROOT / "deploy").glob("*")]
    said = {
        (path.name, word)
        for path in [*PAGES, *deployed]
        if path.is_file()
        for word in re.findall(r"\bESPALIER_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    assert not {(page, word) for page, word in said if word not in known}


def test_every_command_is_documented(generate: ModuleType) -> None:
    page = _page("command-line.md")
    commands = [" ".join(path) for path, _ in generate.walk()]
    assert {"espalier serve", "espalier work", "espalier demo", "espalier migrate", "espalier doctor"} <= set(commands)
    assert not [command for command in commands if f"### `{command}`" not in page]


def test_every_command_says_what_it_does(generate: ModuleType) -> None:
    assert not [" ".join(path) for path, command in generate.walk() if not command.help]


def test_every_command_in_prose_exists(generate: ModuleType) -> None:
    known = {path for path, _ in generate.walk()}
    groups = {path[:length] for path in known for length in range(1, len(path))}
    said = {
        (page.name, tuple(words.split()))
        for page in PAGES
        for words in re.findall(
            r"(?:^|[`$/])\s?(espalier(?: [a-z][a-z-]*){1,2})", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    unknown = [(p, w) for p, w in said if w not in known and w[:2] not in known and w not in groups]
    assert not unknown


def test_every_error_is_documented(generate: ModuleType) -> None:
    page = _page("errors.md")
    assert not [slug for slug in generate.problem_kinds() if f"| `{slug}` |" not in page]
    assert not [reason for reason in generate.megabatch_reasons() if f"`{reason}`" not in page]


def test_every_endpoint_is_documented(generate: ModuleType) -> None:
    page = _page("http-api.md")
    operations = generate.operations()
    assert len(operations) > 20
    assert not [(method, path) for method, path, _ in operations if f"| {method} | `{path}` |" not in page]


def test_every_audit_kind_is_documented() -> None:
    """Entry kinds are constants in calls of ``append``; each has a row in the page."""
    page = _page("audit-log.md")
    found: set[str] = set()
    for path in (ROOT / "app").rglob("*.py"):
        found |= set(re.findall(r"append\(\s*\"([a-z]+\.[a-z_-]+)\"", path.read_text()))
        found |= set(re.findall(r"record\(\s*\"([a-z]+\.[a-z_-]+)\"", path.read_text()))
    assert {"model.created", "megabatch.accepted", "mask.pruned", "network.trained", "model.rolled_back"} <= found
    assert not sorted(kind for kind in found if f"`{kind}`" not in page)


def test_glossary_has_the_words_of_the_house() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|", _page("glossary.md"), re.MULTILINE)
    assert rows == WORDS


def test_public_names_are_what_the_page_lists() -> None:
    page = _page("python-client.md")
    assert sorted(re.findall(r"^### `espalier\.(\w+)`", page, re.MULTILINE)) == sorted(espalier.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_snippets_compile(page: Path) -> None:
    for language, text in SNIPPET.findall(page.read_text(encoding="utf-8")):
        if language in ("python", "py"):
            compile(text, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_snippets_use_methods_that_exist() -> None:
    """``client.<name>`` in a Python snippet is a method of the client."""
    said = {
        (page.name, name)
        for page in PAGES
        for language, text in SNIPPET.findall(page.read_text(encoding="utf-8"))
        if language == "python"
        for name in re.findall(r"\bclient\.(\w+)\(", text)
    }
    assert said
    assert not [(page, name) for page, name in said if not hasattr(espalier.Client, name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    assert not [target for target in local if not (page.parent / target).exists()]
