"""Watching an alias: each version once, its bytes in place, whatever the service and the network do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from espalier.client import Client
from espalier.download import file_digest
from espalier.errors import EspalierClientError
from espalier.records import Version
from espalier.watch import Watch
from tests.espalier.conftest import Faulty, Service, answering, examples, refused, serving, tampered

QUICK = 6.0
"""A timeout by which long polls last a second."""


@pytest.fixture
def connect(service: Service) -> Iterator[Callable[..., tuple[Client, Faulty]]]:
    opened: list[Client] = []

    def make(*faults: object, times: int = 1) -> tuple[Client, Faulty]:
        network = Faulty(*faults, times=times)  # type: ignore[arg-type]
        client = Client(service.url, timeout=QUICK, retries=0, transport=network)
        opened.append(client)
        return client, network

    yield make
    for client in opened:
        client.close()


def move(service: Service, name: str, number: int) -> None:
    with Client(service.url) as other:
        other.promote(name, number, "try it")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Following:
    """A watch that is iterated over by a thread of its own."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.seen = watch, list[tuple[Version, Path | None]]()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            for version in self.watch:
                self.seen.append((version, self.watch.path))
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def numbers(self) -> list[int]:
        return [version.number for version, _ in self.seen]


def test_each_version_once_as_soon_as_the_alias_moves(service: Service, trained: str, tmp_path: Path) -> None:
    with (
        Client(service.url) as client,
        Following(client.watch(f"{trained}@champion", interval=60, directory=tmp_path)) as following,
    ):
        for count, number in enumerate((2, 1, 2), 1):
            if count > 1:
                move(service, trained, number)
            until(lambda count=count: len(following.seen) == count)  # type: ignore[misc]
    assert following.error is None
    assert following.numbers == [2, 1, 2]
    for version, path in following.seen:
        assert path == tmp_path / f"{trained}-{version.number}.safetensors"
        assert file_digest(path) == version.checkpoint.digest


def test_one_file_is_replaced_by_each_version(service: Service, trained: str, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model.safetensors"
    with (
        Client(service.url) as client,
        Following(client.watch(f"{trained}@champion", interval=60, path=target)) as following,
    ):
        until(lambda: following.numbers == [2])
        assert file_digest(target) == following.seen[0][0].checkpoint.digest
        move(service, trained, 1)
        until(lambda: following.numbers == [2, 1])
        assert file_digest(target) == following.seen[1][0].checkpoint.digest
    assert sorted(path.name for path in target.parent.iterdir()) == [".model.safetensors.json", "model.safetensors"]


def test_a_stop_does_not_wait_for_a_long_poll(client: Client, trained: str) -> None:
    with Following(client.watch(f"{trained}@champion")) as following:
        until(lambda: bool(following.seen))
        began = time.monotonic()
        following.watch.stop()
        following._thread.join(10)
        assert time.monotonic() - began < 5
    assert list(following.watch) == [], "what was stopped stays stopped"


def test_leaving_the_context_stops_it(client: Client, trained: str) -> None:
    stop = threading.Event()
    with client.watch(f"{trained}@champion", stop=stop) as watch:
        assert [version.number for version in watch_first(watch)] == [2]
    assert stop.is_set()


def watch_first(watch: Watch) -> list[Version]:
    for version in watch:
        return [version]
    return []


@pytest.mark.slow
def test_without_long_polls_it_looks_at_intervals(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "data", ESPALIER_LONGEST_WAIT_SECONDS="0") as service,
        Client(service.url) as client,
    ):
        client.create_model("gas", {"network": {"name": "mlp", "hidden": [4]}})
        upload(client, "gas", 1)
        with Following(client.watch("gas@champion", interval=0.05)) as following:
            until(lambda: following.numbers == [1])
            upload(client, "gas", 2)
            until(lambda: following.numbers == [1, 2])
        assert following.error is None


def upload(client: Client, name: str, seed: int) -> None:
    client.upload(name, *examples(seed), wait=True, timeout=90)


