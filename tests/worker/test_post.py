"""One request, to real receivers: what they do wrong, how long they may take, and where it must not go."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.service.deliveries import Answer
from app.worker.post import MOST_READ, post, retry_after
from tests.receiver import Receiver, hanging, receiving, status, trickling

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
BODY = b'{"specversion":"1.0"}'


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def send(receiver: Receiver, seconds: float = 10.0) -> Answer:
    return post(receiver.url, BODY, {"Content-Type": "application/x"}, allowed=LOOPBACK, seconds=seconds)


def test_what_is_sent_is_what_arrives(receiver: Receiver) -> None:
    receiver.otherwise = status(200, b"thank\x00you\n")
    answer = post(receiver.url + "/a?b=c", BODY, {"webhook-id": "7"}, allowed=LOOPBACK)
    assert (answer.status, answer.error, answer.text, answer.arrived) == (200, None, "thank you", True)
    (got,) = receiver.got
    assert (got.path, got.body) == ("/hook/a?b=c", BODY)
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["webhook-id"] == "7" and got.headers["user-agent"].startswith("espalier/")


@pytest.mark.parametrize(("code", "arrived"), [(200, True), (202, True), (299, True), (404, False), (500, False)])
def test_the_status_says_whether_it_arrived(receiver: Receiver, code: int, arrived: bool) -> None:
    receiver.otherwise = status(code)
    assert send(receiver).arrived is arrived


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    with receiving() as elsewhere:
        for code in (301, 302, 303, 307, 308):
            receiver.otherwise = status(code, Location=elsewhere.url)
            answer = send(receiver)
            assert answer.status == code and "not followed" in str(answer.error) and not answer.arrived
        assert elsewhere.got == []


def test_a_receiver_that_hangs_is_left_after_the_deadline(receiver: Receiver) -> None:
    receiver.otherwise = hanging(20)
    answer = send(receiver, 0.4)
    assert answer.status is None and "within 0.4 s" in str(answer.error)
    assert 0.35 < answer.seconds < 2


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX: "])
def test_a_head_that_trickles_is_left_after_the_deadline(receiver: Receiver, head: bytes) -> None:
    receiver.otherwise = trickling(head, 20)
    answer = send(receiver, 0.4)
    assert answer.status is None and answer.seconds < 2


def test_a_body_that_trickles_makes_no_difference(receiver: Receiver) -> None:
    receiver.otherwise = trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", 20)
    answer = send(receiver, 0.4)
    assert answer.arrived and answer.seconds < 2
    assert set(answer.text) <= {"x"}


def test_a_huge_body_is_not_read(receiver: Receiver) -> None:
    sent = []

    def pour(handler, got) -> None:  # type: ignore[no-untyped-def]
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        try:
            while True:
                handler.wfile.write(b"y" * 65536)
                sent.append(65536)
        except OSError:
            pass

    receiver.otherwise = pour
    answer = send(receiver)
    assert answer.arrived and len(answer.text) == 500 and answer.seconds < 5
    time.sleep(0.2)
    assert sum(sent) < 200 * MOST_READ, "what the sockets hold, and not more"


def test_a_huge_head_is_refused(receiver: Receiver) -> None:
    def boast(handler, got) -> None:  # type: ignore[no-untyped-def]
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 10000)

    receiver.otherwise = boast
    answer = send(receiver)
    assert answer.status is None and "HTTP/1.1" in str(answer.error)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01\x00\x00", b"HTTP/1.1 xx\r\n\r\n"])
def test_what_is_no_http_is_an_error(receiver: Receiver, said: bytes) -> None:
    receiver.otherwise = lambda handler, got: handler.wfile.write(said)
    answer = send(receiver)
    assert answer.status is None and answer.error


def test_nobody_listens() -> None:
    with receiving() as gone:
        pass
    answer = send(gone)
    assert answer.status is None and "refused" in str(answer.error)


# -- where it goes -----------------------------------------------------------------------------------------------------


def test_a_private_address_is_refused_before_anything_is_sent(receiver: Receiver) -> None:
    answer = post(receiver.url, BODY, {})
    assert answer.status is None and "ESPALIER_WEBHOOK_PRIVATE_ADDRESSES" in str(answer.error)
    assert receiver.got == []


@pytest.mark.parametrize("found", [["127.0.0.1"], ["::1", "127.0.0.1"], ["::ffff:127.0.0.1"], ["169.254.169.254"]])
def test_a_public_name_with_a_private_address_is_refused(receiver: Receiver, found: list[str]) -> None:
    answer = post(f"http://hooks.example.com:{receiver.port}/", BODY, {}, resolve=lambda host, port: found)
    assert "hooks.example.com, which is" in str(answer.error)
    assert receiver.got == []


def test_a_name_that_is_pointed_elsewhere_meanwhile_changes_nothing(receiver: Receiver) -> None:
    """DNS rebinding: the first answer is public, the next one is this machine. There is no second question."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["192.0.2.1"] if len(asked) == 1 else ["127.0.0.1"]

    allowed = [ipaddress.ip_network("192.0.2.0/24")]
    answer = post(
        f"http://rebinding.example:{receiver.port}/", BODY, {}, resolve=rebinding, allowed=allowed, seconds=0.3
    )
    assert asked == ["rebinding.example"]
    assert answer.status is None and receiver.got == []


