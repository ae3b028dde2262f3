"""Downloads, publishing and fetching: how much of the disk and the network is left for the bytes.

    python -m benchmarks.downloads [--rounds 7]

The first table downloads 100 MB over loopback, read by the same client and thrown away: from ``sendfile`` on a bare
socket (the floor), from the service, from nginx by ``X-Accel-Redirect``, from Starlette's FileResponse, and from
MLflow. The second publishes and fetches 45 MB: publishing is what follows once the bytes are in memory (hash, durable
file, row, audit entries, alias), against a file that is written, hashed and synced; fetching is by alias with the
client, digest compared, against the same bytes downloaded into a file. The third is idle memory.

Ways take turns; printed are medians of ratios within a round. The exit status is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import httpx
import numpy as np

from app.domain import CHAMPION, Actor, CycleTrigger, InputSpec, Layer, Model, Verdict, VersionDraft, VersionStatus
from app.store.blobs import Blobs
from app.store.database import Store
from benchmarks._mlflow import NO_PEER, Mlflow, server
from benchmarks._nginx import in_front_of
from benchmarks._service import Service, free_port, service
from espalier import Client
from espalier.formats import checkpoint

LARGE, MIDDLE = 100_000_000, 45_000_000
OURS, NGINX, FILE_RESPONSE, PEER = "espalier serve", "nginx, X-Accel-Redirect", "Starlette FileResponse", "MLflow"
DOWNLOAD = {OURS: 0.32, NGINX: 0.6}
PUBLISH, FETCH, IDLE = 1.3, 1.5, 250
_FLOOR = "the floor"
ACTOR = Actor("benchmark")

_FILE_RESPONSE = """
import sys, uvicorn
from starlette.responses import FileResponse
async def app(scope, receive, send):
    await FileResponse(sys.argv[1])(scope, receive, send)
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", lifespan="off")
"""

_LOGGED = """
import sys, time, mlflow
client, path = mlflow.MlflowClient(), sys.argv[1]
run = client.create_run("0").info
began = time.perf_counter()
client.log_artifact(run.run_id, path, "model")
try:
    client.create_registered_model("bench")
except mlflow.exceptions.MlflowException:
    pass
version = client.create_model_version("bench", f"{run.artifact_uri}/model", run.run_id).version
client.set_registered_model_alias("bench", "champion", version)
print(time.perf_counter() - began)
"""

_FETCHED = """
import sys, time, mlflow
began = time.perf_counter()
mlflow.artifacts.download_artifacts("models:/bench@champion", dst_path=sys.argv[1])
print(time.perf_counter() - began)
"""


# -- versions ----------------------------------------------------------------------------------------------------------


@dataclass
class Publisher:
    """Publishes bytes as versions of a model, as a worker does: blob first, row second."""

    store: Store
    model: Model

    @classmethod
    def at(cls, folder: Path) -> Publisher:
        store = Store(f"sqlite:///{folder / 'espalier.db'}", Blobs(folder / "blobs"))
        with store.transaction(ACTOR) as tx:
            model = tx.ledger.create_model("bench", {"seed": 7}, _named("recipe"), InputSpec((4,), "float32", ("a",)))
            tx.audit.append("model.created", model="bench")
        return cls(store, model)

    def publish(self, data: bytes) -> float:
        """Seconds from bytes in memory to a champion that can be polled."""
        with self.store.transaction(ACTOR) as tx:
            tx.ledger.enqueue_cycle(self.model, CycleTrigger.MANUAL, 0)
            claim = tx.ledger.claim_cycle("benchmark", 600.0)
            tx.audit.append("cycle.started", model="bench")
        assert claim is not None
        began = time.perf_counter()
        digest = self.store.blobs.put(data)
        with self.store.transaction(ACTOR) as tx:
            version = tx.ledger.publish_version(claim, _draft(digest, len(data)))
            tx.audit.append("version.published", model="bench", outputs=[digest])
            tx.ledger.move_alias(self.model, CHAMPION, version.number, expected_revision=None, reason="passed")
            tx.audit.append("alias.moved", model="bench")
        return time.perf_counter() - began


def _draft(digest: str, size: int) -> VersionDraft:
    return VersionDraft(
        status=VersionStatus.PUBLISHED, stage=1, depth=1, target_density=0.5, kept=1, total=2,
        layers=(Layer("0.weight", (2, 1), 1, 2),), metrics={}, verdict=Verdict(True, ()), checkpoint=digest,
        checkpoint_bytes=size, dense=_named("dense"), dense_bytes=size, mask_digest=_named("mask"), state=digest,
        megabatches=0, manifest={},
    )  # fmt: skip


def _named(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def plain_file(folder: Path, data: bytes) -> float:
    """Seconds to write, hash and sync a file: nothing that keeps bytes can do with less."""
    path = folder / secrets.token_hex(4)
    began = time.perf_counter()
    with path.open("xb", buffering=0) as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
        hashlib.sha256(data).hexdigest()
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    path.unlink()
    return took


# -- downloads ---------------------------------------------------------------------------------------------------------


def drained(url: str) -> float:
    """Bytes a second of a GET whose answer is thrown away as it comes."""
    parts, buffer, got = urlsplit(url), bytearray(1 << 20), 0
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        began = time.perf_counter()
        while read := connection.recv_into(buffer):
            got += read
        took = time.perf_counter() - began
    if got < LARGE:
        raise RuntimeError(f"{url} gave {got} bytes instead of {LARGE}")
    return got / took


@contextmanager
def floor(path: Path) -> Iterator[str]:
    """A process that sends a file by ``sendfile`` to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            _send_for_ever(listener, path)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


