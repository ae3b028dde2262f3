"""Run a decoder where it can do no harm: a subprocess with a clean environment, resource limits and a deadline.

Knows: how to start the decoder, what it may use, and what its end means. Must never know: SQL, torch, HTTP, or how
anything is decoded: a process that only asks for it imports none of it.

Laws:
    * Whatever the upload does to the decoder (hang, crash, eat memory), the caller gets ``InvalidMegabatch`` in time.
    * The child inherits no environment, descriptor or secret: it gets two paths, limits and what the model's input
      says, and answers with one line of JSON (``app.intake.child``).
    * One child, one upload. What an upload may have done to its decoder ends with it.
    * The machine's fault is not called the upload's: a full disk raises ``StorageFull``, a decoder that cannot start,
      or ends before it has begun, ``Fault``.
    * Starting takes longer than decoding a small upload: inside ``spare()`` a started child waits for the next one.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.errors import Fault, InvalidMegabatch, StorageFull
from app.intake.arrays import DecodedFiles, Limits, Reading
from app.intake.weights import check_weights

__all__ = ["DecodedFiles", "Limits", "Reading", "check_weights", "decode", "spare"]

_log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""All that the child's environment holds beside the module path: pools would only cost it address space."""

_BYTES_PER_SECOND = 8 << 20
"""A slow machine under load decodes as fast: what is large may take longer than the deadline of what is small."""

_BEGUN = b"begun\n"
_LOOK_SECONDS = 1.0

Child = subprocess.Popen[bytes]


def decode(
    path: Path, work: Path, limits: Limits, reading: Reading | None = None, media: str | None = None
) -> DecodedFiles:
    """Decode an upload into ``work/x.npy``, ``work/y.npy`` and ``work/ids.npy``, in a sandbox.

    Args:
        path: the upload; nothing about it is trusted.
        work: an empty folder; after a refusal it may hold partial files.
        limits: for the child: bytes of the arrays, seconds by the wall clock, memory beyond the bare decoder's.
        reading: what the model's input says about reading it.
        media: the declared media type, if one was.

    Raises:
        InvalidMegabatch: with the decoder's reason (``app.intake.decoders``); ``too-slow``, ``too-large`` and
            ``undecodable`` when it came to no end of its own.
        StorageFull: the disk of ``work`` is full.
        Fault: the decoder could not be started or could not read or write its files.
    """
    size = path.stat().st_size if path.exists() else 0  # that it is not there, the child says
    limits = replace(limits, seconds=limits.seconds + size // _BYTES_PER_SECOND)
    job = {
        "upload": str(path.absolute()),
        "work": str(work.absolute()),
        "limits": asdict(limits),
        "reading": asdict(reading or Reading()),
        "media": media,
    }
    line = json.dumps(job).encode() + b"\n"
    try:
        done = _SPARE.ask(line, limits.seconds) or _ask(_start(), line, limits.seconds)
    except subprocess.TimeoutExpired:
        raise _too_slow(limits) from None
    if not done.stdout.startswith(_BEGUN):
        _log.error("decoder ended with %d: %s", done.returncode, done.stderr[-2000:].decode(errors="replace"))
        raise Fault(f"the decoder could not be started (exit status {done.returncode}): is the server installed whole?")
    answer = _answer(done.stdout[len(_BEGUN) :])
    if answer is None:
        raise _death(done, limits)
    if "refused" in answer:
        raise InvalidMegabatch(*answer["refused"])
    if "full" in answer:
        raise StorageFull(answer["full"])
    if "fault" in answer:
        raise Fault(answer["fault"])
    return _files(answer["decoded"], work)


@contextmanager
def spare() -> Iterator[None]:
    """Keep one started decoder waiting, for all threads of this process, until the end of the block."""
    _SPARE.open()
    try:
        yield
    finally:
        _SPARE.close()


# -- children ---------------------------------------------------------------------------------------------------------


def _start() -> Child:
    """A child that waits for its job on its standard input, and ends when that is closed."""
    paths = [os.path.abspath(entry) for entry in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", "app.intake.child"],
        cwd="/",
        env={**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,  # an interrupt at the terminal is the server's to handle
    )


def _ask(child: Child, line: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
    """Give a child its job, and see it to its end, which comes when the time is over."""
    with child:
        try:
            stdout, stderr = child.communicate(line, timeout=seconds)
        finally:
            child.kill()  # without effect on one that has ended
    return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


class _Spare:
    """At most one child that waits. Threads may share it; it counts those who have opened it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._child: Child | None = None
        self._users = 0
        self._keeper: threading.Thread | None = None

    def open(self) -> None:
        """Keep a child ready from now on."""
        with self._changed:
            self._users += 1
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="spare-decoder", daemon=True)
                self._keeper.start()

    def close(self) -> None:
        """Keep none, once all who opened it have closed it; returns when the last one has ended."""
        with self._changed:
            self._users -= 1
            keeper = self._keeper if not self._users else None
            if keeper is not None:
                self._keeper = None
            self._changed.notify_all()
        if keeper is not None:
            keeper.join()

    def ask(self, line: bytes, seconds: float) -> subprocess.CompletedProcess[bytes] | None:
        """Give the job to the child that waits, and start the next when it is done.

        Returns:
            None when no child waited, or it was gone before it began: the job is still to be done.
        """
        with self._changed:
            child, self._child = self._child, None
        if child is None:
            return None
        try:
            done = _ask(child, line, seconds)
        finally:
            with self._changed:
                self._changed.notify_all()
        return done if done.stdout.startswith(_BEGUN) else None

    def _keep(self) -> None:
        """Start a child whenever none waits; look now and then whether it is still alive."""
        me = threading.current_thread()
        with self._changed:
            while self._keeper is me:
                if self._child is None or self._child.poll() is not None:
                    self._renew()
                self._changed.wait(_LOOK_SECONDS)
            child, self._child = self._child, None
        _end(child)

    def _renew(self) -> None:
        _end(self._child)
        try:
            self._child = _start()
        except OSError as error:
            self._child = None
            _log.warning("no spare decoder could be started: %s", error)


def _end(child: Child | None) -> None:
    """Leave nothing of a child that had no job."""
    if child is not None:
        with child:
            child.kill()


_SPARE = _Spare()


# -- answers ----------------------------------------------------------------------------------------------------------


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
            "classes": None if decoded["classes"] is None else tuple(decoded["classes"]),
            "features": None if decoded["features"] is None else tuple(decoded["features"]),
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
            f"the upload made the decoder fail ({signal.Signals(-child.returncode).name}): write it again",
        )
    return Fault(f"the decoder could not be started (exit status {child.returncode}): is the server installed whole?")


def _too_slow(limits: Limits) -> InvalidMegabatch:
    return InvalidMegabatch("too-slow", f"decoding took over {limits.seconds:g} s: send fewer examples at a time")
