"""A worker that is killed or stopped in the middle of a cycle: the next one ends with the same bits."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from espalier import Client
from espalier.records import Cycle
from tests.scenarios.deployment import Deployment, clusters, until

# Seconds of training even on a fast and idle machine, since progress is seen four times a second, so that a kill hits
# the middle of it.
RECIPE = {
    "seed": 3,
    "network": {"name": "mlp", "hidden": [256, 256]},
    "training": {"epochs": 48, "minibatch": 16, "learning_rate": 0.02},
}
pytestmark = pytest.mark.timeout(300)
EVENTS = {"mask.pruned", "network.trained", "cycle.judged", "version.published", "version.withheld", "alias.moved"}


def begin(deployment: Deployment) -> tuple[Client, int]:
    """A model with one megabatch waiting; the client and the cycle's number."""
    client = deployment.client(deployment.serve("--no-worker"))
    client.create_model("gas", RECIPE)
    megabatch = client.upload("gas", *clusters(1, n=1200))
    assert megabatch.cycle is not None
    return client, megabatch.cycle


def outcome(client: Client) -> tuple[str, str, list[tuple[str, Any]]]:
    """What must not depend on kills: the checkpoint's bytes, its masks, and what the log says of the work."""
    (version,) = client.versions("gas")
    facts = [(e.kind, without_clock(e.fact["parameters"])) for e in client.audit("gas") if e.kind in EVENTS]
    return version.checkpoint.digest, str(version.mask_digest), facts


def without_clock(parameters: Any) -> Any:
    return {k: v for k, v in parameters.items() if not k.endswith("_seconds")}


def in_training(client: Client, number: int, share: float) -> Cycle | None:
    cycle = client.cycle("gas", number)
    assert cycle.version is None, "the cycle ended before it could be killed: it is too short for this machine"
    progress = cycle.progress
    return cycle if cycle.state == "running" and progress and progress.step > share * progress.steps > 0 else None


@pytest.fixture(scope="session")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[tuple[str, Any]]]:
    """The outcome of the same work when nothing happens to it."""
    with Deployment(tmp_path_factory.mktemp("unkilled")) as deployment:
        client, cycle = begin(deployment)
        deployment.work()
        client.wait_for_cycle("gas", cycle, timeout=60)
        return outcome(client)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(on_each_database: Deployment, unkilled: tuple[str, str, Any]) -> None:
    deployment = on_each_database
    client, cycle = begin(deployment)
    for share in (0.2, 0.6):
        worker = deployment.work().ready()
        until(lambda share=share: in_training(client, cycle, share), what=f"{share} of the cycle")
        worker.send(signal.SIGKILL)
        assert worker.ended() == -signal.SIGKILL
    deployment.work()
    client.wait_for_cycle("gas", cycle, timeout=60)

    assert outcome(client) == unkilled
    started = [e.fact["parameters"]["resumed"] for e in client.audit("gas", kind="cycle.started")]
    assert started == [False, True, True]
    assert len(list(client.audit("gas", kind="cycle.reclaimed"))) == 2
    deployment.is_whole()


@pytest.mark.slow
def test_a_stopped_worker_hands_its_cycle_back(deployment: Deployment, unkilled: tuple[str, str, Any]) -> None:
    client, cycle = begin(deployment)
    worker = deployment.work(lease_seconds=3600, snapshot_seconds=3600).ready()
    until(lambda: in_training(client, cycle, 0.3), what="a third of the cycle")
    worker.send(signal.SIGTERM)
    assert worker.ended(10) == 0, worker.text

    assert client.cycle("gas", cycle).state == "queued"  # at once, though the lease had an hour to go
    assert len(list(client.audit("gas", kind="cycle.released"))) == 1
    deployment.work()
    client.wait_for_cycle("gas", cycle, timeout=60)
    assert outcome(client) == unkilled
    started = [e.fact["parameters"]["resumed"] for e in client.audit("gas", kind="cycle.started")]
    assert started == [False, True]


@pytest.mark.slow
def test_a_worker_that_was_frozen_past_its_lease_publishes_nothing(deployment: Deployment) -> None:
    client, cycle = begin(deployment)
    frozen = deployment.work().ready()
    until(lambda: in_training(client, cycle, 0.2), what="a fifth of the cycle")
    frozen.send(signal.SIGSTOP)
    deployment.work()
    client.wait_for_cycle("gas", cycle, timeout=60)
    frozen.send(signal.SIGCONT)
    until(lambda: "no longer" in frozen.text or "superseded" in frozen.text, what="the stale worker's notice")

    assert [version.number for version in client.versions("gas")] == [1]
    assert len(list(client.audit("gas", kind="version.published"))) == 1
    client.upload("gas", *clusters(2), wait=True, timeout=60)  # and it, or the other one, works on
    deployment.is_whole()


@pytest.mark.slow
def test_an_idle_worker_stops_at_once(deployment: Deployment) -> None:
    worker = deployment.work().ready()
    worker.send(signal.SIGINT)
    assert worker.ended(5) == 0, worker.text
