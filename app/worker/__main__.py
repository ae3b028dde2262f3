"""``python -m app.worker``: one worker process, from settings in the environment.

Knows: how a process starts and leaves. Must never know: what it does in between.

Exit status: 0 after a stop in order; 1 when it cannot start, with the remedy on standard error, or has lost its device.
"""

from __future__ import annotations

import argparse
import logging
import logging.config
import os
import sys

from pydantic import ValidationError

from app.config import Settings
from app.errors import EspalierError
from app.service.credentials import spellings
from app.service.opening import open_store
from app.worker import device, parent
from app.worker.logs import logging_config
from app.worker.runner import Worker

log = logging.getLogger("espalier.worker")


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until a signal, or its parent's end, stops it."""
    options = _options(arguments)
    try:
        settings = Settings()
        logging.config.dictConfig(logging_config(settings.log_level, spellings(settings.api_key)))
        logging.captureWarnings(True)
        chosen = device.choose(settings.device)
        device.settle(settings.threads)
        store = open_store(settings)
        store.blobs.check()
        store.check_schema()
        device.warm_up(chosen)
    except (ValidationError, EspalierError, device.NoSuchDevice) as error:
        print(f"espalier worker: {error}", file=sys.stderr)
        return 1
    if options.nice:
        os.nice(options.nice)
    worker = Worker(store, settings, where=chosen)
    _work(worker, options.parent_pipe, str(chosen))
    store.dispose()
    return 1 if worker.broken else 0


def _work(worker: Worker, parent_pipe: int | None, where: str) -> None:
    worker.stop_on_signals()
    if parent_pipe is not None:
        parent.when_closed(parent_pipe, worker.stop)
    log.info("worker %s is ready on %s", worker.name, where)
    worker.run()
    log.info("worker %s has stopped", worker.name)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m app.worker", description="Run a worker; settings come from ESPALIER_*."
    )
    parser.add_argument(
        "--parent-pipe",
        type=int,
        metavar="FD",
        help="stop when this pipe is closed on its other side (0: standard input)",
    )
    parser.add_argument(
        "--nice", type=int, default=0, metavar="N", help="give way to other processes by this much (0 to 19)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    status = main()
    # Background jobs may be in the middle of a sweep; each can be cut anywhere, and leaving must not wait for them.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
