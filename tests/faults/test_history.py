"""Eight workers, three schedulers, clients, and a killer: whatever happens, the history is one story.

``ESPALIER_FAULT_CYCLES`` sets how many cycles are run on each database (1000 for the whole, the default is a tenth).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.domain import Actor
from app.errors import Unavailable
from app.service.cycles import enqueue_due
from app.service.outcomes import reclaim
from app.service.vigil import Vigil
from app.store.database import Store
from espalier.formats import megabatch
from tests.faults.checker import Call, Entry, Rows, check
from tests.faults.cluster import free_port
from tests.scenarios.deployment import Deployment, Process, clusters, until

CYCLES = int(os.environ.get("ESPALIER_FAULT_CYCLES", "100"))
WORKERS, SCHEDULERS, CLIENTS, SEED = 8, 3, 4, 20
MODELS = {"gas": None, "wine": None, "letters": None, "digits": None, "cron-a": "* * * * *", "cron-b": "*/2 * * * *"}
RECIPE: dict[str, Any] = {
    "network": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "minibatch": 32},
    "schedule": {"name": "app", "tau": 4.5, "stages": 400},
    "guardrails": [],
}
SETTINGS = {"max_failures": 1000, "lease_seconds": 6, "heartbeat_seconds": 1, "tick_seconds": 0.2, "retry_seconds": 0.1}


# -- the deployment ----------------------------------------------------------------------------------------------------


class Chaos:
    """Processes that are killed at random, and started again."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.port = deployment, free_port()
        self.chance = random.Random(SEED)
        self.kills = 0
        self.stop = threading.Event()
        self.service = self._serve()
        self.workers = [self._work() for _ in range(WORKERS)]
        self.thread = threading.Thread(target=self._kill)

    def _serve(self) -> Process:
        return self.deployment.start("serve", "--no-worker", "--port", str(self.port), **SETTINGS)

    def _work(self) -> Process:
        return self.deployment.work(**SETTINGS)

    def _kill(self) -> None:
        while not self.stop.wait(self.chance.uniform(3.0, 12.0)):
            if self.chance.random() < 0.1:
                self.service.send(signal.SIGKILL)
                self.service.ended()
                self.service = self._serve()
            else:
                index = self.chance.randrange(WORKERS)
                self.workers[index].send(signal.SIGKILL)
                self.workers[index].ended()
                self.workers[index] = self._work()
            self.kills += 1

    def end(self) -> None:
        self.stop.set()
        self.thread.join(30)


def schedule(deployment: Deployment, stop: threading.Event) -> None:
    """A scheduler whose clock runs sixty times as fast: a tick of the cron triggers comes every second."""
    begun = datetime.now(UTC)
    fast = deployment.store()
    fast.clock = lambda: begun + 60 * (datetime.now(UTC) - begun)
    store = deployment.store()
    settings = Settings(data_dir=deployment.data, lease_seconds=6.0, heartbeat_seconds=1.0)
    vigil = Vigil(settings)
    while not stop.wait(0.3):
        try:
            enqueue_due(fast, Actor("scheduler"))
            reclaim(store, settings, Actor("scheduler"), vigil.silent)
        except Unavailable:
            continue
    fast.dispose()
    store.dispose()


# -- clients -----------------------------------------------------------------------------------------------------------


