"""Polling: how many clients can ask for a version, and what each of them costs.

64 keep-alive clients (wrk) on this machine, in short rounds that take turns, so that what else goes on touches all
alike: ours from memory (304, 200), the floor (a bare Starlette JSON route under the same server), the same route with
memory switched off (a database read a poll), nginx with a static file as the ceiling, and MLflow's alias read as the
peer; the first three again while an upload, a download and training run. Then 2,000 long polls and 2,000 event streams
are held, and the champion is moved.

Targets: 304 and 200 at least 1.2 x the floor, idle and under load; at least 20 x a read a poll; at least 200 x MLflow;
304s on an idle machine with a p99 under 25 ms; every waiter is told within 2 s; SIGTERM ends them within 5 s. Without
wrk there is nothing to measure: the benchmark says so, and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks._mlflow import NO_PEER, Mlflow
from benchmarks._mlflow import server as mlflow
from benchmarks._service import Service, free_port, service
from espalier import Client

CLIENTS = 64
ROUNDS, SECONDS = 3, 2
WAITERS = 2_000
MODEL = "polled"
PATH = f"/v1/models/{MODEL}/versions/champion"
RECIPE = {"network": {"name": "mlp", "hidden": [64, 64]}, "training": {"epochs": 2}, "guardrails": []}

FLOOR, OURS, WHOLE, LOGGED = "bare Starlette JSON", "ours, 304", "ours, 200", "ours, 304, access log on"
READ, CEILING, PEER = "a database read a poll", "nginx, static JSON", "MLflow, alias read"

FLOOR_SOURCE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def version(request):
    return JSONResponse({"model": "polled", "number": 2, "status": "published", "density": 0.316})

uvicorn.run(Starlette(routes=[Route("/version", version)]), port=int(sys.argv[1]), log_level="error", access_log=False)
"""

LOAD_SOURCE = """
import io, sys, threading
import numpy as np
from espalier import Client

def work(forever):
    try:
        while True:
            forever()
    except Exception as error:
        print(error, file=sys.stderr)

def up():
    with Client(sys.argv[1]) as client:
        random, count = np.random.default_rng(), 40_000
        client.upload("busy", random.standard_normal((count, 64), dtype=np.float32), np.arange(count) % 10)

def down():
    with Client(sys.argv[1]) as client:
        client.checkpoint_bytes("polled@champion")

for target in (up, down):
    threading.Thread(target=work, args=(target,), daemon=True).start()
sys.stdin.read()
"""


@dataclass(frozen=True)
class Asked:
    """One way to be polled."""

    name: str
    url: str
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rate:
    """Answers a second; milliseconds at the median and the 99th percentile."""

    rate: float
    p50: float
    p99: float


def main() -> int:
    if shutil.which("wrk") is None:
        print("wrk is not installed (apt-get install wrk): nothing was measured")
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    missed = _rates()
    missed += _waiters()
    for target in missed:
        print(f"MISSED: {target}")
    return 1 if missed else 0


# -- rates -------------------------------------------------------------------------------------------------------------


def _rates() -> list[str]:
    with ExitStack() as stack:
        ours = stack.enter_context(service(ESPALIER_THREADS="1"))
        tag = _with_versions(ours)
        floor = Asked(FLOOR, stack.enter_context(_floor()))
        unchanged = Asked(OURS, ours.url + PATH, (f"If-None-Match: {tag}",))
        with _said_to_nobody():
            talking = stack.enter_context(service(ESPALIER_THREADS="1", ESPALIER_LOG_LEVEL="info"))
        logged = Asked(LOGGED, talking.url + PATH, (f"If-None-Match: {_with_versions(talking)}",))
        asked = [floor, unchanged, Asked(WHOLE, ours.url + PATH), logged]
        if shutil.which("nginx") is not None:
            asked.append(Asked(CEILING, stack.enter_context(_nginx())))
        idle = _measured(asked)
        with _load(ours):
            loaded = _measured(asked[:3])
        print(f"{CLIENTS} keep-alive clients, {ROUNDS} rounds of {SECONDS} s in turn, nothing else running")
        idle |= _alone()
        _table(idle, FLOOR)
        print("\nthe same while an upload, a download and training run")
        _table(loaded, FLOOR)
    return _missed(idle, loaded)


