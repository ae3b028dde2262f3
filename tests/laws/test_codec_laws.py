"""Laws of the codecs, for anything Hypothesis thinks of."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.errors import InvalidMegabatch, InvalidWeights
from app.intake.arrays import Limits, Reading
from app.intake.npz import decode_npz
from app.intake.weights import check_weights
from espalier.errors import CheckpointMismatch
from espalier.formats import reader
from espalier.formats.canonical import canonical_json, exact
from espalier.formats.checkpoint import decode, encode, mask_digest
from espalier.formats.megabatch import arrays_digest
from espalier.formats.megabatch import encode as pack
from espalier.formats.proof import Frontier, leaf_hash, merkle_root
from tests.intake.hostile import Entry, archive, npy, npy_text

LIMITS = Limits(max_bytes=1 << 22, seconds=10, memory_bytes=1 << 24)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: not name.startswith("normalisation.") and not name.endswith((".mask", ".values"))
)
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)
VALUES = arrays.arrays(
    st.sampled_from([np.dtype(name) for name in ("f2", "f4", "f8", "i8", "u1", "?")]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of any dtype, order and value, NaN and kept zeros too, some of them under any mask."""
    dense, masks = {}, {}
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        array = np.array(draw(VALUES), order=draw(st.sampled_from("CF")))
        array = np.tile(array, draw(st.sampled_from([1, 1, 40])))  # what repeats is compressed
        if draw(st.booleans()):
            mask = draw(arrays.arrays(np.bool_, array.shape, fill=st.booleans()))
            array[~mask] = 0
            masks[name] = mask
        dense[name] = array
    return dense, masks


@given(networks(), st.dictionaries(st.sampled_from(["model", "metrics", "seed"]), TREES))
def test_a_checkpoint_comes_back_and_gives_the_same_bytes_twice(network: Any, manifest: dict[str, Any]) -> None:
    dense, masks = network
    data = encode(dense, masks, manifest)
    found = decode(data)
    assert found.arrays.keys() == dense.keys()
    for name, array in dense.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert found.arrays[name].tobytes() == array.tobytes()
    for name, mask in masks.items():
        np.testing.assert_array_equal(found.masks[name], mask)  # kept zeros too: the mask is not read off the values
    assert found.manifest.items() >= exact(manifest).items()
    assert encode(dense, masks, manifest) == data
    backwards = dict(reversed(found.arrays.items()))
    assert encode(backwards, dict(reversed(found.masks.items())), found.manifest) == data


@given(networks())
def test_the_reader_to_copy_reads_what_decode_reads(network: Any) -> None:
    data = encode(*network, {})
    found = decode(data)
    manifest, read, masks, normalisation = reader.read(data)
    assert (manifest, normalisation) == (found.manifest, {})
    for ours, theirs in ((found.arrays, read), (found.masks, masks)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
            assert array.tobytes() == theirs[name].tobytes()


@given(st.lists(st.integers(0, 700), max_size=6), st.integers(0, 700))
def test_a_mask_comes_back_whatever_lies_between_its_weights(gaps: list[int], rest: int) -> None:
    mask = np.zeros(sum(gaps) + len(gaps) + rest, np.bool_)
    mask[np.cumsum(np.asarray(gaps, int) + 1) - 1] = True
    found = decode(encode({"w": mask.astype(np.float32)}, {"w": mask}, {}))
    np.testing.assert_array_equal(found.masks["w"], mask)
    assert found.manifest["mask_digest"] == mask_digest({"w": mask})


FLOAT32 = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-60_000, 60_000, width=32))


@given(FLOAT32, st.sampled_from(["bfloat16", "float16"]), st.data())
def test_rounding_is_to_the_nearest_keeps_every_weight_and_is_done_once(x: Any, kind: str, data: st.DataObject) -> None:
    mask = data.draw(arrays.arrays(np.bool_, x.shape))
    encoded = encode({"w": np.where(mask, x, np.float32(0))}, {"w": mask}, {"values": kind})
    found = decode(encoded)
    np.testing.assert_array_equal(found.masks["w"], mask)
    expected = torch.from_numpy(x).to(getattr(torch, kind)).float().numpy()
    np.testing.assert_array_equal(found.arrays["w"], np.where(mask, expected, 0))
    assert encode(found.arrays, found.masks, found.manifest) == encoded