def _send_for_ever(listener: socket.socket, path: Path) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, path.open("rb") as file:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            connection.sendfile(file)


@contextmanager
def file_response(path: Path) -> Iterator[str]:
    """What a framework does with a file by itself."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", _FILE_RESPONSE, str(path), str(port)])
    try:
        url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.head(url)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def downloads(ways: Mapping[str, str | None], rounds: int) -> bool:
    """Print the first table; whether a target was missed. The first way is the floor."""
    speeds: dict[str, list[float]] = {way: [] for way, url in ways.items() if url}
    for turn in range(rounds + 1):
        for way in sorted(speeds, reverse=bool(turn % 2)):
            speed = drained(str(ways[way]))
            speeds[way] += [speed] if turn else []  # in the first round the service verifies the blob
    base = next(iter(speeds.values()))
    print(f"{LARGE / 1e6:.0f} MB over loopback, {rounds} rounds")
    print("| from | MB/s | of the floor | target |\n|---|---|---|---|")
    missed = False
    for way in ways:
        if way not in speeds:
            print(f"| {way} | {NO_PEER if way == PEER else 'not here'} | | |")
            continue
        ratio = median(mine / floors for mine, floors in zip(speeds[way], base, strict=True))
        target = DOWNLOAD.get(way)
        missed |= target is not None and ratio < target
        print(
            f"| {way} | {median(speeds[way]) / 1e6:,.0f} | {ratio:.2f} | {'' if target is None else f'>= {target}'} |"
        )
    return missed


# -- publishing and fetching -------------------------------------------------------------------------------------------


def compare(what: str, floors: Callable[[], float], ways: Mapping[str, Callable[[], float] | None],
            targets: Mapping[str, float], rounds: int) -> bool:  # fmt: skip
    """Print a part of the second table; whether a target was missed."""
    every = {_FLOOR: floors, **{way: run for way, run in ways.items() if run}}
    taken = []
    for turn in range(rounds + 1):
        found = {way: every[way]() for way in sorted(every, reverse=bool(turn % 2))}
        taken += [found] if turn else []  # the first round opens files and connections
    print(f"| {what} | {1e3 * median(found[_FLOOR] for found in taken):.0f} | 1.00 | |")
    missed = False
    for way, run in ways.items():
        if run is None:
            print(f"| {way} | {NO_PEER} | | |")
            continue
        ratio = median(found[way] / found[_FLOOR] for found in taken)
        target = targets.get(way)
        missed |= target is not None and ratio > target
        bound = "" if target is None else f"<= {target}"
        print(f"| {way} | {1e3 * median(found[way] for found in taken):.0f} | {ratio:.2f} | {bound} |", flush=True)
    return missed


def checkpoint_of(size: int) -> Callable[[], bytes]:
    """Encodes a network whose sparse checkpoint has about this many bytes."""
    random = np.random.default_rng(0)
    weights = (random.standard_normal((size // 1000, 1000), dtype=np.float32) * 0.02).astype(np.float32)
    mask = random.random(weights.shape) < 0.27
    weights *= mask
    return lambda: checkpoint.encode({"0.weight": weights}, {"0.weight": mask}, {"seed": 7})


def publishing(folder: Path, publisher: Publisher, peer: Mlflow | None, rounds: int) -> bool:
    """Rows of the second table about publishing; whether a target was missed."""
    encode = checkpoint_of(MIDDLE)
    file = folder / "model.safetensors"
    file.write_bytes(secrets.token_bytes(MIDDLE))

    def ours() -> float:
        return publisher.publish(secrets.token_bytes(MIDDLE))

    def encoded() -> float:
        began = time.perf_counter()
        encode()
        return time.perf_counter() - began

    ways: dict[str, Callable[[], float] | None] = {
        "ours: hash, blob, row, entries, alias": ours,
        f"ours, before: encoding {MIDDLE / 1e6:.0f} M weights, {len(encode()) / 1e6:.0f} MB": encoded,
        "MLflow: log_artifact, version, alias": (lambda: float(peer.script(_LOGGED, str(file)))) if peer else None,
    }
    written = secrets.token_bytes(MIDDLE)
    what = "publish: the file written, hashed, synced"
    return compare(what, lambda: plain_file(folder, written), ways, {next(iter(ways)): PUBLISH}, rounds)


def fetching(folder: Path, running: Service, peer: Mlflow | None, plain: str, rounds: int) -> bool:
    """Rows of the second table about fetching; whether a target was missed."""
    client = Client(running.url)

    def ours() -> float:
        began = time.perf_counter()
        client.download(f"bench@{CHAMPION}", folder / "fetched.safetensors")
        took = time.perf_counter() - began
        (folder / "fetched.safetensors").unlink()
        return took

    def floors() -> float:
        began = time.perf_counter()
        with (folder / "plain").open("wb") as file, httpx.stream("GET", plain) as answer:
            for chunk in answer.iter_raw(1 << 20):
                file.write(chunk)
        return time.perf_counter() - began

    def mlflow() -> float:
        assert peer is not None
        with tempfile.TemporaryDirectory(dir=folder) as there:
            return float(peer.script(_FETCHED, there))

    ways = {"ours: by alias, verified": ours, "MLflow: by alias": mlflow if peer else None}
    what = "fetch: the file downloaded into a file"
    missed = compare(what, floors, ways, {next(iter(ways)): FETCH}, rounds)
    client.close()
    return missed


# -- memory ------------------------------------------------------------------------------------------------------------


def resident(pid: int) -> float:
    """MB of a process and of all that it started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(_resident(member) for member in family)


