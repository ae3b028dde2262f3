"""What Espalier is built from: the lock, the pins, the requirements and the bill of materials say the same."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import cyclonedx.schema
import pytest
from jsonschema_rs import Draft7Validator, Registry
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PINS = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCKING = _module(ROOT / "deploy" / "lock.py")
BILLING = _module(ROOT / "deploy" / "sbom.py")
LOCK = (ROOT / "requirements.lock").read_text("utf-8")


def _pins(text: str) -> dict[str, str]:
    return {LOCKING.name_of(name): version for name, version in PINS.findall(text)}


LOCKED, TESTED = _pins(LOCK), _pins((ROOT / "constraints.txt").read_text("utf-8"))


def test_the_lock_has_the_versions_that_were_tested() -> None:
    assert LOCKED.items() <= TESTED.items(), "run `make lock`"


def test_every_line_of_the_lock_has_hashes() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", "\n".join(line for line in LOCK.splitlines() if not line.startswith("#")))
    assert len(blocks) == len(LOCKED) > 50
    assert not [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", block)]
    assert "--index-url" not in LOCK


def test_what_both_packages_require_is_locked_and_torch_is_not() -> None:
    for text in LOCKING.wanted():
        requirement = Requirement(text)
        assert requirement.specifier.contains(Version(LOCKED[LOCKING.name_of(requirement.name)])), text
    assert not LOCKED.keys() & LOCKING.APART


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


@pytest.mark.parametrize("name", [*sorted(LOCKED), "torch"])
def test_what_the_locked_require_is_locked(name: str) -> None:
    """The image installs the lock without looking for more."""
    found = _installed(name)
    if found is None:
        pytest.skip(f"{name} is not needed here")
    required = [Requirement(text) for text in found.requires or ()]
    here = [item for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]
    missing = {LOCKING.name_of(item.name) for item in here} - LOCKED.keys() - LOCKING.APART
    assert not {item for item in missing if not re.match(r"nvidia-|cuda-|triton", item)}, "add it to OF_TORCH"


def test_the_image_is_built_from_the_lock() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.index("--require-hashes --no-deps --requirement requirements.lock") < text.index(
        "constraints.txt torch"
    )
    assert "pip install --no-deps --no-build-isolation ./client ." in text
    assert "/opt/espalier/sbom.cdx.json" in text.split("\nFROM ")[-1]


def _validator() -> Draft7Validator:
    folder = Path(cyclonedx.schema.__file__).parent / "_res"
    schema = json.loads((folder / "bom-1.6.SNAPSHOT.schema.json").read_text())
    others = {name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text()) for name in ("spdx", "jsf-0.82")}
    known = [(f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json", found) for name, found in others.items()]
    return Draft7Validator(schema, registry=Registry(known))


def test_the_bill_of_what_is_installed_is_valid_and_whole() -> None:
    program = [sys.executable, ROOT / "deploy" / "sbom.py"]
    once, again = (subprocess.run(program, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert once == again
    document: dict[str, Any] = json.loads(once)
    assert sorted(map(str, _validator().iter_errors(document))) == []
    listed = {item["name"]: item for item in document["components"]}
    assert {"torch", "numpy", "fastapi", "CPython"} <= listed.keys()
    assert listed["fastapi"]["purl"] == f"pkg:pypi/fastapi@{TESTED['fastapi']}"
    assert "+" not in listed["torch"]["purl"]
    assert document["metadata"]["component"]["name"] == "espalier"


def test_the_bill_of_the_image_names_what_debian_installed() -> None:
    status = (
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\nDescription: c\n more\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1:2\n\n"
        "Package: tar\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.34\n"
    )
    found = BILLING.of_debian(status)
    assert [item["purl"] for item in found] == [
        "pkg:deb/debian/libc6@2.36-9?arch=amd64",
        "pkg:deb/debian/tar@1%3A1.34?arch=amd64",
    ]


def test_help_lists_every_command_of_the_makefile() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"\.PHONY: (.*)", text)[0].split())
    explained = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert phony == explained
    width = re.search(r"make %-(\d+)s", text)
    assert width is not None
    assert max(map(len, phony)) <= int(width[1])
