"""The sandbox: the right answer for good uploads, and a named one whatever an upload does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save

from app.errors import Fault, InvalidMegabatch, InvalidWeights, StorageFull
from app.intake import child, sandbox
from app.intake.sandbox import Limits, check_weights, decode
from espalier.formats.megabatch import arrays_digest, encode, example_ids
from tests.intake.hostile import Entry, archive, npy_header
from tests.intake.hostile_tables import A, labelled, to_parquet, to_stream

LIMITS = Limits(max_bytes=256 << 20, seconds=20, memory_bytes=256 << 20)


def upload(folder: Path, data: bytes) -> Path:
    path = folder / "upload"
    path.write_bytes(data)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_a_good_upload_comes_out_whole(tmp_path: Path, work: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    y = np.arange(500) % 3
    found = decode(upload(tmp_path, encode(x, y)), work, LIMITS)
    assert (found.x, found.y, found.ids) == (work / "x.npy", work / "y.npy", work / "ids.npy")
    np.testing.assert_array_equal(np.load(found.x, mmap_mode="r"), x)
    np.testing.assert_array_equal(np.load(found.y, mmap_mode="r"), y)
    np.testing.assert_array_equal(np.load(found.ids, mmap_mode="r"), example_ids(x))
    assert found.digest == arrays_digest(x, y)
    assert found.labels == ((0, 167), (1, 167), (2, 166))
    assert (found.examples, found.shape, found.dtype) == (500, (8, 8, 3), "uint8")
    assert (found.largest, found.bytes) == (255.0, x.nbytes + y.nbytes)
    assert sorted(path.name for path in work.iterdir()) == ["ids.npy", "x.npy", "y.npy"]


def test_a_large_upload_needs_little_memory(tmp_path: Path, work: Path) -> None:
    x = np.zeros((100_000, 256), np.float32)
    found = decode(upload(tmp_path, encode(x, np.zeros(len(x), np.uint8))), work, Limits(300 << 20, 60, 64 << 20))
    assert found.bytes == x.nbytes + 8 * len(x)
    assert peak_memory(tmp_path / "upload", work, LIMITS) < 128 << 20


def test_a_large_column_major_upload_needs_little_memory(tmp_path: Path, work: Path) -> None:
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(50_000, 256)).astype(np.float32))
    data = archive(
        Entry("x.npy", npy_header("<f4", x.shape, True) + x.tobytes("F")),
        Entry("y.npy", npy_header("|u1", (len(x),)) + bytes(len(x))),
    )
    found = decode(upload(tmp_path, data), work, Limits(300 << 20, 60, 48 << 20))
    assert found.digest == arrays_digest(x, np.zeros(len(x), np.int64))
    assert not (work / "columns").exists()


def test_the_decoders_reason_passes_through(tmp_path: Path, work: Path) -> None:
    with pytest.raises(InvalidMegabatch, match="NaN") as caught:
        decode(upload(tmp_path, encode(np.float32([[np.nan]]), [0])), work, LIMITS)
    assert caught.value.reason == "not-finite"


def test_a_zip_bomb_is_refused_in_time_and_memory(tmp_path: Path, work: Path) -> None:
    size = 1 << 30
    header = npy_header("|u1", (size // 64, 64))
    x = Entry("x.npy", b"", body=_zeros(header, size), method=8, size=len(header) + size)
    path = upload(tmp_path, archive(x, Entry("y.npy", npy_header("|u1", (size // 64,)) + bytes(100))))
    assert path.stat().st_size < 8 << 20
    began = time.monotonic()
    with pytest.raises(InvalidMegabatch) as caught:
        decode(path, work, LIMITS)
    assert caught.value.reason == "too-large"
    assert time.monotonic() - began < 10
    assert peak_memory(path, work, LIMITS) < 512 << 20


def _zeros(header: bytes, size: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = bytes(1 << 20)
    return b"".join([packer.compress(header), *(packer.compress(block) for _ in range(size >> 20)), packer.flush()])


def test_the_deadline_is_kept(tmp_path: Path, work: Path) -> None:
    path = upload(tmp_path, encode(np.zeros((4, 2), np.float32), [0, 1, 0, 1]))
    with pytest.raises(InvalidMegabatch, match=r"over 0\.01 s") as caught:
        decode(path, work, Limits(1 << 20, 0.01))
    assert caught.value.reason == "too-slow"


def test_memory_is_limited(tmp_path: Path, work: Path) -> None:
    path = upload(tmp_path, encode(np.zeros((4, 32 << 20), np.uint8), [0] * 4))
    with pytest.raises(InvalidMegabatch, match="memory") as caught:
        decode(path, work, Limits(256 << 20, 20, 4 << 20))
    assert caught.value.reason == "too-large"


def test_the_upload_may_be_named_relatively(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(tmp_path, encode(np.zeros((2, 2), np.float32), [0, 1]))
    monkeypatch.chdir(tmp_path)
    assert decode(Path("upload"), Path("work"), LIMITS).examples == 2


def test_a_full_disk_is_not_the_uploads_fault(tmp_path: Path, work: Path) -> None:
    (work / "x.npy").symlink_to("/dev/full")
    with pytest.raises(StorageFull, match="try again"):
        decode(upload(tmp_path, encode(np.zeros((2, 2), np.float32), [0, 1])), work, LIMITS)


def test_a_missing_upload_is_a_fault(tmp_path: Path, work: Path) -> None:
    with pytest.raises(Fault, match="No such file"):
        decode(tmp_path / "absent", work, LIMITS)


def test_a_decoder_that_cannot_start_is_a_fault(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Fault, match="exit status 1"):
        decode(upload(tmp_path, b""), work, LIMITS)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "undecodable"),
        (signal.SIGKILL, "undecodable"),
        (signal.SIGABRT, "undecodable"),
        (signal.SIGXCPU, "too-slow"),
        (signal.SIGALRM, "too-slow"),
    ],
)
def test_a_dead_decoder_is_an_invalid_megabatch(
    number: signal.Signals, reason: str, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(script(tmp_path, f"echo begun; kill -{int(number)} $$")))
    with pytest.raises(InvalidMegabatch) as caught:
        decode(upload(tmp_path, b""), work, LIMITS)
    assert caught.value.reason == reason


def test_the_child_inherits_nothing(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_API_KEY", "a secret")
    look = f"env > {work}/environment; ls -l /proc/self/fd > {work}/descriptors"
    monkeypatch.setattr(sys, "executable", str(script(tmp_path, look)))
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with pytest.raises(Fault):
            decode(upload(tmp_path, b""), work, LIMITS)
    names = {line.split("=")[0] for line in (work / "environment").read_text().splitlines()}
    assert names <= {*sandbox._ENVIRONMENT, "PYTHONPATH", "PWD", "SHLVL", "_"}
    assert str(tmp_path / "open") not in (work / "descriptors").read_text()


def script(folder: Path, command: str) -> Path:
    """Stands in for the interpreter: a decoder that does only this."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return path


