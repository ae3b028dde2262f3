from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.store.migrate import migrate
from app.worker.embedded import COMMAND, EmbeddedWorker


def environment(folder: Path) -> Mapping[str, str]:
    migrate(f"sqlite:///{folder / 'espalier.db'}")
    return os.environ | {"ESPALIER_DATA_DIR": str(folder), "ESPALIER_DATABASE_URL": ""}


def test_it_is_started_again_and_stopped_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "espalier.serve"), EmbeddedWorker(environment(tmp_path)) as worker:
        first = worker.process
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while worker.process is first:
            assert time.monotonic() < end
            time.sleep(0.01)
        second = worker.process
        assert second is not None and second.poll() is None
    assert f"(process {first.pid}) ended with status -9; starting another" in caplog.text
    assert second.poll() is not None


@pytest.mark.slow
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--parent-pipe", "0"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    assert process.stderr is not None and process.stdin is not None
    assert "is ready on" in process.stderr.readline()
    process.stdin.close()
    assert process.wait(10) == 0
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"ESPALIER_DEVICE": "cuda:999"}, "use auto"),
        ({"ESPALIER_TICK_SECONDS": "never"}, "tick_seconds"),
        ({"ESPALIER_DATA_DIR": "{folder}/elsewhere"}, "espalier migrate"),
    ],
)
def test_what_it_cannot_start_with_it_says(tmp_path: Path, settings: dict[str, str], remedy: str) -> None:
    given = {name: value.format(folder=tmp_path) for name, value in settings.items()}
    done = subprocess.run(COMMAND, capture_output=True, text=True, env=environment(tmp_path) | given)
    assert done.returncode == 1
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_another_app_in_the_working_directory_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the wrong app')")
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sys.executable == COMMAND[0]
