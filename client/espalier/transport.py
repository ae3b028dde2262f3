"""One request at a time: addresses, keys, retries, and answers turned into values or errors.

Knows: httpx, problem documents, when a retry is safe. Must never know: what the paths mean (``client`` does).

Laws:
    * Only what is safe is sent twice: GET, HEAD, and uploads (the same arrays again give the first megabatch).
    * A wait grows exponentially with jitter, is never shorter than ``Retry-After`` says, and retries are bounded.
    * Every failure is an ``EspalierClientError``; httpx's own exceptions do not leave this module.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from espalier.errors import ApiProblem, EspalierClientError, ServiceUnreachable

RETRIED = frozenset({429, 502, 503, 504})
LONGEST_WAIT = 10.0
"""A service that asks for a longer pause than this, in seconds, is not waited for: its answer is raised."""

Body = Callable[[], Iterator[bytes]]


def path_of(*parts: object) -> str:
    """``/v1/...`` of these parts, each percent-encoded, so that no part can reach another route."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


def backoff(attempt: int, base: float = 0.1, longest: float = 5.0) -> float:
    """Seconds before retry number ``attempt`` (from 0): exponential, with jitter between half and whole."""
    whole: float = min(longest, base * 2.0**attempt)
    return whole * random.uniform(0.5, 1.0)


def json_of(answer: httpx.Response) -> dict[str, Any]:
    """An answer's JSON object.

    Raises:
        EspalierClientError: it holds none.
    """
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise EspalierClientError(
            f"{answer.request.url} did not answer with a JSON object: "
            "is this an Espalier service, or is a proxy between?"
        )
    return document


class Transport:
    """A connection to one service."""

    def __init__(
        self, url: str, key: str | None, *, timeout: float, retries: int, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = _checked(url)
        self.retries = retries
        self.timeout = timeout
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            # A proxy of the environment cannot reach this machine's own loopback addresses.
            trust_env=not _loopback(self.url),
            transport=transport,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> httpx.Response:
        """Send a request and return its answer, read whole.

        Args:
            body: makes the body's blocks anew for each attempt.
            repeatable: whether it may be sent twice; by default GET and HEAD may.

        Raises:
            ApiProblem: the service refused. ServiceUnreachable: it did not answer.
        """
        with self.stream(
            method, path, params=params, json=json, body=body, headers=headers, repeatable=repeatable
        ) as answer:
            with self.reaching():
                answer.read()
            return answer

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Iterator[httpx.Response]:
        """Like ``request``, but the answer's body is left to be read."""

        def build() -> httpx.Request:
            return self._http.build_request(
                method,
                path,
                params={name: value for name, value in (params or {}).items() if value is not None},
                json=json,
                content=body() if body else None,
                headers=dict(headers or {}),
            )

        answer = self._answer(build, method in ("GET", "HEAD") if repeatable is None else repeatable)
        try:
            if answer.status_code >= 300 and answer.status_code != 304:
                with self.reaching():
                    answer.read()
                raise self._problem(answer)
            yield answer
        finally:
            answer.close()

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn httpx's transport errors into ``ServiceUnreachable``."""
        try:
            yield
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _answer(self, build: Callable[[], httpx.Request], repeatable: bool) -> httpx.Response:
        """The first answer that is final."""
        attempt = 0
        while True:
            last = not repeatable or attempt >= self.retries
            answer = self._send(build(), last)
            wait = backoff(attempt)
            if answer is not None:
                wait = max(wait, _retry_after(answer))
                if last or answer.status_code not in RETRIED or wait > LONGEST_WAIT:
                    return answer
                answer.close()
            time.sleep(wait)
            attempt += 1

    def _send(self, request: httpx.Request, last: bool) -> httpx.Response | None:
        """The answer, or None when there was none and another attempt may follow."""
        try:
            return self._http.send(request, stream=True)
        except httpx.TransportError as error:
            if last:
                raise self._unreachable(error) from error
            return None

    def _unreachable(self, error: httpx.TransportError) -> ServiceUnreachable:
        what = "in time" if isinstance(error, httpx.TimeoutException) else f"({str(error) or type(error).__name__})"
        return ServiceUnreachable(
            f"no answer from {self.url} {what}; start a service with `espalier serve`, "
            "or give its address with --url or ESPALIER_URL"
        )

    def _problem(self, answer: httpx.Response) -> EspalierClientError:
        if answer.is_redirect:
            return EspalierClientError(
                f"{self.url} redirects to {answer.headers.get('location')}: use that address as the service's url"
            )
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict) or "title" not in document:
            return _foreign(answer, self.url)
        return problem_of(answer.status_code, document)


def problem_of(status: int, document: dict[str, Any]) -> ApiProblem:
    """The error that a problem document is."""
    known = ("type", "title", "status", "detail", "errors", "request_id")
    faults = [fault for fault in document.get("errors") or () if isinstance(fault, Mapping)]
    problem = ApiProblem(
        status,
        str(document.get("type", "about:blank")),
        str(document["title"]),
        document.get("detail"),
        faults,
        document.get("request_id"),
        {name: value for name, value in document.items() if name not in known},
    )
    message = str(problem)
    # A detail that says each fault already need not say it twice.
    more = [fault for fault in faults if str(fault.get("detail")) not in message]
    lines = [f"  {fault.get('pointer') or '/'}: {fault.get('detail')}" for fault in more]
    problem.args = ("\n".join([message, *lines, *_remedies(problem)]),)
    return problem


def _remedies(problem: ApiProblem) -> list[str]:
    """What the client alone knows about getting on."""
    remedy = _REMEDIES.get(problem.type.removeprefix("urn:espalier:problem:")) or _REMEDIES.get(str(problem.status))
    return [] if remedy is None else [remedy]


_REMEDIES = {
    "401": "give the service's key with --key or ESPALIER_KEY",
    "412": "nothing was changed: see who moved the alias with `espalier alias history MODEL`, then decide again",
    "unknown-key": "`espalier key list` shows those that there are",
    "scope-missing": "`espalier whoami` shows what your key allows",
    "other-model": "`espalier whoami` shows which models your key is for",
    "unknown-model": "`espalier model list` shows those that there are",
    "unknown-version": "`espalier version list MODEL` shows those that there are",
    "unknown-megabatch": "`espalier batch list MODEL` shows those that there are",
    "unknown-cycle": "`espalier cycle list MODEL` shows those that there are",
}
"""By the last word of a problem's type, or by status."""


def _foreign(answer: httpx.Response, url: str) -> ApiProblem:
    """An answer that is none of this API's: a proxy's, or another server's."""
    title = answer.reason_phrase or "no reason given"
    return ApiProblem(
        answer.status_code,
        "about:blank",
        title,
        f"{answer.request.method} {answer.request.url} was answered {answer.status_code} {title} "
        f"without a problem document: is {url} an Espalier service, or is a proxy between?",
        request_id=answer.headers.get("x-request-id"),
    )


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that ``Retry-After`` asks for (a number or a date); 0 without it."""
    asked = answer.headers.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise EspalierClientError(f"{url!r} is no address: {error}; write http://127.0.0.1:8000") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EspalierClientError(f"{url!r} is no address of a service: write it like http://127.0.0.1:8000")
    return url.rstrip("/")


def _loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
