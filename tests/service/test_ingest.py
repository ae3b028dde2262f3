from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.domain import CycleTrigger
from app.errors import InvalidMegabatch, MegabatchQuarantined, UnknownModel
from app.service import cycles, ingest, models
from tests.service.conftest import ACTOR, RECIPE, House, blob_of_examples


def test_the_first_megabatch_completes_the_input_spec_and_starts_a_cycle(house: House) -> None:
    house.create()
    accepted = house.upload()
    spec = models.describe_model(house.store, "gas").model.input
    assert (spec.shape, spec.dtype, spec.classes) == ((8,), "float32", ("0", "1", "2"))
    assert spec.normalisation is not None
    assert not spec.normalisation.signed_log
    assert accepted.new
    assert accepted.cycle is not None
    assert (accepted.cycle.trigger, accepted.cycle.through) == (CycleTrigger.MEGABATCHES, 1)
    assert sum(accepted.megabatch.histogram) == accepted.megabatch.examples == 120
    assert house.kinds() == ["model.created", "megabatch.accepted"]


def test_raw_sensor_values_get_a_signed_logarithm(house: House) -> None:
    house.create()
    x, y = blob_of_examples(1)
    house.upload(x=x * 1e4, y=y)
    scaling = models.describe_model(house.store, "gas").model.input.normalisation
    assert scaling is not None
    assert scaling.signed_log


def test_the_same_arrays_again_return_the_first_however_they_are_packed(house: House, tmp_path: Path) -> None:
    house.create()
    x, y = blob_of_examples(1)
    first = house.upload(x=x, y=y)
    np.savez_compressed(tmp_path / "again.npz", y=y.astype(np.int32), x=x.astype(np.float64))
    again = house.upload_bytes((tmp_path / "again.npz").read_bytes())
    assert (again.new, again.megabatch.number, again.cycle) == (False, first.megabatch.number, None)
    assert house.kinds().count("megabatch.accepted") == 1
    assert len(cycles.list_cycles(house.store, "gas", after=None, limit=10).items) == 1


def test_quarantined_content_is_refused(house: House) -> None:
    house.create()
    accepted = house.upload()
    with house.store.transaction(ACTOR) as tx:
        tx.buffer.quarantine(tx.ledger.lock_model("gas"), [accepted.megabatch.number])
        tx.audit.append("megabatch.quarantined", model="gas")
    with pytest.raises(MegabatchQuarantined):
        house.upload()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y: (x[:, :5], y), "wrong-shape"),
        (lambda x, y: (x.reshape(-1, 2, 4), y), "wrong-shape"),
        (lambda x, y: (x.clip(0, 255).astype(np.uint8), y), "wrong-dtype"),
        (lambda x, y: (x, y + 1), "label-out-of-range"),
    ],
)
def test_later_megabatches_must_follow_the_spec(
    house: House, change: Callable[..., tuple[np.ndarray, np.ndarray]], reason: str
) -> None:
    house.create()
    house.upload(seed=1)
    before = house.kinds()
    x, y = change(*blob_of_examples(2))
    with pytest.raises(InvalidMegabatch) as caught:
        house.upload(x=x, y=y)
    assert caught.value.reason == reason
    assert house.kinds() == before
    assert len(ingest.list_megabatches(house.store, "gas", after=None, limit=10)[0].items) == 1


def test_one_class_alone_cannot_be_inferred_but_can_be_declared(house: House) -> None:
    x, y = blob_of_examples(1)
    house.create("open")
    with pytest.raises(InvalidMegabatch, match=r"input\.classes"):
        house.upload("open", x=x, y=y * 0)
    house.create("declared", classes=("good", "bad"))
    assert house.upload("declared", x=x, y=y * 0).new


def test_a_huge_label_does_not_become_that_many_classes(house: House) -> None:
    house.create()
    x, y = blob_of_examples(1)
    with pytest.raises(InvalidMegabatch, match="number the classes from 0"):
        house.upload(x=x, y=y + 2**30)
    y[0] = 70_000
    with pytest.raises(InvalidMegabatch, match=r"input\.classes"):
        house.upload(x=x, y=y)


def test_flat_examples_for_an_image_network_are_refused(house: House) -> None:
    house.create("gas", {"network": {"name": "cnn"}})
    with pytest.raises(InvalidMegabatch, match="mlp"):
        house.upload()


def test_a_cycle_for_every_third_megabatch(house: House) -> None:
    house.create("gas", {**RECIPE, "trigger": {"name": "megabatches", "every": 3}})
    started = [house.upload(seed=seed).cycle for seed in range(1, 8)]
    assert [cycle.through if cycle else None for cycle in started] == [None, None, 3, None, None, 6, None]


def test_manual_models_wait(house: House) -> None:
    house.create("gas", {**RECIPE, "trigger": {"name": "manual"}})
    assert house.upload().cycle is None


def test_an_unknown_model_is_named(house: House) -> None:
    with pytest.raises(UnknownModel, match="nowhere"):
        house.upload("nowhere")


def test_nothing_stays_in_staging(house: House) -> None:
    house.create()
    house.upload()
    with pytest.raises(InvalidMegabatch):
        house.upload_bytes(b"not an npz")
    leftovers = [p for p in house.store.blobs.root.parent.rglob("*") if p.is_file() and "staging" in p.parts]
    assert leftovers == []
