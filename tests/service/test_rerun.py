"""A cycle that made a version is run once more, and is the same; whatever was changed behind the log is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from app.domain import Progress
from app.errors import CorruptBlob, NotRecorded
from app.service import outcomes, release, rerun, retention
from app.service.erasure import Asked, erase
from app.service.inputs import decode_inputs
from app.service.lease import Running
from app.service.rerun import CannotRerun, Outcome, Report
from app.store.database import Store
from espalier.formats.custody import decode_falls, encode_falls
from tests.service.conftest import ACTOR, House, blob_of_examples
from tests.service.test_records import GRADUAL, SAMPLED, set_evaluation
from tests.service.test_training import DiesAt, Killed

CPU = torch.device("cpu")


def quiet(progress: Progress, snapshot: Callable[[], bytes]) -> None:
    """An observer that looks away."""


def replayed(house: House, ref: str = "champion", *, until: int | None = None) -> Report:
    subject = rerun.subject_of(house.store, "gas", ref)
    return rerun.rerun(house.store, subject, until=until, device=CPU, observe=quiet)


def everything(store: Store) -> dict[str, list[Any]]:
    """Every row of every table, and every blob."""
    found: dict[str, list[Any]] = {"blobs": sorted(blob.digest for blob in store.blobs.stored())}
    engine = sa.create_engine(store._engine.url)
    with engine.connect() as connection:
        tables = sa.MetaData()
        tables.reflect(engine)
        for table in tables.sorted_tables:
            found[table.name] = sorted(map(str, connection.execute(sa.select(table))))
    engine.dispose()
    return found


def behind_the_back(store: Store, *statements: str, **values: object) -> None:
    engine = sa.create_engine(store._engine.url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement), values if ":" in statement else {})
    engine.dispose()


@pytest.fixture(params=[SAMPLED, GRADUAL], ids=["sampled", "gradual"])
def grown(house: House, request: pytest.FixtureRequest) -> House:
    """Two versions, the second one of a cycle that was killed on the way and went on; an evaluation set before it."""
    house.create("gas", request.param)
    house.grow(1)
    set_evaluation(house, *blob_of_examples(9))
    house.upload(seed=2)
    settings = house.settings
    house.settings = settings.model_copy(update={"snapshot_seconds": 0.0})
    house.running = DiesAt("doomed", 14)
    with pytest.raises(Killed):
        house.cycle()
    outcomes.reclaim(house.store, house.settings, ACTOR, list)
    house.running, house.settings = Running("second"), settings
    ended = house.cycle()
    assert ended is not None and ended.version == 2, ended
    return house


@pytest.mark.slow
@pytest.mark.parametrize("ref", ["1", "2"])
def test_a_replayed_cycle_is_the_same_and_changes_nothing(grown: House, ref: str) -> None:
    before = everything(grown.store)
    report = replayed(grown, ref)
    assert (report.outcome, report.findings, report.conditions) == (Outcome.SAME, (), ())
    assert report.files == dict.fromkeys(rerun.FILES, True)
    assert report.steps and not any(step.differing for step in report.steps)
    assert report.layers and not any(layer.differing for layer in report.layers)
    assert everything(grown.store) == before


def test_up_to_a_step(grown: House) -> None:
    whole = replayed(grown)
    for until in range(1, len(whole.steps) + 1):
        report = replayed(grown, until=until)
        assert (report.outcome, report.files) == (Outcome.SAME, None)
        assert report.steps == whole.steps[:until]
    with pytest.raises(CannotRerun, match=f"made {len(whole.steps)} pruning steps"):
        replayed(grown, until=len(whole.steps) + 1)


def _edited_entry(house: House, kind: str, **parameters: object) -> None:
    with house.store.reading() as tx:
        entry = tx.audit.entries("gas", None, 1000, kind).items[-1]
    document = json.dumps({**entry.document, "parameters": {**entry.document["parameters"], **parameters}})
    unguarded = {
        "sqlite": "DROP TRIGGER audit_entries_refuse_update",
        "postgresql": "ALTER TABLE audit_entries DISABLE TRIGGER USER",
    }
    edit = "UPDATE audit_entries SET document = :document WHERE seq = :seq"
    behind_the_back(house.store, unguarded[house.store.dialect], edit, document=document, seq=entry.seq)


def test_an_edited_entry_is_found(grown: House) -> None:
    _edited_entry(grown, "mask.pruned", mask_digest_after="sha256:" + "0" * 64, threshold="0.5")
    report = replayed(grown)
    assert report.outcome is Outcome.DIFFERS
    assert report.steps[-1].differing == ("mask_digest_after", "threshold")
    assert f"entry {report.steps[-1].seq} says" in report.findings[-1]


def test_another_checkpoint_or_mask_is_found(grown: House) -> None:
    other = release.get_version(grown.store, "gas", "1").version
    behind_the_back(
        grown.store, "UPDATE versions SET checkpoint = :checkpoint WHERE number = 2", checkpoint=other.checkpoint
    )
    report = replayed(grown, "2")
    assert report.outcome is Outcome.DIFFERS
    assert "its checkpoint is not the version's" in report.findings
    assert any("does not name the version's checkpoint" in finding for finding in report.findings)


def test_other_falls_are_counted_by_layer(grown: House) -> None:
    version = grown.champion()
    falls = {name: steps.copy() for name, steps in decode_falls(grown.store.blobs.read(str(version.falls))).items()}
    name = next(iter(falls))
    falls[name].reshape(-1)[:3] = [1 if step == 0 else 0 for step in falls[name].reshape(-1)[:3]]
    forged = grown.store.blobs.put(encode_falls(falls))
    behind_the_back(grown.store, "UPDATE versions SET falls = :falls WHERE number = 2", falls=forged)
    report = replayed(grown)
    assert report.outcome is Outcome.DIFFERS
    assert {layer.name: layer.differing for layer in report.layers if layer.differing} == {name: 3}


def test_another_recipe_is_found(grown: House) -> None:
    with grown.store.reading() as tx:
        document = dict(tx.ledger.recipe("gas").document)
    behind_the_back(
        grown.store, "UPDATE recipes SET document = :document", document=json.dumps({**document, "seed": 99})
    )
    report = replayed(grown)
    assert report.outcome is Outcome.DIFFERS
    assert report.findings == ("revision 1 of the recipe is not the one that the cycle was given",)


@pytest.mark.slow
def test_under_other_threads_differences_are_counted_and_not_judged(grown: House) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        report = replayed(grown)
    finally:
        torch.set_num_threads(threads)
    assert report.conditions == (f"threads was {threads} and is {threads + 1}",)
    assert report.outcome in (Outcome.SAME, Outcome.ELSEWHERE)
    assert report.findings == ()
    assert len(report.layers) == 2


def test_a_difference_elsewhere_is_no_finding(grown: House) -> None:
    """Inputs that say that another torch ran the cycle, and a mask that is another one."""
    subject = rerun.subject_of(grown.store, "gas", "2")
    elsewhere = replace(subject.inputs, environment={**subject.inputs.environment, "torch": "1.0"}, attempt=1)
    report = rerun.rerun(grown.store, replace(subject, inputs=elsewhere), until=None, device=CPU, observe=quiet)
    assert (report.outcome, report.findings) == (Outcome.ELSEWHERE, ())
    assert report.conditions[0].startswith("torch was 1.0 and is")
    assert any(layer.differing for layer in report.layers)


def test_what_was_erased_is_named(grown: House) -> None:
    erase(grown.store, "gas", Asked(megabatches=(1,)), reason="asked to", actor=ACTOR)
    report = replayed(grown, "2")
    assert report.outcome is Outcome.GONE
    assert [gone.split(" (")[0] for gone in report.gone] == ["megabatch 1"]


def test_single_examples_that_were_erased_are_named(grown: House) -> None:
    inputs = decode_inputs(grown.store.blobs.read(str(grown.champion().inputs)))
    ids = _ids(grown, inputs.megabatches[1].ids)
    erase(grown.store, "gas", Asked(samples=(ids[0], ids[1])), reason="asked to", actor=ACTOR)
    report = replayed(grown, "2")
    assert report.outcome is Outcome.GONE
    assert report.gone[0].startswith("2 examples of megabatch 2 (erased on ")
    assert replayed(grown, "1").outcome is Outcome.SAME


def _ids(house: House, digest: str) -> list[int]:
    found: list[int] = np.load(house.store.blobs.path(digest)).tolist()
    return found


@pytest.mark.slow
def test_what_retention_gave_up_is_named(grown: House) -> None:
    grown.upload(seed=3)
    grown.cycle()
    grown.upload(seed=4)
    grown.cycle()
    grown.settings = grown.settings.model_copy(update={"keep_versions": 1, "orphan_grace_seconds": 0.0})
    retention.retain(grown.store, grown.settings, ACTOR)
    report = replayed(grown, "2")
    assert report.outcome is Outcome.GONE
    assert report.gone[0].startswith("checkpoint and state of version 1, its parent (given up on ")


def test_cycles_without_a_version_and_versions_without_inputs(grown: House) -> None:
    assert rerun.subject_of(grown.store, "gas", "champion", 1).version.number == 1
    grown.upload(seed=3)
    with pytest.raises(CannotRerun, match=r"made no version \(it is queued\)"):
        rerun.subject_of(grown.store, "gas", "champion", 3)
    strange = grown.store.blobs.put(b"{}")
    behind_the_back(grown.store, "UPDATE versions SET inputs = :inputs WHERE number = 1", inputs=strange)
    with pytest.raises(CorruptBlob, match="espalier-inputs-1"):
        replayed(grown, "1")
    behind_the_back(grown.store, "UPDATE versions SET inputs = NULL WHERE number = 1")
    with pytest.raises(NotRecorded):
        replayed(grown, "1")
