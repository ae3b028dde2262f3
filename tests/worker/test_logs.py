from __future__ import annotations

import logging
import logging.config
import re
import subprocess
import sys

import pytest

from app.worker.logs import UtcFormatter, logging_config


def test_a_line_has_its_time_in_utc() -> None:
    record = logging.LogRecord("espalier.worker", logging.INFO, "file", 1, "cycle %d", (3,), None)
    record.created, record.msecs = 1_767_225_600.25, 250.0
    assert UtcFormatter().format(record) == "2026-01-01T00:00:00.250Z INFO espalier.worker: cycle 3"


@pytest.mark.parametrize(("level", "shown"), [("debug", {"own", "library"}), ("info", {"own"}), ("error", set())])
def test_levels(level: str, shown: set[str]) -> None:
    code = (
        "import logging, logging.config\n"
        "from app.worker.logs import logging_config\n"
        f"logging.config.dictConfig(logging_config({level!r}))\n"
        "logging.getLogger('espalier.worker').info('own')\n"
        "logging.getLogger('apscheduler.scheduler').info('library')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(re.findall(r": (\w+)$", done.stderr, re.MULTILINE)) == shown
    assert done.stdout == ""


def test_the_configuration_is_plain_data() -> None:
    assert logging_config("info")["root"] == {"handlers": ["stderr"], "level": "INFO"}
