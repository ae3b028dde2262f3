from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from espalier import transport
from espalier.errors import ApiProblem, EspalierClientError, ServiceUnreachable
from espalier.transport import Transport, backoff, path_of

URL = "http://127.0.0.1:9"
PROBLEM = {
    "type": "urn:espalier:problem:invalid-recipe",
    "title": "The recipe cannot work",
    "status": 422,
    "detail": "the recipe cannot work",
    "errors": [{"in": "body", "pointer": "/recipe/schedule/tau", "detail": "Input should be at most 60"}],
    "request_id": "b7d8",
    "reason": "bad",
}
Answer = Callable[[httpx.Request], httpx.Response]


class Script:
    """A service that answers as it is told, in order; the last answer repeats."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(request.read())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def connect(script: Script, retries: int = 4, key: str | None = None) -> Transport:
    return Transport(URL, key, timeout=5, retries=retries, transport=httpx.MockTransport(script))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time here."""
    taken: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", taken.append)
    return taken


def ok() -> httpx.Response:
    return httpx.Response(200, json={"ok": True})


def test_paths_cannot_be_left() -> None:
    assert path_of("models", "../keys?x=1#y", 7) == "/v1/models/..%2Fkeys%3Fx%3D1%23y/7"


def test_backoff_grows_and_is_bounded() -> None:
    for attempt in range(20):
        whole = min(5.0, 0.1 * 2.0**attempt)
        assert whole / 2 <= backoff(attempt) <= whole


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_read_is_repeated(status: int, waits: list[float]) -> None:
    script = Script(httpx.Response(status), httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), ok())
    assert connect(script).request("GET", "/v1/models").json() == {"ok": True}
    assert len(script.requests) == 4
    assert len(waits) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 412, 422, 500, 507])
def test_what_a_repetition_cannot_mend_is_not_repeated(status: int, waits: list[float]) -> None:
    script = Script(httpx.Response(status, json=PROBLEM))
    with pytest.raises(ApiProblem) as raised:
        connect(script).request("GET", "/v1/models")
    assert raised.value.status == status
    assert len(script.requests) == 1


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.ReadError("lost")])
def test_a_move_is_sent_once(answer: httpx.Response | Exception, waits: list[float]) -> None:
    script = Script(answer)
    with pytest.raises(EspalierClientError):
        connect(script).request("POST", "/v1/models/gas/rollback", json={})
    assert len(script.requests) == 1
    assert waits == []


def test_an_upload_is_repeated_with_the_same_bytes(waits: list[float]) -> None:
    script = Script(httpx.Response(503), httpx.WriteError("lost"), ok())

    def body() -> Iterator[bytes]:
        yield b"ab"
        yield b"cd"

    connect(script).request("POST", "/v1/x", body=body, headers={"Content-Length": "4"}, repeatable=True)
    assert script.bodies == [b"abcd"] * 3
    assert all(request.headers["content-length"] == "4" for request in script.requests)
    assert all("transfer-encoding" not in request.headers for request in script.requests)


def test_retries_are_bounded(waits: list[float]) -> None:
    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(ServiceUnreachable, match="espalier serve") as raised:
        connect(script, retries=3).request("GET", "/v1/models")
    assert len(script.requests) == 4
    assert URL in str(raised.value)
    assert "ESPALIER_URL" in str(raised.value)


def test_retry_after_is_kept_to(waits: list[float]) -> None:
    connect(Script(httpx.Response(503, headers={"Retry-After": "7"}), ok())).request("GET", "/v1/models")
    assert waits == [7.0]


def test_retry_after_may_be_a_date(waits: list[float]) -> None:
    past = httpx.Response(503, headers={"Retry-After": "Mon, 02 Mar 2026 09:30:00 GMT"})
    connect(Script(past, ok())).request("GET", "/v1/models")
    assert waits[0] <= 0.1


def test_a_service_that_asks_for_a_long_pause_is_not_waited_for(waits: list[float]) -> None:
    script = Script(httpx.Response(503, headers={"Retry-After": "3600"}, json=PROBLEM))
    with pytest.raises(ApiProblem):
        connect(script).request("GET", "/v1/models")
    assert waits == []


def test_a_problem_keeps_every_member() -> None:
    with pytest.raises(ApiProblem) as raised:
        connect(Script(httpx.Response(422, json=PROBLEM))).request("POST", "/v1/models", json={})
    problem = raised.value
    assert (problem.status, problem.type, problem.title) == (422, PROBLEM["type"], PROBLEM["title"])
    assert problem.errors == tuple(PROBLEM["errors"])
    assert problem.request_id == "b7d8"
    assert problem.extensions == {"reason": "bad"}
    assert str(problem) == "the recipe cannot work\n  /recipe/schedule/tau: Input should be at most 60"


def test_a_missing_key_is_given_a_remedy() -> None:
    with pytest.raises(ApiProblem, match="--key or ESPALIER_KEY"):
        connect(Script(httpx.Response(401, json={"title": "A key is needed"}))).request("GET", "/v1/models")


def test_the_key_is_carried() -> None:
    script = Script(ok())
    connect(script, key="secret").request("GET", "/v1/models")
    assert script.requests[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "answer", [httpx.Response(404, text="<html>"), httpx.Response(500, json=["x"]), httpx.Response(418, json={})]
)
def test_another_servers_answer_is_told_apart(answer: httpx.Response) -> None:
    with pytest.raises(ApiProblem, match="an Espalier service, or is a proxy between") as raised:
        connect(Script(answer)).request("GET", "/v1/models")
    assert raised.value.type == "about:blank"


def test_a_redirect_is_named_not_followed() -> None:
    script = Script(httpx.Response(308, headers={"Location": "https://example.org/"}))
    with pytest.raises(EspalierClientError, match=r"https://example\.org/"):
        connect(script, key="secret").request("GET", "/v1/models")
    assert len(script.requests) == 1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(EspalierClientError, match=r"http://127\.0\.0\.1:8000"):
        Transport(url, None, timeout=1, retries=0)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    near, far = (Transport(url, None, timeout=1, retries=0) for url in ("http://localhost:9", "http://example.org"))
    assert not near._http._mounts
    assert far._http._mounts
    near.close()
    far.close()
