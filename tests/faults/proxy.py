"""A TCP proxy that breaks connections: between a service and its database, where it is told to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

Pair = tuple[socket.socket, ...]
Deed = Callable[[Callable[[], None], Callable[[], None]], None]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing sends a reset


class Proxy:
    """Forwards bytes, until a fault is due.

    Attributes:
        commits: COMMITs that it has seen since ``arm``.
        sent: bytes from clients that it has seen since ``arm``.
        fired: faults that came to pass.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._at_commit: tuple[int, Deed] | None = None
        self._cut_after: int | None = None
        self.commits = self.sent = self.fired = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flowing.set()
        self._listener.close()
        self.cut()

    # -- faults --------------------------------------------------------------------------------------------------------

    def arm(
        self,
        *,
        commit: int | None = None,
        does: Deed = lambda forward, _: forward(),
        after: int | None = None,
    ) -> None:
        """Set the next fault, and count from nothing.

        Args:
            commit: at this COMMIT (from 1) its sender's connection is reset without an answer.
            does: is called then, with what forwards the COMMIT, and with what tells the database that its client is
                gone; without either it knows of nothing.
            after: cut every connection after so many bytes from clients.
        """
        with self._lock:
            self.commits = self.sent = 0
            self._at_commit = None if commit is None else (commit, does)
            self._cut_after = after

    def disarm(self) -> None:
        self.arm()

    def stall(self) -> None:
        """Take bytes, and pass none on."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _reset(pair)

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream, timeout=10)
            except OSError:
                _reset((client,))
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.append(pair)
            for source, target, inspect in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(pair, source, target, inspect), daemon=True).start()

    def _pump(self, pair: Pair, source: socket.socket, target: socket.socket, inspect: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if inspect and not self._passes(data, pair, target):
                    return
                target.sendall(data)
        _reset(pair)

    def _passes(self, data: bytes, pair: Pair, target: socket.socket) -> bool:
        """Whether a client's bytes go on as they are; else the fault has come to pass."""
        with self._lock:
            self.sent += len(data)
            self.commits += data.count(b"COMMIT\0")
            cut = self._cut_after is not None and self.sent > self._cut_after
            due = self._at_commit is not None and b"COMMIT\0" in data and self.commits >= self._at_commit[0]
            does = self._at_commit[1] if due and self._at_commit is not None else None
            if due:
                self._at_commit = None
            if cut:
                self._cut_after = None
            if cut or due:
                self.fired += 1
        if does is not None:

            def forward() -> None:
                """The database gets it; whoever sent it never hears of that."""
                target.sendall(data)
                with contextlib.suppress(OSError):
                    target.shutdown(socket.SHUT_WR)

            _reset(pair[:1])
            does(forward, lambda: _reset(pair))
            return False
        if cut:
            self.cut()
            return False
        return True


def _reset(pair: Pair) -> None:
    for each in pair:
        with contextlib.suppress(OSError):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            each.close()
