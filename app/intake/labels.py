"""A labels file: which class each file of a folder is, as CSV or as JSON lines.

Knows: the two forms. Must never know: what the files hold, or what the classes mean.

Law: each file has one label, in so many words; nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from typing import Any, NoReturn

from app.errors import InvalidMegabatch

LABEL_FILES = ("labels.csv", "labels.jsonl")

_FILE = ("file", "name")
_LARGEST = 32 << 20
_LABELS = 2**31


def read_labels(data: bytes, name: str) -> dict[str, str | int]:
    """The label of each file, by the file's path, in the order of the labels file.

    Args:
        data: UTF-8. ``labels.csv`` has the header ``file,label`` (or ``name,label``); each line of ``labels.jsonl`` is
            an object with these two members, whose label is a name or a class number.
        name: ``labels.csv`` or ``labels.jsonl``.

    Raises:
        InvalidMegabatch: ``labels-file``, ``label-not-integer``, ``label-out-of-range`` or ``mixed-labels``.
    """
    if len(data) > _LARGEST:
        _refuse(f"{name} takes {len(data)} bytes, over {_LARGEST}: send fewer files at a time")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        _refuse(f"{name} is not UTF-8: write it again as UTF-8")
    labels: dict[str, str | int] = {}
    text = unicodedata.normalize("NFC", text)  # as the names in the archive are
    for line, file, label in _csv(text) if name == LABEL_FILES[0] else _jsonl(text):
        path = file.removeprefix("./")
        if path in labels:
            _refuse(f"line {line} of {name} names {path[-100:]!r} again: give each file one label")
        labels[path] = label
    if not labels:
        _refuse(f"{name} names no file: give each image a line with its path and label")
    if len({type(label) for label in labels.values()}) > 1:
        raise InvalidMegabatch("mixed-labels", f"{name} holds names and numbers: send all labels as one or the other")
    return labels


def _csv(text: str) -> Iterator[tuple[int, str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        if len(header) != 2 or set(header) not in [{file, "label"} for file in _FILE]:
            _refuse(f"the first line of labels.csv is {','.join(header)[:100]!r}: write file,label there")
        label = header.index("label")
        for row in rows:
            if row and len(row) != 2:
                _refuse(f"line {rows.line_num} of labels.csv has {len(row)} values: write a file's path and its label")
            if row:
                yield rows.line_num, row[1 - label], row[label]
    except csv.Error as error:
        _refuse(f"line {rows.line_num} of labels.csv cannot be read ({error}): write it again")


def _jsonl(text: str) -> Iterator[tuple[int, str, str | int]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            row = None
        found = next((row[key] for key in _FILE if key in row), None) if isinstance(row, dict) else None
        if not isinstance(row, dict) or len(row) != 2 or "label" not in row or not isinstance(found, str):
            _refuse(f'line {number} of labels.jsonl is not such as {{"file": "001.png", "label": "cat"}}: write it so')
        yield number, found, _label(row["label"], number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands there twice")
    return members


def _label(label: Any, number: int) -> str | int:
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise InvalidMegabatch(
            "label-not-integer",
            f"the label in line {number} of labels.jsonl is no name and no whole number: send one of them",
        )
    if isinstance(label, int) and not 0 <= label < _LABELS:
        raise InvalidMegabatch(
            "label-out-of-range",
            f"label {str(label)[:30]} in line {number} of labels.jsonl is not a class number: number classes from 0",
        )
    return label


def _refuse(message: str) -> NoReturn:
    raise InvalidMegabatch("labels-file", message)
