"""SIGKILL at every named point and at random times: whoever comes next ends with the very bits, rows and entries of an
undisturbed run.

Children of this process, forked from it, die by the hundred; real workers and services die once at each point.
"""

from __future__ import annotations

import ast
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import app
from app import crash
from espalier import Client
from espalier.formats import megabatch
from tests.faults.steps import DIALECTS, STEPS, Place, Site, Step, differences, picture, prepared, problems, tidied
from tests.scenarios.deployment import Deployment, Process, clusters, until

pytestmark = pytest.mark.timeout(1800)
SEED = 20300101
MOST = 5
"""Arrivals at one point of one step at which it is killed: the first ones, some in between, and the last."""

RANDOM_KILLS = 12

LONELY = {"erased"}
"""What doctor may say between a kill and the next sweep: the erasure is done, and its bytes are about to go."""


# -- the points --------------------------------------------------------------------------------------------------------


@pytest.mark.sample
def test_every_point_is_passed_somewhere_and_every_name_is_known() -> None:
    passed: dict[str, list[str]] = {}
    for path in Path(app.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash.point":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}: a point is named by a literal"
                passed.setdefault(name.value, []).append(path.name)
    assert passed.keys() == crash.POINTS.keys()


# -- processes that die at a point -------------------------------------------------------------------------------------


def forked(work: Callable[[], Any]) -> int:
    """The id of a child of this process that does this, and nothing else."""
    child = os.fork()
    if child:
        return child
    try:
        signal.alarm(60)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def ended(child: int) -> bool:
    """Whether it was killed; it may have come to its end before."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"a child failed with status {status}"
    return status != 0


def doing(site: Site, step: Step) -> None:
    with site.opened() as place:
        step.act(place)


def dies_at(site: Site, step: Step, point: str, nth: int) -> bool:
    def work() -> None:
        crash._AT, crash._LEFT = point, nth
        doing(site, step)

    return ended(forked(work))


class Case:
    """One step, undisturbed: what it comes to, and how often it passes each point."""

    def __init__(self, site: Site, step: Step, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.step, self.folder = site, step, folder
        self.arrivals: dict[str, int] = {}
        with site.copied(folder) as copy:
            began = time.monotonic()
            with copy.opened() as place, monkeypatch.context() as patched:
                patched.setattr(crash, "point", self._count)
                self.told = step.act(place)
                self.seconds = time.monotonic() - began
                self.expected = self._seen(place)

    def _count(self, name: str) -> None:
        self.arrivals[name] = self.arrivals.get(name, 0) + 1

    def _seen(self, place: Place) -> dict[str, Any]:
        assert problems(place) == []
        return picture(place, self.step.extra)

    def places(self) -> Iterator[tuple[str, int]]:
        """Points, and arrivals there."""
        chosen = random.Random(SEED)
        for point, arrivals in self.arrivals.items():
            every = range(1, arrivals + 1)
            few = {1, 2, arrivals, *chosen.sample(every, MOST)} if arrivals > MOST else {*every}
            yield from ((point, nth) for nth in sorted(few & {*every}))

    def survives(self, kill: Callable[[Site], bool], tally: Any, where: str) -> None:
        with self.site.copied(self.folder) as copy:
            if not kill(copy):
                return
            tally.add(injected=1, kills=1)
            with copy.opened() as place:
                assert [each for each in problems(place) if getattr(each, "kind", "") not in LONELY] == [], where
                self.step.resume(place)
                told = self.step.act(place)
                found = self._seen(place)
                wrong = differences(found, self.expected)
                tally.add(**wrong)
                assert not any(wrong.values()), (where, wrong)
                assert (told, found) == (self.told, self.expected), where
                assert tidied(place) == [], where


@pytest.fixture(scope="module", params=DIALECTS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(tmp_path_factory.mktemp("kills") / "site", request.param) as found:
        yield found


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_process_killed_at_any_point(
    site: Site, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Any
) -> None:
    case = Case(site, step, tmp_path / "copy", monkeypatch)
    for point, nth in case.places():

        def kill(copy: Site, point: str = point, nth: int = nth) -> bool:
            assert dies_at(copy, step, point, nth), f"it never came to {point} for the {nth}. time"
            return True

        case.survives(kill, tally, f"{step.name} killed at {point}:{nth}")


@pytest.mark.parametrize("step", [step for step in STEPS.values() if step.name != "download"], ids=lambda s: s.name)
def test_a_process_killed_at_any_time(
    site: Site, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Any
) -> None:
    case, chosen = Case(site, step, tmp_path / "copy", monkeypatch), random.Random(SEED)
    for _ in range(RANDOM_KILLS):
        seconds = chosen.uniform(0, case.seconds)

        def kill(copy: Site, seconds: float = seconds) -> bool:
            child = forked(partial(doing, copy, step))
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            return ended(child)

        case.survives(kill, tally, f"{step.name} killed after {seconds:.3f} s")


@pytest.mark.sample
@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("cycle", "cycle.snapshot"),
        ("checkpoint", "notary.signed"),
        ("erasure", "erasure.marked"),
    ],
)
def test_a_sample_of_kills(
    name: str, point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Any, small: Site
) -> None:
    step = STEPS[name]
    case = Case(small, step, tmp_path / "copy", monkeypatch)
    case.survives(lambda copy: dies_at(copy, step, point, 1), tally, point)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(tmp_path_factory.mktemp("kills") / "small", "sqlite") as found:
        yield found


def test_the_steps_pass_every_point(small: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a point would be killed at nowhere."""
    passed = {point for step in STEPS.values() for point in Case(small, step, tmp_path / "copy", monkeypatch).arrivals}
    assert passed == crash.POINTS.keys()


# -- real processes ----------------------------------------------------------------------------------------------------

RECIPE = {
    "seed": 3,
    "network": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 2, "minibatch": 16, "least_steps": 0},
    "guardrails": [],
}
EAGER = {"lease_seconds": 1.5, "heartbeat_seconds": 0.5, "snapshot_seconds": 0}
WORKER = [point for point in crash.POINTS if point.startswith(("blob.", "transaction.", "cycle."))]
SERVICE = [point for point in crash.POINTS if point.startswith(("blob.", "transaction.", "upload.", "notary."))]
OF_WORK = {"mask.pruned", "network.trained", "cycle.judged", "version.published", "alias.moved"}


