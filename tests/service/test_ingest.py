import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain import CycleTrigger, InputSpec
from app.errors import InvalidInputSpec, InvalidMegabatch, MegabatchQuarantined, ModelExists, UnknownModel
from app.intake import sandbox
from app.service import cycles, ingest, models
from tests.service.conftest import ACTOR, RECIPE, House, blob_of_examples

SANDBOXED = True


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
    assert house.kinds() == [*before, "megabatch.rejected"]
    assert len(ingest.list_megabatches(house.store, "gas", after=None, limit=10)[0].items) == 1


def test_one_class_alone_cannot_be_inferred_but_can_be_declared(house: House) -> None:
    x, y = blob_of_examples(1)
    house.create("open")
    with pytest.raises(InvalidMegabatch, match=r"input\.classes"):
        house.upload("open", x=x, y=y * 0)
    house.create("declared", classes=("good", "bad"))
    assert house.upload("declared", x=x, y=y * 0).new


def test_a_refusal_is_audited_with_its_reason_and_the_digest_of_the_body(house: House) -> None:
    house.create()
    with pytest.raises(InvalidMegabatch) as caught:
        house.upload_bytes(b"nonsense\0")
    with house.store.reading() as tx:
        (entry,) = tx.audit.entries("gas", None, 10, "megabatch.rejected").items
        assert tx.ledger.model("gas").input == InputSpec()
    assert entry.document["reason"] == str(caught.value)
    assert entry.document["parameters"] == {
        "refusal": "unknown-format", "digest": "sha256:" + hashlib.sha256(b"nonsense\0").hexdigest(), "bytes": 9
    }  # fmt: skip
    assert list((house.store.blobs.root / "staging").iterdir()) == []


# -- columns and names -------------------------------------------------------------------------------------------------


def text(columns: str, *rows: str) -> bytes:
    return "\n".join((columns, *rows, "")).encode()


def spec_of(house: House, name: str = "gas") -> InputSpec:
    return models.describe_model(house.store, name).model.input


def test_the_first_upload_with_columns_shows_them(house: House) -> None:
    house.create()
    first = house.upload_bytes(text("a,b,label", "1,10,red", "2,20,blue", "3,30,red"))
    spec = spec_of(house)
    assert (spec.features, spec.classes, spec.shape, spec.label) == (("a", "b"), ("blue", "red"), (2,), None)
    assert first.megabatch.histogram == (1, 2)
    with house.store.reading() as tx:
        (entry,) = tx.audit.entries("gas", None, 10, "megabatch.accepted").items
    assert entry.document["parameters"]["inferred_input"]["features"] == ["a", "b"]
    again = house.upload_bytes(text("label,b,a", "red,10,1", "blue,20,2", "red,30,3"))
    assert (again.new, again.megabatch.number) == (False, 1), "another order of columns is the same megabatch"
    with pytest.raises(InvalidMegabatch, match="'c'"):
        house.upload_bytes(text("a,b,c,label", "1,10,7,red"))
    with pytest.raises(InvalidMegabatch, match="'green'"):
        house.upload_bytes(text("a,b,label", "1,10,green"))


def test_arrays_first_and_columns_later(house: House) -> None:
    house.create(classes=("x", "y", "z"))
    house.upload(seed=1)
    assert spec_of(house).features is None
    names = ",".join("abcdefgh")
    house.upload_bytes(text(f"{names},label", "1,2,3,4,5,6,7,8,y", "8,7,6,5,4,3,2,1,x"))
    assert spec_of(house).features == tuple("abcdefgh")
    assert spec_of(house).classes == ("x", "y", "z")
    with house.store.reading() as tx:
        entries = tx.audit.entries("gas", None, 10, "megabatch.accepted").items
    assert entries[-1].document["parameters"]["inferred_input"]["features"] == list("abcdefgh")