def in_a_child(code: str, *arguments: object) -> object:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def peak_memory(path: Path, work: Path, limits: Limits) -> int:
    """The most memory, in bytes, that a decoder process ever had."""
    code = """
import sys
from pathlib import Path
from app.intake.child import Limits, outcome
outcome(Path(sys.argv[1]), Path(sys.argv[2]), Limits(int(sys.argv[3])))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""
    kibibytes = in_a_child(code, path, work, limits.max_bytes)
    assert isinstance(kibibytes, int)
    return kibibytes << 10


def test_the_child_confines_itself() -> None:
    code = """
import json, resource, signal
from pathlib import Path
from app.intake.child import Limits, confine
confine(Limits(1000, 7.5, 1 << 20), Path("absent"))
kinds = ("CPU", "FSIZE", "CORE", "NOFILE", "AS", "DATA")
limits = {kind: resource.getrlimit(getattr(resource, "RLIMIT_" + kind)) for kind in kinds}
print(json.dumps({**limits, "alarm": signal.getitimer(signal.ITIMER_REAL)[0]}))
"""
    limits = in_a_child(code)
    assert isinstance(limits, dict)
    assert limits["CPU"] == [17, 17], "two threads may work until the deadline"
    assert limits["FSIZE"] == [1000 + (1 << 20)] * 2
    assert limits["CORE"] == [0, 0]
    assert limits["NOFILE"] == [64, 64]
    assert 0 < limits["DATA"][1] < limits["AS"][1] < 8 << 30
    assert 7.5 < limits["alarm"] <= 12.5


def test_too_large_a_file_is_the_uploads_fault(tmp_path: Path, work: Path) -> None:
    code = """
