"""The tree: proofs of every entry at every size agree with RFC 9162's recursive definitions."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from app.errors import Fault
from app.store.database import Store
from app.store.merkle import WIDTH, nodes_of
from app.store.tables import log_nodes
from espalier.errors import ProofRejected
from espalier.formats.proof import EMPTY_ROOT, merkle_root, verify_consistency, verify_inclusion
from tests.builders import ACTOR

SIZE = 2 * WIDTH + 37


@pytest.fixture
def grown(store: Store) -> Store:
    """A log of a few tiles, written in uneven bites."""
    left, bite = SIZE, 1
    while left:
        with store.transaction(ACTOR) as tx:
            for _ in range(min(bite, left)):
                tx.audit.append("test", model=None)
        left, bite = left - min(bite, left), bite * 2
    return store


def leaves(store: Store) -> list[bytes]:
    with store.reading() as tx:
        return [bytes.fromhex(entry.leaf) for entry in tx.audit.entries(None, None, 1000).items]


def test_every_proof_of_the_whole_log_holds_and_of_another_entry_does_not(grown: Store) -> None:
    every = leaves(grown)
    with grown.reading() as tx:
        tree = tx.audit.tree()
        assert tree.root(0) == EMPTY_ROOT
        for size in (1, 2, 3, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH, SIZE):
            root = tree.root(size)
            assert root == merkle_root(every[:size])
            for seq in {1, 2, size // 2 or 1, max(1, size - 1), size, min(size, WIDTH), min(size, WIDTH + 1)} & set(
                range(1, size + 1)
            ):
                path = tree.inclusion(seq, size)
                verify_inclusion(every[seq - 1], seq, size, path, root)
                assert len(path) <= 10
                other = seq % SIZE
                with pytest.raises(ProofRejected):
                    verify_inclusion(every[other], seq, size, path, root)


def test_every_earlier_log_is_shown_to_be_the_beginning(grown: Store) -> None:
    every = leaves(grown)
    with grown.reading() as tx:
        tree = tx.audit.tree()
        for first in (0, 1, 2, 3, 100, WIDTH - 1, WIDTH, WIDTH + 1, 300, SIZE - 1, SIZE):
            path = tree.consistency(first, SIZE)
            verify_consistency(first, SIZE, merkle_root(every[:first]), tree.root(SIZE), path)
            if 0 < first < SIZE:
                forged = [*every[: first - 1], every[-1]]
                with pytest.raises(ProofRejected, match="rewritten"):
                    verify_consistency(first, SIZE, merkle_root(forged), tree.root(SIZE), path)


def test_nodes_are_stored_with_the_entries_that_complete_them(grown: Store) -> None:
    with grown.reading() as tx:
        assert tx.audit.verify() == tx.audit.head()
        hashes = tx.audit.tree().tile(1, 0, 2)
    every = leaves(grown)
    assert hashes == [merkle_root(every[:WIDTH]), merkle_root(every[WIDTH : 2 * WIDTH])]
    assert nodes_of(SIZE) == 2 and nodes_of(WIDTH**2 + WIDTH) == WIDTH + 2


def test_a_missing_or_changed_node_is_named(grown: Store, database_url: str) -> None:
    with grown.reading() as tx, pytest.raises(Fault, match="incomplete at level 1, tile 0"):
        tx.audit.tree().tile(1, 0, 3)
    _without_triggers(database_url, sa.update(log_nodes).where(log_nodes.c.index == 1).values(hash="00" * 32))
    with grown.reading() as tx, pytest.raises(Fault, match="node 1 of level 1 is 0000"):
        tx.audit.verify()
    _without_triggers(database_url, sa.delete(log_nodes).where(log_nodes.c.index == 0))
    with grown.reading() as tx:
        with pytest.raises(Fault, match="node 0 of level 1 is missing"):
            tx.audit.verify()
        with pytest.raises(Fault, match="gap at level 1"):
            tx.audit.tree().root(SIZE)


def test_nodes_are_neither_changed_nor_deleted(grown: Store, database_url: str) -> None:
    for change in (sa.update(log_nodes).values(hash="00"), sa.delete(log_nodes)):
        engine = sa.create_engine(database_url)
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="only grows"):
            connection.execute(change)
        engine.dispose()


def test_an_epoch_begins_with_its_entry(store: Store) -> None:
    with store.transaction(ACTOR) as tx:
        tx.audit.begin_epoch(2, parameters={"size": 7}, reason="the newest backup was older")
    with store.transaction(ACTOR) as tx:
        tx.audit.append("test", model=None)
    with store.reading() as tx:
        assert (tx.audit.head().epoch, tx.audit.entry(1).kind) == (2, "log.epoch-began")


def test_a_proof_reads_few_rows_however_long_the_log_is(grown: Store) -> None:
    with grown.reading() as tx:
        asked: list[str] = []
        connection = tx.audit._connection
        sa.event.listen(connection, "before_cursor_execute", lambda *call: asked.append(call[2]))
        tx.audit.tree().inclusion(3, SIZE)
        assert len(asked) <= 4


def _without_triggers(url: str, change: sa.Update | sa.Delete) -> None:
    engine = sa.create_engine(url)
    drop = {
        "sqlite": ["DROP TRIGGER IF EXISTS log_nodes_refuse_update", "DROP TRIGGER IF EXISTS log_nodes_refuse_delete"],
        "postgresql": ["DROP TRIGGER IF EXISTS log_nodes_refuse_change ON log_nodes"],
    }[engine.dialect.name]
    with engine.begin() as connection:
        for statement in drop:
            connection.exec_driver_sql(statement)
        connection.execute(change)
    engine.dispose()


def test_what_is_fetched_ahead_is_all_that_a_proof_reads(grown: Store) -> None:
    """One statement, wherever the leaf and the end lie; and the proofs are those of tiles read one by one."""
    for size in (1, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH, SIZE):
        for place in {0, min(1, size - 1), size // 2, size - 1, min(size, WIDTH) - 1} - {size}:
            statements: list[str] = []
            with grown.reading() as tx:
                slow, ahead = tx.audit.tree(), tx.audit.tree()
                expected = slow.inclusion(place + 1, size), slow.consistency(place + 1, size), slow.root(size)
                expected_before = slow.root(place + 1)

                def note(*about: object, seen: list[str] = statements) -> None:
                    seen.append(str(about[2]))

                sa.event.listen(grown._engine, "before_cursor_execute", note)
                ahead.fetch(place, size)
                assert (
                    ahead.inclusion(place + 1, size),
                    ahead.consistency(place + 1, size),
                    ahead.root(size),
                ) == expected
                assert ahead.root(place + 1) == expected_before
                sa.event.remove(grown._engine, "before_cursor_execute", note)
            # The root at a size that ends a tile stands in the next tile above.
            assert len(statements) <= 1 + ((place + 1) % WIDTH == 0)
