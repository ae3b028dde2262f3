"""Run a decoder where it can do no harm: a subprocess with a clean environment, resource limits and a deadline.

Knows: how to start the decoder, what it may use, and what its end means. Must never know: SQL, torch, HTTP.

Laws:
    * Whatever the upload does to the decoder (hang, crash, eat memory), the caller gets ``InvalidMegabatch`` in time.
    * The child inherits no environment, descriptor or secret: it gets two paths and three numbers, and answers with one
      line of JSON.
    * The machine's fault is not called the upload's: a full disk raises ``StorageFull``, a decoder that cannot start
      ``Fault``.

``python -m app.intake.sandbox <upload> <work> <max_bytes> <seconds> <memory_bytes>`` is the child.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.errors import Fault, InvalidMegabatch, StorageFull
from app.intake.decoders import DecodedFiles, Limits, decode_npz
from app.intake.weights import check_weights

__all__ = ["DecodedFiles", "Limits", "check_weights", "decode"]

_log = logging.getLogger(__name__)

_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""All that the child's environment holds beside the module path: thread pools would only cost it address space."""

_SLACK = 1 << 20
_ORPHAN_SECONDS = 5


def decode(path: Path, work: Path, limits: Limits) -> DecodedFiles:
    """Decode an npz upload into ``work/x.npy``, ``work/y.npy`` and ``work/ids.npy``, in a sandbox.

    Args:
        path: the upload; nothing about it is trusted.
        work: an empty folder; after a refusal it may hold partial files.
        limits: for the child: bytes of the arrays, seconds by the wall clock, memory beyond the bare decoder's.

    Raises:
        InvalidMegabatch: with the decoder's reason (``app.intake.decoders``); ``too-slow``, ``too-large`` and
            ``undecodable`` when it came to no end of its own.
        StorageFull: the disk of ``work`` is full.
        Fault: the decoder could not be started or could not read or write its files.
    """
    paths = [os.path.abspath(entry) for entry in sys.path]
    arguments = (str(path.absolute()), str(work.absolute()), limits.max_bytes, limits.seconds, limits.memory_bytes)
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-s", "-m", "app.intake.sandbox", *map(str, arguments)],
            cwd=work,
            env={**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limits.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_slow(limits) from None
    answer = _answer(child.stdout)
    if answer is None:
        raise _death(child, limits)
    if "refused" in answer:
        raise InvalidMegabatch(*answer["refused"])
    if "full" in answer:
        raise StorageFull(answer["full"])
    if "fault" in answer:
        raise Fault(answer["fault"])
    return _files(answer["decoded"], work)


def _answer(stdout: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(stdout)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _files(decoded: dict[str, Any], work: Path) -> DecodedFiles:
    """The child's answer as a value; where the files are is not the child's to say."""
    return DecodedFiles(
        **decoded
        | {
            "x": work / "x.npy",
            "y": work / "y.npy",
            "ids": work / "ids.npy",
            "shape": tuple(decoded["shape"]),
            "labels": tuple((label, count) for label, count in decoded["labels"]),
        }
    )


def _death(child: subprocess.CompletedProcess[bytes], limits: Limits) -> Exception:
    """What the end of a child that gave no answer means."""
    _log.warning("decoder ended with %d: %s", child.returncode, child.stderr[-2000:].decode(errors="replace"))
    if child.returncode in (-signal.SIGXCPU, -signal.SIGALRM):
        return _too_slow(limits)
    if child.returncode < 0:
        return InvalidMegabatch(
            "undecodable",
            f"the npz made the decoder fail ({signal.Signals(-child.returncode).name}): write it again with np.savez",
        )
    return Fault(f"the decoder could not be started (exit status {child.returncode}): is the server installed whole?")


def _too_slow(limits: Limits) -> InvalidMegabatch:
    return InvalidMegabatch("too-slow", f"decoding took over {limits.seconds:g} s: send fewer examples at a time")


# -- the child --------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Decode under limits and print one line of JSON: ``decoded``, ``refused``, ``full`` or ``fault``."""
    upload, work, max_bytes, seconds, memory_bytes = arguments
    limits = Limits(int(max_bytes), float(seconds), int(memory_bytes))
    _confine(limits)
    print(json.dumps(_outcome(Path(upload), Path(work), limits)))


def _outcome(upload: Path, work: Path, limits: Limits) -> dict[str, Any]:
    try:
        return {"decoded": asdict(decode_npz(upload, work, limits)) | {"x": None, "y": None, "ids": None}}
    except InvalidMegabatch as refusal:
        return {"refused": [refusal.reason, str(refusal)]}
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
        return {"refused": ["undecodable", f"the npz cannot be decoded ({type(error).__name__}): use np.savez"]}


def _confine(limits: Limits) -> None:
    """Limit this process, for good, before it touches the upload. What the system cannot limit stays unlimited."""
    signal.setitimer(signal.ITIMER_REAL, limits.seconds + _ORPHAN_SECONDS)  # ends it even if the parent is gone
    ceilings = {
        resource.RLIMIT_CPU: math.ceil(limits.seconds) + 1,
        resource.RLIMIT_FSIZE: limits.max_bytes + _SLACK,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        ceilings[resource.RLIMIT_AS] = used + limits.memory_bytes
    for kind, ceiling in ceilings.items():
        hard = resource.getrlimit(kind)[1]
        bound = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
        resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    main(sys.argv[1:])