import json, resource, sys
from pathlib import Path
from app.intake.child import Limits, outcome
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
print(json.dumps(outcome(Path(sys.argv[1]), Path(sys.argv[2]), Limits(1 << 30))))
"""
    path = upload(tmp_path, encode(np.zeros((100, 100), np.float32), [0] * 100))
    answer = in_a_child(code, path, work)
    assert isinstance(answer, dict)
    assert answer["refused"][0] == "too-large"


def test_an_unforeseen_error_stays_inside(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprised(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(child, "decode", surprised)
    reason, message = child.outcome(upload(tmp_path, b""), work, LIMITS)["refused"]
    assert reason == "undecodable"
    assert "ZeroDivisionError" in message


# -- the spare --------------------------------------------------------------------------------------------------------


def waiting() -> subprocess.Popen[bytes]:
    """The child that waits; there is one within seconds."""
    deadline = time.monotonic() + 20
    while (found := sandbox._SPARE._child) is None or found.poll() is not None:
        assert time.monotonic() < deadline, "no spare was started"
        time.sleep(0.01)
    return found


def gone(number: int) -> bool:
    """Whether a process has ended and was taken notice of."""
    return not Path(f"/proc/{number}").exists()


def test_a_spare_takes_one_upload_and_the_next_one_follows(tmp_path: Path, work: Path) -> None:
    path = upload(tmp_path, encode(np.zeros((4, 2), np.float32), [0, 1, 0, 1]))
    with sandbox.spare():
        first = waiting()
        assert decode(path, work, LIMITS).examples == 4
        assert (first.returncode, gone(first.pid)) == (0, True)
        second = waiting()
        assert second.pid != first.pid
        with pytest.raises(InvalidMegabatch):
            decode(upload(tmp_path, b"nonsense\0"), work, LIMITS)
        assert gone(second.pid)
        last = waiting()
    assert gone(last.pid)
    assert sandbox._SPARE._child is None


def test_a_spare_that_died_is_replaced_and_not_the_uploads_fault(tmp_path: Path, work: Path) -> None:
    path = upload(tmp_path, encode(np.zeros((4, 2), np.float32), [0, 1, 0, 1]))
    with sandbox.spare():
        first = waiting()
        os.kill(first.pid, signal.SIGKILL)
        assert decode(path, work, LIMITS).examples == 4
        assert waiting().pid != first.pid
        assert gone(first.pid)


def test_threads_share_a_spare(tmp_path: Path) -> None:
    path = upload(tmp_path, encode(np.zeros((4, 2), np.float32), [0, 1, 0, 1]))

    def job(number: int) -> int:
        folder = tmp_path / f"work-{number}"
        folder.mkdir()
        return decode(path, folder, LIMITS).examples

    with sandbox.spare(), sandbox.spare(), ThreadPoolExecutor(4) as threads:
        waiting()
        assert list(threads.map(job, range(8))) == [4] * 8


def test_the_spare_stays_while_anyone_has_it_open() -> None:
    with sandbox.spare():
        with sandbox.spare():
            number = waiting().pid
        assert waiting().pid == number
    assert gone(number)


def test_a_child_without_a_parent_ends_by_itself() -> None:
    code = """
import json, os
from app.intake import sandbox
child = sandbox._start()
print(child.pid, flush=True)
os._exit(0)
"""
    number = in_a_child(code)
    assert isinstance(number, int)
    deadline = time.monotonic() + 20
    while not gone(number):
        assert time.monotonic() < deadline, "it waits for ever"
        time.sleep(0.01)


def test_nothing_is_imported_after_the_limits_are_set(tmp_path: Path, work: Path) -> None:
    code = """
