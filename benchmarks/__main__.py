"""``python -m benchmarks [NAME ...]``: run every benchmark, or those named, one after the other.

A benchmark is a module of this folder that does not start with an underscore, or a package that can be run. It prints
its figures beside their targets and exits with 1 when it misses one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Every benchmark, by name."""
    packages = (path.parent.name for path in FOLDER.glob("*/__main__.py"))
    return sorted([*packages, *(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))])


def main(wanted: list[str]) -> int:
    """Run benchmarks; 1 when any missed a target, 2 when one is unknown."""
    known = names()
    if unknown := [name for name in wanted if name not in known]:
        print(f"unknown benchmark {', '.join(unknown)}; choose from: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted or known:
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent).returncode
        print(
            f"-- {name}: {'ok' if code == 0 else f'exit status {code}'}, {time.monotonic() - started:.0f} s", flush=True
        )
        failed += [name] if code else []
    if failed:
        print(f"\nmissed a target or failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
