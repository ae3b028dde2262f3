"""``tx.uploads``, ``tx.replays`` and the files of uploads: offsets, outcomes, locks, quotas, expiry."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.domain import Actor, InputSpec, Model, Upload, UploadState
from app.errors import MissingBlob, StorageFull, UnknownUpload, UploadBusy
from app.store.database import Store
from app.store.staging import Partials

TESTER = Actor("tester")
SOON = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def model(store: Store) -> Model:
    with store.transaction(TESTER) as tx:
        made = tx.ledger.create_model("gas", {}, "sha256:" + "0" * 64, InputSpec())
        tx.audit.append("model.created", model="gas")
    return made


def begin(store: Store, model: Model, upload: str = "a", length: int | None = 100) -> Upload:
    with store.transaction(TESTER) as tx:
        return tx.uploads.create(
            upload,
            model,
            actor="tester",
            length=length,
            digest=None,
            media="text/csv",
            metadata="filename eA==",
            expires_at=SOON,
        )


def advance(store: Store, offset: int, *, complete: bool = False, length: int | None = None) -> Upload:
    with store.transaction(TESTER) as tx:
        return tx.uploads.advance("a", offset, SOON, length=length, complete=complete)


def test_an_upload_from_its_first_byte_to_its_megabatch(store: Store, model: Model) -> None:
    begun = begin(store, model, length=None)
    assert (begun.model, begun.state, begun.offset, begun.length) == ("gas", UploadState.OPEN, 0, None)
    assert (begun.media, begun.metadata, begun.actor, begun.expires_at) == ("text/csv", "filename eA==", "tester", SOON)
    assert advance(store, 40).offset == 40
    assert advance(store, 30).offset == 40, "the offset never decreases"
    whole = advance(store, 100, complete=True, length=100)
    assert (whole.state, whole.offset, whole.length) == (UploadState.COMPLETE, 100, 100)
    assert advance(store, 200).offset == 100, "nothing is appended to what is complete"
    with store.transaction(TESTER) as tx:
        settled = tx.uploads.settle("a", megabatch=3, problem=None, expires_at=SOON)
        again = tx.uploads.settle("a", megabatch=None, problem={"error": "BadInput"}, expires_at=SOON)
    assert (settled.state, settled.megabatch) == (UploadState.ACCEPTED, 3)
    assert again == settled, "the first outcome stays"


def test_only_a_complete_upload_is_settled(store: Store, model: Model) -> None:
    begin(store, model)
    with store.transaction(TESTER) as tx:
        assert tx.uploads.settle("a", megabatch=3, problem=None, expires_at=SOON).state is UploadState.OPEN


def test_what_is_unfinished_counts(store: Store, model: Model) -> None:
    begin(store, model, "a", length=100)
    begin(store, model, "b", length=None)
    with store.transaction(TESTER) as tx:
        tx.uploads.advance("b", 7, SOON)
        assert (tx.uploads.unfinished(model), tx.uploads.staged_bytes()) == (2, 107)
        tx.uploads.advance("a", 100, SOON, complete=True)
        assert (tx.uploads.unfinished(model), tx.uploads.staged_bytes()) == (2, 107)
        tx.uploads.settle("a", megabatch=None, problem={"error": "BadInput"}, expires_at=SOON)
        assert (tx.uploads.unfinished(model), tx.uploads.staged_bytes()) == (1, 7)
        assert tx.uploads.known() == {"a", "b"}


def test_what_has_expired_is_found_and_what_is_removed_is_unknown(store: Store, model: Model) -> None:
    begin(store, model)
    with store.reading() as tx:
        assert tx.uploads.expired(10) == []
    late = Store(_url(store), store.blobs, clock=lambda: SOON)
    with late.reading() as tx:
        assert tx.uploads.expired(10) == ["a"]
    late.dispose()
    with store.transaction(TESTER) as tx:
        tx.uploads.remove("a")
        tx.uploads.remove("a")
        with pytest.raises(UnknownUpload):
            tx.uploads.get("a")
        with pytest.raises(UnknownUpload):
            tx.uploads.advance("a", 5, SOON)


def _url(store: Store) -> str:
    return store._engine.url.render_as_string(hide_password=False)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_a_key_has_one_owner_until_it_is_given_back_or_answered(store: Store) -> None:
    with store.transaction(TESTER) as tx:
        assert tx.replays.claim("me", "k", SOON) is None
        held = tx.replays.claim("me", "k", SOON)
        assert held is not None and (held.status, held.expires_at) == (None, SOON)
        assert tx.replays.claim("you", "k", SOON) is None
        tx.replays.release("me", "k")
        assert tx.replays.claim("me", "k", SOON) is None
        tx.replays.keep("me", "k", fingerprint="sha256:a", status=201, answer={"body": "x"}, until=SOON)
        tx.replays.keep("me", "k", fingerprint="sha256:b", status=500, answer={}, until=SOON)
        tx.replays.release("me", "k")
        kept = tx.replays.claim("me", "k", SOON)
    assert kept is not None
    assert (kept.fingerprint, kept.status, kept.answer) == ("sha256:a", 201, {"body": "x"})


def test_a_claim_that_is_not_renewed_lapses(store: Store) -> None:
    with store.transaction(TESTER) as tx:
        tx.replays.claim("me", "k", tx.now)
        assert tx.replays.claim("me", "k", tx.now) is None
        tx.replays.renew("me", "k", SOON)
        assert tx.replays.claim("me", "k", SOON) is not None
        tx.replays.claim("me", "other", tx.now)
        tx.replays.sweep()
        assert tx.replays.claim("me", "k", SOON) is not None
        assert tx.replays.claim("me", "other", SOON) is None


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def partials(tmp_path: Path) -> Partials:
    return Partials(tmp_path)


def append(partials: Partials, offset: int, *blocks: bytes) -> int:
    with partials.held("a") as file, partials.appending("a", file, offset) as part:
        part.write(blocks)
        return part.sync()


def digest(partials: Partials, length: int) -> str:
    with partials.held("a") as file:
        return partials.whole("a", file, length).digest


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_parts_add_up(partials: Partials) -> None:
    partials.create("a")
    assert append(partials, 0, b"one", b"two") == 6
    assert append(partials, 6, b"three") == 11
    assert partials.path("a").read_bytes() == b"onetwothree"
    assert digest(partials, 11) == sha256(b"onetwothree")


def test_a_torn_tail_is_cut_off_and_the_digest_is_of_what_is_there(partials: Partials, tmp_path: Path) -> None:
    partials.create("a")
    append(partials, 0, b"recorded", b"not recorded")
    assert append(partials, 8, b"again") == 13
    assert partials.path("a").read_bytes() == b"recordedagain"
    assert digest(partials, 13) == sha256(b"recordedagain")
    assert digest(Partials(tmp_path), 13) == sha256(b"recordedagain"), "by another process"


def test_fewer_bytes_than_were_recorded_are_no_upload(partials: Partials) -> None:
    partials.create("a")
    append(partials, 0, b"abc")
    with pytest.raises(MissingBlob, match="upload again"):
        append(partials, 4, b"d")
    with partials.held("a") as file, pytest.raises(MissingBlob):
        partials.whole("a", file, 4)
    partials.remove("a")
    partials.remove("a")
    with pytest.raises(MissingBlob), partials.held("a"):
        pytest.fail("there is nothing to hold")


def test_one_holds_it_and_a_killed_process_holds_nothing(partials: Partials, tmp_path: Path) -> None:
    partials.create("a")
    with partials.held("a"), pytest.raises(UploadBusy), partials.held("a"):
        pytest.fail("two hold it")
    code = (
        "import sys; from pathlib import Path; from app.store.staging import Partials\n"
        "with Partials(Path(sys.argv[1])).held('a'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(UploadBusy), partials.held("a"):
            pytest.fail("two hold it")
        process.kill()
        process.wait()
    with partials.held("a"):
        pass


def test_checksums_are_of_the_part(partials: Partials) -> None:
    partials.create("a")
    append(partials, 0, b"before")
    with partials.held("a") as file, partials.appending("a", file, 6) as part:
        part.write([b"the", b"part"])
        assert part.digest_since(6, "sha1") == hashlib.sha1(b"thepart").digest()
        part.write([b"more"])
        assert part.digest_since(6, "sha256") == hashlib.sha256(b"thepartmore").digest()


def test_room_on_the_disk(partials: Partials) -> None:
    partials.require_space(0)
    with pytest.raises(StorageFull, match="free space"):
        partials.require_space(1 << 60)


def test_files_that_no_row_names(partials: Partials) -> None:
    for name in ("known", "young", "old"):
        partials.create(name)
    for name in ("known", "old"):
        os.utime(partials.path(name), (1000, 1000))
    assert partials.strays({"known"}, 2000) == ["old"]
