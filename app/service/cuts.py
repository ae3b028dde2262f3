"""Cuts: which rows of which arrays an erasure takes out, and what is left of them as new blobs.

Knows: example ids, ``.npy`` files, and which rows of the database name them. Must never know: what
versions are made of, cycles, HTTP.

Laws:
    * Memory stays bounded, however large a megabatch is: ids and labels are read whole (8 bytes an example each), and
      values block by block.
    * What is left keeps its order, so a mask over the longer arrays becomes one over the shorter by leaving rows out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain import Digest, EvaluationSet, Megabatch, MegabatchStatus, Model
from app.errors import CorruptBlob
from app.service.overlap import ids_of, overlap
from app.store.blobs import Blobs, disk_errors
from app.store.database import Store, Transaction
from app.store.erasures import Left
from espalier.errors import CustodyMismatch
from espalier.formats.custody import VALIDATION, Answers, decode_answers, encode_answers
from espalier.formats.megabatch import arrays_digest

Rows = npt.NDArray[np.int64]

_PAGE = 500
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Single rows that go from a megabatch, which has others.

    Attributes:
        rows: which, in order: (n,).
        left: what is there afterwards; None until it was written.
        overlap: how many of the examples that are left are in the evaluation set; None without one.
    """

    megabatch: Megabatch
    rows: Rows
    left: Left | None = None
    overlap: int | None = None

    @property
    def removed(self) -> tuple[tuple[int, int], ...]:
        """First and last of each run of rows that go."""
        return runs_of(self.rows)

    @property
    def examples(self) -> int:
        """How many are left."""
        return self.megabatch.examples - len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationCut:
    """Single rows that go from a revision of the evaluation set; ``digest`` is that of the arrays that are left."""

    found: EvaluationSet
    rows: Rows
    left: Left | None = None
    digest: Digest = ""

    @property
    def examples(self) -> int:
        """How many are left."""
        return self.found.examples - len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class AnswersCut:
    """Answers that go from the file of a version, since labels and answers are values too.

    Attributes:
        file: as it is.
        left: the answers that stay.
        kept: the file with those; empty until it was written.
    """

    version: int
    file: Digest
    left: Answers
    kept: Digest = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What an erasure takes out, as the rows were when it looked.

    Attributes:
        named: numbers of the megabatches that were asked for, erased before or not.
        whole: megabatches of which nothing stays.
        cuts: megabatches of which something stays.
        evaluation: revisions of the evaluation set that hold some of the examples, by revision.
        absent: ids that nothing holds.
        last, revision: the newest megabatch, and the newest evaluation set.
        answers: versions that answered some of the examples.
        answered: all versions that may have, each with the file of its answers.
    """

    model: Model
    named: tuple[int, ...]
    whole: tuple[Megabatch, ...]
    cuts: tuple[Cut, ...]
    evaluation: tuple[EvaluationCut, ...]
    absent: tuple[int, ...]
    last: int
    revision: int
    answers: tuple[AnswersCut, ...] = ()
    answered: tuple[tuple[int, Digest], ...] = ()

    @property
    def already(self) -> tuple[int, ...]:
        """What was asked for, and is erased."""
        return tuple(sorted(set(self.named) - {megabatch.number for megabatch in self.whole}))

    @property
    def any(self) -> bool:
        """Whether anything goes."""
        return bool(self.whole or self.cuts or self.evaluation)

    @property
    def in_force(self) -> EvaluationCut | None:
        """What goes from the evaluation set that is in force."""
        return next((part for part in self.evaluation if part.found.revision == self.revision), None)

    @property
    def numbers(self) -> list[int]:
        """Every megabatch that it is about."""
        return sorted({*self.named, *(m.number for m in self.whole), *(c.megabatch.number for c in self.cuts)})

    @property
    def kept(self) -> list[Digest]:
        """Blobs that rows name afterwards, and did not before."""
        left = [*(cut.left for cut in self.cuts), *(part.left for part in self.evaluation)]
        arrays = [digest for one in left if one is not None for digest in (one.x, one.y, one.ids)]
        return arrays + [cut.kept for cut in self.answers]

    @property
    def asked_of(self) -> list[int] | None:
        """Megabatches that versions answered examples of; None: examples of the evaluation set go, which all answer."""
        return None if self.evaluation else self.numbers

    def holds(self, tx: Transaction, model: Model) -> bool:
        """Whether the rows are still as they were when it looked."""
        before = [*self.whole, *(cut.megabatch for cut in self.cuts)]
        now = tx.buffer.training_set(model, [megabatch.number for megabatch in before])
        sets = {one.revision: one for one in tx.buffer.evaluation_sets(model)}
        return (
            tx.buffer.last_number(model) == self.last
            and max(sets, default=0) == self.revision
            and sorted(before, key=lambda megabatch: megabatch.number) == now
            and all(sets[part.found.revision] == part.found for part in self.evaluation)
            and (not self.any or tuple(tx.custody.answered(model, self.asked_of)) == self.answered)
        )


@disk_errors()
def looked(store: Store, name: str, numbers: Sequence[int], samples: Sequence[int]) -> Found:
    """Find what is to go: whole megabatches by number, single examples by id, wherever they are.

    Raises:
        UnknownModel, UnknownMegabatch: there is no such model or megabatch.
        MissingBlob, CorruptBlob: ids cannot be read, so nobody can say where an example is.
    """
    wanted = np.unique(np.array(sorted(samples), dtype=np.uint64))
    with store.reading() as tx:
        model = tx.ledger.model(name)
        named = tx.buffer.training_set(model, numbers)
        last = tx.buffer.last_number(model)
        sets = tx.buffer.evaluation_sets(model)
    whole = [megabatch for megabatch in named if megabatch.status is not MegabatchStatus.ERASED]
    cuts, present = list[Cut](), set[int]()
    for megabatch in _others(store, name, {m.number for m in named}, last) if len(wanted) else ():
        rows = _rows_of(store.blobs, megabatch.ids, wanted, present)
        if len(rows) == megabatch.examples:
            whole.append(megabatch)
        elif len(rows):
            cuts.append(Cut(megabatch, rows))
    parts = [EvaluationCut(one, _rows_of(store.blobs, one.ids, wanted, present)) for one in sets if len(wanted)]
    if len(wanted):
        for megabatch in whole:
            _rows_of(store.blobs, megabatch.ids, wanted, present)
    found = Found(
        model=model,
        named=tuple(sorted({megabatch.number for megabatch in named})),
        whole=tuple(sorted(whole, key=lambda megabatch: megabatch.number)),
        cuts=tuple(cuts),
        evaluation=tuple(part for part in parts if len(part.rows)),
        absent=tuple(id for id in wanted.tolist() if id not in present),
        last=last,
        revision=max((one.revision for one in sets), default=0),
    )
    return _with_answers(store, found, wanted) if found.any else found


@disk_errors()
def carried_out(blobs: Blobs, found: Found) -> Found:
    """The same, with what is left kept as blobs.

    Raises:
        StorageFull, StorageUnreachable, StorageRefused, MissingBlob, CorruptBlob: no row names what was kept.
    """
    parts = tuple(_shorter_evaluation(blobs, part) for part in found.evaluation)
    present = next((part.left for part in parts if part.left and part.found.revision == found.revision), None)
    cuts = tuple(_shorter(blobs, cut, None if present is None else present.ids) for cut in found.cuts)
    answers = tuple(replace(cut, kept=blobs.put(encode_answers(cut.left))) for cut in found.answers)
    return replace(found, cuts=cuts, evaluation=parts, answers=answers)


def runs_of(rows: Rows) -> tuple[tuple[int, int], ...]:
    """First and last of each run of consecutive numbers, in order."""
    if not len(rows):
        return ()
    breaks = np.flatnonzero(np.diff(rows) != 1)
    firsts, lasts = rows[np.r_[0, breaks + 1]], rows[np.r_[breaks, len(rows) - 1]]
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _with_answers(store: Store, found: Found, wanted: npt.NDArray[np.uint64]) -> Found:
    """The same, with the answers that go: to single examples wherever they were asked, and to validation examples of
    whole megabatches.
    """
    with store.reading() as tx:
        answered = tuple(tx.custody.answered(found.model, found.asked_of))
    if not answered:
        return found
    whole = [np.load(store.blobs.verified(megabatch.ids), allow_pickle=False) for megabatch in found.whole]
    held = np.unique(np.concatenate([wanted, *whole]))
    cuts = list[AnswersCut]()
    for version, file in answered:
        answers = _answers(store.blobs, file)
        goes = np.where(answers.source == VALIDATION, np.isin(answers.ids, held), np.isin(answers.ids, wanted))
        if goes.any():
            columns = (getattr(answers, column.name)[~goes] for column in fields(answers))
            cuts.append(AnswersCut(version, file, Answers(*columns)))
    return replace(found, answers=tuple(cuts), answered=answered)


def _answers(blobs: Blobs, file: Digest) -> Answers:
    try:
        return decode_answers(blobs.read(file))
    except CustodyMismatch as error:
        raise CorruptBlob(f"{file}: {error}") from error


def _others(store: Store, name: str, but: set[int], last: int) -> list[Megabatch]:
    """Every megabatch that has values, but these."""
    found: list[Megabatch] = []
    after: int | None = None
    while True:
        with store.reading() as tx:
            page = tx.buffer.megabatches(name, after, _PAGE)
        there = (m for m in page.items if m.status is not MegabatchStatus.ERASED and m.number <= last)
        found += [megabatch for megabatch in there if megabatch.number not in but]
        if page.next is None:
            return found
        after = int(page.next)


def _rows_of(blobs: Blobs, ids: Digest, wanted: npt.NDArray[np.uint64], present: set[int]) -> Rows:
    """Rows whose id is wanted; those ids are added to ``present``."""
    every = np.load(blobs.verified(ids), allow_pickle=False)
    rows = np.flatnonzero(np.isin(every, wanted))
    present.update(every[rows].tolist())
    return rows


def _shorter(blobs: Blobs, cut: Cut, evaluation: Digest | None) -> Cut:
    m = cut.megabatch
    left, _ = _without(blobs, (m.x, m.y, m.ids), cut.rows, len(m.histogram))
    # The examples that go, go from the evaluation set as well, so what is left of both is compared.
    counted = m.evaluation_overlap
    if evaluation is not None:
        counted = overlap(blobs, left.ids, ids_of(blobs, evaluation))
    return replace(cut, left=left, overlap=counted)


def _shorter_evaluation(blobs: Blobs, part: EvaluationCut) -> EvaluationCut:
    one = part.found
    left, digest = _without(blobs, (one.x, one.y, one.ids), part.rows, len(one.histogram))
    return replace(part, left=left, digest=digest)


def _without(blobs: Blobs, arrays: tuple[Digest, Digest, Digest], rows: Rows, classes: int) -> tuple[Left, Digest]:
    """The arrays without some rows, kept; and the digest of what is left."""
    with blobs.workspace() as work:
        x, y, ids = (
            _written(blobs.verified(digest), rows, work / name)
            for digest, name in zip(arrays, ("x.npy", "y.npy", "ids.npy"), strict=True)
        )
        values, labels = (_mapped(path) for path in (x, y))
        digest = arrays_digest(values, labels)
        histogram = np.bincount(np.asarray(labels), minlength=classes)
        size = values.nbytes + labels.nbytes
        examples = len(labels)
        del values, labels
        x_kept, y_kept, ids_kept = (blobs.keep(path)[0] for path in (x, y, ids))
    return Left(x_kept, y_kept, ids_kept, examples, size, tuple(histogram.tolist())), digest


def _written(source: Path, rows: Rows, target: Path) -> Path:
    """Copy an array file without some of its rows, block by block."""
    array = _mapped(source)
    step = max(1, _BLOCK_BYTES // max(1, array.dtype.itemsize * math.prod(array.shape[1:])))
    stay = np.ones(len(array), dtype=np.bool_)
    stay[rows] = False
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": (int(stay.sum()), *array.shape[1:]),
    }
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(array), step):
            file.write(np.ascontiguousarray(array[start : start + step][stay[start : start + step]]).tobytes())
    return target


def _mapped(path: Path) -> npt.NDArray[Any]:
    """An array file, mapped where it has rows."""
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # nothing to map: no rows are left
        found = np.load(path, allow_pickle=False)
    return found
