"""What a version answered, which samples it saw, and at which pruning step each of its weights fell: three small files.

Knows: how these become bytes and come back (docs/custody.md). Must never know: torch, a service, or where files are
kept.

Laws:
    * The same content gives the same bytes, whatever the order of its rows; of falls under one zstd version.
    * ``decode`` accepts only what ``encode`` writes, byte for byte (of falls: what was compressed). So everything in a
      file is looked at, and nothing is guessed: whatever else it is raises ``CustodyMismatch``. Never pickle.
    * Ids are unsigned 64-bit integers, as they were given or made when an example was uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load, save

from espalier.errors import CustodyMismatch
from espalier.formats.canonical import canonical_json
from espalier.formats.writer import LEVEL

Array = npt.NDArray[Any]

ANSWERS, SAMPLES, FALLS = "espalier-answers-1", "espalier-samples-1", "espalier-falls-1"
"""What the three files say that they are, in the ``espalier`` key of their safetensors metadata."""

VALIDATION, EVALUATION = 0, 1
"""Where an answered example came from: the validation examples of the cycle, or the model's evaluation set."""

KEPT_WEIGHT, FALLEN_BEFORE = 0, 65535
"""Of falls: the weight is kept; it had fallen in an ancestor. Between them: the pruning step of the cycle, from 1."""

MOST = 1 << 33
"""Bytes that falls may unpack to, unless the caller allows more."""

_ANSWER_COLUMNS = {"ids": "<u8", "labels": "<i8", "answers": "<i8", "confidence": "<f4", "source": "|u1"}
_ANSWER_ORDER = ("source", "ids", "labels", "answers", "confidence")
_SAMPLE_COLUMNS = {"megabatches": "<i8", "counts": "<i8", "ids": "<u8", "use": "|u1"}


class Use(IntFlag):
    """What a cycle did with a sample; several may hold at once."""

    TRAINED = 1
    """The optimizer saw it."""
    VALIDATION = 2
    """In the validation split: looked at to judge, never trained on."""
    TEST = 4
    """In the test split."""
    REPLAYED = 8
    """Came out of the parent's replay buffer, or of a pinned megabatch."""
    KEPT = 16
    """In the replay buffer afterwards."""
    NEW = 32
    """Of a megabatch that no ancestor had taken in."""
    SCORED = 64
    """Among the samples that the scores of a pruning step were computed on."""


_ALL_USES = sum(Use)


def use_names(use: int) -> list[str]:
    """The names of what was done with a sample, in small letters: ``["trained", "new"]``."""
    return [str(flag.name).lower() for flag in Use if use & flag]


