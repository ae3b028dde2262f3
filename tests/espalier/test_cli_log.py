"""Commands about the log and bundles, against a real service."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.client import Client
from tests.espalier.conftest import Service
from tests.espalier.test_cli import Run
from tests.espalier.test_cli import run as run  # a fixture


@pytest.fixture
def log_key(client: Client) -> str:
    """As whoever set up the service would hand it over."""
    return client.log.trusted()[0].text


def test_a_bundle_is_pulled_and_verified(
    run: Run, trained: str, log_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = run("version", "pull", trained, "--format", "bundle", "-o", tmp_path)
    path = tmp_path / f"{trained}-2.zip"
    assert pulled.code == 0
    assert pulled.out.endswith(f"espalier verify {path} --key KEY\n")
    monkeypatch.setenv("ESPALIER_URL", "http://127.0.0.1:9")  # nothing is asked of any service from here on
    done = run("verify", path, "--key", log_key)
    assert done.code == 0
    assert f"{trained}:2 is verified" in done.out
    assert "lineage     2 versions, down from version 1, without a gap" in done.out
    told = run("verify", path, "--json", "--key", log_key).json
    assert (told["verified"], told["lineage"], told["signers"]) == (True, [2, 1], [log_key])
    (tmp_path / "log.pub").write_text(log_key)
    assert run("verify", path, "--key", tmp_path / "log.pub").code == 0
    monkeypatch.setenv("ESPALIER_LOG_KEY", log_key)
    assert run("verify", path, "-q").code == 0


def test_without_the_key_nothing_is_verified(run: Run, trained: str, log_key: str, tmp_path: Path) -> None:
    run("version", "pull", trained, "--format", "bundle", "-o", tmp_path / "b.zip")
    done = run("verify", tmp_path / "b.zip")
    assert done.code == 4
    assert "is NOT verified: it agrees with itself" in done.err and log_key in done.err
    assert "is verified" not in done.out
    wrong = run("verify", tmp_path / "b.zip", "--key", "nonsense")
    assert (wrong.code, "no public key of a log" in wrong.err) == (1, True)
    whole = bytearray((tmp_path / "b.zip").read_bytes())
    whole[whole.index(b"# ") + 2] ^= 1
    (tmp_path / "b.zip").write_bytes(whole)
    for options in ((), ("--key", log_key)):
        bad = run("verify", tmp_path / "b.zip", *options)
        assert (bad.code, bad.err.startswith("error: MODEL_CARD.md: ")) == (4, True)


def test_the_log_is_verified_with_its_signature(run: Run, trained: str, log_key: str, service: Service) -> None:
    first = run("audit", "verify")
    assert first.code == 0
    assert "trusted since this machine first saw it" in first.out
    second = run("audit", "verify", trained, "--log-key", log_key)
    assert "it continues the log of" in second.out
    assert "2 versions" in second.out
    assert "inclusion proofs of the service hold" in second.out
    told = run("audit", "verify", "--json").json
    assert (told["verified"], told["keys"], told["head"]["size"]) == (True, [log_key], told["signed"]["size"])
    other = log_key.partition("+")[0] + "+5e0ac93e+Ad2ttSIQvIJzcSYbK7o8bjqZLZJwZBlvmwlqPrTx"
    assert run("audit", "verify", "--log-key", other).code == 1, "no key at all"


def test_an_entry_is_shown_with_its_proof(run: Run, trained: str) -> None:
    shown = run("audit", "show", 1, "--proof")
    assert shown.code == 0
    assert "proof" in shown.out and "it is entry 1 of the signed log of" in shown.out
    told = run("audit", "show", 1, "--proof", "--json").json
    assert told["seq"] == 1 and told["proved"]["size"] >= 1
    assert "proved" not in run("audit", "show", 1, "--json").json


@pytest.mark.parametrize("name", ["log", "log.tar"])
def test_the_log_is_exported_and_verified_offline(
    run: Run, trained: str, log_key: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    first = run("audit", "export", path, "--json").json
    again = run("audit", "export", path, "--json").json
    assert (first["added"], again["added"], again["entries"]) == (first["entries"], 0, first["entries"])
    monkeypatch.setenv("ESPALIER_URL", "http://127.0.0.1:9")
    for option in ("--key", "--log-key"):
        done = run("audit", "verify", "--offline", path, option, log_key)
        assert (done.code, "are those that were signed" in done.out) == (0, True)
    keyless = run("audit", "verify", "--offline", path)
    assert (keyless.code, "is NOT verified" in keyless.err) == (4, True)
    (file,) = [path] if path.is_file() else path.glob("entries/*")
    file.write_bytes(file.read_bytes().replace(b"model.created", b"model.forged1", 1))
    forged = run("audit", "verify", "--offline", path, "--key", log_key)
    assert (forged.code, "do not rely on it" in forged.err, "espalier doctor" in forged.err) == (4, True, True)


def test_pulls_are_proved_where_that_is_asked_for(run: Run, trained: str, tmp_path: Path) -> None:
    done = run("version", "pull", trained, "-o", tmp_path, "--proof")
    assert (done.code, "proved to be in the log" in done.out) == (0, True)
    assert run("version", "pull", trained, "-o", tmp_path, "--json").json["proved"] is False
    dense = run("version", "pull", trained, "-o", tmp_path / "d", "--format", "dense", "--proof")
    assert (dense.code, "sparse form alone" in dense.err) == (1, True)


def test_pins_are_shown_and_forgotten(run: Run, log_key: str, service: Service) -> None:
    shown = run("audit", "pin")
    assert log_key in shown.out and "first saw it" in shown.out
    assert run("audit", "pin", "--json").json["url"] == service.url
    assert run("audit", "pin", "--forget").out == "forgotten\n"
    assert run("audit", "pin", "--forget").out == "nothing was remembered\n"
