"""PostgreSQL stopped, cut off or silent at the worst moment: all or nothing, once, and back without a restart."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from app.config import Settings
from app.domain import CycleState, CycleTrigger
from app.errors import StoreBusy, Unavailable
from app.service import cycles, history, outcomes
from app.store.blobs import Blobs
from app.store.database import Store
from app.store.migrate import migrate
from espalier.formats import megabatch
from tests.api.conftest import OCTETS, RECIPE, opened, upload_bytes
from tests.builders import make_model
from tests.faults.cluster import Cluster, needs_postgresql
from tests.faults.proxy import Deed, Proxy
from tests.scenarios.deployment import Deployment, clusters, until
from tests.service.conftest import ACTOR, House

pytestmark = [needs_postgresql, pytest.mark.timeout(600)]

SMALL = {"network": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1, "minibatch": 64}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture
def url(cluster: Cluster) -> str:
    """A migrated database in it."""
    until(cluster.answers, 60, "the database")
    name = f"faults_{uuid.uuid4().hex}"
    engine = sa.create_engine(cluster.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    made = sa.make_url(cluster.url).set(database=name).render_as_string(hide_password=False)
    migrate(made)
    return made


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    with Proxy(cluster.port) as made:
        yield made


def through(proxy: Proxy, url: str) -> str:
    return sa.make_url(url).set(port=proxy.port).render_as_string(hide_password=False)


def lose_the_answer(forward: Callable[[], None], drop: Callable[[], None]) -> None:
    """The database commits, and nobody hears of it."""
    forward()


def lose_the_commit(forward: Callable[[], None], drop: Callable[[], None]) -> None:
    """The connection goes before the database has heard of it."""
    drop()


def vanish(forward: Callable[[], None], drop: Callable[[], None]) -> None:
    """The client is gone, as with its machine, and the database goes on waiting for it, all locks held."""


def crash(cluster: Cluster, told: bool, forward: Callable[[], None], drop: Callable[[], None]) -> None:
    """The database crashes right after, or right before it hears of the commit."""
    if told:
        forward()
    cluster.stop("immediate")
    drop()
    cluster.start()


FAULTS: dict[str, Deed] = {"the answer is lost": lose_the_answer, "the commit is lost": lose_the_commit}


def answered(post: Callable[[], httpx.Response], refusals: list[int]) -> httpx.Response:
    """Ask until there is an answer; every refusal says when to come back."""

    def look() -> httpx.Response | None:
        answer = post()
        if answer.is_success:
            return answer
        assert answer.status_code in (503, 409), answer.text
        assert answer.headers.get("retry-after"), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        refusals.append(answer.status_code)
        time.sleep(0.1)
        return None

    return until(look, 60, "an answer")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_key_gives_the_same_megabatch_whichever_commit_is_lost(
    fault: str, proxy: Proxy, url: str, tmp_path: Path, tally
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=through(proxy, url), refresh_seconds=1.0)
    given: dict[str, int] = {}
    refusals: list[int] = []
    with opened(settings) as house:
        http = house.http
        assert http.post("/v1/models", json={"name": "gas", "recipe": RECIPE}).status_code == 201
        for nth in range(1, 15):
            body, key = upload_bytes(nth), f"key-{nth}"
            headers = {**OCTETS, "Idempotency-Key": key}
            post = partial(http.post, "/v1/models/gas/megabatches", content=body, headers=headers)
            proxy.arm(commit=nth, does=FAULTS[fault])
            first = answered(post, refusals)
            proxy.disarm()
            given[key] = first.json()["number"]
            assert answered(post, refusals).json()["number"] == given[key]
            fresh = {**OCTETS, "Idempotency-Key": f"other-{nth}"}
            again = http.post("/v1/models/gas/megabatches", content=body, headers=fresh)
            assert again.json()["number"] == given[key]
        accepted = [m["number"] for m in http.get("/v1/models/gas/megabatches?limit=100").json()["items"]]
        entries = http.get("/v1/audit?kind=megabatch.accepted&limit=100").json()["items"]
    tally.add(
        injected=proxy.fired + len(given),
        lost=len(set(given.values()) - set(accepted)),
        doubled=len(accepted) - len(given),
        unaudited=abs(len(entries) - len(accepted)),
    )
    assert sorted(given.values()) == accepted == list(range(1, len(given) + 1))
    assert len(entries) == len(accepted)
    whole(url, tmp_path)


def whole(url: str, folder: Path) -> None:
    store = Store(url, Blobs(folder / "blobs"))
    assert history.examine(store) == []
    store.dispose()


class Workshop:
    """A worker behind the proxy, and everybody else beside it."""

    def __init__(self, proxy: Proxy, url: str, folder: Path) -> None:
        self.url, self.folder, self.proxy = url, folder, proxy
        settings = Settings(data_dir=folder, retry_seconds=0.0, max_failures=1000)
        blobs = Blobs(folder / "blobs")
        self.beside = House(Store(url, blobs), settings)
        self.behind = House(Store(through(proxy, url), blobs), settings)
        self.beside.create(recipe=SMALL)
        self.made = 0

    def one_cycle(self) -> None:
        """Take a megabatch in, and train on it, whatever becomes of the connection."""
        self.made += 1
        until(self._uploaded, 60, "an upload")

        def ended() -> bool:
            try:
                self.behind.cycle()
            except Unavailable:
                self.proxy.disarm()
            try:
                outcomes.reclaim(self.beside.store, self.beside.settings, ACTOR, list)
                cycle = cycles.get_cycle(self.beside.store, "gas", self.made)
            except Unavailable:
                return False
            return cycle.state not in (CycleState.QUEUED, CycleState.RUNNING)

        until(ended, 60, "the end of the cycle")

    def _uploaded(self) -> bool:
        try:
            return self.beside.upload(seed=self.made).megabatch.number == self.made
        except Unavailable:
            return False

    def close(self, tally) -> None:
        kinds = self.beside.kinds()
        page = cycles.list_cycles(self.beside.store, "gas", after=None, limit=500).items
        versions = [cycle.version for cycle in reversed(page)]
        published = kinds.count("version.published") + kinds.count("version.withheld")
        tally.add(
            injected=self.proxy.fired,
            lost=versions.count(None),
            doubled=max(0, published - self.made),
            unaudited=max(0, self.made - published),
        )
        assert versions == list(range(1, self.made + 1))
        assert published == self.made
        assert {cycle.trigger for cycle in page} == {CycleTrigger.MEGABATCHES}
        whole(self.url, self.folder)
        for house in (self.beside, self.behind):
            house.store.dispose()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cycle_makes_one_version_whichever_commit_is_lost(
    fault: str, proxy: Proxy, url: str, tmp_path: Path, tally
) -> None:
    shop = Workshop(proxy, url, tmp_path)
    for nth in itertools.count(1):
        before = proxy.fired
        proxy.arm(commit=nth, does=FAULTS[fault])
        shop.one_cycle()
        if proxy.fired == before:
            break
    proxy.disarm()
    assert nth > 3
    shop.close(tally)


@pytest.mark.parametrize("told", [True, False], ids=["after", "before"])
def test_a_cycle_makes_one_version_when_the_database_crashes_at_a_commit(
    told: bool, cluster: Cluster, proxy: Proxy, url: str, tmp_path: Path, tally
) -> None:
    shop = Workshop(proxy, url, tmp_path)
    for nth in itertools.count(1):
        before = proxy.fired
        proxy.arm(commit=nth, does=partial(crash, cluster, told))
        shop.one_cycle()
        if proxy.fired == before:
            break
    proxy.disarm()
    until(cluster.answers, 60, "the database")
    shop.close(tally)


def written(store: Store) -> bool:
    try:
        with store.transaction(ACTOR) as tx:
            tx.ledger.lock_model("gas")
            tx.audit.append("test.noise", model="gas")
    except StoreBusy:
        return False
    return True


def test_nobody_waits_for_a_client_that_vanished(proxy: Proxy, url: str, tmp_path: Path, tally) -> None:
    blobs = Blobs(tmp_path / "blobs")
    beside, behind = Store(url, blobs, busy_seconds=2), Store(through(proxy, url), blobs, busy_seconds=2)
    make_model(beside, "gas")
    proxy.arm(commit=1, does=vanish)
    assert not written(behind)
    assert proxy.fired == 1
    assert not written(beside), "the locks are still held: otherwise this test shows nothing"
    until(partial(written, beside), 20, "a write beside it")
    tally.add(injected=1)
    assert history.examine(beside) == []
    beside.dispose()
    behind.dispose()


def test_a_cycle_makes_one_version_wherever_its_connection_is_cut(
    proxy: Proxy, url: str, tmp_path: Path, tally
) -> None:
    shop = Workshop(proxy, url, tmp_path)
    proxy.arm()
    shop.one_cycle()
    total = proxy.sent
    for share in range(1, 24):
        proxy.arm(after=total * share // 24)
        shop.one_cycle()
    proxy.disarm()
    shop.close(tally)


# -- real processes, under load ----------------------------------------------------------------------------------------


class Load:
    """Clients that upload, each with a key of its own a megabatch, and go on until there is an answer."""

    def __init__(self, address: str, name: str, threads: int) -> None:
        self.address, self.name = address, name
        self.given: dict[str, int] = {}
        self.odd: list[str] = []
        self.refused = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._upload, args=(index,)) for index in range(threads)]
        for thread in self._threads:
            thread.start()

    def _upload(self, index: int) -> None:
        with httpx.Client(base_url=self.address, timeout=60, trust_env=False) as http:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                seed = 1000 * (index + 1) + number
                self._one(http, megabatch.encode(*clusters(seed, n=60)), f"key-{seed}")

    def _one(self, http: httpx.Client, body: bytes, key: str) -> None:
        headers = {**OCTETS, "Idempotency-Key": key}
        end = time.monotonic() + 90
        while time.monotonic() < end:
            answer = http.post(f"/v1/models/{self.name}/megabatches", content=body, headers=headers)
            with self._lock:
                if answer.is_success:
                    self.given[key] = answer.json()["number"]
                    return
                self.refused += 1
                if answer.status_code not in (503, 409) or "retry-after" not in answer.headers:
                    self.odd.append(f"{answer.status_code} {answer.text}")
                    return
            time.sleep(0.1)
        self.odd.append(f"no answer for {key}")

    def ended(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()
        assert self.odd == []


def all_is_trained(deployment: Deployment, address: str, given: dict[str, int], tally) -> None:
    """Every acknowledged megabatch is there once, and has been trained on."""
    client = deployment.client(deployment.processes[0])
    assert client.url == address
    until(lambda: all(not cycle.open for cycle in client.cycles("gas")), 120, "the end of all cycles")
    numbers = [m.number for m in client.megabatches("gas")]
    accepted = list(client.audit("gas", kind="megabatch.accepted"))
    tally.add(
        lost=len(set(given.values()) - set(numbers)),
        doubled=len(numbers) - len(given) + len(given) - len(set(given.values())),
        unaudited=abs(len(accepted) - len(numbers)),
    )
    assert sorted(given.values()) == sorted(numbers)
    assert len(accepted) == len(numbers)
    assert client.verify_log() == client.audit_head().size
    deployment.is_whole()


def test_the_database_crashes_under_load(cluster: Cluster, url: str, tmp_path: Path, tally) -> None:
    chance = random.Random(5)  # when to crash, not a secret
    with Deployment(tmp_path, url) as deployment:
        service = deployment.serve("--no-worker")
        for _ in range(2):
            deployment.work().ready()
        client = deployment.client(service)
        client.create_model("gas", SMALL)
        with httpx.Client(base_url=client.url, timeout=60, trust_env=False) as http:
            load = Load(client.url, "gas", 3)
            for _ in range(3):
                enough = len(load.given) + 3
                until(lambda enough=enough: len(load.given) >= enough, what="some uploads")
                time.sleep(chance.random())
                cluster.stop("immediate")
                down = until(partial(unready, http), 20, "a refusal")
                assert down.headers["retry-after"]
                cluster.start()
                until(lambda: http.get("/readyz").status_code == 200, 30, "recovery without a restart")
                tally.add(injected=1)
            load.ended()
        assert load.refused > 0
        assert all(process.popen.poll() is None for process in deployment.processes)
        all_is_trained(deployment, client.url, load.given, tally)


def unready(http: httpx.Client) -> httpx.Response | None:
    answer = http.get("/readyz")
    return answer if answer.status_code == 503 else None


def test_the_database_stalls_and_is_cut_off_under_load(proxy: Proxy, url: str, tmp_path: Path, tally) -> None:
    with Deployment(tmp_path, through(proxy, url)) as deployment:
        service = deployment.serve("--no-worker")
        deployment.work().ready()
        client = deployment.client(service)
        client.create_model("gas", SMALL)
        load = Load(client.url, "gas", 2)
        for _ in range(3):
            enough = len(load.given) + 3
            until(lambda enough=enough: len(load.given) >= enough, what="some uploads")
            proxy.stall()
            time.sleep(1.5)
            proxy.flow()
            proxy.cut()
            tally.add(injected=2)
        load.ended()
        all_is_trained(deployment, client.url, load.given, tally)
