"""JSON lines -> blocks of examples and labels.

Knows: JSON (RFC 8259), one object a line. Must never know: what a column means, SQL, torch.

Laws:
    * Strict: no NaN, no key twice, no value that is not a number where numbers belong.
    * A line is bounded before it is parsed, and only a few are held at a time.

Reasons of refusal beside those of ``arrays`` and ``columns``: corrupt, null, not-a-number, label-not-integer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from app.intake.arrays import BLOCK, DecodedFiles, Labels, Limits, Reading, refuse, write
from app.intake.columns import Columns, choose

_LONGEST_LINE = 16 << 20
_MOST_ROWS = 4096

Row = dict[str, Any]


def decode_jsonl(path: Path, work: Path, limits: Limits, reading: Reading) -> DecodedFiles:
    """Decode JSON lines: in each, an object with the features' and the label's keys.

    Either each feature has a key of its own and is a number or a boolean; or one key, such as ``x``, holds all values
    of the example as lists. Numbers become float32, rounded as decimal text is, or uint8 where the model takes these.

    Raises:
        InvalidMegabatch: with one of the reasons above.
    """
    with path.open("rb") as file:
        first = next(_rows(file), None)
        if first is None:
            refuse("empty", "there is no line in the upload: send one JSON object a line")
        columns = choose(list(first), reading)
        nested = len(columns.features) == 1 and isinstance(first[columns.features[0]], list)
        file.seek(0)
        blocks = _blocks(file, columns, nested, reading)
        return write(blocks, work, limits, reading, format="jsonl", features=columns.features)


def _blocks(
    file: BinaryIO, columns: Columns, nested: bool, reading: Reading
) -> Iterator[tuple[npt.NDArray[Any], Labels]]:
    """A few lines at a time, as many as make about one block."""
    start, most = 0, 1
    lines = _rows(file)
    while rows := list(islice(lines, most)):
        for at, row in enumerate(rows):
            if row.keys() != columns.all:
                _refuse_keys(row, columns, start + at)
        x = _examples(rows, columns, nested, reading, start)
        yield x, _labels([row[columns.label] for row in rows], columns.label, start)
        start += len(rows)
        most = min(max(BLOCK // (4 * x[0].size), 1), _MOST_ROWS)


# -- lines ------------------------------------------------------------------------------------------------------------


def _rows(file: BinaryIO) -> Iterator[Row]:
    """The objects in order; empty lines are passed over."""
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
    row = 0
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            refuse("too-large", f"row {row} is longer than {_LONGEST_LINE} bytes: send npz, Parquet or Arrow instead")
        if not line.strip():
            continue
        try:
            found = decoder.decode(line.decode("utf-8-sig" if row == 0 else "utf-8").strip())
        except (ValueError, RecursionError) as error:
            told = "nested too deeply" if isinstance(error, RecursionError) else ascii(str(error)[:200]).strip("'\"")
            refuse("corrupt", f"row {row} is not one JSON object ({told}): write one object a line, as RFC 8259 says")
        if not isinstance(found, dict):
            refuse(
                "corrupt", f"row {row} is not a JSON object: write one object a line, with the features and the label"
            )
        yield found
        row += 1


def _once(pairs: list[tuple[str, Any]]) -> Row:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands there twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _refuse_keys(row: Row, columns: Columns, at: int) -> NoReturn:
    if columns.label not in row:
        refuse("label-column", f"row {at} lacks the label {columns.label!r}: give each line all keys")
    choose(list(row), Reading(label=columns.label, features=columns.features))
    raise AssertionError("the keys differ, but no difference was found")


# -- values -----------------------------------------------------------------------------------------------------------


def _examples(rows: Sequence[Row], columns: Columns, nested: bool, reading: Reading, start: int) -> npt.NDArray[Any]:
    """(m, *shape) float64, or uint8 where the model takes it."""
    values = [[row[name] for name in columns.features] for row in rows]
    try:
        x = np.array(values)
    except ValueError:
        x = np.array(None)
    if x.dtype.kind not in "biuf" or (x.ndim > 2) is not nested:
        _refuse_values(values, columns, start, nested)
    if nested:
        x = x[:, 0]
    if reading.shape is not None and math.prod(reading.shape) == math.prod(x.shape[1:]):
        x = x.reshape(len(rows), *reading.shape)
    if reading.dtype != "uint8":
        return x.astype(np.float64)
    if x.dtype.kind == "f" or (x.size and not 0 <= x.min() <= x.max() <= 255):
        refuse(
            "dtype", f"rows from {start} on hold numbers that are no bytes, but the model takes uint8: send 0 to 255"
        )
    return x.astype(np.uint8)


def _refuse_values(values: list[list[Any]], columns: Columns, start: int, nested: bool) -> NoReturn:
    for at, row in enumerate(values):
        for name, value in zip(columns.features, row, strict=True):
            where = f"column {name!r}, row {start + at},"
            if value is None:
                refuse("null", f"{where} holds no value: fill or drop such rows")
            if isinstance(value, list) is not nested or not isinstance(value, int | float | list):
                wanted = "a list of numbers, as the rows before it" if nested else "a number"
                refuse("not-a-number", f"{where} does not hold {wanted}: convert or drop it, or list the features")
            if isinstance(value, int) and abs(value) >= 2**64:
                refuse("overflow", f"{where} holds a whole number that float32 cannot hold: scale such values")
    refuse("shape", f"rows from {start} on hold lists of several lengths, or something else than numbers in them")


def _labels(labels: list[Any], name: str, start: int) -> Labels:
    kinds = set(map(type, labels))
    if type(None) in kinds:
        refuse("null", f"the label {name!r} is null in a row from {start} on: fill or drop such rows")
    if not kinds <= {int, bool, str}:
        refuse("label-not-integer", f"{name!r} holds neither whole numbers nor names from row {start} on: write these")
    if kinds == {str}:
        return labels
    if str in kinds:
        refuse("mixed-labels", f"{name!r} holds names and numbers from row {start} on: send all as one or the other")
    if not all(0 <= label < 2**31 for label in labels):
        refuse("label-out-of-range", f"a label from row {start} on is not a class number: number classes from 0")
    return np.array(labels, np.int64)
