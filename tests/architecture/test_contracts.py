"""The plan of the house, as far as a machine can check it: layers, rooms, light processes, no hidden imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "client" / "espalier").rglob("*.py")])
VAGUE = {"base", "common", "core", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}

ROOMS = {"api", "intake", "learning", "service", "store", "worker"}
FLOOR = {"__init__", "__main__", "cli", "config", "crash", "demo", "domain", "errors"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_point_downwards() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_contracts_cover_what_they_should() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["id"] == "layers")
    assert layers["exhaustive"] is True
    assert {contract["id"] for contract in contracts} >= {"layers", "client", "learning", "intake", "api", "domain"}


def test_no_imports_inside_functions() -> None:
    hidden = [
        f"{_name(path)}:{node.lineno}"
        for path in SOURCES
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not hidden


def test_no_stray_modules() -> None:
    top = {
        path.stem if path.suffix == ".py" else path.name
        for path in (ROOT / "app").iterdir()
        if path.name != "__pycache__"
    }
    assert top - {"py.typed"} == ROOMS | (FLOOR & top)
    vague = [_name(path) for path in SOURCES if path.stem in VAGUE]
    assert not vague, f"these names say nothing: {vague}"


def test_every_test_folder_mirrors_a_room() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= ROOMS | {
        *("espalier", "laws", "scenarios", "faults", "golden", "migrations", "architecture", "benchmarks")
    }


def test_docstrings_say_what_a_module_knows() -> None:
    silent = [_name(p) for p in SOURCES if p.name != "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))]
    assert not silent, f"no module docstring: {silent}"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app.api.application", ["torch", "sklearn", "app.service.training"]),
        ("app.cli", ["torch", "sklearn", "app.service.training"]),
        ("app.intake.sandbox", ["torch", "sqlalchemy", "pydantic", "fastapi"]),
        ("espalier", ["torch", "sqlalchemy", "pydantic", "fastapi", "app"]),
        ("espalier.cli", ["torch"]),
        ("espalier.formats.checkpoint", ["torch", "httpx", "app"]),
    ],
)
def test_processes_stay_light(module: str, forbidden: list[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps([name for name in {forbidden!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [], f"importing {module} loads {done.stdout.strip()}"


def test_both_packages_bear_one_version() -> None:
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
    assert server["version"] == client["version"]
    assert f"{client['name']}=={client['version']}" in server["dependencies"]


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
    needed = [
        *server["dependencies"],
        *client["dependencies"],
        *(d for extra in server["optional-dependencies"].values() for d in extra),
    ]
    names = {_distribution(requirement) for requirement in needed} - {client["name"]}
    assert names <= pinned, f"constraints.txt lacks {sorted(names - pinned)}"
    assert "+cpu" not in (ROOT / "constraints.txt").read_text().split("torch==")[1].split()[0]


def _distribution(requirement: str) -> str:
    end = next((i for i, letter in enumerate(requirement) if letter in "[<>=!~; "), len(requirement))
    return requirement[:end].lower().replace("_", "-")
