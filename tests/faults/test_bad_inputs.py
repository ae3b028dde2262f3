"""Every hostile request of ``tests/api/test_hostile.py`` once more, counted with the faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.test_hostile import (  # noqa: F401  # fixtures and tests, collected here too
    UPLOADS,
    locked_shut,
    shut_house,
    test_every_upload_over_a_resumable_door_is_refused_alike,
    test_hostile_json_is_refused,
    test_hostile_keys_are_refused,
    test_hostile_names_are_refused,
    test_hostile_uploads_are_refused_by_name,
    test_the_service_still_takes_what_is_sound,
)


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest, tally: Any) -> Iterator[None]:
    yield
    resumable = request.node.originalname == "test_every_upload_over_a_resumable_door_is_refused_alike"
    tally.add(bad_inputs=len(UPLOADS) if resumable else 1)
