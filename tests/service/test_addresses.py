"""Where a webhook may lead: URLs that mean one thing, and addresses that are nobody's private ones."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from app.config import Settings
from app.errors import InvalidWebhook
from app.service.addresses import check_target, permitted, target_of

PRIVATE = [
    "0.0.0.0", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.0.9",
    "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1",
    "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.250",
    "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001::1",
    "2001:db8::1", "2002:7f00:1::", "3fff::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "::7f00:1", "4000::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1",
    "nobody", "",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1",
    "169.253.255.255", "172.15.255.255", "172.32.0.1", "192.0.1.1", "192.167.255.255", "198.17.255.255", "198.20.0.1",
    "223.255.255.255", "168.63.129.17", "2606:4700:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not permitted(address, ())


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_not(address: str) -> None:
    assert permitted(address, ())


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", True), ("10.2.0.1", False), ("::ffff:10.1.2.3", True), ("127.0.0.1", True), ("127.0.0.2", False),
        ("fd00::1", True), ("fd01::1", False), ("169.254.169.254", False), ("8.8.8.8", True),
    ],
)  # fmt: skip
def test_a_deployment_allows_networks_one_by_one(address: str, allowed: bool) -> None:
    settings = Settings(webhook_private_addresses="10.1.0.0/16, 127.0.0.1 fd00::/16")
    assert permitted(address, settings.webhook_networks) is allowed


@pytest.mark.parametrize("text", ["10.0.0.1/8", "everything", "10.0.0.0/33", "10.0.0.0-10.0.0.9"])
def test_networks_that_are_none_keep_the_service_from_starting(text: str) -> None:
    with pytest.raises(ValueError, match="webhook_private_addresses"):
        Settings(webhook_private_addresses=text)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://example.com/", "https://"), ("file:///etc/passwd", "https://"), ("gopher://example.com", "https://"),
        ("example.com/hook", "https://"), ("https://", "no host"), ("https:///hook", "no host"),
        ("https://user:secret@example.com/", "user name"), ("https://user@example.com/", "user name"),
        ("https://example.com:0/", "1 to 65535"), ("https://example.com:99999/", "cannot be read"),
        ("https://example.com:x/", "cannot be read"), ("https://[::1/", "cannot be read"),
        ("https://example.com/#part", "fragment"), ("https://example.com/#", "fragment"),
        ("https://exa mple.com/", "spaces"), ("https://example.com/\r\nHost: other", "spaces"),
        ("https://example.com\\@127.0.0.1/", "backslashes"), ("https://bücher.example/", "xn--"),
        ("https://exa%6dple.com/", "no host"), ("https://-bad.example/", "no host"), ("https://a..b/", "no host"),
        ("https://example.com/" + "x" * 2000, "at most 2000"),
    ],
)  # fmt: skip
def test_addresses_that_nothing_can_be_sent_to(url: str, told: str) -> None:
    with pytest.raises(InvalidWebhook, match=told):
        target_of(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "path"),
    [
        ("https://Example.com", "example.com", 443, "example.com", "/"),
        ("http://example.com:8080/a/b?c=d", "example.com", 8080, "example.com:8080", "/a/b?c=d"),
        ("https://[2606:4700::1]:8443/x", "2606:4700::1", 8443, "[2606:4700::1]:8443", "/x"),
        ("http://my_host.internal./?", "my_host.internal.", 80, "my_host.internal.", "/"),
    ],
)
def test_a_url_is_taken_apart_once(url: str, host: str, port: int, authority: str, path: str) -> None:
    target = target_of(url)
    assert (target.host, target.port, target.authority, target.path) == (host, port, authority, path)
    assert target.secure is url.startswith("https")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:1]", "localhost", "LOCALHOST", "localhost.", "api.localhost", "169.254.169.254",
        "[fd00:ec2::254]", "192.168.0.1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_however_they_are_spelled(host: str) -> None:
    with pytest.raises(InvalidWebhook, match="ESPALIER_WEBHOOK_PRIVATE_ADDRESSES"):
        check_target(target_of(f"http://{host}:9000/"), ())


def test_what_cannot_be_judged_yet_is_judged_when_something_is_sent() -> None:
    check_target(target_of("https://hooks.example.com/"), ())
    check_target(target_of("http://8.8.8.8/"), ())
    check_target(target_of("http://localhost/"), [ip_network("127.0.0.0/8")])
