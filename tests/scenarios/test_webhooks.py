"""Webhooks with real processes: from the command line to a receiver, a worker killed in the middle, the receiver of the
documentation.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from app.worker.post import post
from espalier.formats.webhook import MEDIA_TYPE, signature_headers, verify_webhook
from tests.receiver import hanging, receiving, status
from tests.scenarios.deployment import Deployment, until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "webhooks.md"
SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
ALLOWED = {"webhook_private_addresses": "127.0.0.0/8"}


def espalier(url: str, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "espalier", *words, "--url", url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.slow
def test_a_webhook_from_the_command_line(deployment: Deployment) -> None:
    url = deployment.serve("--no-worker", **ALLOWED).url()
    deployment.work(**ALLOWED).ready()
    client = deployment.client(deployment.processes[0])
    with receiving() as receiver:
        secret = espalier(url, "webhook", "create", receiver.url, "--kind", "model.created", "--description", "line 3")
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=\n", secret)
        assert "arrived: 204" in espalier(url, "webhook", "test", "1")
        client.create_model("gas")
        until(lambda: len(receiver.got) == 2)
        event = verify_webhook(receiver.got[1].headers, receiver.got[1].body, secret.strip())
        assert (event.type, event.subject) == ("espalier.model.created", "gas")
        receiver.script = [status(500)]
        assert "answered 500" in espalier(url, "webhook", "test", "1", code=1)
        listed = json.loads(espalier(url, "webhook", "deliveries", "1", "--json"))
        assert [item["state"] for item in listed] == ["failed", "delivered", "delivered"]
        assert "arrived" in espalier(url, "webhook", "redeliver", "1", str(listed[0]["id"]))
        assert "line 3" in espalier(url, "webhook", "show", "1")
        assert "enabled" in espalier(url, "webhook", "list")
        new = espalier(url, "webhook", "rotate-secret", "1", "--overlap", "0s").strip()
        espalier(url, "webhook", "test", "1")
        verify_webhook(receiver.got[-1].headers, receiver.got[-1].body, [new])
        espalier(url, "webhook", "change", "1", "--all-kinds", "--model", "gas")
        assert client.webhooks.get(1).kinds is None and client.webhooks.get(1).models == ("gas",)
        espalier(url, "webhook", "disable", "1", "--reason", "noise")
        espalier(url, "webhook", "enable", "1", "--reason", "quiet", "--skip-missed")
        assert [(w.id, w.enabled) for w in client.webhooks.list()] == [(1, True)]
        espalier(url, "webhook", "delete", "1")
        assert "no webhook 1" in espalier(url, "webhook", "show", "1", code=1)
    deployment.is_whole()


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_sends_loses_nothing(on_each_database: Deployment) -> None:
    deployment = on_each_database
    service = deployment.serve("--no-worker", **ALLOWED)
    client = deployment.client(service)
    first = deployment.work(**ALLOWED).ready()
    with receiving() as receiver:
        receiver.script = [hanging(60)]
        client.webhooks.create(receiver.url, kinds=["model.created"])
        for name in ("a", "b", "c"):
            client.create_model(name)
        until(lambda: receiver.got)
        first.send(signal.SIGKILL)
        first.ended()
        deployment.work(**ALLOWED).ready()
        until(lambda: len(receiver.got) == 4, 90)
        first_id, *others = receiver.ids
        assert others[0] == first_id and len(set(others)) == 3
        until(lambda: {d.state for d in client.webhooks.deliveries(1)} == {"delivered"})
        assert [d.model for d in client.webhooks.deliveries(1)] == ["c", "b", "a"]
    deployment.is_whole()


def test_the_receiver_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert '"whsec_..."' in text
    names: dict[str, Any] = {"__name__": "receiver"}
    exec(compile(text.replace("whsec_...", SECRET), str(PAGE), "exec"), names)

    class Quiet(names["Receiver"]):  # type: ignore[name-defined,misc]
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        event = {"specversion": "1.0", "id": "7-abc", "source": "urn:x", "type": "espalier.alias.moved"}
        more = {"time": "2026-03-02T09:30:00Z", "subject": "gas", "data": {"parameters": {"to": 7}}}
        body = json.dumps(event | more).encode()

        def sent(*secrets: str, at: int = 0) -> int | None:
            headers = {"Content-Type": MEDIA_TYPE, **signature_headers("7-abc", at or _now(), body, secrets)}
            return post(url, body, headers, allowed=[ip_network("127.0.0.0/8")]).status

        assert sent(SECRET) == 204
        assert sent(SECRET) == 204, "twice is once"
        assert sent("whsec_" + "A" * 40) == 400
        assert sent(SECRET, at=_now() - 3600) == 400
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert capsys.readouterr().out == "espalier.alias.moved gas {'to': 7}\n"


def _now() -> int:
    return int(time.time())
