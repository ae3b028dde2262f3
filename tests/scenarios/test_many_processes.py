"""Several API processes and workers on one database: each megabatch is trained once; no child outlives its parent."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.scenarios.deployment import Deployment, clusters, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECIPE = {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 2, "minibatch": 32}}
MODELS = ("gas", "letters", "digits")
EACH = 4


def test_each_megabatch_is_trained_once(on_each_database: Deployment) -> None:
    deployment = on_each_database
    services = [deployment.serve("--no-worker", "--workers", "2"), deployment.serve("--no-worker")]
    for _ in range(3):
        deployment.work()
    clients = [deployment.client(service) for service in services]
    for index, name in enumerate(MODELS):
        clients[index % 2].create_model(name, RECIPE | {"seed": index})

    def upload(job: tuple[int, str]) -> int:
        seed, name = job
        return clients[seed % 2].upload(name, *clusters(seed)).number

    jobs = [(100 * index + seed, name) for seed in range(EACH) for index, name in enumerate(MODELS)]
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(upload, jobs))
    assert Counter(numbers) == {number: len(MODELS) for number in range(1, EACH + 1)}

    def all_ended() -> bool:
        return all(not cycle.open for name in MODELS for cycle in clients[0].cycles(name))

    until(all_ended, 90, "the end of all cycles")
    for name in MODELS:
        entries = [e for kind in ("version.published", "version.withheld") for e in clients[0].audit(name, kind=kind)]
        champion_line = {version.number for version in clients[0].lineage(f"{name}@champion")}
        trained = Counter(
            number
            for entry in entries
            if entry.fact["parameters"]["version"] in champion_line
            for number in entry.fact["parameters"]["new"]
        )
        published = {number for entry in entries for number in entry.fact["parameters"]["new"]}
        assert published == set(range(1, EACH + 1))
        assert set(trained.values()) == {1}, f"{name}: {trained}"
        versions = [version.number for version in clients[0].versions(name)]
        assert versions == sorted(range(1, len(versions) + 1), reverse=True)
        assert len(entries) == len(versions)
    assert clients[1].verify_log() == clients[0].audit_head().size
    deployment.is_whole()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_child_outlives_a_killed_parent(deployment: Deployment) -> None:
    service = deployment.serve("--workers", "2")
    deployment.client(service).create_model("gas", RECIPE)
    until(lambda: "is ready on" in service.text, what="the worker's start")
    started = children(service.popen.pid)
    assert len(started) >= 3
    service.send(signal.SIGKILL)
    assert service.ended() == -signal.SIGKILL
    until(lambda: not any(map(alive, started)), 20, "the end of all children")
