"""``make lock``: write requirements.lock, what server and client need to run, each version with its hashes.

    python deploy/lock.py UV

``UV`` is the program uv. Versions are those of constraints.txt; requirements those of both packages' pyproject.toml.
Two are left out: the client itself, which is installed from the same tree, and torch, whose wheels differ by hardware
and come from an index of their own (docs/security.md). What torch needs in turn is named here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"

APART = frozenset({"torch", "espalier-ml"})
OF_TORCH = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
BUILD = ("hatchling",)
"""What builds the two packages: the image builds them without fetching anything that is not hashed."""

HEAD = """\
# What the server and the client need to run, each file by its hash: `make lock` makes it, the image installs it.
# torch is not here: see docs/security.md.
"""


def name_of(requirement: str) -> str:
    """The package that a requirement is about, as indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]).lower()


def wanted() -> list[str]:
    """Requirements of both packages, and of torch, without those that are installed apart."""
    found = list(OF_TORCH + BUILD)
    for project in (ROOT / "pyproject.toml", ROOT / "client" / "pyproject.toml"):
        found += tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
    return sorted({requirement for requirement in found if name_of(requirement) not in APART})


def main(uv: str) -> None:
    """Resolve and write; nothing is changed when it cannot be resolved."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, made = Path(folder) / "requirements.in", Path(folder) / "requirements.lock"
        requirements.write_text("".join(f"{requirement}\n" for requirement in wanted()), "utf-8")
        options = ["--generate-hashes", "--universal", "--python-version", "3.11", "--no-header", "--no-annotate"]
        constraints = ["--constraints", str(ROOT / "constraints.txt"), "--no-emit-index-url"]
        subprocess.run(
            [uv, "pip", "compile", *options, *constraints, "-q", "-o", str(made), str(requirements)], check=True
        )
        LOCK.write_text(HEAD + made.read_text("utf-8"), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