def begin(deployment: Deployment) -> tuple[Client, int]:
    client = deployment.client(deployment.serve("--no-worker"))
    client.create_model("gas", RECIPE)
    taken = client.upload("gas", *clusters(1, n=60))
    assert taken.cycle is not None
    return client, taken.cycle


def outcome(client: Client) -> Any:
    (version,) = client.versions("gas")
    told = [(e.kind, without_clock(e.fact["parameters"])) for e in client.audit("gas") if e.kind in OF_WORK]
    return version.checkpoint.digest, version.mask_digest, told


def without_clock(parameters: Any) -> Any:
    return {k: v for k, v in parameters.items() if not k.endswith("_seconds")}


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Deployment(tmp_path_factory.mktemp("unkilled")) as deployment:
        client, cycle = begin(deployment)
        deployment.work()
        client.wait_for_cycle("gas", cycle, timeout=90)
        return outcome(client)


@pytest.mark.parametrize("point", WORKER)
def test_a_worker_killed_at_a_point(on_each_database: Deployment, point: str, unkilled: Any, tally: Any) -> None:
    deployment = on_each_database
    client, cycle = begin(deployment)
    worker = deployment.work(crash_at=point, **EAGER)
    assert worker.ended(90) == -signal.SIGKILL, worker.text
    tally.add(injected=1, kills=1)
    deployment.work(**EAGER)
    client.wait_for_cycle("gas", cycle, timeout=90)
    found = outcome(client)
    tally.add(lost=int(found[:2] != unkilled[:2]), doubled=len(list(client.versions("gas"))) - 1)
    assert found == unkilled
    deployment.is_whole()


