"""Bundles, as the service makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cyclonedx.schema
import pytest
import sqlalchemy as sa
from jsonschema_rs import Draft7Validator, Registry

from app.config import Settings
from app.domain import CHAMPION
from app.errors import CorruptBlob, Fault, UnknownVersion, VersionSwept
from app.service.bom import bom
from app.service.bundle import open_bundle
from app.service.card import card
from app.service.facts import gather
from app.service.notary import Notary
from app.store.database import Store
from espalier.formats import bundle
from espalier.formats.archive import Archive
from espalier.formats.bundle import verify_bundle
from tests.builders import ACTOR
from tests.lineages import Lineage


@pytest.fixture
def notary(store: Store, database_url: str, tmp_path: Path) -> Notary:
    return Notary(store, Settings(data_dir=tmp_path / "data", database_url=database_url))


@pytest.fixture
def line(store: Store) -> Lineage:
    return Lineage(store)


def members(path: Path) -> dict[str, bytes]:
    with Archive(path) as archive:
        return {name: archive.read(name, 1 << 30) for name in archive.members}


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in members(path)[bundle.ENTRIES].splitlines()]


def staged(store: Store) -> list[Path]:
    return list((store.blobs.root / "staging").iterdir())


def test_a_bundle_holds_the_whole_lineage_and_nothing_of_others(store: Store, notary: Notary, line: Lineage) -> None:
    other = Lineage(store, "other")
    for _ in range(3):
        line.publish()
        other.publish()
    line.publish(passed=False)
    last = line.publish(failed_first=True)
    with open_bundle(store, notary, "gas", str(last.number)) as found:
        verified = verify_bundle(found.path, notary.verifier_keys())
        told = entries(found.path)
        assert found.size == found.path.stat().st_size
    assert [made.version for made in verified.lineage] == [5, 3, 2, 1], "version 4 was withheld, and is no ancestor"
    assert {entry["model"] for entry in told} == {"gas"}
    kinds = [entry["kind"] for entry in told]
    for kind in ("model.created", "cycle.started", "mask.pruned", "cycle.failed", "cycle.judged", "alias.moved"):
        assert kind in kinds
    versions = [entry["parameters"]["version"] for entry in told if entry["kind"] == "version.published"]
    assert versions == [1, 2, 3, 5]
    assert staged(store) == []


def test_a_withheld_version_has_its_bundle_too(store: Store, notary: Notary, line: Lineage) -> None:
    line.publish()
    withheld = line.publish(passed=False)
    with open_bundle(store, notary, "gas", str(withheld.number)) as found:
        verify_bundle(found.path, notary.verifier_keys())
        page = members(found.path)[bundle.CARD].decode()
    assert "Guardrails did not pass (withhold). The version was withheld." in page
    assert "- accuracy fell by 0.1" in page


def test_a_lineage_in_which_a_class_was_added(store: Store, notary: Notary, line: Lineage) -> None:
    line.publish()
    line.extend()
    grown = line.publish()
    line.publish()
    with open_bundle(store, notary, "gas", CHAMPION) as found:
        assert verify_bundle(found.path, notary.verifier_keys()).grown == (grown.number,)
        assert "model.classes-extended" in [entry["kind"] for entry in entries(found.path)]


def test_while_the_log_stands_still_the_bytes_are_the_same(store: Store, notary: Notary, line: Lineage) -> None:
    line.publish()
    digests = []
    for _ in range(2):
        with open_bundle(store, notary, "gas", "1") as found:
            digests.append(found.digest)
    line.publish()
    with open_bundle(store, notary, "gas", "1") as found:
        digests.append(found.digest)
        assert verify_bundle(found.path, notary.verifier_keys()).version == 1
    assert digests[0] == digests[1] != digests[2]


def test_a_rotated_key_signs_beside_the_old_one(store: Store, notary: Notary, line: Lineage) -> None:
    line.publish()
    (old,) = notary.verifier_keys()
    new = notary.rotate("a year is over", ACTOR)
    with open_bundle(store, notary, "gas", "1") as found:
        assert verify_bundle(found.path, [old]).signers == (old,)
        assert set(verify_bundle(found.path, [new, old]).signers) == {old, new}


def test_a_long_lineage_takes_few_statements(store: Store, notary: Notary, line: Lineage) -> None:
    def statements() -> int:
        asked: list[str] = []

        def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            asked.append(statement)

        sa.event.listen(sa.Engine, "before_cursor_execute", note)
        try:
            with open_bundle(store, notary, "gas", CHAMPION) as found:
                verify_bundle(found.path, notary.verifier_keys())
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", note)
        return len(asked)

    line.publish()
    notary.checkpoint()
    few = statements()
    for _ in range(8):
        line.publish()
    notary.checkpoint()
    assert statements() <= few + 10


def test_damage_is_not_handed_out(store: Store, notary: Notary, line: Lineage) -> None:
    version = line.publish()
    path = store.blobs.path(version.checkpoint)
    path.chmod(0o644)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\0\0")
    with pytest.raises(CorruptBlob), open_bundle(store, notary, "gas", "1"):
        pass
    path.write_bytes(whole)
    with pytest.raises(UnknownVersion), open_bundle(store, notary, "gas", "7"):
        pass
    assert staged(store) == []


def test_a_changed_entry_is_not_handed_out(store: Store, notary: Notary, line: Lineage) -> None:
    line.publish()
    notary.checkpoint()
    with _unguarded(store) as connection:
        connection.exec_driver_sql(
            "UPDATE audit_entries SET document = replace(document, 'cycle', 'Cycle') WHERE kind = 'cycle.judged'"
        )
    with pytest.raises(Fault, match="was changed"), open_bundle(store, notary, "gas", "1"):
        pass
    assert staged(store) == []


@contextmanager
def _unguarded(store: Store) -> Iterator[sa.Connection]:
    """What whoever holds the database can do: the triggers are away."""
    engine = sa.create_engine(store._engine.url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ALTER TABLE audit_entries DISABLE TRIGGER USER")
        else:
            names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all()
            for name in names:
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
        yield connection
    engine.dispose()


def test_a_swept_version_has_none(store: Store, notary: Notary, line: Lineage) -> None:
    line.publish()
    line.publish()
    with store.transaction(ACTOR) as tx:
        model = tx.ledger.lock_model("gas")
        tx.ledger.sweep_version(model, 1, "too old")
        tx.audit.append("data.swept", model="gas", parameters={"version": 1})
    with pytest.raises(VersionSwept), open_bundle(store, notary, "gas", "1"):
        pass
    with open_bundle(store, notary, "gas", "2") as found:
        assert len(verify_bundle(found.path, notary.verifier_keys()).lineage) == 2, "the log still knows it"


# -- card and bill of materials ----------------------------------------------------------------------------------------


def test_the_card_says_facts_and_what_is_absent(store: Store, line: Lineage) -> None:
    version = line.publish()
    page = card(gather(store, version))
    for fact in (
        "# gas, version 1",
        f"`{version.checkpoint}`",
        "| validation_accuracy | 0.75 |",
        "| evaluation_accuracy | not measured |",
        "| owl | 0 | not measured |",
        "| 0.weight | 3 x 32 | 94 | 96 | 0.979167 |",
        "- accuracy-drop (at_most 0.02, then hold)",
        "factor (stages 8, target 0.1)",
        "Evaluation set: none.",
        "Nothing was measured on the evaluation set: there is none",
        "an accuracy on few of them says little.",
    ):
        assert fact in page, fact
    assert card(gather(store, version)) == page


def test_names_of_users_cannot_format_the_card(store: Store, line: Lineage) -> None:
    page = card(gather(store, line.publish()))
    assert "dog\\|\\<b\\>" in page
    assert "<b>" not in page
    tables = [row for row in page.splitlines() if row.startswith("|")]
    assert all(row.replace("\\|", "").count("|") in (3, 4, 6, 7) for row in tables)


def test_the_card_of_a_long_lineage_stays_short(store: Store, line: Lineage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.service.card._ROWS", 2)
    for _ in range(7):
        version = line.publish(prune=0)
    page = card(gather(store, version))
    assert "5 older versions are in `audit/entries.jsonl`." in page
    assert "5 older ones are in `bom.cdx.json`." in page
    assert len(json.loads(bom(gather(store, version)))["components"]) == 7 + 2


def test_the_bill_of_materials_is_valid_cyclonedx(store: Store, line: Lineage) -> None:
    line.publish()
    version = line.publish()
    document = json.loads(bom(gather(store, version)))
    assert sorted(map(str, _validator().iter_errors(document))) == []
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": version.checkpoint.removeprefix("sha256:")}]
    assert {"type": "validation_accuracy", "value": "0.80000000000000004", "slice": "class dog|<b>"} in (
        model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    )
    refs = [dataset["ref"] for dataset in model["modelCard"]["modelParameters"]["datasets"]]
    assert refs == ["espalier:gas@2/megabatch-1", "espalier:gas@2/megabatch-2"]
    assert [c["version"] for c in document["components"] if c["type"] == "library"] == ["0.1.0", "2.13.0+cpu"]
    broken = {**document, "specVersion": 3}
    assert list(_validator().iter_errors(broken)), "the schema does refuse"


def _validator() -> Draft7Validator:
    """The schemas of CycloneDX 1.6, as they are published."""
    folder = Path(cyclonedx.schema.__file__).parent / "_res"
    schema = json.loads((folder / "bom-1.6.SNAPSHOT.schema.json").read_text())
    others = {name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text()) for name in ("spdx", "jsf-0.82")}
    known = [(f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json", found) for name, found in others.items()]
    return Draft7Validator(schema, registry=Registry(known))
