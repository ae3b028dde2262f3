"""The evaluation set: received as a megabatch is, pinned by cycles, never trained on."""

from collections.abc import Callable

import numpy as np
import pytest

from app.domain import CycleState, EvaluationSet, Progress
from app.errors import InputUnknown, InvalidMegabatch, UnknownEvaluationSet, UnknownModel
from app.service import cycles, evaluation, history, ingest, outcomes, release
from app.service.lease import Running
from app.service.overlap import ids_of, overlap
from espalier.formats import megabatch
from espalier.formats.checkpoint import decode
from tests.service.conftest import ACTOR, LIMITS, RECIPE, House, blob_of_examples

Arrays = tuple[np.ndarray, np.ndarray]


def put(house: House, arrays: Arrays, name: str = "gas") -> tuple[evaluation.EvaluationView, bool]:
    with house.store.blobs.receiver(LIMITS.max_bytes) as receiver:
        receiver.write(megabatch.encode(*arrays))
        return evaluation.set_evaluation(house.store, name, receiver.finish(), limits=LIMITS, actor=ACTOR)


def in_force(house: House, arrays: Arrays) -> EvaluationSet:
    return put(house, arrays)[0].found


def rows(arrays: Arrays, chosen: slice) -> Arrays:
    return arrays[0][chosen], arrays[1][chosen]


def overlaps(house: House) -> list[int | None]:
    page, _ = ingest.list_megabatches(house.store, "gas", after=None, limit=100)
    return [found.evaluation_overlap for found in page.items]


def events(house: House, kind: str) -> list[dict[str, object]]:
    with house.store.reading() as tx:
        return [entry.document["parameters"] for entry in tx.audit.entries("gas", None, 1000, kind).items]


def test_a_set_is_in_force_audited_and_whole(house: House) -> None:
    house.create()
    house.upload(seed=1)
    x, y = blob_of_examples(2, n=30)
    view, new = put(house, (x, y))
    assert new
    assert (view.found.revision, view.found.examples, view.overlap) == (1, 30, 0)
    assert view.found.digest == megabatch.arrays_digest(x, y)
    assert view.found.histogram == tuple(np.bincount(y, minlength=3))
    assert evaluation.get_evaluation(house.store, "gas") == view
    (told,) = events(house, "evaluation.set")
    assert (told["revision"], told["digest"], told["replaces"], told["overlap"]) == (1, view.found.digest, None, {})
    assert np.array_equal(np.load(house.store.blobs.path(view.found.x)), x)
    assert history.examine(house.store) == []


def test_the_same_set_again_changes_nothing_and_another_one_is_a_revision(house: House) -> None:
    house.create()
    house.upload(seed=1)
    first, second = blob_of_examples(2, n=30), blob_of_examples(3, n=30)
    before = in_force(house, first)
    assert put(house, (first[0].astype(np.float64), first[1].astype(np.int32))) == (
        evaluation.get_evaluation(house.store, "gas"), False
    )  # fmt: skip
    after = in_force(house, second)
    assert (before.revision, after.revision) == (1, 2)
    assert events(house, "evaluation.set")[-1]["replaces"] == before.digest
    assert house.kinds().count("evaluation.set") == 2
    assert in_force(house, first).revision == 3, "one that was in force before is a revision again"


def test_a_model_that_does_not_know_its_input_yet_says_what_to_do(house: House) -> None:
    house.create()
    with pytest.raises(InputUnknown, match=r"upload a megabatch first, .* input\.shape, input\.dtype, input\.classes"):
        put(house, blob_of_examples(1))
    house.create("declared", shape=(8,), dtype="float32", classes=("a", "b", "c"))
    assert put(house, blob_of_examples(1), "declared")[1], "normalisation does not matter for what fits"
    house.create("partly", shape=(8,), classes=("a", "b", "c"))
    with pytest.raises(InputUnknown, match=r"input's dtype yet"):
        put(house, blob_of_examples(1), "partly")
    with pytest.raises(UnknownModel, match="nowhere"):
        put(house, blob_of_examples(1), "nowhere")
    with pytest.raises(UnknownEvaluationSet, match="evaluation-set"):
        evaluation.get_evaluation(house.store, "gas")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y: (x[:, :5], y), "wrong-shape"),
        (lambda x, y: (x.clip(0, 255).astype(np.uint8), y), "wrong-dtype"),
        (lambda x, y: (x, y + 1), "label-out-of-range"),
        (lambda x, y: (x[:0], y[:0]), "empty"),
        (lambda x, y: (x * np.nan, y), "not-finite"),
    ],
)
def test_a_set_must_follow_the_spec_as_a_megabatch_must(
    house: House, change: Callable[..., Arrays], reason: str
) -> None:
    house.create()
    house.upload(seed=1)
    before = house.kinds()
    with pytest.raises(InvalidMegabatch) as caught:
        put(house, change(*blob_of_examples(2)))
    assert caught.value.reason == reason
    assert house.kinds() == before
    with pytest.raises(UnknownEvaluationSet):
        evaluation.get_evaluation(house.store, "gas")