def _alone() -> dict[str, Rate]:
    """What is so slow that other loads beside it would not matter: each by itself."""
    with service(ESPALIER_POLLED_ADDRESSES="0") as running:
        tag = _with_versions(running)
        found = _measured([Asked(READ, running.url + PATH, (f"If-None-Match: {tag}",))])
    with mlflow() as peer:
        if peer is None:
            print(f"{PEER}: {NO_PEER}")
        else:
            found |= _measured([Asked(PEER, _with_alias(peer))], rounds=1, seconds=10)
    return found


@contextmanager
def _said_to_nobody() -> Iterator[None]:
    """What is started here writes its log to a file that nobody reads."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _measured(asked: Sequence[Asked], rounds: int = ROUNDS, seconds: int = SECONDS) -> dict[str, Rate]:
    """The median of some rounds; those who are asked take turns."""
    seen: dict[str, list[Rate]] = {one.name: [] for one in asked}
    for _ in range(rounds):
        for one in asked:
            seen[one.name].append(_wrk(one, seconds))
    return {name: sorted(rates, key=lambda rate: rate.rate)[len(rates) // 2] for name, rates in seen.items()}


def _wrk(asked: Asked, seconds: int) -> Rate:
    headers = [part for header in asked.headers for part in ("-H", header)]
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", "30s", "--latency", *headers, asked.url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said.replace("Non-2xx or 3xx", "Non-2xx"):
        raise RuntimeError(f"{asked.name} was refused:\n{said}")
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    p50, p99 = (re.search(rf"{share}%\s+([0-9.]+)(us|ms|s)\b", said) for share in (50, 99))
    if rate is None or p50 is None or p99 is None:
        raise RuntimeError(f"wrk said nothing of {asked.name}:\n{said}")
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    return Rate(float(rate[1]), float(p50[1]) * unit[p50[2]], float(p99[1]) * unit[p99[2]])


def _table(rates: dict[str, Rate], of: str) -> None:
    print(f"{'':<28}{'answers/s':>11}{'ratio':>9}{'p50 ms':>9}{'p99 ms':>9}")
    for name, rate in rates.items():
        ratio = rate.rate / rates[of].rate
        print(f"{name:<28}{rate.rate:>11,.0f}{ratio:>9.3f}{rate.p50:>9.1f}{rate.p99:>9.1f}")


def _missed(idle: dict[str, Rate], loaded: dict[str, Rate]) -> list[str]:
    ours = idle[OURS].rate
    wanted = [
        (f"{name} {when}: at least 1.2 x the floor", rates[name].rate >= 1.2 * rates[FLOOR].rate)
        for when, rates in (("idle", idle), ("under load", loaded))
        for name in (OURS, WHOLE)
    ]
    wanted.append(("304s at least 20 x a read a poll", ours >= 20 * idle[READ].rate))
    wanted.append(("304s with a p99 under 25 ms on an idle machine", idle[OURS].p99 < 25))
    if PEER in idle:
        wanted.append(("304s at least 200 x MLflow", ours >= 200 * idle[PEER].rate))
    return [target for target, met in wanted if not met]


# -- waiters -----------------------------------------------------------------------------------------------------------


def _waiters() -> list[str]:
    with service(ESPALIER_THREADS="1") as running:
        _with_versions(running)
        before = _resident(running.pid)
        told, after = asyncio.run(_hold(running))
        left = asyncio.run(_leave(running))
    print(f"\n{WAITERS:,} long polls and {WAITERS:,} event streams held")
    print(f"{'resident memory before':<34}{before / 1e6:>8.1f} MB")
    print(f"{'with all of them':<34}{after / 1e6:>8.1f} MB   {(after - before) / 2 / WAITERS / 1e3:.1f} kB each")
    print(f"{'champion moved, all were told in':<34}{told:>8.2f} s    target 2 s")
    print(f"{'SIGTERM, all were answered in':<34}{left:>8.2f} s    target 5 s")
    wanted = [("waiters told within 2 s", told <= 2), ("waiters answered within 5 s of SIGTERM", left <= 5)]
    return [target for target, met in wanted if not met]


async def _hold(running: Service) -> tuple[float, float]:
    """Hold all connections, move the champion: seconds until everybody knows, and resident memory before that."""
    polls, streams = await _connected(running)
    resident = _resident(running.pid)
    knowing = [_read(poll, b"HTTP/1.1 200") for poll in polls] + [_read(stream, b"alias.moved") for stream in streams]
    told = asyncio.gather(*knowing)
    await asyncio.sleep(0)  # so that all of them read before anything comes
    began = time.monotonic()
    await asyncio.to_thread(_move, running.url)
    await asyncio.wait_for(told, 60)
    took = time.monotonic() - began
    _close(polls, streams)
    return took, resident


async def _leave(running: Service) -> float:
    """Hold all connections again and ask the service to stop: seconds until every connection is closed."""
    polls, streams = await _connected(running)
    began = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in (*polls, *streams))), 60)
    took = time.monotonic() - began
    _close(polls, streams)
    return took


Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connected(running: Service) -> tuple[list[Wire], list[Wire]]:
    tag = (await asyncio.to_thread(httpx.get, running.url + PATH)).headers["ETag"]
    wait = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\nIf-None-Match: {tag}\r\n\r\n"
    stream = "GET /v1/events?kind=alias.moved HTTP/1.1\r\nHost: localhost\r\n\r\n"
    port = int(running.url.rpartition(":")[2])
    polls = [await _sent(port, wait) for _ in range(WAITERS)]
    streams = [await _sent(port, stream) for _ in range(WAITERS)]
    for one in streams:
        await _read(one, b"retry:")
    return polls, streams


async def _sent(port: int, request: str) -> Wire:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    writer.write(request.encode())
    await writer.drain()
    return reader, writer


async def _read(wire: Wire, until: bytes) -> None:
    await wire[0].readuntil(until)


def _close(*wires: list[Wire]) -> None:
    for _, writer in itertools.chain(*wires):
        writer.close()


def _resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 0.0 if found is None else 1024.0 * int(found[1])


# -- what is measured --------------------------------------------------------------------------------------------------


def _with_versions(running: Service) -> str:
    """Make a model with two versions, ask for the champion once, and return its entity tag."""
    with Client(running.url) as client:
        client.create_model(MODEL, RECIPE)
        for seed in (1, 2):
            random = np.random.default_rng(seed)
            y = np.arange(600) % 3
            x = (random.standard_normal((600, 16)) + 3 * np.eye(3, 16)[y]).astype(np.float32)
            client.upload(MODEL, x, y, wait=True, timeout=120)
    return httpx.get(running.url + PATH).headers["ETag"]


def _move(url: str) -> None:
    with Client(url) as client:
        client.rollback(MODEL, reason="to see who is told")


@contextmanager
def _floor() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", FLOOR_SOURCE, str(port)])
    try:
        url = f"http://127.0.0.1:{port}/version"
        _until_it_answers(url)
        yield url
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _nginx() -> Iterator[str]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="espalier-nginx-") as folder:
        Path(folder, "version").write_text(json.dumps({"model": MODEL, "number": 2, "status": "published"}))
        Path(folder, "conf").write_text(
            f"pid {folder}/pid; error_log {folder}/error; worker_processes 1; daemon off; user root;\n"
            "events { worker_connections 1024; }\n"
            f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
        )
        process = subprocess.Popen([shutil.which("nginx") or "nginx", "-c", f"{folder}/conf", "-e", f"{folder}/error"])
        try:
            url = f"http://127.0.0.1:{port}/version"
            _until_it_answers(url)
            yield url
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _load(running: Service) -> Iterator[None]:
    """An upload, a download and training, one after the other without a pause, by a process of their own."""
    with Client(running.url) as client:
        client.create_model("busy", {**RECIPE, "training": {"epochs": 20}})
        process = subprocess.Popen([sys.executable, "-c", LOAD_SOURCE, running.url], stdin=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not any(cycle.state == "running" for cycle in client.cycles("busy", 5)):
            if time.monotonic() > deadline:
                raise RuntimeError("no cycle began within 60 s")
            time.sleep(0.1)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def _with_alias(peer: Mlflow) -> str:
    """Register a model with one version and an alias at MLflow; the address that reads the alias."""
    api = f"{peer.url}/api/2.0/mlflow"
    with httpx.Client(timeout=60) as http:
        http.post(f"{api}/registered-models/create", json={"name": MODEL}).raise_for_status()
        run = http.post(f"{api}/runs/create", json={"experiment_id": "0"}).raise_for_status().json()["run"]["info"]
        version = {"name": MODEL, "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
        http.post(f"{api}/model-versions/create", json=version).raise_for_status()
        alias = {"name": MODEL, "alias": "champion", "version": "1"}
        http.post(f"{api}/registered-models/alias", json=alias).raise_for_status()
    return f"{api}/registered-models/alias?name={MODEL}&alias=champion"


def _until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer")


if __name__ == "__main__":
    sys.exit(main())