@dataclass
class Caller:
    """One client: what it asks for comes from its seed, and what it is told is written down."""

    address: str
    index: int
    calls: list[Call] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.address, timeout=60, trust_env=False)
        self.chance = random.Random(SEED + self.index)
        self.asked = 0

    def act(self) -> None:
        """One thing, done to its end."""
        name = self.chance.choice(list(MODELS))
        dice = self.chance.random()
        if dice < 0.8:
            self.upload(name)
        elif dice < 0.9:
            self.move(name, "promote")
        else:
            self.move(name, "rollback")

    def send(self, path: str, key: str, **request: Any) -> tuple[httpx.Response, bool]:
        """The answer to a request, and whether an earlier try may have had an effect."""
        headers = {**request.pop("headers", {}), "Idempotency-Key": key}
        retried = False
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                answer = self.http.post(path, headers=headers, **request)
            except httpx.TransportError:
                retried = True
            else:
                if answer.status_code not in (503, 409) or "retry-after" not in answer.headers:
                    return answer, retried
                retried = True
            time.sleep(0.2)
        raise AssertionError(f"no answer to {path}")

    def upload(self, name: str) -> None:
        self.asked += 1
        # One in ten is something that was sent before, by whoever.
        seed = 100_000 * self.index + self.chance.randint(max(1, self.asked - 9), self.asked)
        x, y = clusters(seed, n=48)
        headers = {"Content-Type": "application/octet-stream"}
        key = f"{self.index}-{self.asked}"
        path = f"/v1/models/{name}/megabatches"
        answer, _ = self.send(path, key, content=megabatch.encode(x, y), headers=headers)
        call = Call("upload", name, "refused", content=f"{name}-{seed}")
        if answer.is_success:
            call = replace(call, outcome="done", number=answer.json()["number"])
        elif answer.json()["type"] != "urn:espalier:problem:megabatch-quarantined":
            self.odd.append(answer.text)
        self.calls.append(call)

    def move(self, name: str, verb: str) -> None:
        self.asked += 1
        try:
            champion = self.http.get(f"/v1/models/{name}/aliases/champion")
            listed = self.http.get(f"/v1/models/{name}/versions?limit=50")
        except httpx.TransportError:
            return
        if champion.status_code != 200 or listed.status_code != 200:
            return
        versions = [version["number"] for version in listed.json()["items"]]
        to, last = self.chance.choice(versions), champion.json()["version"]
        body: dict[str, Any] = {"reason": "chance"}
        path = f"/v1/models/{name}/versions/{to}/promote"
        banned: tuple[int, ...] = ()
        if verb == "rollback":
            known = self.http.get(f"/v1/models/{name}").json()["megabatches"] if self.chance.random() < 0.3 else 0
            banned = (self.chance.randint(1, known),) if known else ()
            body |= {"to": str(to), "quarantine": list(banned)}
            path = f"/v1/models/{name}/rollback"
        headers = {"If-Match": champion.headers["etag"]}
        answer, retried = self.send(path, f"{self.index}-{self.asked}", json=body, headers=headers)
        call = Call(verb, name, "refused", number=to, quarantined=banned)  # type: ignore[arg-type]  # one of its words
        if answer.is_success:
            call = replace(call, outcome="done", revision=answer.json()["alias"]["revision"])
        elif answer.status_code == 412 and retried:
            call = replace(call, outcome="unknown")
        elif answer.status_code not in (404, 409, 412, 422):
            self.odd.append(f"{verb} {last} -> {to}: {answer.text}")
        self.calls.append(call)


# -- what there is at the end ------------------------------------------------------------------------------------------


def pages(page: Callable[[Any], Any]) -> Iterator[Any]:
    after = None
    while True:
        found = page(after)
        yield from found.items
        if found.next is None:
            return
        after = int(found.next) if str(found.next).isdigit() else found.next


def entries_of(store: Store) -> list[Entry]:
    with store.reading() as tx:
        return [
            Entry(e.seq, e.kind, e.model, e.actor, e.document["parameters"])
            for e in pages(lambda after: tx.audit.entries(None, after, 500))
        ]


def rows_of(store: Store, name: str) -> Rows:
    with store.reading() as tx:
        moves = list(pages(partial(_history, tx, name)))
        return Rows(
            megabatches={
                m.number: m.status.value for m in pages(lambda after: tx.buffer.megabatches(name, after, 500))
            },
            versions={v.number: (v.parent, v.cycle) for v in pages(lambda after: tx.ledger.versions(name, after, 500))},
            cycles={
                c.number: (c.state.value, c.version) for c in pages(lambda after: tx.ledger.cycles(name, after, 500))
            },
            moves=sorted((move.revision, move.previous, move.version) for move in moves),
            champion=tx.ledger.alias(name, "champion").version if moves else None,
        )


def _history(tx: Any, name: str, after: Any) -> Any:
    return tx.ledger.alias_history(name, "champion", after, 500)