import io, json, sys
from pathlib import Path
from app.intake import child
sys.stdin = io.TextIOWrapper(io.BytesIO(b""))
child.main()
before = set(sys.modules)
answers = [child.outcome(Path(path), Path(sys.argv[1]), child.Limits(1 << 20)) for path in sys.argv[2:]]
late = sorted(name for name in set(sys.modules) - before if not name.startswith("encodings."))
print(json.dumps([late, [list(answer) for answer in answers]]))
"""
    table = labelled(A, pa.array(["u"] * len(A)).dictionary_encode())
    uploads = [to_parquet(table), to_stream(table), b"a,label\n1,0\n", b'{"x":[1],"y":0}']
    for number, data in enumerate(uploads):
        (tmp_path / str(number)).write_bytes(data)
    paths = [tmp_path / str(number) for number in range(len(uploads))]
    assert in_a_child(code, work, *paths) == [[], [["decoded"]] * len(uploads)]


def test_who_asks_imports_no_decoder() -> None:
    code = """
import json, sys
import app.intake.sandbox
print(json.dumps([name for name in ("pyarrow", "PIL", "pandas") if name in sys.modules]))
"""
    assert in_a_child(code) == []


# -- initial weights --------------------------------------------------------------------------------------------------


def test_weights_are_listed_by_name(tmp_path: Path) -> None:
    data = save({"b": np.zeros(3, np.float32), "a": np.ones((2, 4), np.float64), "n": np.asarray(7)}, {"format": "pt"})
    assert check_weights(upload(tmp_path, data)) == (
        {"name": "a", "shape": [2, 4], "dtype": "float64"},
        {"name": "b", "shape": [3], "dtype": "float32"},
        {"name": "n", "shape": [], "dtype": "int64"},
    )


def weights(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = save({"w": np.zeros(30, np.float32)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not safetensors"),
        (b"PK\x03\x04" + bytes(100), "not safetensors"),
        (GOOD[:-1], "cut off"),
        (GOOD + b"\0", "cut off or damaged"),
        (weights(b"[" * 100_000), "not JSON"),
        (weights(b"\xff\xff\xff"), "not JSON"),
        (weights(b'{"w":1,"w":2}'), "not JSON"),
        (weights([]), "not a JSON object"),
        (weights({"__metadata__": {}}), "no tensor"),
        (weights({"w": 1}), "'w' is not dtype"),
        (weights({"w": tensor() | {"more": 1}}), "'w' is not dtype"),
        (weights({"w": tensor("BF16", (2,))}, bytes(4)), "'BF16': send one of"),
        (weights({"w": tensor(["F32"])}, bytes(4)), "send one of"),
        (weights({"w": tensor(shape="1")}, bytes(4)), "lists of whole numbers"),
        (weights({"w": tensor(shape=(-1,))}, bytes(4)), "lists of whole numbers"),
        (weights({"w": tensor(shape=(True,))}, bytes(4)), "lists of whole numbers"),
        (weights({"w": tensor(offsets=(0,))}, bytes(4)), "begin and end"),
        (weights({"w": tensor(shape=[1] * 33)}, bytes(4)), "over 32 axes"),
        (weights({"w": tensor(shape=(10**13,))}, bytes(4)), "as many bytes"),
        (weights({"w": tensor(offsets=(4, 0))}, bytes(4)), "as many bytes"),
        (weights({"w": tensor(), "v": tensor()}, bytes(4)), "does not begin"),
        (weights({"w": tensor(offsets=(4, 8))}, bytes(8)), "does not begin"),
        (save({"w": np.float32([0, np.nan])}), "'w' holds NaN"),
        (save({"w": np.float64([0, np.inf])}), "'w' holds NaN or infinity"),
    ],
)
def test_other_weights_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidWeights, match=message) as caught:
        check_weights(upload(tmp_path, data))
    assert "save_file" in str(caught.value)
