"""What the log signed, checked against what this machine saw of it before: forks, rewinds, other keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from app.config import Settings
from app.domain import Actor
from app.service.notary import Notary
from espalier.client import Client
from espalier.errors import DigestMismatch, EspalierClientError, ProofRejected
from espalier.evidence import read_keys
from espalier.formats.bundle import verify_bundle
from espalier.formats.note import SignerKey, opened, sign
from espalier.pins import Pins
from tests.api.conftest import House
from tests.api.conftest import opened as served
from tests.lineages import Lineage

URL = "http://localhost:8000"
ANA = Actor("ana")


@pytest.fixture
def settings(tmp_path: Path, migrated: dict[str, str]) -> Settings:
    found = Settings(data_dir=tmp_path / "data", log_name="example.com/espalier")
    found.data_dir.mkdir()
    shutil.copyfile(migrated["sqlite"], found.data_dir / "espalier.db")
    return found


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    with served(settings) as found:
        line = Lineage(found.store)
        line.publish()
        line.publish()
        yield found


def client(house: House, **options: object) -> Client:
    """A client of the service; its connections are the application's own."""
    return Client(URL, transport=_Kept(house.http._transport), retries=0, **options)  # type: ignore[arg-type]  # by name


class _Kept(httpx.BaseTransport):
    """A transport that outlives its client."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner
        self.asked: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        return self.inner.handle_request(request)


def grow(house: House, entries: int = 1) -> None:
    for _ in range(entries):
        with house.store.transaction(ANA) as tx:
            tx.audit.append("test", model=None)


# -- what holds --------------------------------------------------------------------------------------------------------


def test_the_first_look_is_trusted_and_remembered(house: House, tmp_path: Path) -> None:
    with client(house) as one:
        first = one.log_checkpoint()
    pin = Pins().read(URL)
    assert pin is not None
    assert (pin.log, pin.given) == (first, False)
    assert [key.text for key in pin.keys] == house.http.get("/v1/audit/keys").json()["keys"]
    grow(house, 3)
    with client(house) as other:
        second = other.log_checkpoint()
    assert second.size == first.size + 3
    assert Pins().read(URL).log == second  # type: ignore[union-attr]  # it is there
    assert [path.name for path in (tmp_path / "pins").iterdir() if path.suffix == ".json"] == [Pins().path(URL).name]


def test_while_the_log_stands_still_nothing_is_written(house: House) -> None:
    with client(house) as one:
        one.log_checkpoint()
        state = Pins().path(URL).stat()
        one.log_checkpoint()
    assert Pins().path(URL).stat().st_mtime_ns == state.st_mtime_ns


def test_entries_are_proved_and_changed_ones_refused(house: House) -> None:
    with client(house) as one:
        entry = one.audit_entry(3)
        assert one.log.prove(entry) == one.log_checkpoint()
        other = {**entry.fact, "reason": "another"}
        changed = type(entry).from_json({**entry.document, "document": other})
        with pytest.raises(ProofRejected, match="does not hash to its leaf"):
            one.log.prove(changed)


def test_a_given_key_is_taken_as_text_and_from_a_file(house: House, tmp_path: Path) -> None:
    (key,) = house.http.get("/v1/audit/keys").json()["keys"]
    (tmp_path / "log.pub").write_text(f"{key}\n")
    for given in (key, tmp_path / "log.pub", str(tmp_path / "log.pub")):
        with client(house, log_key=given) as one:
            one.log_checkpoint()
            assert "/v1/audit/keys" not in one._http._http._transport.asked  # type: ignore[attr-defined]  # ours
    assert Pins().read(URL).given  # type: ignore[union-attr]  # it is there


@pytest.mark.parametrize("given", ["nonsense", "a+b+c", "name+00000000+Aa4P", "\0", "x" * 5000, " "])
def test_what_is_no_key_is_refused_at_once(given: str) -> None:
    with pytest.raises(EspalierClientError, match="no public key"):
        read_keys(given)


# -- what does not -----------------------------------------------------------------------------------------------------


def test_a_rewind_is_refused_and_said(house: House, settings: Settings) -> None:
    with set_back(settings, house) as older:
        with client(house) as one:
            before = one.log_checkpoint()
        with served(older) as set_back_house, client(set_back_house) as one:
            with pytest.raises(ProofRejected, match=r"had \d+ entries and now shows \d+: it was rewound") as refused:
                one.log_checkpoint()
            assert Pins().read(URL).log == before  # type: ignore[union-attr]  # what was seen stays
            kept = Pins().path(URL).with_suffix(".conflict")
            assert str(kept) in str(refused.value)
            signed = opened(kept.read_text(), one.log.trusted())
            assert signed.size < before.size, "the evidence is kept: the service's own signature"


def test_a_fork_is_refused_and_said(house: House, settings: Settings) -> None:
    with set_back(settings, house) as older:
        with client(house) as one:
            one.log_checkpoint()
        with served(older) as forked:
            grow(forked, 30)
            with client(forked) as one, pytest.raises(ProofRejected, match="history was rewritten.*fork"):
                one.log_checkpoint()


def test_a_fork_of_the_same_length_is_refused(house: House, settings: Settings) -> None:
    with set_back(settings, house, 2) as older:
        with client(house) as one:
            one.log_checkpoint()
        with served(older) as forked:
            grow(forked, 2)
            with client(forked) as one, pytest.raises(ProofRejected, match="history was rewritten"):
                one.log_checkpoint()


def test_another_key_is_refused_and_said(house: House, settings: Settings) -> None:
    with client(house) as one:
        one.log_checkpoint()
    other = SignerKey.generate("example.com/espalier")
    _sign_with(settings, other)
    with served(settings) as house_of_another:
        with client(house_of_another) as one, pytest.raises(ProofRejected, match="the key was changed, or another"):
            one.log_checkpoint()
        with client(house_of_another, log_key=other.verifier.text) as one:
            one.log_checkpoint()
        assert Pins().read(URL).keys == (other.verifier,)  # type: ignore[union-attr]  # given by the user: it counts
        with client(house_of_another) as one:
            one.log_checkpoint()


def test_a_key_that_was_given_must_have_signed(house: House) -> None:
    key = SignerKey.generate("example.com/espalier").verifier.text
    with client(house, log_key=key) as one, pytest.raises(ProofRejected, match="the key that you gave did not sign it"):
        one.log_checkpoint()
    assert Pins().read(URL) is None


def test_a_key_that_was_given_does_not_excuse_a_fork(house: House, settings: Settings) -> None:
    (key,) = house.http.get("/v1/audit/keys").json()["keys"]
    with set_back(settings, house) as older:
        with client(house) as one:
            one.log_checkpoint()
        with served(older) as forked:
            grow(forked, 30)
            with client(forked, log_key=key) as one, pytest.raises(ProofRejected, match="fork"):
                one.log_checkpoint()


def test_a_new_epoch_is_refused_until_it_is_looked_into(house: House, settings: Settings) -> None:
    with client(house) as one:
        one.log_checkpoint()
        Notary(house.store, settings).begin_epoch("an old backup", ANA)
        with pytest.raises(ProofRejected, match=r"is now example\.com/espalier/epoch-2.*log\.epoch-began"):
            one.log_checkpoint()
        assert one.log.pins.forget(URL)
        assert one.log_checkpoint().origin == "example.com/espalier/epoch-2"


def test_a_pin_that_cannot_be_read_is_no_first_look(house: House) -> None:
    with client(house) as one:
        one.log_checkpoint()
        path = Pins().path(URL)
        for text in ("", "{}", json.dumps({**json.loads(path.read_text()), "note": "x"})):
            path.write_text(text)
            with pytest.raises(EspalierClientError, match="restore the file"):
                one.log_checkpoint()


def test_a_pin_is_never_replaced_by_an_older_one(house: House) -> None:
    with client(house) as one:
        one.log_checkpoint()
        older = Pins().read(URL)
        assert older is not None
        grow(house)
        newer = one.log_checkpoint()
        Pins().write(older)
    assert Pins().read(URL).log == newer  # type: ignore[union-attr]  # it is there


def test_a_folder_that_cannot_be_written_is_named(house: House, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with client(house, pins=tmp_path / "file") as one, pytest.raises(EspalierClientError, match="ESPALIER_PINS|read"):
        one.log_checkpoint()


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_a_download_is_proved_where_that_is_asked_for(house: House, tmp_path: Path) -> None:
    with client(house) as one:
        path = one.download("gas@champion", tmp_path / "a.safetensors")
        assert Pins().read(URL) is None, "a plain download asks the log nothing"
        one.download("gas@champion", tmp_path / "b.safetensors", verify="log")
        assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
        assert Pins().read(URL) is not None
        with pytest.raises(EspalierClientError, match="sparse form alone"):
            one.download("gas@champion", tmp_path / "c.safetensors", format="dense", verify="log")


def test_with_the_key_every_download_is_proved(house: House, tmp_path: Path) -> None:
    (key,) = house.http.get("/v1/audit/keys").json()["keys"]
    with client(house, log_key=key) as one:
        one.download("gas:1", tmp_path)
        assert "/v1/audit/proofs/inclusion" in one._http._http._transport.asked  # type: ignore[attr-defined]  # ours
        assert (tmp_path / "gas-1.safetensors").is_file()
        one.download("gas:1", tmp_path / "dense", format="dense", verify="digest")


def test_a_version_that_the_log_does_not_know_is_not_kept(house: House, tmp_path: Path) -> None:
    with client(house) as one:
        version = one.version("gas:2")
        other = type(version).from_json(
            {**version.document, "checkpoint": {**version.document["checkpoint"], "digest": "sha256:" + "0" * 64}}
        )
        with pytest.raises(ProofRejected, match="no audit entry names"):
            one.download(other, tmp_path / "x", verify="log")
        with pytest.raises(DigestMismatch):
            one.download(other, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_bundle_is_verified_before_it_gets_its_name(house: House, tmp_path: Path) -> None:
    with client(house) as one:
        plain = one.download("gas:2", tmp_path, format="bundle")
        assert plain.name == "gas-2.zip"
        proved = one.download("gas:2", tmp_path / "b.zip", format="bundle", verify="log")
        assert verify_bundle(proved, one.log.trusted()).version == 2
    stranger = client(house, log_key=SignerKey.generate("other").verifier.text, pins=tmp_path / "others")
    with stranger as one, pytest.raises(ProofRejected, match=r"manifest\.dsse\.json"):
        one.download("gas:2", tmp_path / "c.zip", format="bundle")
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == ["b.zip", "gas-2.zip"]
    assert list(tmp_path.glob(".*.part")) == []


# -- inside ------------------------------------------------------------------------------------------------------------


@contextmanager
def set_back(settings: Settings, house: House, entries: int = 5) -> Iterator[Settings]:
    """The deployment as it was before its last entries, with its key, for someone who hides them."""
    Notary(house.store, settings).verifier_keys()
    older = Settings(data_dir=settings.data_dir.parent / "older", log_name=settings.log_name)
    older.data_dir.mkdir()
    source = sa.make_url(settings.resolved_database_url).database
    assert source is not None
    shutil.copyfile(source, older.data_dir / "espalier.db")
    (older.data_dir / "keys").mkdir(mode=0o700)
    shutil.copy2(settings.log_keys, older.log_keys)
    grow(house, entries)
    yield older


def _sign_with(settings: Settings, signer: SignerKey) -> None:
    """Put another key in the place of the log's, and leave nothing that the old one signed."""
    settings.log_keys.write_text(f"{signer.text}\n")
    kept = settings.data_dir / "log" / "checkpoint"
    body = kept.read_text().partition("\n\n")[0] + "\n"
    kept.write_text(sign(body, [signer]))