def uses_of(samples: Mapping[int, tuple[Array, Array]]) -> dict[int, int]:
    """By megabatch, what was done with any of its samples; megabatches whose samples were put to no use are absent."""
    found = {number: int(np.bitwise_or.reduce(np.asarray(use), initial=0)) for number, (_, use) in samples.items()}
    return {number: use for number, use in found.items() if use}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a version answered to the examples that it was judged by.

    Attributes:
        ids: (n,) uint64.
        labels: (n,) int64, the true classes, as labels.
        answers: (n,) int64, the likeliest classes.
        confidence: (n,) float32 in [0, 1], the probability that the version gave its answer.
        source: (n,) uint8, ``VALIDATION`` or ``EVALUATION``. Rows are in order of ``(source, ids)``.
    """

    ids: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    source: npt.NDArray[np.uint8]

    def of(self, source: int) -> Answers:
        """The rows of one source."""
        first, last = np.searchsorted(self.source, [source, source + 1])
        return Answers(*(getattr(self, name)[first:last] for name in _ANSWER_COLUMNS))

    def __len__(self) -> int:
        return len(self.ids)


Samples = dict[int, tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]]
"""By number of the megabatch: (n,) uint64 ids in ascending order, and (n,) uint8 what was done with each (``Use``)."""

Falls = dict[str, npt.NDArray[np.uint16]]
"""By name of the prunable tensor: uint16 of its shape: ``KEPT_WEIGHT``, the pruning step, or ``FALLEN_BEFORE``."""


def encode_answers(answers: Answers) -> bytes:
    """Answers as bytes; rows may be in any order, and confidence is clipped to [0, 1].

    Raises:
        CustodyMismatch: columns of different lengths or of other types, a negative label, NaN, an unknown source.
    """
    columns = {name: _column(getattr(answers, name), kind, name) for name, kind in _ANSWER_COLUMNS.items()}
    columns["confidence"] = np.clip(columns["confidence"], 0, 1)
    _check_answers(columns)
    if not _in_order(columns):
        order = np.lexsort([columns[name] for name in reversed(_ANSWER_ORDER)])
        columns = {name: column[order] for name, column in columns.items()}
    return _packed(ANSWERS, columns)


def decode_answers(data: bytes) -> Answers:
    """What ``encode_answers`` wrote.

    Raises:
        CustodyMismatch: it is not that, or is damaged.
    """
    columns = _unpacked(ANSWERS, data, _ANSWER_COLUMNS)
    _check_answers(columns)
    answers = Answers(**columns)
    _need(encode_answers(answers) == data, ANSWERS, "it is not in its one spelling")
    return answers


def encode_samples(samples: Mapping[int, tuple[Array, Array]]) -> bytes:
    """Samples as bytes; rows may be in any order, and those put to no use (0) are left out.

    Raises:
        CustodyMismatch: ids and uses of different lengths or of other types, an unknown use, a megabatch below 1.
    """
    numbers, counts, ids, uses = [], [], [np.zeros(0, "<u8")], [np.zeros(0, "u1")]
    for number in sorted(samples):
        which, use = samples[number]
        which, use = _column(which, "<u8", f"megabatch {number}"), _column(use, "|u1", f"megabatch {number}")
        _need(len(which) == len(use), SAMPLES, f"megabatch {number} has {len(which)} ids, but {len(use)} uses")
        used = np.flatnonzero(use)
        order = used[np.lexsort([use[used], which[used]])]
        if len(order):
            numbers.append(number)
            counts.append(len(order))
            ids.append(which[order])
            uses.append(use[order])
    columns = {
        "megabatches": np.array(numbers, "<i8"),
        "counts": np.array(counts, "<i8"),
        "ids": np.concatenate(ids),
        "use": np.concatenate(uses),
    }
    _check_samples(columns)
    return _packed(SAMPLES, columns)


def decode_samples(data: bytes) -> Samples:
    """What ``encode_samples`` wrote.

    Raises:
        CustodyMismatch: it is not that, or is damaged.
    """
    columns = _unpacked(SAMPLES, data, _SAMPLE_COLUMNS)
    _check_samples(columns)
    numbers, ends = columns["megabatches"].tolist(), np.cumsum(columns["counts"])[:-1]
    parts = zip(np.split(columns["ids"], ends), np.split(columns["use"], ends), strict=True)
    samples = dict(zip(numbers, parts, strict=False))
    _need(encode_samples(samples) == data, SAMPLES, "it is not in its one spelling")
    return samples


def encode_falls(falls: Mapping[str, Array]) -> bytes:
    """Falls as bytes, compressed.

    Raises:
        CustodyMismatch: an array that is not uint16, or a name that cannot be stored.
    """
    return zstandard.ZstdCompressor(level=LEVEL).compress(_fallen(falls))


def decode_falls(data: bytes, *, most: int = MOST) -> Falls:
    """What ``encode_falls`` wrote.

    Args:
        data: the file's bytes.
        most: bytes that it may unpack to, since a small file can describe a huge network.

    Raises:
        CustodyMismatch: it is not that, is damaged, or unpacks to more.
    """
    try:
        size = zstandard.frame_content_size(data)
        _need(0 <= size <= most, FALLS, f"it does not say its size, or unpacks to more than {most:,} bytes")
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _mismatch(FALLS, str(error)) from None
    falls: Falls = _tensors(FALLS, plain)
    _need(_fallen(falls) == plain, FALLS, "it is not in its one spelling")
    return falls


def _fallen(falls: Mapping[str, Array]) -> bytes:
    for name, array in falls.items():
        _need(array.dtype == np.uint16, FALLS, f"{name!r} is {array.dtype}, not uint16")
        _need(name != "__metadata__", FALLS, "a tensor cannot be named '__metadata__'")
    return _packed(FALLS, {name: np.asarray(array, "<u2", order="C") for name, array in falls.items()})


def _column(column: Array, kind: str, name: str) -> Array:
    """A one-dimensional array of exactly that type, so that nothing is rounded or wrapped on the way."""
    array = np.asarray(column)
    if array.dtype != np.dtype(kind) or array.ndim != 1:
        raise CustodyMismatch(f"{name}: {array.dtype} of the shape {array.shape}, where a row of {kind} is needed")
    return np.ascontiguousarray(array, kind)


def _check_answers(columns: Mapping[str, Array]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    _need(len(set(lengths.values())) == 1, ANSWERS, f"its columns have different lengths: {lengths}")
    at_least_0 = all((columns[name] >= 0).all() for name in ("labels", "answers"))
    _need(at_least_0, ANSWERS, "it holds a negative label or answer")
    confidence = columns["confidence"]
    _need(((confidence >= 0) & (confidence <= 1)).all(), ANSWERS, "a confidence is not in [0, 1]")  # refuses NaN too
    _need((columns["source"] <= EVALUATION).all(), ANSWERS, "a source is neither 0 nor 1")


def _in_order(columns: Mapping[str, Array]) -> bool:
    """Whether the rows are in order already, which costs far less to see than to bring about."""
    undecided = np.ones(max(0, len(columns["ids"]) - 1), np.bool_)
    for column in (columns[name] for name in _ANSWER_ORDER):
        if (undecided & (column[:-1] > column[1:])).any():
            return False
        undecided &= column[:-1] == column[1:]
    return True


def _check_samples(columns: Mapping[str, Array]) -> None:
    numbers, counts = columns["megabatches"], columns["counts"]
    sound = len(numbers) == len(counts) and (numbers >= 1).all() and (np.diff(numbers) > 0).all()
    _need(sound, SAMPLES, "its megabatches are not numbered upwards from 1, with a count each")
    rows = {len(columns["ids"]), len(columns["use"]), sum(counts.tolist())}  # Python's sum: it cannot wrap
    _need((counts >= 1).all() and len(rows) == 1, SAMPLES, "ids, uses and counts do not add up")
    use = columns["use"]
    _need(((use > 0) & (use <= _ALL_USES)).all(), SAMPLES, f"a use is not in 1 to {_ALL_USES}")


def _packed(format: str, tensors: Mapping[str, Array]) -> bytes:
    try:
        return save(dict(tensors), {"espalier": canonical_json({"format": format}).decode()})
    except (SafetensorError, UnicodeError) as error:
        raise _mismatch(format, str(error)) from None


def _unpacked(format: str, data: bytes, columns: Mapping[str, str]) -> dict[str, Array]:
    found = _tensors(format, data)
    _need(found.keys() == columns.keys(), format, f"it holds {sorted(found)}, not {sorted(columns)}")
    return {name: _column(found[name], kind, f"{format}: {name}") for name, kind in columns.items()}


def _tensors(format: str, data: bytes) -> dict[str, Array]:
    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError, ValueError: a dtype that numpy lacks
        raise _mismatch(format, str(error)) from None


def _mismatch(format: str, why: str) -> CustodyMismatch:
    return CustodyMismatch(f"this is no {format} file, or it is damaged: {why}")


def _need(holds: Any, format: str, otherwise: str) -> None:
    if not holds:
        raise _mismatch(format, otherwise)
