from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from espalier.client import Client
from espalier.download import content_digest, fetch, file_digest, promised_digest
from espalier.errors import DigestMismatch, EspalierClientError, ServiceUnreachable
from espalier.formats.canonical import sha256_digest
from espalier.records import Version
from espalier.transport import Transport
from tests.espalier.conftest import RECIPE, Faulty, Service, answering, cut, examples, refused, tampered

DATA = bytes(range(256)) * 40
DIGEST = sha256_digest(DATA)


@pytest.fixture(scope="module")
def version(service: Service) -> Version:
    """A version whose dense checkpoint takes several blocks."""
    with Client(service.url) as client:
        client.create_model(
            "download", {**RECIPE, "network": {"name": "mlp", "hidden": [384, 384]}, "training": {"epochs": 1}}
        )
        client.upload("download", *examples(1), wait=True, timeout=90)
        return client.version("download")


@pytest.fixture
def broken(service: Service) -> Iterator[list[Client]]:
    opened: list[Client] = []
    yield opened
    for client in opened:
        client.close()


def meeting(service: Service, broken: list[Client], *faults: object, retries: int = 2) -> tuple[Client, Faulty]:
    network = Faulty(*faults)  # type: ignore[arg-type]
    broken.append(Client(service.url, retries=retries, transport=network))
    return broken[-1], network


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_has_the_digest_and_leaves_nothing_else(client: Client, version: Version, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = client.download(version, tmp_path, progress=lambda got, total: seen.append((got, total)))
    assert path == tmp_path / "download-1.safetensors"
    assert file_digest(path) == version.checkpoint.digest
    assert path.stat().st_size == version.checkpoint.bytes == seen[-1][0] == seen[-1][1]
    assert names(tmp_path) == [path.name]


def test_a_file_that_is_there_already_is_not_fetched_again(
    service: Service, broken: list[Client], version: Version, tmp_path: Path
) -> None:
    client, network = meeting(service, broken)
    first = client.download(version, tmp_path)
    sent = len(network.requests)
    assert client.download(version, tmp_path) == first
    assert len(network.requests) == sent


def test_an_older_file_is_replaced_whole(client: Client, version: Version, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"older")
    client.download(version, path)
    assert file_digest(path) == version.checkpoint.digest


@pytest.mark.parametrize("format", ["sparse", "dense"])
def test_a_lost_connection_is_gone_on_from(
    service: Service, broken: list[Client], version: Version, tmp_path: Path, format: str
) -> None:
    client, network = meeting(service, broken, cut(5000))
    path = client.download(version, tmp_path, format=format)  # type: ignore[arg-type]
    resumed = network.requests[-1]
    assert resumed.headers["range"] == "bytes=4999-"
    assert resumed.headers["if-range"].startswith('"sha256:')
    assert names(tmp_path) == [path.name]
    if format == "sparse":
        assert file_digest(path) == version.checkpoint.digest


def test_what_was_fetched_outlives_a_failure(
    service: Service, broken: list[Client], version: Version, tmp_path: Path
) -> None:
    client, _ = meeting(service, broken, cut(5000), None, refused, refused, refused)
    with pytest.raises(ServiceUnreachable, match="goes on from it"):
        client.download(version, tmp_path / "model.safetensors")
    (part,) = tmp_path.iterdir()
    assert part.stat().st_size == 5000
    again, network = meeting(service, broken)
    path = again.download(version, tmp_path / "model.safetensors")
    assert network.requests[-1].headers["range"] == "bytes=4999-"
    assert file_digest(path) == version.checkpoint.digest
    assert names(tmp_path) == ["model.safetensors"]


def test_wrong_bytes_are_removed(service: Service, broken: list[Client], version: Version, tmp_path: Path) -> None:
    client, _ = meeting(service, broken, tampered)
    with pytest.raises(DigestMismatch, match="Nothing was kept"):
        client.download(version, tmp_path)
    assert names(tmp_path) == []


def test_a_damaged_part_is_not_gone_on_from_twice(
    service: Service, broken: list[Client], version: Version, tmp_path: Path
) -> None:
    client, _ = meeting(service, broken, cut(5000, flip=True), None)
    with pytest.raises(DigestMismatch):
        client.download(version, tmp_path)
    assert names(tmp_path) == []
    assert file_digest(client.download(version, tmp_path)) == version.checkpoint.digest


def test_a_part_that_is_longer_than_the_file_is_begun_anew(
    service: Service, broken: list[Client], version: Version, tmp_path: Path
) -> None:
    client, _ = meeting(service, broken, cut(5000), refused, refused, refused)
    with pytest.raises(ServiceUnreachable):
        client.download(version, tmp_path)
    (part,) = tmp_path.iterdir()
    part.write_bytes(bytes(version.checkpoint.bytes + 7))
    assert file_digest(client.download(version, tmp_path)) == version.checkpoint.digest


def test_a_whole_part_needs_no_more_than_its_last_byte(
    service: Service, broken: list[Client], version: Version, tmp_path: Path
) -> None:
    client, network = meeting(service, broken, cut(version.checkpoint.bytes))
    path = client.download(version, tmp_path)
    assert network.requests[-1].headers["range"] == f"bytes={version.checkpoint.bytes - 1}-"
    assert file_digest(path) == version.checkpoint.digest


def test_two_at_once_do_not_disturb_one_another(service: Service, version: Version, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    meet = threading.Barrier(4)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Client(service.url) as client:
                meet.wait()
                client.download(version, path, format="dense")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names(tmp_path) == ["model.safetensors"]


def test_a_killed_process_is_gone_on_from(service: Service, version: Version, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from espalier import Client\n"
        "def die(got, total):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Client(sys.argv[1]).download('download:1', sys.argv[2], format='dense', progress=die)\n"
    )
    path = tmp_path / "model.safetensors"
    killed = subprocess.run([sys.executable, "-c", program, service.url, str(path)], check=False)
    assert killed.returncode == -9
    (part,) = tmp_path.iterdir()
    fetched = part.stat().st_size
    assert fetched > 0
    seen: list[int] = []
    with Client(service.url) as client:
        client.download(version, path, format="dense", progress=lambda got, total: seen.append(got))
    assert seen[0] > fetched
    assert names(tmp_path) == ["model.safetensors"]
    assert path.stat().st_size > 4 * 384 * 384


class Whole(httpx.SyncByteStream):
    """A body that is not read before it is asked for, as one from the network."""

    def __init__(self, answer: httpx.Response) -> None:
        self.data = answer.content

    def __iter__(self) -> Iterator[bytes]:
        yield self.data


class Broken(httpx.SyncByteStream):
    """A body whose connection is lost after its first bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self.data
        raise httpx.ReadError("lost")


def scripted(*answers: httpx.Response) -> Transport:
    left = [
        answer
        if isinstance(answer.stream, Broken)
        else httpx.Response(answer.status_code, headers=answer.headers, stream=Whole(answer))
        for answer in answers
    ]
    return Transport(
        "http://127.0.0.1:9",
        None,
        timeout=1,
        retries=0,
        transport=httpx.MockTransport(lambda request: left.pop(0)),
    )


def part(target: Path, data: bytes, tag: str) -> None:
    """An unfinished download, as a lost connection leaves it."""
    headers = {"ETag": tag, "Content-Length": str(len(DATA))}
    refusing = httpx.Response(404, json={"title": "gone"})
    with pytest.raises(EspalierClientError):
        fetch(
            scripted(httpx.Response(200, headers=headers, stream=Broken(data)), refusing),
            "/x",
            target,
            params={},
            expected=None,
        )


def test_bytes_that_changed_meanwhile_are_fetched_from_the_beginning(tmp_path: Path) -> None:
    target, tag = tmp_path / "file", f'"{DIGEST}"'
    part(target, b"other bytes", tag)
    whole = {"ETag": tag, "Content-Length": str(len(DATA))}
    service = scripted(
        httpx.Response(200, headers=whole, content=DATA),
        httpx.Response(200, headers=whole, content=DATA),  # If-Range did not hold: the whole file
    )
    assert fetch(service, "/x", target, params={}, expected=None).read_bytes() == DATA
    assert names(tmp_path) == ["file"]


def test_a_proxy_that_answers_with_another_range_is_caught(tmp_path: Path) -> None:
    target, tag = tmp_path / "file", f'"{DIGEST}"'
    part(target, DATA[:100], tag)
    whole = {"ETag": tag, "Content-Length": str(len(DATA))}
    wrong = httpx.Response(206, headers={"ETag": tag, "Content-Range": "bytes 0-9/10240"}, content=DATA[:10])
    service = scripted(httpx.Response(200, headers=whole, content=DATA), wrong)
    with pytest.raises(EspalierClientError, match="another range"):
        fetch(service, "/x", target, params={}, expected=None)
    assert not target.exists()


def test_a_file_without_any_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="promised no digest"):
        fetch(scripted(httpx.Response(200, content=DATA)), "/x", tmp_path / "file", params={}, expected=None)
    assert names(tmp_path) == []


def test_every_promise_counts(tmp_path: Path) -> None:
    lying = httpx.Response(200, headers={"Repr-Digest": content_digest("sha256:" + "0" * 64)}, content=DATA)
    with pytest.raises(DigestMismatch):
        fetch(scripted(lying), "/x", tmp_path / "file", params={}, expected=DIGEST)
    assert names(tmp_path) == []


def test_a_file_without_a_tag_is_verified_by_its_digest_field(tmp_path: Path) -> None:
    answer = httpx.Response(200, headers={"Content-Digest": content_digest(DIGEST)}, content=DATA)
    assert fetch(scripted(answer), "/x", tmp_path / "file", params={}, expected=None).read_bytes() == DATA


def test_promised_digests() -> None:
    field = content_digest(DIGEST)
    assert promised_digest({"repr-digest": f"md5=:AAAA:, {field}"}, whole=False) == DIGEST
    assert promised_digest({"content-digest": field}, whole=True) == DIGEST
    assert promised_digest({"content-digest": field}, whole=False) is None
    assert promised_digest({"etag": f'"{DIGEST}"'}, whole=False) == DIGEST
    assert promised_digest({"etag": f'W/"{DIGEST}"'}, whole=False) is None
    assert promised_digest({"etag": '"3"'}, whole=True) is None


def test_a_service_that_is_down_for_a_moment(
    service: Service, broken: list[Client], version: Version, tmp_path: Path
) -> None:
    client, network = meeting(service, broken, refused, answering(503))
    client.download(version, tmp_path)
    assert len(network.requests) == 3
