"""The API fuzzed from its own OpenAPI document: no failure of the service, and nothing that is not documented.

``ESPALIER_FUZZ_EXAMPLES`` sets how many cases are tried for an operation beyond the fixed few.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.application import create_app
from app.api.resumable import PARTIAL, TUS_PART
from app.api.wire import Wire
from app.config import Settings
from app.service import history
from app.store.migrate import migrate
from tests.api.conftest import House, opened
from tests.scenarios.deployment import until

EXAMPLES = int(os.environ.get("ESPALIER_FUZZ_EXAMPLES", "60"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
KEY = "a-long-key-for-fuzzing"
ENDLESS = {"/v1/events", "/v1/models/{model}/events"}
"""Answers that do not end where they succeed: asked for by HEAD, which checks the same and sends no body."""
tried: Counter[int] = Counter()
for part in (TUS_PART, PARTIAL):
    schemathesis.serializer.alias(part, "application/octet-stream")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """An application with something in it, which the fuzzer may change as it likes."""
    folder = tmp_path_factory.mktemp("fuzzed")
    made = Settings(data_dir=folder, api_key=KEY, max_upload_bytes=2**20, longest_wait_seconds=0)
    migrate(made.resolved_database_url)
    with opened(made) as house:
        house.http.headers["Authorization"] = f"Bearer {KEY}"
        house.create().raise_for_status()
        for seed in (1, 2):
            house.publish(seed)
        yield house


@pytest.fixture(scope="module")
def fuzzed(house: House) -> Iterator[str]:
    """Its address: a server of its own on the same store."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(house.settings), http=Wire, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until(lambda: server.started, what="the server's start")
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def _schema() -> Any:
    """The document does not depend on where a deployment lives."""
    return schemathesis.openapi.from_dict(create_app(Settings(api_key=KEY)).openapi())


schema = _schema()
few = settings(
    max_examples=1, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
many = settings(few, max_examples=EXAMPLES)


def ask(case: schemathesis.Case, address: str) -> None:
    """Send a case over a socket, as anybody would, and judge the answer."""
    checks = CHECKS
    if case.path in ENDLESS:
        case.method = "HEAD"
        checks = [check for check in CHECKS if check is not response_schema_conformance]
    answer = case.call(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    tried[answer.status_code] += 1
    case.validate_response(answer, checks=checks)


@pytest.mark.sample
@schema.parametrize()
@few
def test_a_few_of_everything(case: schemathesis.Case, fuzzed: str, tally: Any) -> None:
    ask(case, fuzzed)
    tally.add(schemathesis=1)


@pytest.mark.timeout(3600)
@schema.parametrize()
@many
def test_many_of_everything(case: schemathesis.Case, fuzzed: str, tally: Any) -> None:
    ask(case, fuzzed)
    tally.add(schemathesis=1)


@pytest.mark.sample
def test_what_was_fuzzed_is_whole(house: House) -> None:
    assert history.examine(house.store) == []
    print(f"\n{sum(tried.values())} cases: {dict(sorted(tried.items()))}")
