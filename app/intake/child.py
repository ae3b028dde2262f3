"""The decoder's own process: one upload, under limits, then the end.

Knows: how to confine itself, how to decode, and how to say what came of it. Must never know: SQL, torch, HTTP, or who
asks.

Laws:
    * Everything that decoding needs is imported before the job is read, and nothing after the limits are set.
    * The limits are set, for good, before the upload is touched.

It reads its job as one line of JSON from its standard input, answers ``begun`` when it has confined itself, then one
line of JSON: ``decoded``, ``refused``, ``full`` or ``fault``. Without a job it ends by itself.
"""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from app.errors import InvalidMegabatch
from app.intake.arrays import Limits, Reading
from app.intake.decoders import decode

BEGUN = b"begun\n"

_SLACK = 1 << 20
_ORPHAN_SECONDS = 5
_LONGEST_MESSAGE = 1000


def main() -> None:
    """Wait for the job, and do it."""
    sys.meta_path.insert(0, _WithoutPandas())
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return
    job = json.loads(line)
    upload, work, limits = Path(job["upload"]), Path(job["work"]), Limits(**job["limits"])
    confine(limits, upload)
    os.write(sys.stdout.fileno(), BEGUN)
    print(json.dumps(outcome(upload, work, limits, _reading(job["reading"]), job["media"])))


def outcome(
    upload: Path, work: Path, limits: Limits, reading: Reading | None = None, media: str | None = None
) -> dict[str, Any]:
    """Decode, and say what came of it as plain values."""
    try:
        decoded = decode(upload, work, limits, reading or Reading(), media)
        return {"decoded": asdict(decoded) | {"x": None, "y": None, "ids": None}}
    except InvalidMegabatch as refusal:
        return {"refused": [refusal.reason, str(refusal)[:_LONGEST_MESSAGE]]}
    except MemoryError:
        return {"refused": ["too-large", "decoding needs too much memory: send fewer examples at a time"]}
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return {"full": "the disk is full: nothing was kept; try again when there is space"}
        if error.errno == errno.EFBIG:
            return {"refused": ["too-large", "the arrays are over the limit: send fewer examples at a time"]}
        return {"fault": f"the decoder cannot use its files: {error}"}
    except Exception as error:  # what the decoder did not foresee is the upload's doing, and stays in here
        sys.excepthook(*sys.exc_info())
        return {"refused": ["undecodable", f"the upload cannot be decoded ({type(error).__name__}): write it again"]}


def confine(limits: Limits, upload: Path) -> None:
    """Limit this process, for good. What the system cannot limit stays unlimited.

    Memory is limited twice: what it may fill (DATA), and what it may address (AS), which is as much more as mapping the
    upload takes.
    """
    signal.setitimer(signal.ITIMER_REAL, limits.seconds + _ORPHAN_SECONDS)  # ends it even if the parent is gone
    ceilings = {
        resource.RLIMIT_CPU: 2 * math.ceil(limits.seconds) + 1,
        resource.RLIMIT_FSIZE: limits.max_bytes + _SLACK,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = [int(field) for field in statm.read_text().split()]
        size, data = (number * resource.getpagesize() for number in (pages[0], pages[5]))
        ceilings[resource.RLIMIT_AS] = size + limits.memory_bytes + (upload.stat().st_size if upload.exists() else 0)
        ceilings[resource.RLIMIT_DATA] = data + limits.memory_bytes
    for kind, ceiling in ceilings.items():
        hard = resource.getrlimit(kind)[1]
        bound = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
        resource.setrlimit(kind, (bound, bound))


class _WithoutPandas(MetaPathFinder):
    """pyarrow imports pandas, where it is installed, to ask whether it was given a part of it: 0.3 s, and never so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse pandas; leave the rest to others."""
        if fullname == "pandas":
            raise ModuleNotFoundError("the decoder works without pandas", name=fullname)
        return None


def _reading(document: dict[str, Any]) -> Reading:
    """What was a tuple is a list in JSON."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    return Reading(**values)


if __name__ == "__main__":
    main()
