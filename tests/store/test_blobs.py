"""Blobs: whole or not there, verified, and never swept from under a row; on a disk as in a bucket."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.errors import CorruptBlob, MissingBlob, StorageFull, UploadTooLarge
from app.store.blobs import Blobs, open_blobs
from app.store.blobs.staging import Staging
from tests.builders import digest_of
from tests.s3 import S3
from tests.scenarios.deployment import until

NONE = "sha256:" + "0" * 64
GRACE = 100


@dataclass
class Place:
    """Where blobs lie, and how to harm them there."""

    folder: Path
    server: S3 | None = None
    bucket: str = ""

    def open(self) -> Blobs:
        url = f"s3://{self.bucket}/some/prefix" if self.server else ""
        return open_blobs(url, self.folder, cache_bytes=2**30, grace_seconds=GRACE)

    def age(self, digest: str, seconds: float) -> None:
        if self.server:
            self.server.age(self.bucket, digest[9:], seconds)
            return
        path = self._file(digest)
        past = path.stat().st_mtime - seconds
        os.utime(path, (past, past))

    def corrupt(self, digest: str) -> None:
        if self.server:
            for name, key in self.server.keys(self.bucket).items():
                if digest[9:] in name:
                    key.value = bytes([key.value[0] ^ 1]) + key.value[1:]
            (self.folder / "cache" / digest[7:9] / digest[9:]).unlink(missing_ok=True)
            return
        path = self._file(digest)
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)

    def _file(self, digest: str) -> Path:
        return self.folder / "sha256" / digest[7:9] / digest[9:]


@pytest.fixture
def place(request, tmp_path) -> Place:
    if getattr(request, "param", "disk") == "disk":
        return Place(tmp_path / "data")
    server: S3 = request.getfixturevalue("s3")
    return Place(tmp_path / "data", server, server.new_bucket())


@pytest.fixture
def blobs(place) -> Blobs:
    return place.open()


everywhere = pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)


def _staged(blobs):
    return sorted(path.name for path in (blobs.root / "staging").iterdir())


def _nobody(_digests):
    return set()


def _sweep(blobs, referenced=_nobody, older=GRACE):
    return blobs.sweep(referenced, older, datetime.now(UTC))


# -- in and out --------------------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("data", [b"", b"a", os.urandom(3_000_000)])
def test_bytes_come_back(blobs, data):
    digest = blobs.put(data)
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert blobs.put(data) == digest
    assert (blobs.read(digest), blobs.size(digest), blobs.path(digest).read_bytes()) == (data, len(data), data)
    assert blobs.has(digest)
    blobs.verify(digest)
    assert _staged(blobs) == []


@everywhere
def test_a_file_is_kept(blobs):
    with blobs.workspace() as work:
        (work / "x.npy").write_bytes(b"array")
        assert blobs.keep(work / "x.npy") == (blobs.put(b"array"), 5)
        assert not (work / "x.npy").exists()
        (work / "again").write_bytes(b"array")
        assert blobs.keep(work / "again") == (blobs.put(b"array"), 5)
    assert _staged(blobs) == []


@everywhere
def test_another_process_sees_the_same(blobs, place):
    assert place.open().read(blobs.put(b"shared")) == b"shared"


@everywhere
@pytest.mark.parametrize(
    "digest", [NONE, "", "sha256:", "../../etc/passwd", "sha256:" + "A" * 64, NONE + "\n", "md5:0"]
)
def test_what_is_not_there_is_missing(blobs, digest):
    for ask in (blobs.path, blobs.read, blobs.verify, blobs.size):
        with pytest.raises(MissingBlob):
            ask(digest)
    assert not blobs.has(digest)
    assert not blobs.touch(digest)


@everywhere
def test_rot_is_named_and_healed_by_the_same_bytes(blobs, place):
    digest = blobs.put(b"precious")
    place.corrupt(digest)
    for ask in (blobs.read, blobs.verify, blobs.verified):
        with pytest.raises(CorruptBlob, match=digest):
            ask(digest)
    blobs.put(b"precious")
    assert blobs.read(digest) == b"precious"


@everywhere
def test_blobs_are_read_only(blobs):
    assert blobs.path(blobs.put(b"x")).stat().st_mode & 0o777 == 0o444


# -- receiving ---------------------------------------------------------------------------------------------------------


@everywhere
def test_an_upload_is_hashed_as_it_comes(blobs):
    with blobs.receiver(10) as receiver:
        receiver.write(b"hello")
        receiver.write(b"world")
        staged = receiver.finish()
        assert (staged.size, staged.digest) == (10, "sha256:" + hashlib.sha256(b"helloworld").hexdigest())
        assert staged.path.read_bytes() == b"helloworld"
        assert not blobs.has(staged.digest)
        assert blobs.keep(staged.path) == (staged.digest, 10)
    assert blobs.read(staged.digest) == b"helloworld"
    assert _staged(blobs) == []


@everywhere
def test_an_upload_past_the_limit_is_refused_and_leaves_nothing(blobs):
    with blobs.receiver(10) as receiver:
        receiver.write(b"x" * 10)
        with pytest.raises(UploadTooLarge, match="10 bytes"):
            receiver.write(b"x")
        assert (blobs.root / "staging" / _staged(blobs)[0]).stat().st_size == 10
    assert _staged(blobs) == []


@everywhere
@pytest.mark.parametrize("finish", [False, True])
def test_what_was_not_kept_goes(blobs, finish):
    with blobs.receiver(10) as receiver:
        receiver.write(b"x")
        if finish:
            assert receiver.finish().path.exists()
    assert _staged(blobs) == []


@everywhere
def test_an_error_leaves_nothing_in_staging(blobs):
    def fail():
        with blobs.receiver(10) as receiver, blobs.workspace() as work:
            receiver.write(b"x")
            (work / "folder").mkdir()
            (work / "folder" / "file").write_bytes(b"y")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert _staged(blobs) == []


# -- faults ------------------------------------------------------------------------------------------------------------

CALLS = ["write", "fsync", "replace"]


class _Crash(Exception):
    """The process ends here: nothing that comes after it happens."""


@everywhere
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_storage_full_and_recovers(blobs, monkeypatch, number):
    def full(_descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull):
            blobs.put(b"data")
    assert _staged(blobs) == []
    assert not blobs.has("sha256:" + hashlib.sha256(b"data").hexdigest())
    assert blobs.read(blobs.put(b"data")) == b"data"


def test_a_full_device_is_storage_full(blobs):
    receiver = blobs.receiver(2**20)
    receiver._file.close()
    with open("/dev/full", "wb", buffering=0) as receiver._file, pytest.raises(StorageFull), receiver:
        receiver.write(b"x" * 10)


def test_no_name_before_its_content_is_durable(blobs, monkeypatch):
    """Record the order in which the disk is asked for things: fsync of the bytes, rename, fsync of the folder."""
    order: list[tuple[str, str]] = []
    fsync, replace = os.fsync, type(blobs.root).replace

    def recorded_fsync(descriptor):
        order.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recorded_replace(self, target):
        order.append(("rename", str(target)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(type(blobs.root), "replace", recorded_replace)
    with blobs.workspace() as work:
        (work / "file").write_bytes(b"kept")
        kept, _ = blobs.keep(work / "file")
        put = blobs.put(b"put")
        for digest, first in ((kept, order[:3]), (put, order[4:7])):
            target = blobs.path(digest)
            assert [what for what, _ in first] == ["fsync", "rename", "fsync"]
            assert first[0][1].startswith(str(blobs.root / "staging"))
            assert first[1][1] == str(target)
            assert first[2][1] == str(target.parent)


def test_a_crash_anywhere_shows_all_or_nothing(blobs, monkeypatch):
    """Stop at the n-th call to the disk, for every n: a name either is not there, or has all its bytes."""
    data = os.urandom(3 * 2**20)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    fsync, replace = os.fsync, type(blobs.root).replace
    for n in range(20):
        left = [n]

        def step(left=left):
            if left[0] == 0:
                raise _Crash
            left[0] -= 1

        def crashing_fsync(descriptor, step=step):
            step()
            fsync(descriptor)

        def crashing_replace(self, target, step=step):
            step()
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", crashing_fsync)
            patch.setattr(type(blobs.root), "replace", crashing_replace)
            try:
                blobs.put(data)
                crashed = False
            except _Crash:
                crashed = True
        if blobs.has(digest):
            assert blobs.read(digest) == data
            blobs.discard(digest)
        else:
            assert crashed
        if not crashed:
            assert n == 4  # fsync of bytes, rename, fsync of two folders
            return
    pytest.fail("it never came to an end")


# -- sweep -------------------------------------------------------------------------------------------------------------


@everywhere
def test_the_sweep_takes_what_is_old_and_unnamed(blobs, place):
    old, named, young = blobs.put(b"old"), blobs.put(b"named"), blobs.put(b"young")
    for digest in (old, named):
        place.age(digest, GRACE + 2)
    place.age(young, GRACE - 30)
    asked: list[str] = []

    def referenced(digests):
        asked.extend(digests)
        return {named}

    assert _sweep(blobs, referenced) == [old]
    assert sorted(asked) == sorted([old, named])
    assert [blobs.has(digest) for digest in (old, named, young)] == [False, True, True]
    assert _sweep(blobs, referenced) == []


def test_the_sweep_looks_at_a_folder_that_goes_meanwhile(tmp_path, monkeypatch):
    staging = Staging(tmp_path)
    kept = staging.folder / "kept"
    kept.mkdir(parents=True)
    (staging.folder / "gone").mkdir()
    scandir = os.scandir

    def vanishing(path):
        if path == staging.folder / "gone":
            path.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    staging.sweep(time.time() + 60)
    assert not kept.exists()


@everywhere
def test_the_sweep_asks_in_parts(blobs, place, monkeypatch):
    for module in ("disk", "bucket"):
        monkeypatch.setattr(f"app.store.blobs.{module}.SWEEP_BATCH", 2)
    digests = {blobs.put(str(n).encode()) for n in range(5)}
    for digest in digests:
        place.age(digest, 200)
    sizes: list[int] = []

    def referenced(asked):
        sizes.append(len(list(asked)))
        return set()

    assert set(_sweep(blobs, referenced)) == digests
    assert sizes == [2, 2, 1]


@everywhere
def test_leftovers_in_staging_go_by_age(blobs):
    staging = blobs.root / "staging"
    (staging / "file").write_bytes(b"x")
    (staging / "folder").mkdir()
    (staging / "folder" / "inner").write_bytes(b"x")
    (staging / "busy").mkdir()
    (staging / "busy" / "inner").write_bytes(b"x")
    past = datetime.now(UTC).timestamp() - 200
    for path in ("file", "folder/inner", "folder", "busy"):
        os.utime(staging / path, (past, past))
    _sweep(blobs)
    assert _staged(blobs) == ["busy"]


@everywhere
@pytest.mark.parametrize("again", ["put", "touch"])
def test_bytes_kept_again_while_the_sweep_asks_are_safe(blobs, place, again):
    digest = blobs.put(b"kept again")
    place.age(digest, 1000)

    def referenced(_digests):
        """The race: the row is not committed yet, but its bytes were kept a moment ago."""
        if again == "put":
            assert blobs.put(b"kept again") == digest
        else:
            assert blobs.touch(digest)
        return set()

    assert _sweep(blobs, referenced) == []
    assert blobs.read(digest) == b"kept again"


@pytest.mark.slow
@everywhere
def test_keeping_and_sweeping_at_once_never_loses_a_kept_blob(blobs, place):
    stop = threading.Event()
    swept: list[str] = []

    def sweep():
        while not stop.is_set():
            swept.extend(blobs.sweep(_nobody, GRACE, datetime.now(UTC)))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for n in range(100):
            digest = blobs.put(str(n % 7).encode())
            place.age(digest, 1000)  # what it would be, had it been kept long ago
            blobs.put(str(n % 7).encode())
            assert blobs.has(digest)
        abandoned = blobs.put(b"never kept again")
        place.age(abandoned, 1000)
        until(lambda: not blobs.has(abandoned))  # it was at work all the while
    finally:
        stop.set()
        sweeper.join()
    assert abandoned in swept


@everywhere
def test_discard_is_quiet_about_what_is_gone(blobs):
    digest = blobs.put(b"snapshot")
    blobs.discard(digest)
    blobs.discard(digest)
    assert not blobs.has(digest)


@everywhere
def test_unknown_digests_are_no_paths(blobs):
    with pytest.raises(MissingBlob, match="no digest"):
        blobs.discard("sha256:../x")
    assert not blobs.has(digest_of("never put"))
