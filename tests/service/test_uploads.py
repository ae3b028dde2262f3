"""Uploads as a use case: recorded while they come, finished once, refused for good, swept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Thread

import pytest

from app.config import Settings
from app.domain import Actor, InputSpec, Upload, UploadState
from app.errors import (
    InvalidMegabatch,
    OffsetMismatch,
    StoreBusy,
    UnknownUpload,
    UploadBusy,
    UploadClosed,
    UploadExpired,
)
from app.intake.arrays import Limits
from app.service import models, uploads
from app.service.uploads import RECORD_BYTES, Described, appending, create_upload, finish_upload, get_upload
from app.store.database import Store
from espalier.formats import megabatch
from tests.api.conftest import examples

SANDBOXED = True

ACTOR = Actor("tester", "request-7")
SETTINGS = Settings()
LIMITS = Limits(max_bytes=1 << 26, seconds=60)
BLOCK = bytes(1 << 20)


@pytest.fixture(autouse=True)
def _gas(store: Store) -> None:
    recipe = {"network": {"name": "mlp", "hidden": [4]}}
    models.create_model(store, name="gas", recipe=recipe, input=InputSpec(), architectures={}, actor=ACTOR)


def begin(store: Store, length: int | None) -> Upload:
    return create_upload(store, "gas", Described(length), settings=SETTINGS, actor=ACTOR)


def whole(store: Store, data: bytes) -> Upload:
    upload = begin(store, len(data))
    with appending(store, upload.id, 0, length=None, settings=SETTINGS) as part:
        part.write([data])
        return part.record(complete=True)


def finish(store: Store, upload: Upload) -> uploads.Outcome:
    return finish_upload(store, upload.id, limits=LIMITS, settings=SETTINGS, actor=ACTOR)


def accepted(store: Store) -> int:
    with store.reading() as tx:
        return len(tx.buffer.megabatches("gas", None, 10).items)


def test_a_long_part_is_recorded_while_it_comes(store: Store) -> None:
    upload = begin(store, 4 * RECORD_BYTES)
    with appending(store, upload.id, 0, length=None, settings=SETTINGS) as part:
        for _ in range(2 * RECORD_BYTES // len(BLOCK)):
            part.write([BLOCK])
        part.write([BLOCK] * (RECORD_BYTES // len(BLOCK)))
        recorded = get_upload(store, upload.id).offset
        assert RECORD_BYTES <= recorded <= 3 * RECORD_BYTES
        assert store.partials.path(upload.id).stat().st_size >= recorded
    with pytest.raises(OffsetMismatch) as raised, appending(store, upload.id, 0, length=None, settings=SETTINGS):
        pytest.fail("it goes on elsewhere")
    assert raised.value.expected >= recorded


def test_a_part_to_be_checked_is_not_recorded_before(store: Store) -> None:
    upload = begin(store, 4 * RECORD_BYTES)
    with appending(store, upload.id, 0, length=None, settings=SETTINGS, steps=False) as part:
        part.write([BLOCK] * (2 * RECORD_BYTES // len(BLOCK)))
    assert get_upload(store, upload.id).offset == 0


def test_it_becomes_one_megabatch_however_often_it_is_finished(store: Store) -> None:
    upload = whole(store, megabatch.encode(*examples()))
    first = finish(store, upload)
    assert (first.upload.state, first.upload.megabatch, first.new) == (UploadState.ACCEPTED, 1, True)
    assert first.cycle is not None
    again = finish(store, upload)
    assert (again.upload, again.new, again.cycle) == (first.upload, False, None)
    assert accepted(store) == 1
    with store.reading() as tx:
        entry = tx.audit.entries(model=None, kind="megabatch.accepted", after=None, limit=10).items[-1]
    assert (entry.actor, entry.document["request_id"]) == ("tester", "request-7")


def test_killed_between_the_megabatch_and_its_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = whole(store, megabatch.encode(*examples()))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("app.store.uploads.Uploads.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(store, upload)
    assert get_upload(store, upload.id).state is UploadState.COMPLETE
    assert finish(store, upload).upload.megabatch == 1
    assert accepted(store) == 1


def test_trouble_of_the_service_is_no_refusal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = whole(store, megabatch.encode(*examples()))

    def busy(*_: object, **__: object) -> None:
        raise StoreBusy("try again")

    with monkeypatch.context() as patched:
        patched.setattr(uploads, "accept_megabatch", busy)
        with pytest.raises(StoreBusy):
            finish(store, upload)
    assert finish(store, upload).upload.state is UploadState.ACCEPTED


def test_a_refusal_is_for_good_and_says_the_same(store: Store) -> None:
    upload = whole(store, b"nothing that can be read")
    refused = finish(store, upload).upload
    assert refused.state is UploadState.REFUSED
    error = uploads.refusal(refused)
    assert isinstance(error, InvalidMegabatch)
    assert (refused.problem or {})["reason"] == error.reason
    assert finish(store, upload).upload == refused
    assert not store.partials.path(upload.id).exists()
    with pytest.raises(UploadClosed), appending(store, upload.id, 0, length=None, settings=SETTINGS):
        pytest.fail("it is closed")


def test_many_finish_it_at_once_and_one_does(store: Store) -> None:
    upload = whole(store, megabatch.encode(*examples()))
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(finish(store, upload).new)
        except UploadBusy as busy:
            outcomes.append(busy)

    threads = [Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1
    assert accepted(store) == 1


def test_a_removed_upload_takes_no_more(store: Store) -> None:
    upload = begin(store, 100)
    with appending(store, upload.id, 0, length=None, settings=SETTINGS) as part:
        part.write([b"x"])
        uploads.remove_upload(store, upload.id, actor=ACTOR)
        with pytest.raises(UnknownUpload):
            part.record()
    assert not store.partials.path(upload.id).exists()


def test_what_is_old_is_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = begin(store, 100)
    clock: Callable[[], object] = store.clock
    assert uploads.sweep_uploads(store, SETTINGS) == 0
    monkeypatch.setattr(store, "clock", lambda: clock() + timedelta(days=2))  # type: ignore[operator]
    with pytest.raises(UploadExpired):
        get_upload(store, upload.id)
    assert uploads.sweep_uploads(store, SETTINGS) == 1
    with pytest.raises(UnknownUpload):
        get_upload(store, upload.id)
