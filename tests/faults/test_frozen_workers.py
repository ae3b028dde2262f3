"""SIGSTOP of a worker past its lease, at every phase of a cycle: another takes over, and the stale one says so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.deployment import Deployment, Process, clusters, until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
ROOT = Path(__file__).parents[2]
RECIPE = {"network": {"name": "mlp", "hidden": [32]}, "training": {"epochs": 4, "minibatch": 32}}
PLACES = ["cycle.claimed", "arrival", "prune", "train", "judge", "cycle.learnt", "cycle.blobs"]


def freezing(deployment: Deployment, place: str) -> Process:
    """A worker that will freeze there."""
    log = deployment.folder / f"{len(deployment.processes)}-freezing.log"
    with log.open("wb") as file:
        popen = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.freezing", place],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=deployment.environment | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    process = Process(popen, log)
    deployment.processes.append(process)
    return process


def stopped(process: Process) -> bool:
    assert process.popen.poll() is None, process.text
    return Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("place", PLACES)
def test_a_worker_frozen_past_its_lease_publishes_nothing(place: str, on_each_database: Deployment, tally) -> None:
    deployment = on_each_database
    client = deployment.client(deployment.serve("--no-worker"))
    client.create_model("gas", RECIPE)
    first = deployment.work().ready()
    client.upload("gas", *clusters(1), wait=True, timeout=60)  # from now on there is a champion to be tested on arrival
    first.send(signal.SIGTERM)
    first.ended()

    frozen = freezing(deployment, place).ready()
    cycle = client.upload("gas", *clusters(2)).cycle
    assert cycle is not None
    until(lambda: stopped(frozen), what=f"the freeze at {place}")
    deployment.work()
    ended = client.wait_for_cycle("gas", cycle, timeout=90)
    before = client.audit_head().size
    os.kill(frozen.popen.pid, signal.SIGCONT)
    until(
        lambda: re.search(f"cycle {cycle} of gas (is left|was published)", frozen.text), what="the stale worker's word"
    )
    client.upload("gas", *clusters(3), wait=True, timeout=90)  # either of the two works on

    published = [e.fact["parameters"] for e in client.audit("gas", kind="version.published")]
    versions = [version.number for version in client.versions("gas")]
    tally.add(
        injected=1,
        doubled=len(published) - len({about["cycle"] for about in published}),
        lost=int(ended.version != 2),
        unaudited=len(versions) - len(published),
    )
    assert versions == [3, 2, 1]
    assert [about["version"] for about in published] == [1, 2, 3]
    late = [e for e in client.audit("gas") if e.seq > before and e.fact["parameters"].get("cycle") == cycle]
    assert late == [], "the stale worker changed something"
    deployment.is_whole()
