"""``make sbom``: what is installed in the environment that runs this, as CycloneDX 1.6 JSON on standard output.

    python deploy/sbom.py [--system]

Every distribution with its licence and package address, the interpreter, and with ``--system`` the Debian packages
beneath them, as the image wants it. The standard library alone, so that nothing is installed to list what is installed.
The same environment gives the same document.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import uuid
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

SPACE = uuid.UUID("0f9d6a2e-6a0e-5d6a-8d0e-3f6a0b7c1d42")
"""Serial numbers of version 5 are made in it, from the components."""

STATUS = Path("/var/lib/dpkg/status")


def name_of(package: str) -> str:
    """A package's name, as indexes spell it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def of_python(found: Distribution) -> dict[str, Any]:
    """A distribution; a local version such as ``+cpu`` stands in the version, not in the address."""
    name, version = name_of(found.metadata["Name"]), found.version
    public = version.partition("+")[0]
    component = {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": version}
    return component | _licence(found) | {"purl": f"pkg:pypi/{name}@{public}"}


def _licence(found: Distribution) -> dict[str, Any]:
    """Its licence: as an expression where it gives one, else by what it calls it, else nothing."""
    about = found.metadata
    if expression := about.get("License-Expression"):
        return {"licenses": [{"expression": expression}]}
    named = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    first = (about.get("License") or "").strip().split("\n")[0][:100]
    names = named or ([first] if first and first != "UNKNOWN" else [])
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def of_debian(status: str) -> list[dict[str, Any]]:
    """Packages that dpkg has installed."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if fields.get("Status") == "install ok installed":
            name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
            address = f"pkg:deb/debian/{name}@{version.replace(':', '%3A')}?arch={machine}"
            reference = f"deb:{name}:{machine}@{version}"
            component = {"type": "library", "bom-ref": reference, "name": name, "version": version}
            found.append(component | {"purl": address})
    return found


def bill(*, system: bool) -> dict[str, Any]:
    """The document."""
    python = {"type": "platform", "bom-ref": "python", "name": "CPython", "version": platform.python_version()}
    components = {item["bom-ref"]: item for item in map(of_python, distributions())}
    if system and STATUS.exists():
        components |= {item["bom-ref"]: item for item in of_debian(STATUS.read_text("utf-8"))}
    ours = {name: item for name, item in components.items() if item["name"].startswith("espalier-ml")}
    listed = [python, *(components[name] for name in sorted(components.keys() - ours.keys()))]
    version = next((item["version"] for item in ours.values()), "unknown")
    about = {"type": "application", "bom-ref": "espalier", "name": "espalier", "version": version}
    about |= {"components": [ours[name] for name in sorted(ours)]} if ours else {}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(SPACE, json.dumps([about, listed])).urn,
        "version": 1,
        "metadata": {"component": about},
        "components": listed,
    }


if __name__ == "__main__":
    json.dump(bill(system="--system" in sys.argv[1:]), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
