"""Logs: one line for a message, in UTC, on standard error; the same for every process of the server.

Knows: the shape of a line, and which libraries say too much. Must never know: who logs what.
"""

from __future__ import annotations

import logging
import time
from typing import Any


class UtcFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO espalier.worker: message``."""

    converter = time.gmtime  # type: ignore[assignment]  # typeshed and time.gmtime name their argument differently
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")


def logging_config(level: str) -> dict[str, Any]:
    """A configuration for ``logging.config.dictConfig``.

    Args:
        level: least severe message to log. At ``debug`` the libraries speak too, and every request is logged.
    """
    libraries = "INFO" if level == "debug" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "app.worker.logs.UtcFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
        "loggers": {
            name: {"level": libraries}
            for name in ("alembic", "apscheduler", "httpcore", "httpx", "sqlalchemy", "uvicorn")
        },
    }
