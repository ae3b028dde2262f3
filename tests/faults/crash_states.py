"""Every state in which a power cut may leave a folder, from a record of the system calls that wrote to it.

``recorded`` runs something in a child of this process under strace, which sees what SQLite does in C as well.
``states`` replays the record on a model of a file system that promises nothing but what POSIX does:

    * bytes of a file are on the disk when an fsync of it has returned, and names in a folder when one of the folder
      has;
    * whatever is not, may be there or not: each write, rename, unlink and truncation for itself, in any combination;
    * the last write may be torn in the middle.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = (
    "openat,creat,lseek,write,pwrite64,ftruncate,truncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir"
)
AGE = 1_000_000_000.0
SUBSETS = 4
"""Of at most so many operations that are not on the disk, every combination is tried; of more, some."""


# -- recording ---------------------------------------------------------------------------------------------------------


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


@dataclass(frozen=True)
class Call:
    """One system call that went well: its name, its arguments as strace spells them, what it returned."""

    name: str
    arguments: list[str]
    result: str


def recorded(work: Callable[[Callable[[Any], None]], None], folder: Path) -> list[Call]:
    """What a child of this process asks the system to do with files while it does this, in order.

    Args:
        work: is given a function that writes a mark into the record: what its callers have been told by then.
        folder: for the record, and for marks.
    """
    trace, marks, (waits, goes) = folder / "trace", folder / "marks", os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, marks, waits)
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-xx", "-s", "100000000", "-o", str(trace), "-e", f"trace={CALLS}", "-p", str(child)],
        stderr=subprocess.PIPE,
    )
    assert tracer.stderr is not None
    assert b"attached" in tracer.stderr.readline()
    os.write(goes, b"x")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tracer.wait(30)
    for handle in (waits, goes, tracer.stderr):
        os.close(handle) if isinstance(handle, int) else handle.close()
    assert status == 0, "what was to be recorded failed"
    return list(_calls(trace.read_text("ascii")))


def _work(work: Callable[[Callable[[Any], None]], None], marks: Path, waits: int) -> None:
    try:
        signal.alarm(120)
        handle = os.open(marks, os.O_WRONLY | os.O_CREAT)
        os.read(waits, 1)
        work(lambda told: os.write(handle, json.dumps(told).encode()) and None)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+\S*|\?)(.*)")


def _calls(text: str) -> Iterator[Call]:
    begun: dict[str, str] = {}
    for line in text.splitlines():
        matched = _LINE.match(line)
        assert matched is not None, line[:200]
        process, said = matched.groups()
        if said.endswith("<unfinished ...>"):
            begun[process] = said.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", said):
            said = begun.pop(process) + resumed[1]
        found = _CALL.match(said)
        if found is not None and not found[3].startswith("-") and found[3] != "?":
            yield Call(found[1], found[2].split(", "), found[3])


def _bytes(spelled: str) -> bytes:
    return bytes.fromhex(spelled.strip('"').replace("\\x", ""))


def _path(spelled: str) -> str:
    """The path of ``"\\x2f"`` or of ``7<\\x2f>``."""
    inner = spelled[spelled.index("<") + 1 : spelled.rindex(">")] if "<" in spelled else spelled
    return _bytes(inner).decode()


# -- a file system -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One change of a file's bytes, or of a folder's names.

    Attributes:
        on: the file's number, or the folder's path.
        kind: write, truncate; create, rename, unlink, mkdir, rmdir.
    """

    kind: str
    on: int | str
    offset: int = 0
    data: bytes = b""
    name: str = ""
    target: str = ""
    file: int = 0

    @property
    def of_bytes(self) -> bool:
        return isinstance(self.on, int)


Tree = dict[str, int]
"""Files by path, as numbers; of a folder -1."""


