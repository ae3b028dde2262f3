"""Logs: one line for a message, in UTC, on standard error; the same for every process of the server.

Knows: the shape of a line, and which libraries say too much. Must never know: who logs what.

Law: no line holds a key, whoever wrote it, tracebacks and the lines of libraries included.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from app.service.credentials import redacted


class UtcFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO espalier.worker: message``."""

    converter = time.gmtime  # type: ignore[assignment]  # typeshed and time.gmtime name their argument differently
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, secret: Sequence[str] = ()) -> None:
        """A formatter.

        Args:
            secret: what no line may hold, besides created keys.
        """
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._secret = tuple(secret)

    def format(self, record: logging.LogRecord) -> str:
        """The line, and its traceback, without keys."""
        return redacted(super().format(record), self._secret)


def logging_config(level: str, secret: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration for ``logging.config.dictConfig``.

    Args:
        level: least severe message to log. At ``debug`` the libraries speak too, and every request is logged.
        secret: what no line may hold: the spellings of the key of the settings.
    """
    libraries = "INFO" if level == "debug" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "app.worker.logs.UtcFormatter", "secret": list(secret)}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
        "loggers": {
            name: {"level": libraries}
            for name in ("alembic", "apscheduler", "httpcore", "httpx", "sqlalchemy", "uvicorn")
        },
    }