def test_of_several_addresses_only_those_that_are_allowed_are_tried(receiver: Receiver) -> None:
    found = ["10.0.0.1", "127.0.0.1"]
    url = f"http://mixed.example:{receiver.port}/"
    assert post(url, BODY, {}, resolve=lambda host, port: found, allowed=LOOPBACK).status == 204
    assert receiver.got[0].headers["host"] == f"mixed.example:{receiver.port}", "the name, not the address"


def test_the_next_address_is_tried_when_one_refuses(receiver: Receiver) -> None:
    found = ["127.0.0.9", "127.0.0.1"]
    url = f"http://two.example:{receiver.port}/"
    assert post(url, BODY, {}, resolve=lambda host, port: found, allowed=LOOPBACK).status == 204


def test_a_name_without_addresses_is_named() -> None:
    def nothing(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    answer = post("http://nowhere.example/", BODY, {}, resolve=nothing)
    assert "nowhere.example cannot be resolved" in str(answer.error)
    assert "no address" in str(post("http://nowhere.example/", BODY, {}, resolve=lambda host, port: []).error)


def test_a_resolver_that_takes_longer_than_the_deadline_leads_nowhere(receiver: Receiver) -> None:
    def slow(host: str, port: int) -> Sequence[str]:
        time.sleep(0.3)
        return ["127.0.0.1"]

    answer = post(f"http://slow.example:{receiver.port}/", BODY, {}, resolve=slow, allowed=LOOPBACK, seconds=0.1)
    assert "within 0.1 s" in str(answer.error) and receiver.got == []


def test_a_url_that_was_changed_behind_the_services_back_is_judged_too() -> None:
    assert "https://" in str(post("file:///etc/passwd", BODY, {}).error)


def test_proxies_of_the_environment_are_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert send(receiver).status == 204


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate that it signed itself, for hooks.example.com."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.example.com")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example.com")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + made.public_bytes(pem))
    return path


def test_the_certificate_is_the_names_though_the_connection_goes_to_an_address(certificate: Path) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    asked: list[str | None] = []
    serving.sni_callback = lambda connection, name, context: asked.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with receiving(context=serving) as receiver:

        def tried(name: str, context: ssl.SSLContext | None) -> Answer:
            url = f"https://{name}:{receiver.port}/"
            return post(url, BODY, {}, allowed=LOOPBACK, context=context, resolve=lambda host, port: ["127.0.0.1"])

        assert tried("hooks.example.com", trusting).status == 204
        assert asked == ["hooks.example.com"]
        assert "certificate is not believed" in str(tried("other.example.com", trusting).error)
        assert "certificate is not believed" in str(tried("hooks.example.com", None).error)
        assert len(receiver.got) == 1


def test_a_receiver_that_speaks_no_tls_is_named(receiver: Receiver) -> None:
    answer = post(receiver.url.replace("http://", "https://"), BODY, {}, allowed=LOOPBACK, seconds=2)
    assert answer.status is None and answer.error


def test_a_tls_handshake_that_hangs_is_left_after_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = post(f"https://127.0.0.1:{silent.getsockname()[1]}/", BODY, {}, allowed=LOOPBACK, seconds=0.4)
    assert answer.status is None and answer.seconds < 2


# -- Retry-After -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0), (" 0 ", 0.0), ("Wed, 02 Jan 2030 00:02:00 GMT", 120.0), ("Wed, 02 Jan 2019 00:00:00 GMT", 0.0),
        ("soon", None), ("-5", None), ("1e9", None), ("", None), ("9" * 40, None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after(text, dt.datetime(2030, 1, 2, tzinfo=dt.UTC)) == seconds


def test_a_receiver_says_when_it_wants_to_be_asked_again(receiver: Receiver) -> None:
    receiver.otherwise = status(503, Retry_After="77")
    answer = send(receiver)
    assert (answer.status, answer.pause) == (503, 77.0)
