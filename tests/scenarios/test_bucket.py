"""One bucket, an API and two workers, each on a machine of its own: with nothing in common but bucket and database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from app.config import Settings
from app.domain import Actor
from app.service import history, outcomes, retention
from app.service.opening import blobs_of
from app.store.database import Store
from espalier import load_checkpoint
from espalier.errors import ApiProblem
from espalier.formats.megabatch import example_ids
from tests.s3 import S3
from tests.scenarios.deployment import Deployment, clusters
from tests.scenarios.test_lifecycle import RECIPE

pytestmark = pytest.mark.timeout(300)
ACTOR = Actor("tester")


@pytest.mark.slow
def test_two_workers_share_a_bucket(on_each_database: Deployment, s3: S3) -> None:
    deployment = on_each_database
    url = f"s3://{s3.new_bucket()}/espalier"

    def machine(name: str) -> dict[str, object]:
        folder = deployment.folder / name
        return {"data_dir": folder, "blobs_url": url, "database_url": deployment.url, "cache_bytes": 2**20}

    service = deployment.serve("--no-worker", **machine("api"))
    client = deployment.client(service)
    client.create_model("gas", RECIPE, input={"classes": ["a", "b", "c"]})
    first = deployment.work(**machine("one")).ready()
    for number in (1, 2):
        assert client.upload("gas", *clusters(number), wait=True, timeout=60).number == number
    first.popen.kill()
    deployment.work(**machine("two")).ready()
    client.upload("gas", *clusters(3), wait=True, timeout=60)
    assert [(v.number, v.parent) for v in client.versions("gas")] == [(3, 2), (2, 1), (1, None)]

    versions = {version.number: version for version in client.versions("gas")}
    for number, version in versions.items():
        loaded = load_checkpoint(client.download(version, deployment.folder / f"{number}.safetensors"))
        assert sum(int(mask.sum()) for mask in loaded.masks.values()) == version.kept
    client.download(versions[2], deployment.folder / "dense.safetensors", format="dense")
    assert client.rollback("gas", 2, reason="line 3 was out of order", quarantine=[3]).version.number == 2
    client.upload("gas", *clusters(4), wait=True, timeout=60)
    assert client.version("gas@champion").parent == 2

    settings = Settings(**machine("four"), keep_versions=1)  # type: ignore[arg-type]
    for ahead, sees in ((timedelta(), range(5, 7)), (timedelta(days=2), range(1))):
        # States and checkpoints of 1 and 3, a dense form, and perhaps the last snapshot of the worker that was killed.
        store = Store(deployment.url, blobs_of(settings), lambda ahead=ahead: datetime.now(UTC) + ahead)
        retention.retain(store, settings, ACTOR)
        outcomes.sweep(store, settings, ACTOR)
        assert history.unnamed(store).blobs in sees
        assert history.examine(store) == []
        store.dispose()
    with pytest.raises(ApiProblem, match="retention keeps the newest 1") as gone:
        client.download(versions[1], deployment.folder / "gone.safetensors")
    assert gone.value.status == 410
    swept = client.version("gas:1")
    assert swept.swept_at is not None and swept.swept_reason is not None
    assert client.version("gas:2").swept_at is None
    client.download(client.version("gas@champion"), deployment.folder / "champion.safetensors")

    doctor = deployment.start("doctor", **machine("five"))
    assert doctor.ended(60) == 0, doctor.text
    assert "all is well" in doctor.text
    assert not list(deployment.folder.glob("*/blobs/sha256")), "no machine holds more than copies"
    assert client.verify_log() == client.audit_head().size


@pytest.mark.slow
def test_what_is_erased_is_gone_from_the_bucket_and_production_goes_on_without_it(
    deployment: Deployment, s3: S3
) -> None:
    bucket = s3.new_bucket()

    def places(values: np.ndarray) -> list[str]:
        """Objects of the bucket and files of the machine that hold a row of these."""
        stored = {key: bytes(found.value) for key, found in s3.keys(bucket).items()}
        stored |= {str(file): file.read_bytes() for file in deployment.data.rglob("*") if file.is_file()}
        return [place for place, data in stored.items() if any(row.tobytes() in data for row in values)]

    machine = {"blobs_url": f"s3://{bucket}/espalier", "cache_bytes": 2**20}
    client = deployment.client(deployment.serve(**machine))
    client.create_model("gas", RECIPE, input={"classes": ["a", "b", "c"]})
    sent = {number: clusters(number) for number in (1, 2, 3)}
    for x, y in sent.values():
        client.upload("gas", x, y, wait=True, timeout=60)
    whole, one, other = sent[2][0], sent[3][0][5:6], sent[3][0][6:7]
    assert any(place.startswith("espalier/") for place in places(whole)), "the values are in the bucket"

    done = client.erase("gas", [2], samples=[int(example_ids(one)[0])], reason="consent", retrain=True)
    assert (list(done.versions), done.clean, done.pending) == ([2, 3], 1, False)
    assert places(whole) == places(one) == []
    assert any(place.startswith("espalier/") for place in places(other)), "the others are there"
    tombstone, cut = client.megabatch("gas", 2), client.megabatch("gas", 3)
    assert (tombstone.status, tombstone.examples, cut.status, cut.examples) == ("erased", 240, "accepted", 239)

    assert done.queued_cycle is not None
    client.wait_for_cycle("gas", done.queued_cycle, timeout=60)
    champion = client.version("gas@champion")
    assert (champion.number, champion.parent) == (4, 1)
    assert {seen.megabatch for seen in client.custody.megabatches_of("gas@champion")} <= {1, 3}
    with pytest.raises(ApiProblem) as again:
        client.upload("gas", *sent[2])
    assert again.value.type.endswith("megabatch-erased")
    assert places(whole) == places(one) == []
    doctor = deployment.start("doctor", **machine)
    assert doctor.ended(60) == 0, doctor.text


@pytest.mark.slow
def test_a_service_that_cannot_use_its_bucket_says_so_at_the_start(deployment: Deployment, s3: S3) -> None:
    for command in (("serve", "--port", "0"), ("work",), ("doctor",)):
        process = deployment.start(*command, blobs_url="s3://no-such-bucket")
        assert process.ended(60) == 1
        assert "there is no bucket at s3://no-such-bucket: create it" in process.text
        assert "Traceback" not in process.text