def test_a_worker_killed_at_random_times(on_each_database: Deployment, unkilled: Any, tally: Any) -> None:
    deployment, chosen = on_each_database, random.Random(SEED)
    client, cycle = begin(deployment)
    for _ in range(8):
        worker = deployment.work(**EAGER, max_failures=100).ready()
        time.sleep(chosen.uniform(0, 2.5))
        worker.send(signal.SIGKILL)
        assert worker.ended() == -signal.SIGKILL
        tally.add(injected=1, kills=1)
    deployment.work(**EAGER)
    client.wait_for_cycle("gas", cycle, timeout=90)
    found = outcome(client)
    tally.add(lost=int(found[:2] != unkilled[:2]), doubled=len(list(client.versions("gas"))) - 1)
    assert found == unkilled
    deployment.is_whole()


TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {"Content-Type": "application/octet-stream"}


class Errands:
    """What one client wants of a service, however often it must ask."""

    def __init__(self) -> None:
        self.upload: str | None = None
        self.notes: list[str] = []

    def run(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            body = megabatch.encode(*clusters(2, n=60))
            assert http.post("/v1/models/gas/megabatches", content=body, headers=OCTETS).status_code in (200, 201)
            self._resumable(http)
            self.notes.append(self._ask(http, "GET", "/v1/audit/checkpoint").text)

    def _resumable(self, http: httpx.Client) -> None:
        data = megabatch.encode(*clusters(3, n=60))
        if self.upload is None:
            begun = self._ask(http, "POST", "/v1/models/gas/uploads", headers={**TUS, "Upload-Length": str(len(data))})
            self.upload = begun.headers["Location"]
        while True:
            offset = int(self._ask(http, "HEAD", self.upload, headers=TUS).headers["Upload-Offset"])
            end = min(len(data), offset + len(data) // 2 + 1)
            headers = {**TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            if offset == len(data):
                break
            self._ask(http, "PATCH", self.upload, headers=headers, content=data[offset:end])
        until(lambda: self._ask(http, "GET", str(self.upload)).json()["state"] == "accepted", 60)

    def _ask(self, http: httpx.Client, method: str, path: str, **given: Any) -> httpx.Response:
        return http.request(method, path, **given).raise_for_status()


def megabatches_of(client: Client) -> Any:
    accepted = [e.fact["parameters"]["digest"] for e in client.audit("gas", kind="megabatch.accepted")]
    return sorted(m.digest for m in client.megabatches("gas")), sorted(accepted)


@pytest.mark.parametrize("point", SERVICE)
def test_a_service_killed_at_a_point(on_each_database: Deployment, point: str, tally: Any) -> None:
    deployment, errands = on_each_database, Errands()
    first = deployment.serve("--no-worker")
    deployment.client(first).create_model("gas", RECIPE)
    first.send(signal.SIGKILL)
    first.ended()
    doomed = deployment.serve("--no-worker", crash_at=point)
    with suppress(httpx.TransportError, AssertionError):
        errands.run(doomed.url())
        httpx.post(f"{doomed.url()}/v1/models", json={"name": "steel"})  # some points are passed again
        errands.run(doomed.url())  # only when the log has grown
    assert killed(doomed), doomed.text
    tally.add(injected=1, kills=1)
    service = deployment.serve("--no-worker")
    errands.run(service.url())
    client = deployment.client(service)
    rows, logged = megabatches_of(client)
    tally.add(
        lost=2 - len({*rows}),
        doubled=len(rows) - len({*rows}) + len(logged) - len({*logged}),
        unaudited=int(rows != logged),
    )
    assert rows == logged and len(rows) == 2
    assert client.verify_log() == client.audit_head().size
    deployment.is_whole()


def killed(process: Process) -> bool:
    with suppress(AssertionError):
        return process.ended(5) == -signal.SIGKILL
    return False