# -- the run -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(3600)
def test_a_thousand_cycles_among_kills_are_one_story(on_each_database: Deployment, tally) -> None:
    deployment = on_each_database
    chaos = Chaos(deployment)
    address = chaos.service.url()
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
        for name, cron in MODELS.items():
            trigger = {"trigger": {"name": "cron", "expression": cron}} if cron else {}
            made = http.post("/v1/models", json={"name": name, "recipe": RECIPE | trigger})
            assert made.status_code == 201, made.text
    store = deployment.store()
    callers = [Caller(address, index) for index in range(CLIENTS)]
    enough = threading.Event()

    def call(caller: Caller) -> None:
        while not enough.is_set():
            caller.act()

    schedulers = [threading.Thread(target=schedule, args=(deployment, enough)) for _ in range(SCHEDULERS)]
    threads = [*(threading.Thread(target=call, args=(caller,)) for caller in callers), *schedulers, chaos.thread]
    for thread in threads:
        thread.start()
    try:
        until(partial(has_versions, store, CYCLES), 20 + 10.0 * CYCLES, f"{CYCLES} cycles")
    finally:
        enough.set()
        chaos.end()
        for thread in threads:
            thread.join(180)
    assert not any(thread.is_alive() for thread in threads)
    for caller in callers:
        caller.http.close()
    settle(store, address, 60 + CYCLES)

    entries = entries_of(store)
    rows = {name: rows_of(store, name) for name in MODELS}
    calls = [each for caller in callers for each in caller.calls]
    found = check(calls, entries, rows, settled=True)
    told = Counter((each.verb, each.outcome) for each in calls)
    print(f"\n{deployment.url.split(':')[0]}: {chaos.kills} kills; calls {dict(told)}; entries {len(entries)};"
          f" versions {sum(len(held.versions) for held in rows.values())};"
          f" {Counter(e.kind for e in entries if e.kind.startswith('cycle.'))}")  # fmt: skip
    tally.add(
        injected=chaos.kills,
        kills=chaos.kills,
        lost=sum("lost" in said or "missing" in said for said in found),
        doubled=sum("twice" in said or "again" in said for said in found),
        unaudited=sum("of the log are not" in said for said in found),
    )
    store.dispose()
    assert found == []
    assert [said for caller in callers for said in caller.odd] == []
    assert chaos.kills > 3
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
        assert http.get("/v1/audit/head").json()["size"] == len(entries)
    deployment.is_whole()


def has_versions(store: Store, number: int) -> bool:
    time.sleep(0.5)
    with store.reading() as tx:
        return sum(len(tx.ledger.versions(name, None, 2000).items) for name in MODELS) >= number


def settle(store: Store, address: str, seconds: float) -> None:
    """Let everything be trained on that can be."""
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:

        def nothing_left(name: str) -> bool:
            asked = http.post(f"/v1/models/{name}/cycles", json={})
            return asked.status_code == 409 and asked.json()["type"].endswith("nothing-to-train")

        def idle() -> bool:
            time.sleep(0.3)
            with store.reading() as tx:
                return tx.ledger.activity()[:2] == (0, 0)

        def done() -> bool:
            until(idle, seconds, "the end of all cycles")
            asked = [nothing_left(name) for name in MODELS]
            return all(asked)

        until(done, seconds, "training on everything")


# -- the checker itself ------------------------------------------------------------------------------------------------


def story() -> tuple[list[Call], list[Entry], dict[str, Rows]]:
    """A sound history: two megabatches, two versions, a rollback that quarantines, and a third version."""
    told = [
        ("megabatch.accepted", {"megabatch": 1}),
        ("cycle.started", {"cycle": 1, "parent": None}),
        ("version.published", {"cycle": 1, "version": 1, "parent": None, "megabatches": [1], "new": [1]}),
        ("alias.moved", {"alias": "champion", "revision": 1, "from": None, "to": 1}),
        ("megabatch.accepted", {"megabatch": 2}),
        ("cycle.started", {"cycle": 2, "parent": 1}),
        ("cycle.reclaimed", {"cycle": 2}),
        ("cycle.started", {"cycle": 2, "parent": 1}),
        ("version.published", {"cycle": 2, "version": 2, "parent": 1, "megabatches": [1, 2], "new": [2]}),
        ("alias.moved", {"alias": "champion", "revision": 2, "from": 1, "to": 2}),
        ("megabatch.quarantined", {"megabatch": 2}),
        ("alias.moved", {"alias": "champion", "revision": 3, "from": 2, "to": 1}),
        ("megabatch.accepted", {"megabatch": 3}),
        ("cycle.requested", {"cycle": 3, "due": "2030-01-01T00:00:00+00:00"}),
        ("cycle.started", {"cycle": 3, "parent": 1}),
        ("version.published", {"cycle": 3, "version": 3, "parent": 1, "megabatches": [1, 3], "new": [3]}),
        ("alias.moved", {"alias": "champion", "revision": 4, "from": 1, "to": 3}),
    ]
    entries = [Entry(seq, kind, "gas", "somebody", about) for seq, (kind, about) in enumerate(told, 1)]
    calls = [
        *(Call("upload", "gas", "done", content=str(number), number=number) for number in (1, 2, 3)),
        Call("rollback", "gas", "done", number=1, revision=3, quarantined=(2,)),
        Call("promote", "gas", "refused", number=2),
    ]
    rows = Rows(
        megabatches={1: "accepted", 2: "quarantined", 3: "accepted"},
        versions={1: (None, 1), 2: (1, 2), 3: (1, 3)},
        cycles={1: ("published", 1), 2: ("published", 2), 3: ("published", 3)},
        moves=[(1, None, 1), (2, 1, 2), (3, 2, 1), (4, 1, 3)],
        champion=3,
    )
    return calls, entries, {"gas": rows}


