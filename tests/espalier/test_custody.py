"""Answers, samples and falls: the same content gives the same bytes, and only such bytes are read."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from espalier.errors import CustodyMismatch
from espalier.formats.custody import (
    EVALUATION,
    FALLEN_BEFORE,
    VALIDATION,
    Answers,
    Use,
    decode_answers,
    decode_falls,
    decode_samples,
    encode_answers,
    encode_falls,
    encode_samples,
)

COLUMNS = ("ids", "labels", "answers", "confidence", "source")


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    rows = draw(st.integers(0, 12))
    return Answers(
        ids=draw(hnp.arrays("u8", rows)),
        labels=draw(hnp.arrays("i8", rows, elements=st.integers(0, 9))),
        answers=draw(hnp.arrays("i8", rows, elements=st.integers(0, 9))),
        confidence=draw(hnp.arrays("f4", rows, elements=st.floats(0, 1, width=32))),
        source=draw(hnp.arrays("u1", rows, elements=st.integers(0, 1))),
    )


@st.composite
def samples(draw: st.DrawFn) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for number in draw(st.sets(st.integers(1, 2**31), max_size=4)):
        rows = draw(st.integers(0, 6))
        uses = hnp.arrays("u1", rows, elements=st.integers(0, 127))
        found[number] = (draw(hnp.arrays("u8", rows)), draw(uses))
    return found


falls = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=8),
    hnp.arrays("u2", hnp.array_shapes(min_dims=0, max_dims=3)),
    max_size=3,
)


def rows_of(found: Answers) -> list[tuple]:
    return sorted(zip(*(getattr(found, name).tolist() for name in COLUMNS), strict=True))


@given(answers(), st.randoms(use_true_random=False))
def test_answers_come_back_sorted_and_their_bytes_do_not_depend_on_the_order(given_: Answers, random) -> None:
    data = encode_answers(given_)
    back = decode_answers(data)
    order = list(range(len(given_)))
    random.shuffle(order)
    shuffled = Answers(*(getattr(given_, name)[order] for name in COLUMNS))
    assert rows_of(back) == rows_of(given_)
    assert encode_answers(back) == encode_answers(shuffled) == data
    assert (np.diff(back.source.astype(int)) >= 0).all()


@given(samples())
def test_samples_come_back_without_those_of_no_use(given_) -> None:
    data = encode_samples(given_)
    back = decode_samples(data)
    expected = {
        number: sorted((i, u) for i, u in zip(ids.tolist(), use.tolist(), strict=True) if u)
        for number, (ids, use) in given_.items()
        if use.any()
    }
    found = {number: list(zip(*(part.tolist() for part in parts), strict=True)) for number, parts in back.items()}
    assert found == expected
    assert encode_samples(dict(reversed(back.items()))) == data


@given(falls)
def test_falls_come_back(given_) -> None:
    data = encode_falls(given_)
    back = decode_falls(data)
    assert back.keys() == given_.keys()
    assert all((back[name] == given_[name]).all() and back[name].shape == given_[name].shape for name in given_)
    assert encode_falls(dict(reversed(back.items()))) == data


def test_one_source_at_a_time() -> None:
    both = decode_answers(some_answers())
    assert both.of(VALIDATION).ids.tolist() == [3, 9]
    assert both.of(EVALUATION).ids.tolist() == [2**64 - 1]


def some_answers() -> bytes:
    return encode_answers(
        Answers(
            np.array([9, 2**64 - 1, 3], "u8"),
            np.array([0, 1, 1]),
            np.array([1, 1, 0]),
            np.array([0.5, 1.0, 0.25], "f4"),
            np.array([0, 1, 0], "u1"),
        )
    )


def some_samples() -> bytes:
    uses = np.array([Use.TRAINED | Use.NEW, Use.VALIDATION | Use.NEW], "u1")
    return encode_samples({1: (np.array([5, 4], "u8"), uses), 7: (np.array([8], "u8"), np.array([Use.REPLAYED], "u1"))})


def some_falls() -> bytes:
    return encode_falls({"layers.0.weight": np.array([[0, 1], [2, FALLEN_BEFORE]], "u2")})


CODECS = [(decode_answers, some_answers()), (decode_samples, some_samples()), (decode_falls, some_falls())]


@pytest.mark.parametrize(("decode", "data"), CODECS)
def test_no_flipped_bit_and_no_cut_is_read_as_what_was_written(decode, data: bytes) -> None:
    whole = decode(data)
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        with suppress(CustodyMismatch):  # or another sound value of a row; a zstd frame has bits of no meaning
            assert repr(decode(damaged)) != repr(whole) or decode is decode_falls
        with pytest.raises(CustodyMismatch):
            decode(data[:place])
    with pytest.raises(CustodyMismatch):
        decode(data + b"\0")


@pytest.mark.parametrize(("decode", "data"), CODECS)
def test_one_file_is_not_read_as_another(decode, data: bytes) -> None:
    for _, other in CODECS:
        if other != data:
            with pytest.raises(CustodyMismatch, match="is no espalier-"):
                decode(other)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for decode, _ in CODECS:
        with pytest.raises(CustodyMismatch):
            decode(noise)


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("ids", np.array([1], "i8"), "ids: int64"),
        ("ids", np.array([[1]], "u8"), "of the shape"),
        ("labels", np.array([-1]), "negative"),
        ("answers", np.array([1, 2]), "different lengths"),
        ("confidence", np.array([np.nan], "f4"), "not in \\[0, 1\\]"),
        ("source", np.array([2], "u1"), "neither 0 nor 1"),
    ],
)
def test_answers_that_cannot_be(column: str, value: np.ndarray, why: str) -> None:
    one = {"ids": "u8", "labels": "i8", "answers": "i8", "confidence": "f4", "source": "u1"}
    with pytest.raises(CustodyMismatch, match=why):
        encode_answers(Answers(**({name: np.zeros(1, kind) for name, kind in one.items()} | {column: value})))


def test_confidence_past_one_by_rounding_is_one() -> None:
    one = np.array([1.0000001], "f4")
    zero = np.zeros(1, "i8")
    found = decode_answers(encode_answers(Answers(np.zeros(1, "u8"), zero, zero, one, np.zeros(1, "u1"))))
    assert found.confidence.tolist() == [1.0]


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        ({0: (np.zeros(1, "u8"), np.ones(1, "u1"))}, "numbered upwards from 1"),
        ({1: (np.zeros(1, "u8"), np.full(1, 128, "u1"))}, "a use is not in 1 to 127"),
        ({1: (np.zeros(2, "u8"), np.ones(1, "u1"))}, "2 ids, but 1 uses"),
        ({1: (np.zeros(1, "i8"), np.ones(1, "u1"))}, "megabatch 1: int64"),
    ],
)
def test_samples_that_cannot_be(given_, why: str) -> None:
    with pytest.raises(CustodyMismatch, match=why):
        encode_samples(given_)


def test_falls_that_cannot_be() -> None:
    with pytest.raises(CustodyMismatch, match="not uint16"):
        encode_falls({"w": np.zeros(1)})
    with pytest.raises(CustodyMismatch, match="__metadata__"):
        encode_falls({"__metadata__": np.zeros(1, "u2")})
    with pytest.raises(CustodyMismatch, match="unpacks to more than 10 bytes"):
        decode_falls(some_falls(), most=10)


def test_a_file_of_another_version_is_refused() -> None:
    columns = {"megabatches": "i8", "counts": "i8", "ids": "u8", "use": "u1"}
    later = save(
        {name: np.zeros(0, kind) for name, kind in columns.items()}, {"espalier": '{"format":"espalier-samples-2"}'}
    )
    with pytest.raises(CustodyMismatch, match="one spelling"):
        decode_samples(later)
