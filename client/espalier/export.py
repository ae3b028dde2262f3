"""Export: the whole log of a service, copied to a place that its operator cannot write.

Knows: what is asked of a service, and in which order it is written. Must never know: how entries are laid out
(``formats.logfile``).

Laws:
    * What was exported before is verified first, and only what follows is asked for.
    * Nothing is added before all of it, with what is there, hashes to the signed root.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from espalier.errors import ProofRejected
from espalier.evidence import Evidence
from espalier.formats.canonical import canonical_json
from espalier.formats.logfile import LogFiles, entries_name, verify_files
from espalier.formats.note import LogCheckpoint, VerifierKey
from espalier.formats.proof import Frontier, leaf_hash
from espalier.records import AuditEntry
from espalier.resources import every
from espalier.transport import Transport, path_of

_FILE = 100_000
"""Entries in one file at most."""

Progress = Callable[[int, int], None]


def export_log(http: Transport, log: Evidence, path: Path, *, progress: Progress | None = None) -> tuple[int, int]:
    """Copy the log to a folder or a tar; what is there already is gone on from.

    Args:
        http: the connection.
        log: of the same service.
        path: a folder, or a file that ends with ``.tar``.
        progress: told how many entries are there, and how many there will be.

    Returns:
        How many entries were added, and how many there are.

    Raises:
        ProofRejected: what is there does not hold, or the service's log does not continue it; nothing was changed.
    """
    files, keys = LogFiles(path), log.trusted()
    frontier, names, before = Frontier(), list[str](), None
    if not files.empty:
        before, frontier, names = verify_files(path, keys)
    note, signed = log.signed()
    if before is not None and (before.origin != signed.origin or before.size > signed.size):
        raise ProofRejected(
            f"{path} holds {before.size} entries of {before.origin}, but the service shows {signed.size} of "
            f"{signed.origin}: it was rewound or begun anew; export to another place, and ask why"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    start = frontier.size
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        added = list[tuple[str, Path]]()
        while frontier.size < signed.size:
            source = Path(folder) / str(len(added))
            first, frontier = frontier.size + 1, _fetch(http, frontier, signed, source, progress)
            added.append((entries_name(first, frontier.size), source))
        if frontier.root() != signed.root:
            raise ProofRejected(
                f"the entries that the service gave do not hash to the root that it signed at {signed.size} entries"
                + (f", beginning with the {start} in {path}: its history was rewritten" if start else "")
            )
        files.commit(added, names, note, _listed(keys))
    return signed.size - start, signed.size


def _fetch(
    http: Transport, frontier: Frontier, signed: LogCheckpoint, target: Path, progress: Progress | None
) -> Frontier:
    """The next file of entries; returns the frontier after it."""
    wanted = min(_FILE, signed.size - frontier.size)
    with target.open("xb") as file:
        for entry in every(http, AuditEntry, path_of("audit"), wanted, after=frontier.size):
            line = canonical_json(dict(entry.fact))
            if entry.fact.get("seq") != frontier.size + 1:
                raise ProofRejected(f"entry {frontier.size + 1} is missing in what the service gave", frontier.size + 1)
            file.write(line + b"\n")
            frontier = frontier.append(leaf_hash(line))
            if progress is not None:
                progress(frontier.size, signed.size)
            wanted -= 1
    if wanted:
        raise ProofRejected(f"the service signed {signed.size} entries, but gave {frontier.size} alone")
    return frontier


def _listed(keys: Sequence[VerifierKey]) -> str:
    return "".join(f"{key.text}\n" for key in keys)