@pytest.mark.slow
def test_it_survives_a_service_that_starts_again(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as first:
        port = first.url.rpartition(":")[2]
        with Client(first.url) as client:
            client.create_model("gas", {"network": {"name": "mlp", "hidden": [4]}})
            upload(client, "gas", 1)
        with (
            Client(first.url, timeout=QUICK, retries=0) as client,
            Following(client.watch("gas@champion", interval=0.5)) as following,
        ):
            until(lambda: following.numbers == [1])
            first.stop()
            with serving(tmp_path / "data", "--port", port) as again, Client(again.url) as other:
                upload(other, "gas", 2)
                until(lambda: following.numbers == [1, 2])
    assert following.error is None


@pytest.mark.slow
def test_a_service_that_stops_answers_those_who_wait(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as service, Client(service.url) as client:
        client.create_model("gas", {"network": {"name": "mlp", "hidden": [4]}})
        upload(client, "gas", 1)
        path = f"{service.url}/v1/models/gas/versions/champion"
        tag = httpx.get(path).headers["ETag"]
        answers: list[httpx.Response] = []

        asked, listening = threading.Event(), threading.Event()

        def wait() -> None:
            def trace(event: str, _info: object) -> None:
                if event == "http11.send_request_body.complete":
                    asked.set()

            headers = {"If-None-Match": tag, "Prefer": "wait=60"}
            with httpx.Client(timeout=60) as http:
                request = http.build_request("GET", path, headers=headers, extensions={"trace": trace})
                answers.append(http.send(request))

        def listen() -> None:
            with httpx.stream("GET", f"{service.url}/v1/events", timeout=60) as answer:
                for _ in answer.iter_raw():
                    listening.set()
                answers.append(answer)

        threads = [threading.Thread(target=target) for target in (wait, listen)]
        for thread, begun in zip(threads, (asked, listening), strict=True):  # the service takes them in this order
            thread.start()
            assert begun.wait(20)
        began = time.monotonic()
        assert service.stop() == 0
        for thread in threads:
            thread.join(10)
        assert sorted(answer.status_code for answer in answers) == [200, 304]
        assert time.monotonic() - began < 8, "nothing waited for the end of the grace"


# -- on disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["directory", "path"])
def test_it_begins_without_a_service_from_what_was_kept(
    connect: Callable[..., tuple[Client, Faulty]], service: Service, trained: str, tmp_path: Path, place: str
) -> None:
    where = {place: tmp_path / ("models" if place == "directory" else "model.safetensors")}
    client, _ = connect()
    assert [found.number for found in watch_first(client.watch(trained, **where))] == [2]
    away, network = connect(refused, times=4)
    with Following(away.watch(trained, interval=0.1, **where)) as following:
        until(lambda: following.numbers == [2])
        version, path = following.seen[0]
        assert path is not None and file_digest(path) == version.checkpoint.digest
        until(lambda: not network.faults and len(network.requests) > 6)
        assert following.numbers == [2], "the service is back, and says what was handed over already"
        move(service, trained, 1)
        until(lambda: following.numbers == [2, 1])


def test_what_was_kept_for_another_alias_or_was_damaged_is_not_handed_over(
    connect: Callable[..., tuple[Client, Faulty]], trained: str, tmp_path: Path
) -> None:
    target = tmp_path / "model.safetensors"
    client, _ = connect()
    watch_first(client.watch(trained, path=target))
    note = tmp_path / ".model.safetensors.json"
    assert json.loads(note.read_text())["watched"] == f"{trained}@champion"
    away, network = connect(refused, times=10_000)

    def tried(watch: Watch) -> Following:
        """What a watch hands over by the time that it has asked three times."""
        before = len(network.requests)
        with Following(watch) as following:
            until(lambda: len(network.requests) >= before + 3)
        return following

    good = target.read_bytes()
    for damage in (
        lambda: target.write_bytes(good[:-1] + bytes([good[-1] ^ 1])),
        lambda: target.write_bytes(good) and note.write_text("{"),
        lambda: note.write_text("[]"),
        lambda: note.write_text(json.dumps({"watched": f"{trained}@champion", "version": {}})),
        lambda: note.write_text(json.dumps({"watched": f"{trained}@champion"})),
        note.unlink,
    ):
        damage()
        following = tried(away.watch(trained, interval=0.02, path=target))
        assert (following.seen, following.error) == ([], None)
    assert tried(away.watch(f"{trained}@latest", interval=0.02, path=target)).seen == []


def test_a_download_that_fails_leaves_the_last_good_version_in_force(
    connect: Callable[..., tuple[Client, Faulty]], service: Service, trained: str, tmp_path: Path
) -> None:
    target = tmp_path / "model.safetensors"
    client, _ = connect()
    watch_first(client.watch(trained, path=target))
    move(service, trained, 1)
    client, _ = connect(None, tampered, answering(500))
    with Following(client.watch(trained, interval=0.2, path=target)) as following:
        until(lambda: following.numbers[-1:] == [1])
    assert following.numbers == [2, 1], "first what was kept, then what could be downloaded at last"
    assert file_digest(target) == following.seen[1][0].checkpoint.digest


def test_what_a_watch_cannot_do(client: Client, tmp_path: Path) -> None:
    with pytest.raises(EspalierClientError, match="one of them"):
        client.watch("gas@champion", directory=tmp_path, path=tmp_path / "file")
    with pytest.raises(EspalierClientError):
        client.watch("gas@@champion")


def test_what_on_change_raises_ends_the_watch(client: Client, trained: str) -> None:
    def fails(version: Version, path: Path | None) -> None:
        raise RuntimeError(f"cannot swap {version.number}")

    with pytest.raises(RuntimeError, match="cannot swap 2"):
        client.watch(trained, fails)


# -- the command -------------------------------------------------------------------------------------------------------


def espalier(service: Service, *words: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "espalier", "--url", service.url, *map(str, words)], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_pulls_and_executes(service: Service, trained: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    script = f"import sys; open({str(note)!r}, 'w').write(' '.join(sys.argv[1:]))"
    command = f'{sys.executable} -c "{script}" {{model}} {{number}} {{path}}'
    folder = tmp_path / "models"
    code, out, err = espalier(service, "version", "watch", trained, "--pull", folder, "--exec", command, "--once")
    assert code == 0, err
    target = folder / f"{trained}-2.safetensors"
    assert out.endswith(f"-> {target}\n")
    assert note.read_text() == f"{trained} 2 {target}"


def test_the_command_without_files(service: Service, trained: str, tmp_path: Path) -> None:
    code, out, _ = espalier(service, "--json", "version", "watch", trained, "--once")
    document = json.loads(out)
    assert (code, document["path"], document["version"]["number"]) == (0, None, 2)


@pytest.mark.slow
def test_a_command_that_fails_ends_the_watch(service: Service, trained: str) -> None:
    code, _, err = espalier(service, "version", "watch", trained, "--exec", "false")
    assert code == 1 and "false ended with status 1" in err
    code, _, err = espalier(service, "version", "watch", trained, "--exec", "/no/such/program")
    assert code == 1 and "cannot run /no/such/program" in err
    for faulty in ("'", "{nothing}", "{"):
        code, _, err = espalier(service, "version", "watch", trained, "--exec", faulty)
        assert code == 2 and "are filled in" in err.replace("\n", " "), err
