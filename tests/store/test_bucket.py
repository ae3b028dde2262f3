"""A bucket: what fails is said, nothing is half done, copies are never wrong, and a sweep cannot hit what was kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest

from app.errors import CorruptBlob, MissingBlob, StorageFull, StorageRefused, StorageUnreachable, Unavailable
from app.store.blobs import Blobs, open_blobs
from app.store.blobs.cache import Cache
from tests.builders import digest_of

GRACE = 100
LARGE = os.urandom(9 * 2**20)  # two parts, two ranges


@pytest.fixture
def bucket(s3) -> str:
    return s3.new_bucket()


@pytest.fixture
def machine(bucket, tmp_path, s3):
    """Opens the bucket as another machine would: with a folder of its own."""

    def opened(name: str = "here", *, cache_bytes: int = 2**30, patience: float = 0.2, prefix: str = "/pre/fix"):
        return open_blobs(
            f"s3://{bucket}{prefix}",
            tmp_path / name,
            cache_bytes=cache_bytes,
            grace_seconds=GRACE,
            patience_seconds=patience,
        )

    return opened


def _files(blobs: Blobs, folder: str) -> list[str]:
    return sorted(str(path.relative_to(blobs.root)) for path in (blobs.root / folder).rglob("*") if path.is_file())


def _nobody(_digests):
    return set()


def _sweep(blobs, referenced=_nobody):
    return blobs.sweep(referenced, GRACE, datetime.now(UTC))


def _cached(blobs, digest):
    return blobs.root / "cache" / digest[7:9] / digest[9:]


def _harm(path):
    path.chmod(0o644)
    path.write_bytes(b"x" + path.read_bytes()[1:])


# -- two machines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/", "/pre/fix"])
def test_another_machine_reads_what_was_kept(machine, s3, bucket, prefix):
    digest = machine(prefix=prefix).put(LARGE)
    there = machine("there", prefix=prefix)
    assert there.read(digest) == LARGE
    assert there.size(digest) == len(LARGE)
    assert all(key.startswith(prefix.strip("/")) for key in s3.keys(bucket))
    assert _files(there, "staging") == []


def test_a_blob_is_fetched_once_a_machine(machine, s3):
    digest = machine().put(LARGE)
    there = machine("there")
    with s3.failing(lambda *_: None) as requests:
        threads = [threading.Thread(target=there.verified, args=(digest,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        machine("there").read(digest)  # another process there
    assert len(requests) == 1 + 2, "one listing, two ranges"


def test_two_places_in_one_bucket_are_two(machine):
    digest = machine(prefix="/a").put(b"data")
    other = machine("other", prefix="/b")
    assert not other.has(digest)
    assert list(other.stored()) == []


# -- keys --------------------------------------------------------------------------------------------------------------


def test_no_object_is_written_twice(machine, s3, bucket):
    blobs = machine()
    digest = blobs.put(b"data")
    blobs.put(b"data")
    s3.age(bucket, "", GRACE)
    assert blobs.touch(digest)
    keys = list(s3.keys(bucket))
    assert len(keys) == len(set(keys)) == 3
    assert {key.rpartition("/")[0] for key in keys} == {f"pre/fix/sha256/{digest[7:9]}/{digest[9:]}"}


def test_a_young_blob_is_touched_without_a_copy(machine, s3, bucket):
    blobs = machine()
    assert blobs.touch(blobs.put(b"data"))
    assert len(s3.keys(bucket)) == 1


def test_a_blob_too_large_to_copy_is_sent_again(machine, s3, bucket, monkeypatch):
    monkeypatch.setattr("app.store.blobs.bucket._LARGEST_COPY", 3)
    blobs = machine()
    digest = blobs.put(b"data")
    s3.age(bucket, "", GRACE)
    assert machine("there").touch(digest)
    assert _sweep(blobs) == []
    assert blobs.has(digest)


def test_the_sweep_removes_duplicates_of_what_a_row_names(machine, s3, bucket):
    blobs = machine()
    digest = blobs.put(b"data")
    s3.age(bucket, "", 1000)
    blobs.put(b"data")
    assert _sweep(blobs, set) == []
    assert len(s3.keys(bucket)) == 1
    s3.age(bucket, "", 1000)
    assert _sweep(blobs, set) == []
    assert machine("there").read(digest) == b"data"


def test_blobs_that_were_copied_from_a_folder_by_hand_are_there(machine, tmp_path):
    """As docs/storage.md says: ``sha256/ab/cd...`` of a folder becomes a key of that name with something after it."""
    digest = Blobs(tmp_path / "folder").put(b"data")
    blobs = machine()
    name = f"sha256/{digest[7:9]}/{digest[9:]}"
    blobs._shelf._objects.put(f"{name}/0", tmp_path / "folder" / name)
    assert machine("there").read(digest) == b"data"


def test_foreign_objects_are_left_alone(machine, s3, bucket):
    blobs = machine()
    (blobs.root / "note").write_bytes(b"x")
    for key in ("sha256/aa/readme", "sha256/aa/bb/cc/dd", "notes"):
        blobs._shelf._objects.put(key, blobs.root / "note")
    s3.age(bucket, "", 1000)
    assert _sweep(blobs) == []
    assert len(s3.keys(bucket)) == 3
    assert list(blobs.stored()) == []


def test_a_keep_while_another_machine_removes_loses_nothing(machine, s3, bucket):
    """The sweep has decided, and its removal is on its way; then the same bytes are kept: the worst moment."""
    here, there = machine(), machine("there")
    digest = here.put(b"data")
    s3.age(bucket, "", 1000)
    kept: list[str] = []

    def keep_at_the_removal(_number, method, path):
        if method == "POST" and not kept:
            kept.append("")
            kept[0] = there.put(b"data")

    with s3.failing(keep_at_the_removal):
        assert _sweep(here) == []
    assert kept == [digest]
    assert machine("third").read(digest) == b"data"


def test_a_blob_that_is_renewed_while_it_is_read_is_read(machine, s3, bucket):
    """The object that a reader has looked up is swept before it is fetched, since a newer one is there by then."""
    here = machine()
    digest = here.put(b"data")
    s3.age(bucket, "", 1000)
    moved: list[bool] = []

    def renew_before_the_read(_number, method, path):
        if method == "GET" and path.count("/") > 5 and not moved:
            moved.append(True)
            here.put(b"data")
            _sweep(here, set)

    with s3.failing(renew_before_the_read):
        assert machine("there").read(digest) == b"data"
    assert moved


def test_uploads_that_wait_are_none_of_the_sweeps_business(machine):
    blobs = machine()
    (blobs.root / "uploads").mkdir()
    (blobs.root / "uploads" / "part").write_bytes(b"x")
    os.utime(blobs.root / "uploads" / "part", (0, 0))
    _sweep(blobs)
    assert _files(blobs, "uploads") == ["uploads/part"]


# -- faults ------------------------------------------------------------------------------------------------------------


def _put(blobs):
    return blobs.put(LARGE)


def _keep(blobs):
    with blobs.workspace() as work:
        (work / "x").write_bytes(LARGE)
        return blobs.keep(work / "x")


OPERATIONS = {
    "put": _put,
    "keep": _keep,
    "read": lambda blobs: blobs.read(digest_of_large()),
    "verify": lambda blobs: blobs.verify(digest_of_large()),
    "touch": lambda blobs: blobs.touch(digest_of_large()),
    "sweep": _sweep,
    "stored": lambda blobs: list(blobs.stored()),
    "check": lambda blobs: blobs.check(),
}


def digest_of_large():
    return "sha256:" + hashlib.sha256(LARGE).hexdigest()


def _whole(blobs) -> bool:
    """Whether the blob is there; if any part of it is, all of it must be."""
    if blobs.has(digest_of_large()):
        blobs.verify(digest_of_large())
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("status", [503, 403])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_any_request_fails_for_good(machine, s3, bucket, name, status):
    """From the n-th request on, for every n: a documented error, no half state, and a retry succeeds."""
    operation, denied = OPERATIONS[name], {503: StorageUnreachable, 403: StorageRefused}[status]
    for n in range(1, 20):
        blobs = machine(f"{name}-{n}")
        for key in s3.keys(bucket):
            blobs._shelf._objects.delete([key.removeprefix("pre/fix/")])
        there_before = name not in ("put", "keep")
        if there_before:
            machine("elsewhere").put(LARGE)
            s3.age(bucket, "", 1000)
        failed = None
        with s3.failing(lambda number, *_, n=n: (status, "AsTheTestWants") if number >= n else None) as requests:
            try:
                operation(blobs)
            except Unavailable as error:
                failed = error
        assert _files(blobs, "staging") == []
        assert _whole(blobs) or name in ("put", "keep", "sweep")
        if failed is None:
            assert n > 1 and len(requests) < n
            return
        operation(blobs)
        assert _whole(blobs) or name == "sweep"
        assert isinstance(failed, denied), failed
        assert str(bucket) in str(failed)
    pytest.fail("it never came to an end")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_a_request_that_fails_once_is_tried_again(machine, s3, bucket, name):
    for n in range(1, 20):
        blobs = machine(f"{name}-{n}", patience=20)
        if name not in ("put", "keep"):
            machine("elsewhere").put(LARGE)
            s3.age(bucket, "", 1000)
        with s3.failing(lambda number, *_, n=n: (503, "SlowDown") if number == n else None) as requests:
            OPERATIONS[name](blobs)
        if len(requests) < n:
            return
    pytest.fail("it never came to an end")


def test_what_cannot_be_discarded_is_left_to_the_sweep(machine, s3, bucket):
    blobs = machine()
    digest = blobs.put(b"snapshot")
    with s3.failing(lambda *_: (503, "SlowDown")):
        blobs.discard(digest)
    s3.age(bucket, "", 1000)
    assert _sweep(blobs) == [digest]


@pytest.mark.parametrize(
    ("status", "code", "expected", "remedy"),
    [
        (403, "AccessDenied", StorageRefused, "AWS_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", StorageRefused, "InvalidAccessKeyId"),
        (400, "AuthorizationHeaderMalformed", StorageRefused, "AWS_REGION"),
        (404, "NoSuchBucket", StorageRefused, "ESPALIER_BLOBS_URL"),
        (503, "SlowDown", StorageUnreachable, "AWS_ENDPOINT_URL"),
        (500, "InternalError", StorageUnreachable, "InternalError"),
        (507, "XMinioStorageFull", StorageFull, "free space"),
    ],
)
def test_every_error_says_what_to_do(machine, s3, status, code, expected, remedy):
    blobs = machine()
    for ask in (blobs.check, lambda: blobs.put(b"data"), lambda: blobs.has(digest_of("x")), lambda: _sweep(blobs)):
        with s3.failing(lambda *_: (status, code)), pytest.raises(expected, match=remedy):
            ask()


def test_a_bucket_that_is_not_there_is_named(s3, tmp_path):
    blobs = open_blobs("s3://no-such-bucket/x", tmp_path, cache_bytes=1, grace_seconds=100)
    with pytest.raises(StorageRefused, match="s3://no-such-bucket/x"):
        blobs.check()
    with pytest.raises(StorageRefused, match="create it"):
        blobs.read(digest_of("x"))


def test_a_server_that_is_not_there_is_unreachable_in_bounded_time(tmp_path, monkeypatch, s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    blobs = open_blobs("s3://bucket", tmp_path, cache_bytes=1, grace_seconds=100, patience_seconds=0.5)
    started = time.monotonic()
    with pytest.raises(StorageUnreachable, match="AWS_ENDPOINT_URL"):
        blobs.check()
    assert time.monotonic() - started < 10


def test_what_is_cached_is_served_while_the_bucket_is_away(machine, s3):
    blobs = machine()
    digest = blobs.put(b"champion")
    with s3.failing(lambda *_: (503, "SlowDown")):
        assert blobs.verified(digest).read_bytes() == blobs.read(digest) == b"champion"


@pytest.mark.parametrize("url", ["http://bucket/x", "s3:///x", "s3:x", "file://host/x", "file:", "nonsense"])
def test_a_url_that_is_no_place_is_refused(tmp_path, url):
    with pytest.raises(StorageRefused, match="s3://bucket/prefix"):
        open_blobs(url, tmp_path, cache_bytes=1, grace_seconds=100)


def test_a_file_url_is_a_folder(tmp_path):
    url = f"file://{tmp_path}/a%20b"
    blobs = open_blobs(url, tmp_path / "unused", cache_bytes=1, grace_seconds=100)
    assert Blobs(tmp_path / "a b").read(blobs.put(b"data")) == b"data"
    assert not (tmp_path / "unused").exists()


# -- copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["read", "verified"])
def test_a_damaged_copy_is_fetched_again(machine, ask):
    blobs = machine()
    digest = blobs.put(b"precious")
    blobs.verified(digest)
    _harm(_cached(blobs, digest))
    assert [found for found, _ in blobs.stale()] == [digest]
    for process in (blobs, machine()):
        found = getattr(process, ask)(digest)
        assert (found if ask == "read" else found.read_bytes()) == b"precious"
    assert list(blobs.stale()) == []


def test_a_damaged_object_is_never_served(machine, s3, bucket):
    digest = machine().put(b"precious")
    (key,) = s3.keys(bucket).values()
    key.value = b"Precious"
    there = machine("there")
    for ask in (there.read, there.verified, there.path, there.verify):
        with pytest.raises(CorruptBlob, match=digest):
            ask(digest)
    assert _files(there, "cache") == _files(there, "staging") == []


def test_a_damaged_copy_of_a_damaged_object_is_never_served(machine, s3, bucket):
    blobs = machine()
    digest = blobs.put(b"precious")
    _harm(_cached(blobs, digest))
    (key,) = s3.keys(bucket).values()
    key.value = b"Precious"
    for ask in (blobs.read, blobs.verified):
        with pytest.raises(CorruptBlob):
            ask(digest)


def test_verify_looks_into_the_bucket_past_the_copy(machine, s3, bucket):
    blobs = machine()
    digest = blobs.put(b"precious")
    (key,) = s3.keys(bucket).values()
    key.value = b"Precious"
    assert blobs.read(digest) == b"precious"
    with pytest.raises(CorruptBlob):
        blobs.verify(digest)


def test_a_swept_blob_leaves_no_copy_on_the_machine_that_swept(machine, s3, bucket):
    blobs = machine()
    digest = blobs.put(b"data")
    s3.age(bucket, "", 1000)
    assert _sweep(blobs) == [digest]
    assert _files(blobs, "cache") == []
    with pytest.raises(MissingBlob):
        blobs.read(digest)


def _ask(path, seconds_ago):
    past = time.time() - seconds_ago
    os.utime(path, (past, path.stat().st_mtime))


def test_what_was_asked_for_longest_ago_goes_first(machine):
    blobs = machine(cache_bytes=3000)
    first, second, third = (blobs.put(bytes([n]) * 1000) for n in range(3))
    for digest, ago in ((first, 300), (second, 500), (third, 400)):
        _ask(_cached(blobs, digest), ago)
    blobs.path(second)  # asked for again
    blobs.put(b"4" * 1000)
    assert [_cached(blobs, digest).exists() for digest in (first, second, third)] == [True, True, False]
    assert blobs.read(third) == bytes([2]) * 1000


def test_what_was_asked_for_a_moment_ago_stays_beyond_the_limit(machine):
    blobs = machine(cache_bytes=1000)
    digests = [blobs.put(bytes([n]) * 1000) for n in range(5)]
    assert all(_cached(blobs, digest).exists() for digest in digests)
    for digest in digests[:4]:
        _ask(_cached(blobs, digest), 100)
    _sweep(blobs, set)
    assert [_cached(blobs, digest).exists() for digest in digests] == [False] * 4 + [True]


def test_a_reader_is_not_disturbed_by_an_eviction(machine):
    blobs = machine(cache_bytes=1000)
    digest = blobs.put(LARGE)
    with blobs.verified(digest).open("rb") as reader:
        _ask(_cached(blobs, digest), 100)
        blobs.put(b"another")
        assert not _cached(blobs, digest).exists()
        assert hashlib.file_digest(reader, "sha256").hexdigest() == digest.removeprefix("sha256:")


def test_readers_and_evictions_of_several_processes_at_once(machine):
    """A cache that holds two of eight blobs, and is told that a minute has gone by all the time."""
    digests = [machine().put(bytes([n]) * 50_000) for n in range(8)]
    stop, errors = threading.Event(), []

    def evict():
        cache = Cache(machine("there").root / "cache", 100_000)
        while not stop.is_set():
            for path in (machine("there").root / "cache").glob("??/*"):
                try:
                    os.utime(path, (time.time() - 50, path.stat().st_mtime))
                except FileNotFoundError:
                    continue
            cache.shrink()

    def read(blobs):
        try:
            for _ in range(10):
                for n, digest in enumerate(digests):
                    assert blobs.read(digest) == bytes([n]) * 50_000
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=evict), *(threading.Thread(target=read, args=(machine("there"),)) for _ in "ab")]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    assert errors == []


# -- memory ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import hashlib, resource, sys
from pathlib import Path
from app.store.blobs import open_blobs
blobs = open_blobs(sys.argv[1], Path(sys.argv[2]), cache_bytes=2**40, grace_seconds=100)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
with blobs.workspace() as work:
    (work / "small").write_bytes(b"x" * 20 * 2**20)
    blobs.read(blobs.keep(work / "small")[0])
    before = peak()
    with (work / "large").open("wb") as file:
        for n in range(96):
            file.write(bytes([n]) * 2**20)
    digest, _ = blobs.keep(work / "large")
(blobs.root / "cache" / digest[7:9] / digest[9:]).unlink()
blobs.verify(digest)
blobs.verified(digest)
print(before, peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(bucket, s3, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"s3://{bucket}", str(tmp_path / "small")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 48, f"{before} MiB, then {after} MiB, for a file of 96 MiB"
