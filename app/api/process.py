"""Process: the application as one API process makes it, from settings in the environment.

Knows: that it may be one of several processes under a supervisor. Must never know: routes.

Law: no API process outlives its supervisor, not even after a kill -9.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

from fastapi import FastAPI

from app.api.application import create_app
from app.config import Settings


def application() -> FastAPI:
    """Factory for the ASGI server."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        threading.Thread(target=_leave_with, args=(supervisor.sentinel,), name="supervisor", daemon=True).start()
    return create_app(Settings())


def _leave_with(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # uvicorn then finishes the requests that are under way
