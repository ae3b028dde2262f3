"""docs/log-format.md is enough: the reader that stands there verifies everything, and no changed bit gets past it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.domain import Actor
from espalier import export
from espalier.client import Client
from espalier.errors import EspalierClientError
from espalier.evidence import read_keys
from espalier.formats.logfile import verify_files
from espalier.formats.note import SignerKey
from tests.api.conftest import House, opened
from tests.lineages import Lineage

PAGE = Path(__file__).parents[2] / "docs" / "log-format.md"
CODE = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)[-1]
READER: dict[str, Any] = {"__name__": "reader"}
exec(compile(CODE, str(PAGE), "exec"), READER)


@dataclass(frozen=True)
class Served:
    """What a service answered, and the public key of its log."""

    folder: Path
    key: str
    before: str
    after: str
    entry: bytes
    inclusion: bytes
    consistency: bytes

    @property
    def keys(self) -> Any:
        return READER["read_keys"](self.key)

    @property
    def bundle(self) -> Path:
        return self.folder / "gas-3.zip"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, migrated: dict[str, str]) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    settings = Settings(data_dir=folder / "data")
    settings.data_dir.mkdir()
    shutil.copyfile(migrated["sqlite"], settings.data_dir / "espalier.db")
    with opened(settings) as house, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPALIER_PINS", str(folder / "pins"))
        patch.setattr(export, "_FILE", 9)
        yield _served(house, folder)


def _served(house: House, folder: Path) -> Served:
    line = Lineage(house.store)
    line.publish()
    before = house.http.get("/v1/audit/checkpoint").text
    line.publish(failed_first=True, steps=2)
    line.publish(prune=0)
    with house.store.transaction(Actor("gräfin \U0001f333")) as tx:
        tx.audit.append(
            "test", model=None, reason='"\\ \x07\n\x7f', parameters={"\ufb33": 0.1, "\U0001f600": 2**60, "a": -0.0}
        )
    after = house.http.get("/v1/audit/checkpoint").text
    size = int(after.split("\n")[1])
    found = house.http.get("/v1/models/gas/versions/3/checkpoint?format=bundle")
    (folder / "gas-3.zip").write_bytes(found.content)
    client = Client("http://localhost:8000", transport=house.http._transport, retries=0)
    for name in ("log", "log.tar"):
        client.export_log(folder / name)
    first = int(before.split("\n")[1])
    return Served(
        folder,
        house.http.get("/v1/audit/keys").json()["keys"][0] + "\n",
        before,
        after,
        house.http.get(f"/v1/audit/{size}").content,
        house.http.get(f"/v1/audit/proofs/inclusion?seq={size}").content,
        house.http.get(f"/v1/audit/proofs/consistency?first={first}").content,
    )


def test_the_reader_knows_nothing_of_espalier() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(CODE))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"cryptography"}


def test_everything_verifies_with_the_public_key_alone(served: Served) -> None:
    manifest = READER["verify_bundle"](served.bundle, served.keys)
    assert (manifest["model"], manifest["version"]) == ("gas", 3)
    size = int(served.after.split("\n")[1])
    assert READER["verify_export"](served.folder / "log", served.keys) == size
    assert READER["verify_export"](served.folder / "log.tar", served.keys) == size
    assert len(list((served.folder / "log" / "entries").iterdir())) > 2
    entry = READER["verify_inclusion"](served.entry, served.inclusion, served.after, served.keys)
    assert entry["parameters"] == {"a": "-0.0", "\U0001f600": str(2**60), "\ufb33": "0.1"}
    READER["verify_consistency"](served.consistency, served.before, served.after, served.keys)


def test_it_runs_as_a_program(served: Served, tmp_path: Path) -> None:
    program = tmp_path / "reader.py"
    program.write_text(CODE, "utf-8")

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", program, served.key.strip(), path]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert run(served.bundle).stdout == "verified: gas, version 3\n"
    assert run(served.folder / "log").stdout.startswith("verified: a log of ")
    (tmp_path / "gas-3.zip").write_bytes(served.bundle.read_bytes()[:-1])
    assert run(tmp_path / "gas-3.zip").returncode == 1


def test_another_key_verifies_nothing(served: Served) -> None:
    name = served.key.split("+")[0]
    other = READER["read_keys"](f"{SignerKey.generate(name).verifier.text}\n")
    for check in (
        lambda: READER["verify_bundle"](served.bundle, other),
        lambda: READER["verify_export"](served.folder / "log", other),
        lambda: READER["verify_inclusion"](served.entry, served.inclusion, served.after, other),
        lambda: READER["verify_consistency"](served.consistency, served.before, served.after, other),
    ):
        with pytest.raises(READER["Refused"], match="not signed by a trusted key"):
            check()


# -- one bit -----------------------------------------------------------------------------------------------------------


def _survivors(whole: bytes, verify: Callable[[bytes], object], step: int = 1) -> list[tuple[int, int]]:
    """Places and bits whose change is not noticed; with a step, one bit of every so many bytes."""
    found = []
    for place in range(0, len(whole), step):
        for bit in range(8) if step == 1 else [place // step % 8]:
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            try:
                verify(bytes(changed))
            except Exception:  # as the page says, whatever the reader raises is a refusal
                continue
            found.append((place, bit))
    return found


@pytest.mark.slow
def test_no_bit_of_a_proof_can_change(served: Served) -> None:
    entry, inclusion, after, keys = served.entry, served.inclusion, served.after, served.keys
    verify = READER["verify_inclusion"]
    assert _survivors(entry, lambda data: verify(data, inclusion, after, keys)) == []
    assert _survivors(inclusion, lambda data: verify(entry, data, after, keys)) == []
    assert _survivors(after.encode(), lambda data: verify(entry, inclusion, data.decode(), keys)) == []
    verify, proof, before = READER["verify_consistency"], served.consistency, served.before
    assert _survivors(proof, lambda data: verify(data, before, after, keys)) == []
    assert _survivors(before.encode(), lambda data: verify(proof, data.decode(), after, keys)) == []


@pytest.mark.slow
def test_no_bit_of_the_key_can_change(served: Served) -> None:
    def verify(data: bytes) -> None:
        READER["verify_consistency"](
            served.consistency, served.before, served.after, READER["read_keys"](data.decode())
        )

    assert _survivors(served.key.encode(), verify) == []


@pytest.mark.parametrize("step", [29, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["log", "log.tar"])
def test_no_bit_of_an_exported_log_can_change(served: Served, tmp_path: Path, name: str, step: int) -> None:
    """Neither the page's reader nor ours lets one pass."""
    path, trusted, strange = tmp_path / name, read_keys(served.key), list[Exception]()
    shutil.copytree(served.folder / "log", tmp_path / "log")
    shutil.copyfile(served.folder / "log.tar", tmp_path / "log.tar")
    for file in sorted(item for item in path.rglob("*") if item.is_file()) or [path]:
        whole = file.read_bytes()

        def by_the_page(data: bytes, file: Path = file) -> None:
            file.write_bytes(data)
            READER["verify_export"](path, served.keys)

        def by_ours(data: bytes, file: Path = file) -> None:
            file.write_bytes(data)
            try:
                verify_files(path, trusted)
            except EspalierClientError as error:
                raise READER["Refused"] from error
            except Exception as error:
                strange.append(error)  # it must be refused in words of its own
                raise

        for verify in (by_the_page, by_ours):
            assert _survivors(whole, verify, step) == [], file
        file.write_bytes(whole)
    assert strange == []


@pytest.mark.parametrize("step", [31, pytest.param(5, marks=pytest.mark.slow)])
def test_no_bit_of_a_bundle_can_change(served: Served, tmp_path: Path, step: int) -> None:
    def verify(data: bytes) -> None:
        (tmp_path / "x.zip").write_bytes(data)
        READER["verify_bundle"](tmp_path / "x.zip", served.keys)

    assert _survivors(served.bundle.read_bytes(), verify, step) == []


def test_no_member_of_a_bundle_can_change_packed_anew(served: Served, tmp_path: Path) -> None:
    """A forger who packs the file again, checksums and all."""
    members = READER["members_of"](served.bundle)

    def packed(changed: dict[str, bytes]) -> Path:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name, content in changed.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o100644 << 16
                archive.writestr(info, content)
        return tmp_path / "x.zip"

    assert packed(members).read_bytes() == served.bundle.read_bytes()
    for name, content in members.items():

        def verify(data: bytes, name: str = name) -> None:
            READER["verify_bundle"](packed(members | {name: data}), served.keys)

        assert _survivors(content, verify, 1 + len(content) // 60) == [], name
