"""Ingest: a body of 256 MiB over loopback, until its bytes are hashed and durable.

The same client sends the same bytes over a plain socket to: a bare process that writes and fsyncs them (the floor); one
that hashes them too; our one-shot upload (answered with 202 as soon as the bytes are durable, so that decoding does
not count); our resumable upload; and MLflow's artifact PUT as the peer. Every way renames or records its bytes before
it answers. Then the memory of the API process, with one upload and with four at once.

Targets: ours >= 0.55 of the floor and >= 0.80 of raw + SHA-256; memory <= idle + 32 MB with four uploads at once.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks import _mlflow
from benchmarks._service import Service, service

BLOCK = 1 << 20
SETTLE_SECONDS = 2.0
OF_FLOOR, OF_HASHED, MEMORY_MB = 0.55, 0.80, 32.0

Send = Callable[[], str | None]
"""Sends the body; returns the address of what it left behind, if that is to be removed."""


def main() -> int:
    """Measure and compare; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    body = secrets.token_bytes(BLOCK) * asked.mebibytes
    with service("--no-worker", ESPALIER_MIN_UPLOAD_BYTES_PER_SECOND="0") as running, _bare(False) as floor:
        httpx.post(f"{running.url}/v1/models", json={"name": "ingest", "recipe": {}}).raise_for_status()
        with _bare(True) as hashed, _mlflow.server() as mlflow:
            ways: dict[str, Send] = {
                "raw recv + write + fsync": lambda: _raw(floor, body),
                "raw + SHA-256": lambda: _raw(hashed, body),
                "espalier, one request": lambda: _post(running.url, body),
                "espalier, resumable": lambda: _patch(running.url, body),
            }
            if mlflow is not None:
                ways["MLflow, artifact PUT"] = lambda: _put(mlflow.url, body)
            else:
                print(f"MLflow, artifact PUT: {_mlflow.NO_PEER}")
            seconds = _measured(ways, asked.rounds)
        missed = _compare(seconds, asked.mebibytes)
        missed += _memory(running, body)
    return 1 if missed else 0


def _measured(ways: dict[str, Send], rounds: int) -> dict[str, float]:
    """Median seconds of each way; the ways take turns, so that a noisy minute meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, send in ways.items():
            started = time.perf_counter()
            left = send()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - started)
            if left is not None:
                _remove(left)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _remove(address: str) -> None:
    """Remove an upload. One that is being decoded ends first, and the next decoder's start is waited for: neither is
    part of what the next way should be measured beside.
    """
    decoded = False
    while httpx.get(address).json()["state"] == "complete":
        decoded = True
        time.sleep(0.05)
    httpx.delete(address)
    time.sleep(SETTLE_SECONDS if decoded else 0.0)


def _compare(seconds: dict[str, float], mebibytes: int) -> int:
    floor, hashed = seconds["raw recv + write + fsync"], seconds["raw + SHA-256"]
    print(f"{'way':<28}{'seconds':>9}{'MiB/s':>9}{'of floor':>10}{'of hashed':>11}  target")
    missed = 0
    for name, taken in seconds.items():
        target = ""
        if name.startswith("espalier"):
            met = floor / taken >= OF_FLOOR and hashed / taken >= OF_HASHED
            target = f">= {OF_FLOOR} and >= {OF_HASHED}: {'ok' if met else 'missed'}"
            missed += not met
        row = f"{name:<28}{taken:>9.3f}{mebibytes / taken:>9.0f}{floor / taken:>10.2f}{hashed / taken:>11.2f}  {target}"
        print(row.rstrip())
    return missed


def _memory(running: Service, body: bytes) -> int:
    """Resident memory of the API process beyond what it has idle."""
    idle, missed = _resident(running.pid), 0
    print(f"\n{'memory of the API process':<28}{'MB':>9}{'beyond idle':>13}  target")
    print(f"{'idle':<28}{idle:>9.1f}")
    for at_once in (1, 4):
        peak = _peak(running, body, at_once)
        met = peak - idle <= MEMORY_MB
        missed += not met
        told = f"{peak:>9.1f}{peak - idle:>13.1f}  <= {MEMORY_MB:.0f}: {'ok' if met else 'missed'}"
        print(f"{f'uploads at once: {at_once}':<28}{told}")
    return missed


def _peak(running: Service, body: bytes, at_once: int) -> float:
    done, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _resident(running.pid))
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(at_once) as pool:
        left = list(pool.map(lambda _: _patch(running.url, body), range(at_once)))
    done.set()
    watching.join()
    for address in left:
        _remove(address)
    return peak[0]


def _resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


# -- the ways ----------------------------------------------------------------------------------------------------------


def _raw(port: int, body: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(len(body).to_bytes(8, "big"))
        connection.sendall(body)
        assert connection.recv(1) == b"."


def _post(url: str, body: bytes) -> str:
    headers = {"Content-Type": "application/octet-stream", "Prefer": "respond-async"}
    answer = _request(url, "POST", "/v1/models/ingest/megabatches", body, headers)
    assert answer.startswith(b"HTTP/1.1 202 "), answer
    return url + _location(answer)


def _patch(url: str, body: bytes) -> str:
    begun = _request(url, "POST", "/v1/models/ingest/uploads", b"", {"Upload-Complete": "?0"})
    path = _location(begun)
    headers = {"Content-Type": "application/partial-upload", "Upload-Offset": "0", "Upload-Complete": "?0"}
    answer = _request(url, "PATCH", path, body, headers)
    assert answer.startswith(b"HTTP/1.1 204 "), answer
    return url + _location(begun)


def _put(url: str, body: bytes) -> None:
    path = f"/api/2.0/mlflow-artifacts/artifacts/ingest/{secrets.token_hex(8)}"
    answer = _request(url, "PUT", path, body, {"Content-Type": "application/octet-stream"})
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def _request(url: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """One request over a plain socket: the head of its answer."""
    address = urlsplit(url)
    told = {**headers, "Host": address.netloc, "Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    with socket.create_connection((str(address.hostname), int(address.port or 80))) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
        connection.sendall(body)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer


def _location(answer: bytes) -> str:
    found = re.search(rb"\r\nlocation: (\S+)", answer, re.IGNORECASE)
    assert found is not None, answer
    return found[1].decode()


@contextmanager
def _bare(hashing: bool) -> Iterator[int]:
    """A process that takes bytes from a socket onto the disk, and does nothing else; the port that it listens on."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="espalier-benchmark-") as folder:
        process = context.Process(target=_take, args=(theirs, folder, hashing), daemon=True)
        process.start()
        try:
            yield ours.recv()
        finally:
            process.terminate()
            process.join()


def _take(told: Connection, folder: str, hashing: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        told.send(listening.getsockname()[1])
        buffer = memoryview(bytearray(BLOCK))
        while True:
            connection, _ = listening.accept()
            with connection:
                _take_one(connection, Path(folder), buffer, hashing)


def _take_one(connection: socket.socket, folder: Path, buffer: memoryview, hashing: bool) -> None:
    left, state = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big"), hashlib.sha256()
    with (folder / "part").open("wb", buffering=0) as file:
        while left:
            got = connection.recv_into(buffer, min(left, BLOCK))
            if hashing:
                state.update(buffer[:got])
            file.write(buffer[:got])
            left -= got
        os.fsync(file.fileno())
    (folder / "part").rename(folder / "whole")
    connection.sendall(b".")


if __name__ == "__main__":
    sys.exit(main())