@dataclass
class Disk:
    """What a disk holds: names, and the bytes of files by number."""

    names: Tree
    files: dict[int, bytes]

    def apply(self, change: Change) -> None:
        """Carry a change out. One whose ground was never laid, as a file in a folder that is not there, is nothing."""
        match change.kind:
            case "write":
                data = self.files.get(change.file, b"").ljust(change.offset, b"\0")
                self.files[change.file] = data[: change.offset] + change.data + data[change.offset + len(change.data) :]
            case "truncate":
                data = self.files.get(change.file, b"")
                self.files[change.file] = data[: change.offset].ljust(change.offset, b"\0")
            case "create":
                self.names[change.name] = change.file
            case "mkdir":
                self.names[change.name] = -1
            case "rename":
                self.names[change.target] = change.file
                if self.names.get(change.name) == change.file:
                    del self.names[change.name]
            case "unlink" | "rmdir":
                if self.names.get(change.name) == change.file:
                    del self.names[change.name]

    def copy(self) -> Disk:
        return Disk(dict(self.names), dict(self.files))

    def tree(self) -> dict[str, bytes | None]:
        """Files by path with their bytes; folders with None. What lies in no folder is nowhere."""
        found: dict[str, bytes | None] = {}
        for name in sorted(self.names):
            parent = os.path.dirname(name)
            if parent in found or "/" not in name:
                number = self.names[name]
                found[name] = None if number == -1 else self.files.get(number, b"")
        return found


@dataclass
class Record:
    """A record, read: changes, and what was made durable when."""

    start: Disk
    steps: list[Change | int | str | dict[str, Any]] = field(default_factory=list)
    """A change; or the file, or the folder, that was synced; or a mark."""
    end: Disk = field(init=False)


def read(calls: Sequence[Call], folder: Path, start: dict[str, bytes | None], marks: Path) -> Record:
    """Read a record of what happened under a folder that held this at first."""
    return _Reader(folder, start, marks).read(calls)


class _Reader:
    def __init__(self, folder: Path, start: dict[str, bytes | None], marks: Path) -> None:
        self.root, self.marks = f"{folder}/", str(marks)
        self.numbers = itertools.count(1)
        self.now = Disk({}, {})
        for name, data in start.items():
            self.now.names[name] = -1 if data is None else next(self.numbers)
            if data is not None:
                self.now.files[self.now.names[name]] = data
        self.record = Record(self.now.copy())
        self.at: dict[str, int] = {}
        """Where the next write goes, by handle and path as strace spells them."""

    def read(self, calls: Sequence[Call]) -> Record:
        for call in calls:
            self._take(call)
        self.record.end = self.now
        return self.record

    def _name(self, spelled: str) -> str | None:
        path = _path(spelled)
        if f"{path}/" == self.root:
            return ""
        return path.removeprefix(self.root) if path.startswith(self.root) else None

    def _do(self, change: Change) -> None:
        self.now.apply(change)
        self.record.steps.append(change)

    def _take(self, call: Call) -> None:
        arguments = call.arguments
        match call.name:
            case "write" if _path(arguments[0]) == self.marks:
                self.record.steps.append(json.loads(_bytes(arguments[1])))
            case "openat" if "O_CREAT" in call.arguments[2] or "O_TRUNC" in call.arguments[2]:
                self._open(call)
            case "openat":
                self.at[call.result] = 0
            case "lseek":
                self.at[arguments[0]] = int(call.result)
            case "write" | "pwrite64":
                self._write(call)
            case "ftruncate":
                self._on_file("truncate", arguments[0], int(arguments[1]))
            case "fsync" | "fdatasync":
                self._sync(arguments[0])
            case "rename":
                self._rename(*arguments)
            case "unlink" | "rmdir":
                self._gone(self._name(arguments[0]))
            case "unlinkat":
                self._gone(self._beside(arguments[0], arguments[1]))
            case "mkdir":
                if name := self._name(arguments[0]):
                    self._do(Change("mkdir", os.path.dirname(name), name=name, file=-1))
            case _:
                assert not any(self.root in _path(each) for each in arguments if "x2f" in each), call

    def _beside(self, handle: str, spelled: str) -> str | None:
        path = _path(spelled)
        if os.path.isabs(path):
            return self._name(spelled)
        folder = self._name(handle)
        return None if folder is None else f"{folder}/{path}"

    def _open(self, call: Call) -> None:
        self.at[call.result] = 0
        name = self._name(call.result)
        if name is None:
            return
        if name not in self.now.names:
            self._do(Change("create", os.path.dirname(name), name=name, file=next(self.numbers)))
        elif "O_TRUNC" in call.arguments[2] and self.now.files.get(self.now.names[name]):
            self._on_file("truncate", call.result, 0)

    def _write(self, call: Call) -> None:
        name, length = self._name(call.arguments[0]), int(call.result)
        if name is None or name not in self.now.names:
            return
        data = _bytes(call.arguments[1])[:length]
        if call.name == "pwrite64":
            offset = int(call.arguments[3])
        else:
            offset = self.at.get(call.arguments[0], 0)
            self.at[call.arguments[0]] = offset + length
        self._on_file("write", call.arguments[0], offset, data)

    def _on_file(self, kind: str, handle: str, offset: int, data: bytes = b"") -> None:
        name = self._name(handle)
        if name is not None and name in self.now.names:
            number = self.now.names[name]
            self._do(Change(kind, number, offset, data, name=name, file=number))

    def _sync(self, handle: str) -> None:
        name = self._name(handle)
        if name is None:
            return
        number = self.now.names.get(name, -1)
        self.record.steps.append(name if number == -1 else number)

    def _rename(self, old: str, new: str) -> None:
        name, target = self._name(old), self._name(new)
        if name is not None and target is not None:
            self._do(Change("rename", os.path.dirname(target), name=name, target=target, file=self.now.names[name]))

    def _gone(self, name: str | None) -> None:
        if name is not None and name in self.now.names:
            self._do(Change("unlink", os.path.dirname(name), name=name, file=self.now.names[name]))


