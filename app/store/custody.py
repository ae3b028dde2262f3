"""``tx.custody``: which versions a megabatch went into, and which megabatches went into a version.

Knows: what a version's cycle did with samples of each megabatch, in one number. Must never know: which samples those
were; a blob of the version says that.

Laws:
    * Rows of the index are written with their version and never changed, also when the megabatch is erased. A version's
      answers are the one file that an erasure replaces, by what is left of it.
    * What a descendant has of its ancestors is found by its ancestry, not written down again.
    * Retention leaves these files: a version whose bytes were swept still says what it was made from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import sqlalchemy as sa

from app.domain import Digest, Model, Page, Used
from app.store.tables import LARGEST, uses, versions


class Custody:
    """The index from megabatches to versions and back, as one transaction sees it."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def answered(self, model: Model, megabatches: Collection[int] | None) -> list[tuple[int, Digest]]:
        """Versions that wrote down their answers, by number, each with the file.

        Args:
            model: whose they are.
            megabatches: only versions whose own cycle used one of these; None for all.
        """
        wanted = sa.select(versions.c.number, versions.c.answers).where(
            versions.c.model_id == model.id, versions.c.answers.is_not(None)
        )
        if megabatches is not None:
            used = sa.select(uses.c.version).where(
                uses.c.model_id == model.id, uses.c.megabatch.in_(sorted(megabatches))
            )
            wanted = wanted.where(versions.c.number.in_(used))
        return [(number, digest) for number, digest in self._connection.execute(wanted.order_by(versions.c.number))]

    def replace_answers(self, model: Model, version: int, file: Digest) -> None:
        """Let a version name what an erasure left of its answers."""
        here = versions.c.model_id == model.id, versions.c.number == version
        self._connection.execute(sa.update(versions).where(*here).values(answers=file))

    def versions_of(self, model: Model, megabatch: int, after: int | None, limit: int) -> Page[Used]:
        """Versions whose own cycle used samples of a megabatch, oldest first.

        Args:
            model: whose they are.
            megabatch: its number.
            after: go on above this version.
            limit: at most this many.
        """
        wanted = sa.select(uses.c.version, uses.c.megabatch, uses.c.use).where(
            uses.c.model_id == model.id, uses.c.megabatch == megabatch
        )
        if after is not None:
            wanted = wanted.where(uses.c.version > min(after, LARGEST))
        rows = self._connection.execute(wanted.order_by(uses.c.version).limit(limit + 1)).all()
        items = tuple(Used(*row) for row in rows[:limit])
        return Page(items, str(items[-1].version) if len(rows) > limit else None)

    def heirs_of(self, model: Model, megabatches: Collection[int]) -> Iterator[Used]:
        """Every version that any of these megabatches went into, by its own cycle or by an ancestor's, oldest first.

        Costs one look at the number and parent of every version since the first of them; stop when you have enough.

        Args:
            model: whose they are.
            megabatches: their numbers.

        Returns:
            Each with the lowest number of the megabatches; ``use`` is 0 where only an ancestor's cycle used them.
        """
        wanted = sa.select(uses).where(uses.c.model_id == model.id, uses.c.megabatch.in_(sorted(megabatches)))
        direct: dict[int, Used] = {}
        for row in self._connection.execute(wanted.order_by(uses.c.megabatch)):
            before = direct.get(row.version, Used(row.version, row.megabatch, 0))
            direct[row.version] = Used(row.version, before.megabatch, before.use | row.use)
        if not direct:
            return
        later = sa.select(versions.c.number, versions.c.parent).where(
            versions.c.model_id == model.id, versions.c.number >= min(direct)
        )
        inherited: dict[int, Used] = {}
        for number, parent in self._connection.execute(later.order_by(versions.c.number)):
            found = direct.get(number)
            if found is None and parent in inherited:
                found = Used(number, inherited[parent].megabatch, 0)
            if found is not None:
                inherited[number] = found
                yield found

    def megabatches_of(self, model: Model, version: int, after: int | None, limit: int) -> Page[Used]:
        """Megabatches of which a version's own cycle used samples, by number.

        Args:
            model: whose they are.
            version: its number.
            after: go on above this megabatch.
            limit: at most this many.
        """
        wanted = sa.select(uses.c.version, uses.c.megabatch, uses.c.use).where(
            uses.c.model_id == model.id, uses.c.version == version
        )
        if after is not None:
            wanted = wanted.where(uses.c.megabatch > min(after, LARGEST))
        rows = self._connection.execute(wanted.order_by(uses.c.megabatch).limit(limit + 1)).all()
        items = tuple(Used(*row) for row in rows[:limit])
        return Page(items, str(items[-1].megabatch) if len(rows) > limit else None)