def test_a_set_extends_no_classes(house: House) -> None:
    house.create("gas", unseen_classes="extend")
    house.upload(seed=1)
    with pytest.raises(InvalidMegabatch, match="upload a megabatch with this label first"):
        put(house, blob_of_examples(2, classes=4))
    house.upload(x=blob_of_examples(2, classes=4)[0], y=blob_of_examples(2, classes=4)[1])
    assert len(in_force(house, blob_of_examples(3, classes=4)).histogram) == 4


def test_one_example_of_one_class_is_a_set(house: House) -> None:
    house.create()
    house.upload(seed=1)
    assert in_force(house, rows(blob_of_examples(2), slice(0, 1))).examples == 1


# -- overlap -----------------------------------------------------------------------------------------------------------


def test_megabatches_say_how_many_of_their_examples_are_in_it_before_and_after(house: House) -> None:
    house.create()
    first, second = blob_of_examples(1), blob_of_examples(2)
    house.upload(x=first[0], y=first[1])
    assert overlaps(house) == [None]
    view, _ = put(house, rows(first, slice(0, 25)))
    assert (overlaps(house), view.overlap) == ([25], 25)
    copies = [second, rows(first, slice(0, 7)), rows(first, slice(0, 7))]
    mixed = [np.concatenate(parts) for parts in zip(*copies, strict=True)]
    accepted = house.upload(x=mixed[0], y=mixed[1])
    assert accepted.megabatch.evaluation_overlap == 14
    assert events(house, "megabatch.accepted")[-1]["evaluation_overlap"] == 14
    assert evaluation.get_evaluation(house.store, "gas").overlap == 39
    view, _ = put(house, rows(second, slice(0, 10)))
    assert (overlaps(house), view.overlap) == ([0, 10], 10)
    assert events(house, "evaluation.set")[-1]["overlap"] == {"2": 10}


def test_overlap_is_exact(house: House) -> None:
    def kept(ids: list[int]) -> str:
        path = house.store.blobs.root / "ids.npy"
        np.save(path, np.array(ids, dtype=np.uint64))
        return house.store.blobs.keep(path)[0]

    largest = 2**64 - 1
    held = ids_of(house.store.blobs, kept([5, 1, largest, 5]))
    assert held.tolist() == [1, 5, largest]
    assert overlap(house.store.blobs, kept([0, 1, 2, 5, 5, 6, largest, largest - 1]), held) == 4
    assert overlap(house.store.blobs, kept([0]), held[:0]) == 0


def test_a_megabatch_that_comes_while_a_set_is_counted_is_counted_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.create()
    first, second = blob_of_examples(1), blob_of_examples(2)
    house.upload(x=first[0], y=first[1])
    counted = evaluation._counted

    def slowly(*given: object) -> dict[int, int]:
        found = counted(*given)  # type: ignore[arg-type]
        house.upload(x=second[0], y=second[1])
        return found

    monkeypatch.setattr(evaluation, "_counted", slowly)
    put(house, rows(second, slice(0, 10)))
    assert overlaps(house) == [0, 10]


def test_a_set_that_comes_while_a_megabatch_is_decoded_is_compared_with_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.create()
    house.upload(seed=1)
    second = blob_of_examples(2)
    decoded_draft = ingest.decoded_draft

    def slowly(*given: object) -> object:
        found = decoded_draft(*given)  # type: ignore[arg-type]
        put(house, rows(second, slice(0, 10)))
        return found

    monkeypatch.setattr(ingest, "decoded_draft", slowly)
    assert house.upload(x=second[0], y=second[1]).megabatch.evaluation_overlap == 10
    assert overlaps(house) == [0, 10]


# -- in a cycle --------------------------------------------------------------------------------------------------------


def test_its_examples_are_not_trained_on_and_versions_are_measured_on_it(house: House) -> None:
    house.create()
    first = blob_of_examples(1)
    house.upload(x=first[0], y=first[1])
    found = in_force(house, rows(first, slice(0, 40)))
    ended = house.cycle()
    assert ended is not None
    assert (ended.state, ended.evaluation_revision) == (CycleState.PUBLISHED, 1)
    version = house.champion()
    assert house.manifest()["evaluation_set"] == found.digest
    saved = decode(release.open_checkpoint(house.store, "gas", "1", "sparse").path)
    assert saved.manifest["evaluation_set"] == found.digest
    assert "evaluation_accuracy" in version.metrics
    (trained,) = events(house, "network.trained")
    assert trained["evaluation_overlap"] == 40
    assert int(str(trained["examples"])) <= 80
    (started,) = events(house, "cycle.started")
    assert started["evaluation_set"] == found.digest


