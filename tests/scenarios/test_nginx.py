"""A deployment behind a real nginx with the configuration that we publish: TLS, and downloads sent by nginx itself."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from espalier import Client
from tests.scenarios.deployment import Deployment, clusters, until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
RECIPE = {"network": {"name": "mlp", "hidden": [64]}, "training": {"epochs": 1, "minibatch": 64}}
CHECKPOINT = "/v1/models/gas/versions/1/checkpoint"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(NGINX is None, reason="there is no nginx here"),
]


@dataclass
class Front:
    """The service behind nginx, and the service itself."""

    nginx: httpx.Client
    service: httpx.Client
    trusted: ssl.SSLContext
    log: Path

    def has_sent(self, files: int) -> bool:
        """Whether nginx itself has sent as many as this; it takes note after the last byte."""
        return until(lambda: self._noted() >= files) and self._noted() == files

    def _noted(self) -> int:
        return self.log.read_text().count(" file=")


@pytest.fixture
def front(deployment: Deployment) -> Iterator[Front]:
    """One version, and both ways to it."""
    service = deployment.serve(accel_redirect="/internal-blobs/")
    client = deployment.client(service)
    client.create_model("gas", RECIPE)
    client.upload("gas", *clusters(1), wait=True)
    log = deployment.folder / "nginx" / "access.log"
    with (
        _nginx(deployment, service.url()) as (url, trusted),
        httpx.Client(base_url=service.url()) as direct,
        httpx.Client(base_url=url, verify=trusted) as through,
    ):
        yield Front(through, direct, trusted, log)


@contextmanager
def _nginx(deployment: Deployment, service: str) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Our configuration as it is published, but for its places."""
    folder = deployment.folder / "nginx"
    folder.mkdir()
    trusted = _certificate(folder)
    plain, port = _free_port(), _free_port()
    text = CONFIGURATION.read_text()
    for published, here in {
        "server 127.0.0.1:8000;": f"server {service.removeprefix('http://')};",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        "/etc/ssl/certs/espalier.pem": f"{folder}/cert.pem",
        "/etc/ssl/private/espalier.key": f"{folder}/key.pem",
        "/var/lib/espalier/blobs/": f"{deployment.data}/blobs/",
    }.items():
        assert published in text, f"{CONFIGURATION} does not say {published} any more"
        text = text.replace(published, here)
    (folder / "espalier.conf").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "\n".join(f"    {kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\n{places}\n"
        "    log_format where '$status $request file=$request_filename';\n"
        "    map $request_filename $sent_by_nginx { default 0; ~/sha256/ 1; }\n"
        f"    access_log {folder}/access.log where if=$sent_by_nginx;\n"
        f"    include {folder}/espalier.conf;\n}}\n"
    )
    assert NGINX is not None
    running = subprocess.Popen([NGINX, "-p", str(folder), "-c", f"{folder}/nginx.conf"], stderr=subprocess.PIPE)
    try:
        until(lambda: _listens(port) or running.poll() is not None, what="nginx's start")
        assert running.poll() is None, running.stderr and running.stderr.read()
        yield f"https://localhost:{port}", trusted
    finally:
        running.terminate()
        running.communicate(timeout=15)


def _certificate(folder: Path) -> ssl.SSLContext:
    """A certificate of its own for localhost, and who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_downloads_are_sent_by_nginx_under_the_names_of_the_service(front: Front, tmp_path: Path) -> None:
    whole = front.nginx.get(CHECKPOINT)
    data = whole.content
    digest = hashlib.sha256(data)
    named = f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert whole.status_code == 200 and front.has_sent(1)
    assert whole.headers["ETag"] == f'"sha256:{digest.hexdigest()}"'
    assert whole.headers["Repr-Digest"] == whole.headers["Content-Digest"] == named
    assert whole.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert whole.headers["Content-Type"] == "application/octet-stream"
    assert whole.headers["Content-Disposition"] == 'attachment; filename="gas-1.safetensors"'
    assert whole.headers["Content-Length"] == str(len(data))
    assert re.fullmatch("[0-9a-f]{32}", whole.headers["X-Request-Id"])
    assert not {"X-Accel-Redirect", "Last-Modified"} & {name.title() for name in whole.headers}
    alias = front.nginx.get(CHECKPOINT.replace("/1/", "/champion/"))
    assert (alias.content, alias.headers["Cache-Control"]) == (data, "no-cache")
    assert alias.headers["Espalier-Alias-Revision"] == "1"
    head = front.nginx.head(CHECKPOINT)
    assert (head.status_code, head.headers["Content-Length"], head.headers["ETag"]) == (
        200,
        str(len(data)),
        whole.headers["ETag"],
    )
    assert front.service.get(CHECKPOINT).headers["X-Accel-Redirect"].startswith("/internal-blobs/sha256/")


def test_the_client_resumes_through_nginx(front: Front, tmp_path: Path) -> None:
    with Client(str(front.nginx.base_url), transport=httpx.HTTPTransport(verify=front.trusted)) as client:
        fetched = client.download("gas@champion", tmp_path / "fetched.safetensors")
    assert hashlib.sha256(fetched.read_bytes()).hexdigest() in front.nginx.head(CHECKPOINT).headers["ETag"]
    assert front.has_sent(2)


def test_ranges_are_those_of_the_bytes_that_the_tag_names(front: Front) -> None:
    whole = front.nginx.get(CHECKPOINT)
    data, tag = whole.content, whole.headers["ETag"]
    for given, expected in {"bytes=0-9": data[:10], "bytes=-5": data[-5:], "bytes=100-": data[100:]}.items():
        for condition in ({}, {"If-Range": tag}):
            part = front.nginx.get(CHECKPOINT, headers={"Range": given, **condition})
            assert (part.status_code, part.content) == (206, expected), given
            assert part.headers["Content-Range"].endswith(f"/{len(data)}")
            assert part.headers["Repr-Digest"] == whole.headers["Repr-Digest"]
            assert (part.headers["ETag"], "Content-Digest" in part.headers) == (tag, False)
    assert front.has_sent(7)
    other = front.nginx.get(CHECKPOINT, headers={"Range": "bytes=0-9", "If-Range": '"sha256:other"'})
    assert (other.status_code, other.content) == (200, data), "another file must come whole"
    for ignored in ("bytes=0-1,3-4", "lines=1-2", "bytes=5-3"):
        assert front.nginx.get(CHECKPOINT, headers={"Range": ignored}).content == data
    beyond = front.nginx.get(CHECKPOINT, headers={"Range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(data)}")
    assert beyond.headers["Content-Type"] == "application/problem+json"
    assert front.nginx.get(CHECKPOINT).content == data
    assert front.has_sent(8), "of what nginx might read in another way, nothing was left to it"


def test_what_is_held_is_not_sent_and_nothing_is_had_without_the_service(front: Front) -> None:
    tag = front.nginx.head(CHECKPOINT).headers["ETag"]
    held = front.nginx.get(CHECKPOINT, headers={"If-None-Match": tag})
    assert (held.status_code, held.content, held.headers["ETag"]) == (304, b"", tag)
    assert front.nginx.get(CHECKPOINT, headers={"If-None-Match": '"other"'}).status_code == 200
    since = {"If-Modified-Since": "Tue, 01 Jan 2999 00:00:00 GMT"}
    assert front.nginx.get(CHECKPOINT, headers=since).status_code == 200, "times say nothing of bytes"
    assert front.has_sent(3)
    named = front.service.get(CHECKPOINT).headers["X-Accel-Redirect"]
    assert front.nginx.get(named).status_code == 404
