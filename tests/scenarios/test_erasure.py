"""Erasure through the whole service: real processes, real cycles, the command line, and a restart."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from espalier import cli
from espalier.formats.megabatch import example_ids
from tests.scenarios.deployment import Deployment, clusters
from tests.scenarios.test_lifecycle import RECIPE

pytestmark = pytest.mark.timeout(300)


def files_with(folder: Path, values: np.ndarray) -> list[Path]:
    rows = [row.tobytes() for row in values]
    return [path for path in folder.rglob("*") if any(row in content(path) for row in rows)]


def content(path: Path) -> bytes:
    """Nothing, where a sweep took the file between the listing and the read."""
    with suppress(FileNotFoundError):
        return path.read_bytes() if path.is_file() else b""
    return b""


@pytest.mark.slow
def test_a_megabatch_and_an_example_are_erased_and_production_goes_on_without_them(
    on_each_database: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = on_each_database
    service = deployment.serve()
    client = deployment.client(service)
    monkeypatch.setenv("ESPALIER_URL", client.url)

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(["batch", *words])
        return code, capsys.readouterr().out

    client.create_model("gas", RECIPE, input={"classes": ["a", "b", "c"]})
    sent = {number: clusters(number) for number in (1, 2, 3)}
    for x, y in sent.values():
        client.upload("gas", x, y, wait=True, timeout=60)

    size = client.audit_head().size
    code, told = run("erase", "gas", "2", "--reason", "consent", "--retrain", "--dry-run")
    assert code == 0
    assert "megabatch 2: 240 examples would go, none left" in told
    assert "versions that took it in, and stay: 2, 3, champion is 3" in told
    assert "the champion would go back to version 1" in told
    assert client.audit_head().size == size
    code, _ = run("erase", "gas", "2", "--reason", "consent")
    assert code != 0, "nobody is there to say yes"
    assert client.audit_head().size == size

    one = str(example_ids(sent[3][0])[5])
    code, out = run("erase", "gas", "2", "--sample", one, "--reason", "consent", "--retrain", "--yes", "--json")
    done = json.loads(out)
    assert (code, done["versions"], done["clean"], done["champion"]["version"]) == (0, [2, 3], 1, 1)
    assert files_with(deployment.data, sent[2][0]) == []
    assert files_with(deployment.data, sent[3][0][5:6]) == []
    assert files_with(deployment.data, sent[3][0][6:7]), "the others are there"
    client.wait_for_cycle("gas", done["queued_cycle"], timeout=60)
    champion = client.version("gas@champion")
    assert (champion.number, champion.parent) == (4, 1)
    assert {seen.megabatch for seen in client.custody.megabatches_of("gas@champion")} <= {1, 3}
    marked = {sample.erased for sample in client.custody.samples("gas:2", megabatch=2)}
    assert marked == {True}
    assert client.verify_log() == client.audit_head().size

    code, out = run("quarantine", "gas", "3", "--reason", "odd")
    assert (code, out) == (0, "megabatch 3 of gas is quarantined\n")
    code, out = run("release", "gas", "3", "--reason", "fine", "--quiet")
    assert (code, out) == (0, "megabatch 3 of gas may be trained on\n")
    code, out = run("erase", "gas", "2", "--reason", "consent", "--yes")
    assert code == 0 and "megabatch 2: erased before" in out and "nothing was erased" in out

    service.send(signal.SIGTERM)
    assert service.ended() == 0
    assert "all is well" in deployment.run("doctor")
    assert files_with(deployment.data, sent[2][0]) == []