def test_new_names_extend_the_classes_where_they_may(house: House) -> None:
    house.create(unseen_classes="extend", label="kind")
    house.upload_bytes(text("a,b,kind", "1,10,red", "2,20,blue"))
    accepted = house.upload_bytes(text("a,b,kind", "1,10,violet", "3,30,green", "2,20,red"))
    assert classes(house) == ("blue", "red", "green", "violet")
    assert accepted.megabatch.histogram == (0, 1, 1, 1)
    with house.store.reading() as tx:
        (entry,) = tx.audit.entries("gas", None, 10, "model.classes-extended").items
    assert entry.document["parameters"]["added"] == ["green", "violet"]


def test_ten_thousand_names_are_no_classes_unless_declared(house: House) -> None:
    house.create()
    rows = [f"{n},name-{n}" for n in range(ingest.MOST_CLASSES + 1)]
    with pytest.raises(InvalidMegabatch, match=r"input\.classes") as caught:
        house.upload_bytes(text("a,label", *rows))
    assert caught.value.reason == "too-many-labels"
    assert house.upload_bytes(text("a,label", *rows[1:])).new


def test_two_first_uploads_at_once_never_mislabel(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first one is decoded, another one completes the spec: its classes and its order of columns hold."""
    house.create(unseen_classes="extend")
    decode, meanwhile = sandbox.decode, [text("b,a,label", "10,1,red", "20,2,white")]

    def slow(*arguments: Any) -> Any:
        found = decode(*arguments)
        if meanwhile:
            house.upload_bytes(meanwhile.pop())
        return found

    monkeypatch.setattr(sandbox, "decode", slow)
    late = house.upload_bytes(text("a,b,label", "3,30,white", "4,40,azure", "5,50,azure"))
    spec = spec_of(house)
    assert (spec.classes, spec.features) == (("red", "white", "azure"), ("b", "a"))
    assert late.megabatch.histogram == (0, 1, 2)
    assert np.load(house.store.blobs.path(late.megabatch.x)).tolist() == [[30, 3], [40, 4], [50, 5]]
    assert np.load(house.store.blobs.path(late.megabatch.y)).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({"label": ""}, "/label"),
        ({"features": ()}, "/features"),
        ({"features": ("a", "a")}, "/features"),
        ({"features": ("a", "")}, "/features"),
        ({"features": ("a", "b"), "label": "a"}, "/features"),
        ({"features": ("a", "b"), "shape": (3,)}, "/features"),
        ({"resize": "squeeze"}, "/resize"),
    ],
)
def test_columns_that_cannot_work_are_refused(house: House, spec: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInputSpec) as caught:
        house.create(**spec)
    assert [fault[0] for fault in caught.value.errors] == [pointer]


# -- labels that nobody declared ---------------------------------------------------------------------------------------


def labelled(seed: int, *labels: int, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Examples in which these labels occur in turn."""
    return blob_of_examples(seed, n=n)[0], np.resize(np.array(labels, dtype=np.int64), n)


def classes(house: House, name: str = "gas") -> tuple[str, ...] | None:
    return models.describe_model(house.store, name).model.input.classes


def test_an_unseen_label_is_refused_with_both_remedies(house: House) -> None:
    house.create()
    house.upload(seed=1)
    x, y = labelled(2, 0, 1, 7)
    with pytest.raises(InvalidMegabatch) as caught:
        house.upload(x=x, y=y)
    assert caught.value.reason == "label-out-of-range"
    told = str(caught.value)
    assert "label 7 is beyond the model's 3 classes (labels 0 to 2)" in told
    assert "declares all classes" in told and "input.classes" in told and 'input.unseen_classes: "extend"' in told


def test_where_they_may_an_unseen_label_extends_the_classes(house: House) -> None:
    house.create("gas", classes=("good", "bad"), unseen_classes="extend")
    x, y = labelled(1, 0, 1)
    house.upload(x=x, y=y)
    x, y = labelled(2, 0, 4)
    accepted = house.upload(x=x, y=y)
    assert classes(house) == ("good", "bad", "class-2", "class-3", "class-4")
    assert accepted.megabatch.histogram == (12, 0, 0, 0, 12)
    assert house.kinds()[-2:] == ["megabatch.accepted", "model.classes-extended"]
    with house.store.reading() as tx:
        (entry,) = tx.audit.entries("gas", None, 10, "model.classes-extended").items
    assert entry.document["parameters"] == {
        "megabatch": 2, "classes_before": 2, "added": ["class-2", "class-3", "class-4"]
    }  # fmt: skip
    x, y = labelled(3, 4, 3)
    house.upload(x=x, y=y)
    assert house.kinds().count("model.classes-extended") == 1
    first, _ = ingest.get_megabatch(house.store, "gas", 1)
    assert first.histogram == (12, 12), "what was counted stays"


def test_classes_that_were_inferred_extend_too(house: House) -> None:
    house.create("gas", unseen_classes="extend")
    house.upload(seed=1)
    assert classes(house) == ("0", "1", "2")
    x, y = labelled(2, 3)
    house.upload(x=x, y=y)
    assert classes(house) == ("0", "1", "2", "class-3")


def test_a_declared_model_may_begin_with_classes_that_nobody_declared(house: House) -> None:
    house.create("gas", classes=("a", "b"), unseen_classes="extend")
    x, y = labelled(1, 2, 3)
    house.upload(x=x, y=y)
    assert classes(house) == ("a", "b", "class-2", "class-3")
    with house.store.reading() as tx:
        (entry,) = tx.audit.entries("gas", None, 10, "megabatch.accepted").items
    assert entry.document["parameters"]["inferred_input"]["classes"] == list(classes(house) or ())


def test_no_two_classes_get_one_name(house: House) -> None:
    house.create("gas", classes=("class-2", "class-3"), unseen_classes="extend")
    x, y = labelled(1, 0, 3)
    house.upload(x=x, y=y)
    assert classes(house) == ("class-2", "class-3", "class-2-late", "class-3-late")


def test_one_class_alone_is_not_inferred_though_more_may_come(house: House) -> None:
    house.create("gas", unseen_classes="extend")
    x, y = labelled(1, 0)
    with pytest.raises(InvalidMegabatch, match=r"input\.classes") as caught:
        house.upload(x=x, y=y)
    assert caught.value.reason == "one-class"


def test_a_label_beyond_every_sane_number_of_classes_is_a_mistake(house: House) -> None:
    house.create("gas", classes=("a", "b"), unseen_classes="extend")
    x, y = labelled(1, 0, ingest.MOST_CLASSES)
    with pytest.raises(InvalidMegabatch, match=r"more than 10000.*input\.classes") as caught:
        house.upload(x=x, y=y)
    assert caught.value.reason == "label-out-of-range"
    x, y = labelled(1, 0, ingest.MOST_CLASSES - 1)
    house.upload(x=x, y=y)
    assert len(classes(house) or ()) == ingest.MOST_CLASSES


def test_a_model_whose_classes_grew_is_still_the_one_that_was_created(house: House) -> None:
    house.create("gas", classes=("a", "b"), unseen_classes="extend")
    x, y = labelled(1, 0, 1, 2)
    house.upload(x=x, y=y)
    house.create("gas", classes=("a", "b"), unseen_classes="extend")
    house.create("gas", unseen_classes="extend")
    for other in ({"classes": ("a", "c"), "unseen_classes": "extend"}, {"classes": ("a", "b")}, {}):
        with pytest.raises(ModelExists):
            house.create("gas", **other)
    with pytest.raises(InvalidInputSpec, match="unseen_classes"):
        house.create("other", unseen_classes="perhaps")


def test_a_weight_for_each_class_does_not_go_with_classes_that_nobody_declared(house: House) -> None:
    weighted = {**RECIPE, "training": {**RECIPE["training"], "class_weights": [1.0, 2.0]}}
    with pytest.raises(InvalidInputSpec, match="balanced or null"):
        house.create("gas", weighted, classes=("a", "b"), unseen_classes="extend")
    house.create("gas", weighted, classes=("a", "b"))


def test_classes_that_come_at_once_extend_one_after_the_other(house: House) -> None:
    house.create("gas", classes=("a", "b"), unseen_classes="extend")
    batches = [labelled(seed, 0, label) for seed, label in ((1, 3), (2, 4), (3, 2), (4, 4))]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda batch: house.upload(x=batch[0], y=batch[1]), batches))
    assert classes(house) == ("a", "b", "class-2", "class-3", "class-4")


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