def test_without_a_set_the_manifest_says_so(house: House) -> None:
    house.create()
    house.grow(1)
    assert house.manifest()["evaluation_set"] is None
    assert cycles.get_cycle(house.store, "gas", 1).evaluation_revision is None


def test_a_megabatch_that_is_the_set_waits_for_more(house: House) -> None:
    house.create()
    first = blob_of_examples(1)
    house.upload(x=first[0], y=first[1])
    put(house, first)
    ended = house.cycle()
    assert ended is not None
    assert ended.state is CycleState.SUPERSEDED
    assert "more examples" in str(ended.reason)


class Replaces(Running):
    """A worker that is stopped at its fourth step, when another evaluation set comes into force."""

    def __init__(self, house: House, arrays: Arrays) -> None:
        super().__init__("worker-1")
        self.house, self.arrays, self.left = house, arrays, 4

    def at(self, progress: Progress) -> None:
        self.left -= 1
        if self.left == 0:
            put(self.house, self.arrays)
            self.stop()
        super().at(progress)


def test_a_cycle_keeps_the_set_that_it_pinned_also_when_it_is_resumed(house: House, second_house: House) -> None:
    sets = [blob_of_examples(seed, n=30) for seed in (8, 9)]
    for each in (house, second_house):
        each.create()
        each.upload(seed=1)
        put(each, sets[0])
    second_house.cycle()
    house.running = Replaces(house, sets[1])
    released = house.cycle()
    assert released is not None and released.state is CycleState.QUEUED
    house.running = Running("worker-2")
    ended = house.cycle()
    assert ended is not None
    assert (ended.state, ended.evaluation_revision) == (CycleState.PUBLISHED, 1)
    assert house.champion().checkpoint == second_house.champion().checkpoint
    assert events(house, "cycle.started")[-1]["resumed"] is True
    house.upload(seed=2)
    after = house.cycle()
    assert after is not None and after.evaluation_revision == 2


def test_no_set_that_a_cycle_may_have_pinned_is_swept(house: House) -> None:
    house.create()
    house.upload(seed=1)
    older, newer = (in_force(house, blob_of_examples(seed, n=30)) for seed in (8, 9))
    settings = house.settings.model_copy(update={"orphan_grace_seconds": 0.0})
    outcomes.sweep(house.store, settings, ACTOR)
    assert all(house.store.blobs.has(digest) for found in (older, newer) for digest in (found.x, found.y, found.ids))
    path = house.store.blobs.path(older.ids)
    path.chmod(0o644)
    path.write_bytes(b"rot")
    (finding,) = history.examine(house.store)
    assert finding.subject == "evaluation set 1 of gas"


def test_preset_of_the_paper_selects_no_epoch_on_it(house: House) -> None:
    """Rows of the set are on no side of the split, so a best epoch is not selected on them either."""
    house.create("gas", {**RECIPE, "preset": "app-paper", "validation_share": 0.5})
    first = blob_of_examples(1)
    house.upload(x=first[0], y=first[1])
    put(house, rows(first, slice(0, 60)))
    assert house.cycle() is not None
    (trained,) = events(house, "network.trained")
    assert int(str(trained["selection_examples"])) + int(str(trained["examples"])) <= 60


def put_bytes(house: House, data: bytes) -> evaluation.EvaluationView:
    with house.store.blobs.receiver(LIMITS.max_bytes) as receiver:
        receiver.write(data)
        return evaluation.set_evaluation(house.store, "gas", receiver.finish(), limits=LIMITS, actor=ACTOR)[0]


def test_a_set_with_columns_goes_by_the_models_names_and_extends_nothing(house: House) -> None:
    house.create(unseen_classes="extend")
    house.upload_bytes(b"a,b,label\n1,10,red\n2,20,blue\n")
    view = put_bytes(house, b"label,b,a\nred,10,1\nred,30,3\n")
    assert np.load(house.store.blobs.path(view.found.x)).tolist() == [[1, 10], [3, 30]]
    assert (view.found.histogram, view.overlap) == ((0, 2), 1)
    with pytest.raises(InvalidMegabatch, match="'green'") as caught:
        put_bytes(house, b"a,b,label\n1,10,green\n")
    assert caught.value.reason == "unknown-class"
    assert view.input.classes == ("blue", "red")


def test_a_set_with_columns_needs_a_model_that_knows_its_columns(house: House) -> None:
    house.create(shape=(2,), dtype="float32", classes=("red", "blue"))
    with pytest.raises(InputUnknown, match=r"input\.features"):
        put_bytes(house, b"a,b,label\n1,10,red\n")
