"""A database that holds years of work, written row by row in one go: what a list, a claim or a proof then costs.

One model (``big``) has every megabatch, cycle and version; the others have one cycle each that waits. Rows are written
by the driver, past the store and its guard, but they are what the store would have written: the log's leaves hash, its
head is that of its entries, and its index is whole. Blobs are only named, not made, but for the states of versions.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import psycopg
import sqlalchemy as sa

from app.store.merkle import completed
from app.store.migrate import migrate
from app.store.subjects import subjects_of
from app.store.tables import metadata
from espalier.formats.canonical import canonical_json
from espalier.formats.proof import Frontier, leaf_hash

BIG = "big"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_INPUT = {"shape": [64], "dtype": "float32", "classes": ["a", "b"], "normalisation": None, "unseen_classes": "reject"}
_LAYERS = [{"name": f"layers.{n}.weight", "shape": [64, 64], "kept": 1024, "total": 4096} for n in range(4)]
_REPORT = {"megabatches": {str(n): {"accuracy": 0.95, "examples": 60, "forgotten": 0.01} for n in range(8)}}
_CHUNK = 20_000

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Size:
    """How many rows there are of what."""

    models: int
    megabatches: int
    versions: int
    entries: int


def fill(url: str, size: Size, state: str) -> None:
    """Bring an empty database to this version's schema, and fill it.

    Args:
        url: SQLAlchemy URL of an empty database.
        size: how much.
        state: digest of the state that every version hands on.
    """
    migrate(url)
    tables = {
        "models": _models(size),
        "recipes": _recipes(size),
        "megabatches": _megabatches(size),
        "cycles": _cycles(size),
        "versions": _versions(size, state),
        "uses": _uses(size),
        "decisions": _decisions(size),
        "aliases": iter([(1, "champion", size.versions, size.versions, _time(size.versions))]),
        "alias_moves": _moves(size),
    }
    _write(url, tables, size)


def fill_log(url: str, entries: int) -> None:
    """Bring an empty database to this version's schema, and fill its log alone: ten entries a version, of ten models
    that no row names.
    """
    migrate(url)
    _write(url, {}, Size(models=10, megabatches=0, versions=max(1, entries // 10), entries=entries))


def _write(url: str, tables: dict[str, Iterable[Row]], size: Size) -> None:
    log = _Log(size)
    tables |= {"audit_entries": log.entries(), "audit_subjects": log.about(), "log_nodes": log.nodes()}
    write = _sqlite if url.startswith("sqlite") else _postgresql
    write(url, tables, lambda: log.frontier)


# -- rows --------------------------------------------------------------------------------------------------------------


def digest(*parts: object) -> str:
    """One that differs with its parts; nothing has it as its bytes."""
    return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()


def _time(minutes: int) -> datetime:
    return _START + timedelta(minutes=minutes)


def _name(number: int) -> str:
    return BIG if number == 1 else f"model-{number:05}"


def _models(size: Size) -> Iterator[Row]:
    for number in range(1, size.models + 1):
        yield number, _name(number), "active", None, 1, digest("recipe"), _INPUT, 1, _time(0), None


def _recipes(size: Size) -> Iterator[Row]:
    for number in range(1, size.models + 1):
        yield number, 1, digest("recipe"), {"preset": "espalier", "seed": 7}, None, _time(0)


def _megabatches(size: Size) -> Iterator[Row]:
    for number in range(1, size.megabatches + 1):
        blobs = [digest(name, number) for name in ("arrays", "x", "y", "ids")]
        counts = 128, 33_000, [64, 64], None, _time(number), False, 0, None, None
        yield number, 1, number, "accepted", *blobs, *counts


def _cycles(size: Size) -> Iterator[Row]:
    ended = size.versions
    for number in range(1, ended + 1):
        seen = max(1, number * size.megabatches // ended)
        head = number, 1, number, "published", "megabatches", seen, 1, number - 1 or None, number
        yield *head, 0, 0, None, None, _time(number), _time(number), _time(number), None
    for model in range(2, size.models + 1):
        head = ended + model, model, 1, "queued", "manual", 0, 1, None, None
        yield *head, 0, 0, None, None, _time(ended), None, None, None


def _versions(size: Size, state: str) -> Iterator[Row]:
    metrics = {"validation_accuracy": 0.98, "prequential_accuracy": 0.67, "generalization_gap": 0.01}
    verdict = {"passed": True, "reasons": [], "action": "", "restored": None}
    manifest = {"format": "espalier-sparse-1", "layers": _LAYERS, "recipe": {"seed": 7}}
    for number in range(1, size.versions + 1):
        head = number, 1, number, number - 1 or None, number, "published", min(number, 8), number, 1, digest("recipe")
        counted = 0.25, 4096, 16384, _LAYERS, metrics, verdict
        blobs = digest("v", number), 29_184, digest("dense", number), 101_376, digest("mask"), state
        seen = max(1, number * size.megabatches // size.versions)
        yield *head, *counted, *blobs, seen, manifest, _REPORT, _time(number), None, None, False, None, *[None] * 4


def _uses(size: Size) -> Iterator[Row]:
    """Each version used three megabatches; the fifth went into every other version."""
    for version in range(1, size.versions + 1):
        others = (6 + version % (size.megabatches - 6), 5 if version % 2 else 4, 3)
        for megabatch in sorted(others):
            yield 1, megabatch, version, 1


def _decisions(size: Size) -> Iterator[Row]:
    """One a version, in order; every tenth is about the same example, and another tenth by the same version."""
    for number in range(1, size.versions + 1):
        version = 7 if number % 10 == 1 else number
        example = "often" if number % 10 == 0 else f"e{number}"
        stamp = version, digest("v", version), example, "a", 0.5
        yield number, 1, *stamp, _time(number), "line-3", _time(number)


def _moves(size: Size) -> Iterator[Row]:
    for number in range(1, size.versions + 1):
        yield 1, "champion", number, number - 1 or None, number, "worker", "passed its guardrails", _time(number)


class _Log:
    """Entries in order, and what is known once all of them were read: the frontier, the index, the tree's nodes."""

    def __init__(self, size: Size) -> None:
        self._size = size
        self.frontier = Frontier()
        self._subjects: list[Row] = []
        self._nodes: list[Row] = []

    def about(self) -> Iterator[Row]:
        yield from self._subjects

    def nodes(self) -> Iterator[Row]:
        yield from self._nodes

    def entries(self) -> Iterator[Row]:
        """Ten a version of the big model; every twentieth entry is about another model."""
        of_version = max(1, self._size.entries // self._size.versions)
        for seq in range(1, self._size.entries + 1):
            version = min(1 + (seq - 1) // of_version, self._size.versions)
            kind, parameters = _fact(seq, version, of_version)
            model = _name(2 + seq // 20 % (self._size.models - 1)) if seq % 20 == 0 else BIG
            document = {
                "actor": "worker", "code": {"espalier": "0"}, "inputs": [], "kind": kind, "model": model,
                "outputs": [], "parameters": parameters, "reason": None, "request_id": None, "seq": seq,
                "time": _time(version).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            }  # fmt: skip
            spelled = canonical_json(document)
            leaf = leaf_hash(spelled)
            nodes = completed(seq, self.frontier.carries(leaf))
            self._nodes += [(node["level"], node["index"], node["hash"]) for node in nodes]
            self.frontier = self.frontier.append(leaf)
            self._subjects += [(model, subject, number, seq) for subject, number in subjects_of(document)]
            yield seq, _time(version), kind, "worker", model, spelled.decode(), leaf.hex()


def _fact(seq: int, version: int, of_version: int) -> tuple[str, dict[str, Any]]:
    if (seq - 1) % of_version == of_version - 1:
        return "alias.moved", {"alias": "champion", "from": version - 1, "to": version, "revision": version}
    if (seq - 1) % of_version == of_version - 2:
        return "version.published", {"cycle": version, "version": version, "kept": 4096}
    return "pruning.step", {"cycle": version, "step": seq % of_version, "kept": 4096}


# -- databases ---------------------------------------------------------------------------------------------------------


def _sqlite(url: str, tables: dict[str, Iterable[Row]], frontier: Callable[[], Frontier]) -> None:
    connection = sqlite3.connect(str(sa.make_url(url).database), isolation_level=None)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("BEGIN")
    for name, rows in tables.items():
        holes = ", ".join("?" for _ in metadata.tables[name].columns)
        insert = f"INSERT INTO {name} ({_columns(name)}) VALUES ({holes})"
        connection.executemany(insert, (tuple(map(_sqlite_value, row)) for row in rows))
    size, root, hashes = _head(frontier())
    connection.execute("UPDATE log_head SET size = ?, root = ?, frontier = ?", (size, root, hashes))
    connection.execute("COMMIT")
    connection.close()


def _columns(name: str) -> str:
    """In the order of the house's tables; a database that grew has another one."""
    return ", ".join(f'"{column.name}"' for column in metadata.tables[name].columns)


def _sqlite_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return json.dumps(value) if isinstance(value, dict | list) else value


def _postgresql(url: str, tables: dict[str, Iterable[Row]], frontier: Callable[[], Frontier]) -> None:
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection, connection.cursor() as cursor:
        for name, rows in tables.items():
            left = iter(rows)
            while chunk := list(islice(left, _CHUNK)):
                text = io.StringIO()
                text.writelines("\t".join(map(_copied, row)) + "\n" for row in chunk)
                with cursor.copy(f"COPY {name} ({_columns(name)}) FROM STDIN") as copy:  # type: ignore[arg-type]  # names of our own tables
                    copy.write(text.getvalue())
        for name in {"models", "megabatches", "cycles", "versions", "decisions"} & tables.keys():
            top = f"(SELECT max(id) FROM {name})"
            cursor.execute(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), {top})")  # type: ignore[arg-type]  # names of our own tables
        cursor.execute("UPDATE log_head SET size = %s, root = %s, frontier = %s", _head(frontier()))
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def _copied(value: Any) -> str:
    if value is None:
        return r"\N"
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _head(frontier: Frontier) -> tuple[int, str, str]:
    return frontier.size, frontier.root().hex(), json.dumps([item.hex() for item in frontier.hashes])
