"""Upload, cycle, download, rollback, cycle: the whole service through its real processes."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from espalier import load_checkpoint
from tests.scenarios.deployment import Deployment, clusters

pytestmark = pytest.mark.timeout(300)
RECIPE = {
    "seed": 5,
    "network": {"name": "mlp", "hidden": [16]},
    "training": {"epochs": 3, "minibatch": 16, "learning_rate": 0.05},
    "schedule": {"name": "app", "tau": 4.5, "stages": 4},
}


def test_upload_cycle_download_rollback_cycle(on_each_database: Deployment) -> None:
    deployment = on_each_database
    service = deployment.serve()
    client = deployment.client(service)
    client.create_model("gas", RECIPE, input={"classes": ["a", "b", "c"]})

    sent = {number: clusters(number) for number in (1, 2, 3)}
    for number, (x, y) in sent.items():
        assert client.upload("gas", x, y, wait=True, timeout=60).number == number
    versions = {version.number: version for version in client.versions("gas")}
    assert sorted(versions) == [1, 2, 3]
    assert client.version("gas@champion").number == 3

    loaded = {
        n: load_checkpoint(client.download(v, deployment.folder / f"{n}.safetensors")) for n, v in versions.items()
    }
    for number, checkpoint in loaded.items():
        kept = sum(int(mask.sum()) for mask in checkpoint.masks.values())
        assert kept == versions[number].kept
        if number > 1:
            before = loaded[number - 1].masks
            assert all(not np.any(mask & ~before[name]) for name, mask in checkpoint.masks.items())
    x, y = sent[3]
    arrival = client.megabatch("gas", 3).prequential
    assert arrival is not None and arrival.version == 2
    assert arrival.drift is not None and arrival.drift.inputs is not None and not arrival.drift.inputs.alarm
    assert round(arrival.accuracy * len(y)) == int(np.sum(loaded[2].predict(x) == y))

    done = client.rollback("gas", 1, reason="line 3 was out of order", quarantine=[2, 3])
    assert (done.previous, done.version.number, done.queued_cycle) == (3, 1, None)
    client.upload("gas", *clusters(4), wait=True, timeout=60)
    fourth = client.version("gas@champion")
    assert (fourth.number, fourth.parent, fourth.stage) == (4, 1, versions[1].stage + 1)
    assert fourth.density == versions[2].density

    moves = [(move.previous, move.version) for move in client.alias_history("gas")]
    assert sorted(moves, key=str) == sorted([(None, 1), (1, 2), (2, 3), (3, 1), (1, 4)], key=str)
    assert client.verify_log() == client.audit_head().size
    service.send(signal.SIGTERM)
    assert service.ended() == 0
    assert "all is well" in deployment.run("doctor")

    again = deployment.client(deployment.serve())
    assert again.version("gas@champion").checkpoint.digest == fourth.checkpoint.digest
    again.upload("gas", *clusters(5), wait=True, timeout=60)
    assert again.version("gas@champion").parent == fourth.number
