"""nginx in front of a service, by the configuration that we publish, but without TLS, which costs all alike."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._service import free_port

PUBLISHED = Path(__file__).resolve().parent.parent / "deploy" / "nginx.conf"
_KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def in_front_of(url: str, blobs: Path) -> Iterator[str | None]:
    """Start nginx and give its address; None where there is no nginx.

    Args:
        url: of the service.
        blobs: the folder that ``/internal-blobs/`` is an alias of.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        yield None
        return
    port = free_port()
    text = PUBLISHED.read_text().replace("server 127.0.0.1:8000;", f"server {url.removeprefix('http://')};")
    text = text.replace("listen 443 ssl http2;", f"listen 127.0.0.1:{port};").replace(
        "listen 80;", "listen 127.0.0.1:0;"
    )
    text = text.replace("/var/lib/espalier/blobs/", f"{blobs}/")
    text = re.sub(r"server \{\s*listen 127\.0\.0\.1:0;.*?\n\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\n\s*ssl_[^\n]*", "", text)
    with tempfile.TemporaryDirectory(prefix="espalier-nginx-") as folder:
        places = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in _KINDS)
        user = "user root;\n" if os.geteuid() == 0 else ""
        conf = f"{user}daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\n{places}\naccess_log off;\n{text}\n}}\n"
        Path(folder, "nginx.conf").write_text(conf)
        process = subprocess.Popen([program, "-p", folder, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error"])
        try:
            _wait_until_it_listens(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=15)


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"nginx does not listen (exit status {process.poll()})")