# -- states ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What may be there after a power cut."""

    tree: dict[str, bytes | None]
    told: tuple[dict[str, Any], ...]
    """The marks that had been made by then."""
    where: str


def states(record: Record, seed: int = 0) -> Iterator[State]:
    """Every state that differs from every other, over all prefixes of the record."""
    chosen, seen = random.Random(seed), set[bytes]()
    durable, waiting, told = record.start.copy(), list[Change](), list[dict[str, Any]]()
    for number, step in enumerate([*record.steps, ""]):
        for kept, torn in _kept(waiting, chosen):
            disk = durable.copy()
            for change in kept:
                disk.apply(change)
            if torn is not None:
                disk.apply(Change(**{**torn.__dict__, "data": torn.data[: len(torn.data) // 2]}))
            tree = disk.tree()
            if (digest := _digest(tree, len(told))) not in seen:
                seen.add(digest)
                yield State(tree, tuple(told), f"before step {number}, with {len(kept)} of {len(waiting)} changes")
        if isinstance(step, Change):
            waiting.append(step)
        elif isinstance(step, dict):
            told.append(step)
        else:
            for change in [each for each in waiting if each.on == step]:
                durable.apply(change)
            waiting = [each for each in waiting if each.on != step]


def _kept(waiting: list[Change], chosen: random.Random) -> Iterator[tuple[list[Change], Change | None]]:
    """Which of the changes that are not durable are there all the same, and which one is torn."""
    yield waiting, None
    if not waiting:
        return
    if waiting[-1].kind == "write":
        yield waiting[:-1], waiting[-1]
        yield [], waiting[-1]
    if len(waiting) <= SUBSETS:
        yield from ((list(some), None) for n in range(len(waiting)) for some in itertools.combinations(waiting, n))
        return
    yield [], None
    yield [each for each in waiting if each.of_bytes], None
    yield [each for each in waiting if not each.of_bytes], None
    yield [each for each in waiting if each is not waiting[-2]], None
    yield waiting[-1:], None
    for _ in range(2):
        yield [each for each in waiting if chosen.random() < 0.5], None


def _digest(tree: dict[str, bytes | None], told: int) -> bytes:
    hashed = hashlib.sha256(str(told).encode())
    for name, data in tree.items():
        hashed.update(f"\n{name}\n{'-' if data is None else len(data)}\n".encode())
        hashed.update(data or b"")
    return hashed.digest()


# -- folders -----------------------------------------------------------------------------------------------------------


def tree_of(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


class Ground:
    """A folder that becomes one state after another. Everything in it is old enough to be swept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def become(self, tree: dict[str, bytes | None]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, data in tree.items():
            path = self.folder / name
            if data is None:
                path.mkdir()
            else:
                path.write_bytes(data)
                os.utime(path, (AGE, AGE))
                if name.startswith("keys/"):
                    path.chmod(0o600)
