"""What does it take to make a bundle of a long lineage, and to verify it?

    python -m benchmarks.bundle [--versions 200 1000] [--rounds 5]

Versions are published one after another, as cycles leave them but without training. Their network is tiny, so that what
is measured is the log's share. Between them another model's versions are published, so that the lineage's entries do
not lie side by side. ``build`` is the service's work for ``?format=bundle``, the database's included; ``verify`` is
``verify_bundle`` with the public key, on the file.

Printed are medians of wall time. Targets: build <= 5 s, verify <= 1 s. The exit status is 1 on a miss.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.config import Settings
from app.domain import CHAMPION
from app.service.bundle import open_bundle
from app.service.notary import Notary
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from espalier.formats.bundle import verify_bundle
from tests.lineages import Lineage

BUILD, VERIFY = 5.0, 1.0


def seconds(work: Callable[[], object], rounds: int) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(rounds))


def measured(folder: Path, versions: int, rounds: int) -> bool:
    """Print a line; whether it meets the targets."""
    url = f"sqlite:///{folder / 'espalier.db'}"
    migrate(url)
    store = Store(url, Blobs(folder / "blobs"))
    notary = Notary(store, Settings(data_dir=folder, database_url=url))
    line, other = Lineage(store), Lineage(store, "other")
    for number in range(versions):
        line.publish(prune=1 if number < 90 else 0)
        other.publish(prune=0)
    path = folder / "bundle.zip"

    def build() -> None:
        with open_bundle(store, notary, "gas", CHAMPION) as found:
            path.write_bytes(found.path.read_bytes())

    build_s = seconds(build, rounds)
    found = verify_bundle(path, notary.verifier_keys())
    verify_s = seconds(lambda: verify_bundle(path, notary.verifier_keys()), rounds)
    store.dispose()
    met = build_s <= BUILD and verify_s <= VERIFY and len(found.lineage) == versions
    print(
        f"{versions:>6} versions   {found.entries:>6} entries of {found.log.size:>6}   "
        f"{path.stat().st_size / 1e6:6.2f} MB   build {build_s:6.3f} s (<= {BUILD:g})   "
        f"verify {verify_s:6.3f} s (<= {VERIFY:g})   {'ok' if met else 'MISSED'}",
        flush=True,
    )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--versions", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    met = []
    for versions in given.versions:
        with tempfile.TemporaryDirectory() as folder:
            met.append(measured(Path(folder), versions, given.rounds))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