Doctored = Callable[[list[Call], list[Entry], Rows], None]


def changed(entries: list[Entry], seq: int, **parameters: Any) -> None:
    entries[seq - 1] = replace(entries[seq - 1], parameters={**entries[seq - 1].parameters, **parameters})


def renumbered(entries: list[Entry]) -> None:
    entries[:] = [replace(entry, seq=seq) for seq, entry in enumerate(entries, 1)]


def without(entries: list[Entry], seq: int) -> None:
    del entries[seq - 1]
    renumbered(entries)


def twice(entries: list[Entry], seq: int) -> None:
    entries.insert(seq, entries[seq - 1])
    renumbered(entries)


DOCTORED: dict[str, tuple[str, Doctored]] = {
    "an entry is missing": ("is missing", lambda c, e, r: e.pop(4)),
    "a megabatch is lost": ("megabatch 3 was acknowledged, and is lost", lambda c, e, r: r.megabatches.pop(3)),
    "a megabatch is doubled": ("neither trained on", lambda c, e, r: r.megabatches.update({4: "accepted"})),
    "a megabatch nobody sent": ("nobody was told of", lambda c, e, r: c.pop(0)),
    "one content, two numbers": ("one content became", lambda c, e, r: c.append(replace(c[0], number=3))),
    "one number, two contents": ("for 2 contents", lambda c, e, r: c.append(replace(c[0], content="else"))),
    "accepted twice in the log": ("once each", lambda c, e, r: twice(e, 1)),
    "two cycles at once": ("started while [2] ran", lambda c, e, r: without(e, 7)),
    "a version without a cycle": ("which did not run", lambda c, e, r: without(e, 15)),
    "a stale worker publishes": ("which did not run", lambda c, e, r: twice(e, 9)),
    "another parent": ("was champion", lambda c, e, r: changed(e, 15, parent=2)),
    "a parent that was rolled back": ("was champion when it was published", lambda c, e, r: without(e, 12)),
    "the alias jumps": ("champion moved from 3", lambda c, e, r: changed(e, 17, **{"from": 3})),
    "a revision is left out": ("revision 5 follows 3", lambda c, e, r: changed(e, 17, revision=5)),
    "trained twice": ("took [1] in again", lambda c, e, r: changed(e, 9, new=[1, 2])),
    "quarantined, and trained on": ("were quarantined", lambda c, e, r: changed(e, 16, megabatches=[1, 2, 3])),
    "never trained on": ("neither trained on nor eligible", lambda c, e, r: changed(e, 16, new=[])),
    "a tick twice": ("taken up twice", lambda c, e, r: twice(e, 14)),
    "a gap in the versions": ("numbers have gaps", lambda c, e, r: r.versions.pop(2)),
    "a cycle with two versions": ("made more than one version", lambda c, e, r: r.versions.update({4: (3, 3)})),
    "a rollback is lost": ("a rollback to version 1 was ackn", lambda c, e, r: c.append(replace(c[3], revision=9))),
    "a rollback twice": ("were acknowledged twice", lambda c, e, r: c.append(c[3])),
    "a quarantine is lost": ("quarantine of [1] was ackn", lambda c, e, r: c.append(replace(c[3], quarantined=(1,)))),
    "a quarantine nobody was let": ("nobody who", lambda c, e, r: c.__setitem__(3, replace(c[3], quarantined=()))),
    "rows and log disagree": ("moves in the log are not", lambda c, e, r: r.moves.pop()),
    "a cycle runs on": ("run by their rows", lambda c, e, r: r.cycles.update({4: ("running", None)})),
}  # fmt: skip


@pytest.mark.sample
def test_a_sound_history_is_accepted() -> None:
    calls, entries, rows = story()
    assert check(calls, entries, rows, settled=True) == []


@pytest.mark.sample
@pytest.mark.parametrize("name", DOCTORED)
def test_the_checker_names_what_is_wrong(name: str) -> None:
    calls, entries, rows = story()
    said, doctor = DOCTORED[name]
    doctor(calls, entries, rows["gas"])
    found = check(calls, entries, rows, settled=True)
    assert any(said in each for each in found), found
