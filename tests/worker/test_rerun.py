"""``espalier audit replay``, as it is typed on the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import sqlalchemy as sa
import torch

from app.service.lease import Running
from app.service.training import run_next_cycle
from app.worker import rerun
from tests.worker.conftest import Shop


def replay(shop: Shop, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "espalier", "audit", "replay", *words, "--data-dir", str(shop.folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


@pytest.fixture
def trained(shop: Shop) -> Shop:
    """One version."""
    shop.migrate()
    store = shop.store()
    shop.create(store, "gas")
    shop.upload(store, "gas")
    ended = run_next_cycle(store, shop.settings, running=Running("worker-1"), device=torch.device("cpu"))
    assert ended is not None and ended.version == 1, ended
    return shop


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_its_exit_status_says_what_came_of_it(trained: Shop) -> None:
    same = replay(trained, "gas", "1", "--json", "--quiet")
    assert (same.returncode, same.stderr) == (0, "")
    report = json.loads(same.stdout)
    assert (report["outcome"], report["model"], report["version"], report["findings"]) == ("same", "gas", 1, [])
    assert all(report["files"].values()) and len(report["files"]) == 6
    engine = sa.create_engine(trained.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE versions SET mask_digest = 'sha256:' || substr(mask_digest, 9) || 'f'")
    engine.dispose()
    other = replay(trained, "gas", "--quiet")
    assert other.returncode == 4, other.stderr
    assert "finding: entry " in other.stdout and other.stdout.endswith("not as the log says: see the findings\n")


@pytest.mark.slow
def test_what_cannot_be_replayed_is_said_plainly(
    trained: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESPALIER_DATA_DIR", str(trained.folder))
    assert rerun.main(["gas", "9"]) == 1
    assert capsys.readouterr().err.startswith("espalier: model 'gas' has no version 9: ")
    assert rerun.main(["gas", "champion", "--cycle", "9"]) == 1
    assert capsys.readouterr().err == "espalier: model 'gas' has no cycle 9\n"
    assert rerun.main(["gas", "1", "--device", "cuda:99"]) == 1
    assert capsys.readouterr().err.startswith("espalier: ESPALIER_DEVICE=cuda:99: ")