def _resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1000 if found else 0.0


def idle(running: Service, peer: float | None) -> bool:
    """Print the third table; whether the target was missed."""
    ours = resident(running.pid)
    print(f"\nidle\n| process | MB | target |\n|---|---|---|\n| {OURS} --no-worker | {ours:.0f} | < {IDLE} |")
    print(f"| mlflow server, one worker | {NO_PEER if peer is None else f'{peer:.0f}'} | |")
    return ours >= IDLE


# -- everything --------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args(arguments).rounds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espalier-downloads-")))
        large, middle = folder / "large", folder / "middle"
        large.write_bytes(secrets.token_bytes(LARGE))
        middle.write_bytes(secrets.token_bytes(MIDDLE))
        base = stack.enter_context(floor(large))  # forked before there are threads
        running = stack.enter_context(service("--no-worker"))
        peer = stack.enter_context(server())
        missed = idle(running, None if peer is None else resident(peer.pid))
        publisher = Publisher.at(running.folder)
        publisher.publish(large.read_bytes())
        offloading = stack.enter_context(_offloading(running))
        behind = stack.enter_context(in_front_of(offloading, running.folder / "blobs"))
        path = "/v1/models/bench/versions/1/checkpoint"
        print()
        missed |= downloads(
            {
                "sendfile on a bare socket": base,
                OURS: running.url + path,
                NGINX: None if behind is None else behind + path,
                FILE_RESPONSE: stack.enter_context(file_response(large)),
                PEER: None if peer is None else _artifact(peer, large),
            },
            rounds,
        )
        print(f"\n{MIDDLE / 1e6:.0f} MB, {rounds} rounds\n| what | ms | of the floor | target |\n|---|---|---|---|")
        missed |= publishing(folder, publisher, peer, rounds)
        missed |= fetching(folder, running, peer, stack.enter_context(file_response(middle)), rounds)
        publisher.store.dispose()
    return int(missed)


@contextmanager
def _offloading(running: Service) -> Iterator[str]:
    """A second API process on the same data, which leaves the bytes to nginx."""
    offload = {"ESPALIER_ACCEL_REDIRECT": "/internal-blobs/", "ESPALIER_DATA_DIR": str(running.folder)}
    with service("--no-worker", **offload) as second:
        yield second.url


def _artifact(peer: Mlflow, path: Path) -> str:
    """The address of a file that was put into MLflow's artifacts."""
    url = f"{peer.url}/api/2.0/mlflow-artifacts/artifacts/bench/large"
    with path.open("rb") as file:
        httpx.put(url, content=file, timeout=120).raise_for_status()
    return url


if __name__ == "__main__":
    sys.exit(main())
