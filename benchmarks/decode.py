"""How long is it from durable bytes to a validated megabatch?

    python -m benchmarks.decode [--rounds 5] [--mib 64]

Ours is what the service does with an upload that lies on the disk: decode it in a sandbox (a spare process waits, as
in a running service), check it, hash and keep its arrays durably. The floor is what nobody can leave out, by plain
numpy in this process: load the npz, check that every value is finite, hash it, write it, fsync it. Both take turns, and
the files of both lie in one folder. Targets: npz from 64 MiB up in <= 1.2 x the floor; small uploads of any format in
<= 0.4 s. Text and compressed columns have to be parsed, which numpy's floor does not contain: large ones are printed
without a target.

Printed are medians of wall time, since a process that waits for the disk uses no CPU. The exit status is 1 on a miss.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, ipc, parquet

from app.domain import InputSpec
from app.intake import sandbox
from app.intake.arrays import DecodedFiles, Limits
from app.service.ingest import decoded_draft, reading_of
from app.store.blobs import Blobs, Staged
from espalier.formats.megabatch import encode

FEATURES = 128
SMALL = 1000
LARGE_TARGET, SMALL_TARGET = 1.2, 0.4
LIMITS = Limits(max_bytes=4 << 30, seconds=600)

Arrays = tuple[np.ndarray, np.ndarray]


def arrays(rows: int) -> Arrays:
    random = np.random.default_rng(0)
    return random.normal(size=(rows, FEATURES)).astype(np.float32), random.integers(0, 10, rows)


def table(x: np.ndarray, y: np.ndarray) -> pa.Table:
    return pa.table({**{f"f{i}": x[:, i] for i in range(x.shape[1])}, "label": y})


def as_parquet(x: np.ndarray, y: np.ndarray) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table(x, y), file)
    return file.getvalue()


def as_arrow(x: np.ndarray, y: np.ndarray) -> bytes:
    file = io.BytesIO()
    tensor = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    given = pa.table({"x": tensor, "label": y})
    with ipc.new_stream(file, given.schema) as writer:
        writer.write_table(given, max_chunksize=65_536)
    return file.getvalue()


def as_csv(x: np.ndarray, y: np.ndarray) -> bytes:
    file = io.BytesIO()
    csv.write_csv(table(x, y), file)
    return file.getvalue()


def as_jsonl(x: np.ndarray, y: np.ndarray) -> bytes:
    lines = (json.dumps({"x": row, "y": label}) for row, label in zip(x.tolist(), y.tolist(), strict=True))
    return "\n".join(lines).encode()


FORMATS: dict[str, Callable[[np.ndarray, np.ndarray], bytes]] = {
    "npz": encode,
    "Arrow stream, one list": as_arrow,
    "Parquet, 128 columns": as_parquet,
    "CSV": as_csv,
    "JSON lines": as_jsonl,
}


def floor(path: Path, folder: Path) -> float:
    """Seconds of numpy load + finite check + hash + write + fsync."""
    began = time.perf_counter()
    with np.load(path, allow_pickle=False) as file:
        loaded = [file["x"], file["y"]]
    if not np.isfinite(loaded[0]).all():
        raise ValueError("the benchmark's own values are finite")
    for array in loaded:
        hashlib.sha256(array.data).hexdigest()
        with (folder / "floor").open("wb") as out:
            out.write(array.data)
            os.fsync(out.fileno())
    taken = time.perf_counter() - began
    (folder / "floor").unlink()
    return taken


def ours(path: Path, blobs: Blobs) -> float:
    """Seconds until the arrays are kept; a spare waits, which takes a moment after the one before."""
    time.sleep(1.0)
    spec = InputSpec()
    staged = Staged(path, "sha256:" + "0" * 64, path.stat().st_size)

    def fit(decoded: DecodedFiles) -> InputSpec:
        return InputSpec(decoded.shape, decoded.dtype, tuple(map(str, range(10))))

    began = time.perf_counter()
    _, draft = decoded_draft(blobs, staged, LIMITS, reading_of(spec), fit)
    taken = time.perf_counter() - began
    for digest in (draft.x, draft.y, draft.ids):
        blobs.discard(digest)
    return taken


def measured(name: str, given: Arrays, rounds: int, folder: Path) -> tuple[float, float]:
    """Medians of ours and of the floor, in turns; the bytes are read from memory by both."""
    path, plain = folder / "upload", folder / "plain.npz"
    path.write_bytes(FORMATS[name](*given))
    plain.write_bytes(encode(*given))
    blobs = Blobs(folder / "blobs")
    ours(path, blobs)
    taken = [(ours(path, blobs), floor(plain, folder)) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in taken), statistics.median(pair[1] for pair in taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=64, help="size of the large upload's arrays")
    parser.add_argument("--folder", type=Path, default=None, help="where to put the files")
    options = parser.parse_args()
    large = (options.mib << 20) // (4 * FEATURES)
    missed = False
    print(f"{'':24} {'rows':>8} {'ours':>9} {'floor':>9} {'ratio':>7}   target")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, sandbox.spare():
        for rows in (SMALL, large):
            for name in FORMATS:
                mine, least = measured(name, arrays(rows), options.rounds, Path(folder))
                target, miss = "", False
                if rows == SMALL:
                    target, miss = f"<= {SMALL_TARGET} s", mine > SMALL_TARGET
                elif name == "npz":
                    target, miss = f"<= {LARGE_TARGET} x", mine > LARGE_TARGET * least
                missed |= miss
                verdict = f"{target}{'  MISSED' if miss else ''}"
                print(f"{name:24} {rows:8} {mine:8.3f}s {least:8.3f}s {mine / least:7.2f}   {verdict}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