@given(arrays.array_shapes(min_dims=1, max_dims=3), st.data())
def test_a_kept_zero_stays_kept(shape: tuple[int, ...], data: st.DataObject) -> None:
    mask = data.draw(arrays.arrays(np.bool_, shape))
    found = decode(encode({"w": np.zeros(shape, np.float32)}, {"w": mask}, {}))
    np.testing.assert_array_equal(found.masks["w"], mask)


@given(networks(), st.data())
def test_a_damaged_checkpoint_is_refused_or_means_the_same_kind_of_thing(network: Any, data: st.DataObject) -> None:
    whole = encode(*network, {"version": 1})
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
    except CheckpointMismatch:
        return
    assert found.manifest["format"] == "espalier-sparse-2"


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(CheckpointMismatch):
        decode(data)


@given(TREES)
def test_canonical_json_loses_nothing(tree: Any) -> None:
    data = canonical_json(exact(tree))
    assert json.loads(data) == exact(tree)
    assert canonical_json(json.loads(data)) == data


@given(st.lists(st.binary(max_size=4), max_size=40), st.lists(st.binary(max_size=4), max_size=40))
def test_a_frontier_may_be_stored_anywhere(first: list[bytes], second: list[bytes]) -> None:
    hashes = [leaf_hash(item) for item in first + second]
    stored = Frontier().extend(hashes[: len(first)])
    assert Frontier(stored.size, stored.hashes).extend(hashes[len(first) :]).root() == merkle_root(hashes)


def outcome(data: bytes) -> str | None:
    """The digest of what was decoded, or None where it was refused; any other exception fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(data)
        try:
            return decode_npz(path, Path(folder), LIMITS, Reading()).digest
        except InvalidMegabatch:
            return None


FLOATS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=4, max_side=4),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(FLOATS, st.integers(0, 5), st.sampled_from("CF"), st.sampled_from("<>"), st.booleans())
def test_any_good_megabatch_is_accepted(x: Any, label: int, order: Any, endian: str, deflate: bool) -> None:
    y = np.full(len(x), label)
    turned = np.array(x, dtype=x.dtype.newbyteorder(endian), order=order)
    assert outcome(pack(x, y)) == arrays_digest(x, y)
    assert outcome(archive(Entry("x.npy", npy(turned), deflate), Entry("y.npy", npy(y), deflate))) == arrays_digest(
        x, y
    )


WHOLE = archive(Entry("x.npy", npy(np.ones((3, 2), np.float32)), deflate=True), Entry("y.npy", npy(np.arange(3))))


@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 40)
)
def test_a_damaged_upload_is_refused_or_unharmed(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    assert outcome(bytes(data[: len(data) - cut])) in (None, outcome(WHOLE))


@given(st.binary(max_size=300))
def test_any_bytes_are_an_invalid_megabatch(data: bytes) -> None:
    assert outcome(data) is None
    assert outcome(b"PK\x03\x04" + data) is None
    assert outcome(archive(Entry("x.npy", data), Entry("y.npy", data, deflate=True))) is None
    assert outcome(archive(Entry("x.npy", b"\x93NUMPY\x01\x00" + data), Entry("y.npy", npy(np.arange(3))))) is None


HEADERS = st.fixed_dictionaries(
    {
        "descr": TREES | st.sampled_from(["<f4", "|O", "<f4,<f4", ">U7"]),
        "fortran_order": TREES | st.booleans(),
        "shape": TREES | st.tuples(st.integers(), st.integers()),
    },
)


@given(HEADERS | st.text(max_size=60), st.binary(max_size=50), st.sampled_from([1, 2, 3]))
def test_any_header_is_refused_or_true(header: Any, values: bytes, version: int) -> None:
    y = npy(np.zeros(1, np.int64))
    outcome(archive(Entry("x.npy", npy_text(str(header), version) + values), Entry("y.npy", y)))


@given(st.binary(max_size=200) | TREES.map(lambda tree: json.dumps(tree).encode()))
def test_any_weights_are_refused_by_name(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        for content in (data, len(data).to_bytes(8, "little") + data):
            path.write_bytes(content)
            with pytest.raises(InvalidWeights):
                check_weights(path)
