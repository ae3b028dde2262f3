"""Sparse checkpoints: what goes in comes out, and nothing else does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.numpy import load, save
from torch import nn

import espalier
from app.learning import architectures, recipe
from espalier.errors import CheckpointMismatch, UnsupportedNetwork
from espalier.formats import reader
from espalier.formats.canonical import canonical_json, sha256_digest
from espalier.formats.checkpoint import Checkpoint, decode, encode, encode_dense, mask_digest
from espalier.formats.writer import ZSTD

PAGE = Path(__file__).parents[2] / "docs" / "checkpoint-format.md"


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("narrow", torch.ones(2, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def network(seed: int = 0) -> tuple[Mlp, dict[str, np.ndarray], dict[str, np.ndarray]]:
    torch.manual_seed(seed)
    module = Mlp()
    masks = {}
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.ndim == 2:
                mask = torch.rand(tensor.shape) < 0.4
                tensor.masked_fill_(~mask, 0.0)
                masks[name] = mask.numpy()
        weight = module.layers[0].weight
        weight[tuple(torch.argwhere(torch.as_tensor(masks["layers.0.weight"]))[0])] = 0.0  # a kept zero
    return module, {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}, masks


MODULE, ARRAYS, MASKS = network()
SCALING = {"mean": np.linspace(-1, 1, 6), "std": np.linspace(1, 2, 6)}
MANIFEST = {
    "model": "line-3",
    "version": 2,
    "metrics": {"validation_accuracy": 0.1 + 0.2},
    "seed": 2**63,
    "network": {"name": "mlp", "hidden": (5, 5)},
    "input": {"shape": [6], "dtype": "float32", "normalisation": {"name": "fixed", "signed_log": True, "clip": 1.5}},
}
DATA = encode(ARRAYS, MASKS, MANIFEST, SCALING)


def test_round_trip_is_lossless() -> None:
    found = decode(DATA)
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()
    assert list(found.masks) == list(MASKS)
    for name, mask in MASKS.items():
        np.testing.assert_array_equal(found.masks[name], mask)
    assert found.normalisation["mean"].dtype == np.float32
    np.testing.assert_array_equal(found.normalisation["std"], SCALING["std"].astype(np.float32))
    assert found.density == sum(int(mask.sum()) for mask in MASKS.values()) / (30 + 25 + 15)


def test_a_kept_zero_stays_kept() -> None:
    kept = decode(DATA).masks["layers.0.weight"] & (decode(DATA).arrays["layers.0.weight"] == 0)
    assert kept.sum() == 1


def test_manifest_is_completed_and_exact() -> None:
    manifest = decode(DATA).manifest
    assert manifest["format"] == "espalier-sparse-2"
    assert manifest["values"] == "float32"
    assert manifest["metrics"] == {"validation_accuracy": "0.30000000000000004"}
    assert manifest["seed"] == "9223372036854775808"
    assert manifest["network"] == {"name": "mlp", "hidden": [5, 5]}
    assert manifest["mask_digest"] == mask_digest(MASKS)
    mask = MASKS["layers.2.weight"]
    assert manifest["layers"][1] == {"name": "layers.2.weight", "shape": [5, 5], "kept": int(mask.sum()), "total": 25}


def test_same_content_gives_the_same_bytes() -> None:
    turned = {name: np.array(array, order="F") for name, array in reversed(ARRAYS.items())}
    wide = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in ARRAYS.items()}
    manifest = dict(reversed(MANIFEST.items()))
    assert encode(turned, MASKS, manifest, SCALING) == DATA
    assert encode(wide, {name: np.asfortranarray(mask) for name, mask in MASKS.items()}, MANIFEST, SCALING) == DATA
    found = decode(DATA)
    shuffled = dict(reversed(found.masks.items()))
    assert encode(found.arrays, shuffled, found.manifest, found.normalisation) == DATA


def test_the_bytes_are_those_of_yesterday() -> None:
    """A changed layout must change ``format``: digests of published checkpoints would no longer repeat."""
    arrays = {
        "w": np.arange(-4, 6, dtype=np.float32).reshape(2, 5),
        "b": np.array([1, 2], np.float16),
        "n": np.asarray(3),
    }
    arrays["w"][0, 1] = 0
    mask = np.ones((2, 5), bool)
    mask[0, 1] = False
    data = encode(arrays, {"w": mask}, {"version": 1, "target": 0.9}, {"mean": np.zeros(5), "std": np.ones(5)})
    assert sha256_digest(data) == "sha256:78fb4ac64a94577acfe3dbc92972e65791df56e7684204833ac8fd531bb16814"


OLD = (
    b'x\x02\x00\x00\x00\x00\x00\x00{"__metadata__":{"espalier":"{\\"format\\":\\"espalier-sparse-1\\",\\"layers\\":[{\\"kept\\":9,'
    b'\\"name\\":\\"w\\",\\"shape\\":[2,5],\\"total\\":10}],\\"mask_digest\\":\\"sha256:080e2cfad3975f25f147413edab083486f2302'
    b'448ec7f97782270da7c25bdd36\\",\\"target\\":\\"0.9\\",\\"version\\":1}"},"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
    b'"normalisation.mean":{"dtype":"F32","shape":[5],"data_offsets":[8,28]},"normalisation.std":{"dtype":"F32","shape":[5],'
    b'"data_offsets":[28,48]},"w.values":{"dtype":"F32","shape":[9],"data_offsets":[48,84]},"b":{"dtype":"F16","shape":[2],'
    b'"data_offsets":[84,88]},"w.mask":{"dtype":"U8","shape":[2],"data_offsets":[88,90]}} '
    + np.int64(3).tobytes()
    + np.float32([0] * 5 + [1] * 5 + [-4, -2, -1, 0, 1, 2, 3, 4, 5]).tobytes()
    + b"\x00<\x00@\xbf\xc0"
)
"""A file of the format before this one, as it was published."""


def test_files_of_the_format_before_are_read() -> None:
    assert sha256_digest(OLD) == "sha256:d243d998c6ad19486d710ba5f65e26d8190f2f53d80227e58cf204e7f930807a"
    found = decode(OLD)
    np.testing.assert_array_equal(found.arrays["w"], np.float32([[-4, 0, -2, -1, 0], [1, 2, 3, 4, 5]]))
    np.testing.assert_array_equal(found.masks["w"], [[True, False, True, True, True], [True] * 5])
    assert (found.arrays["b"].tolist(), found.arrays["n"].tolist()) == ([1, 2], 3)
    assert found.normalisation["std"].tolist() == [1] * 5
    assert found.manifest["format"] == "espalier-sparse-1"
    dense = encode_dense(dataclasses.replace(found, digest=""))  # whose digest stands in the ledger
    assert sha256_digest(dense) == "sha256:8034e3e6eb26bbc7ae1d25291906f8fb11b18fba20c05ae37f927ecc68069826"


@pytest.mark.skipif(ZSTD != "1.5.7", reason="another version of zstd may compress to other bytes of the same content")
def test_compressed_bytes_are_those_of_yesterday() -> None:
    mask = np.arange(4096) % 37 == 0
    weight = np.where(mask, np.arange(4096) / 4096, 0).astype(np.float32)
    data = encode({"w": weight, "e": np.arange(1000.0)}, {"w": mask}, {})
    assert coded_of(data).keys() == {"e", "w.values"}
    assert sha256_digest(data) == "sha256:e16ee697c8f41d06ef3cfe05a20262d5a38a06ecd2712d668d575ebcdd66c831"


def test_mask_digest_does_not_depend_on_order_but_on_every_bit() -> None:
    assert mask_digest(MASKS) == mask_digest(dict(reversed(MASKS.items())))
    flipped = {name: mask.copy() for name, mask in MASKS.items()}
    flipped["layers.4.weight"][2, 4] ^= True
    reshaped = MASKS | {"layers.4.weight": MASKS["layers.4.weight"].reshape(5, 3)}
    renamed = {name + "x": mask for name, mask in MASKS.items()}
    assert len({mask_digest(masks) for masks in (MASKS, flipped, reshaped, renamed, {})}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m, d: a["layers.0.weight"].__setitem__(..., 1), "pruned weights of 'layers.0.weight' are not zero"),
        (lambda a, m, d: a["layers.0.weight"].__setitem__(..., np.nan), "not zero"),
        (lambda a, m, d: a.pop("layers.0.weight"), "no such tensor"),
        (lambda a, m, d: m.update({"layers.0.weight": m["layers.0.weight"].T}), "shape"),
        (lambda a, m, d: m.update({"layers.0.weight": m["layers.0.weight"].astype(np.uint8)}), "not bool"),
        (lambda a, m, d: a.update({"layers.0.weight.mask": np.zeros(1)}), "two tensors"),
        (lambda a, m, d: a.update({"layers.0.weight.gaps": np.zeros(1)}), "two tensors"),
        (lambda a, m, d: a.update({"p.gaps": np.zeros(1), "p.values": np.zeros(1)}), "no such layer"),
        (lambda a, m, d: a.update({"z": np.zeros(1, np.complex128)}), "'z' is complex128"),
        (lambda a, m, d: d.update(values="float8"), "values are"),
        (lambda a, m, d: a.update({"normalisation.mean": np.zeros(1)}), "reserved"),
        (lambda a, m, d: a.update({"normalisation.kind": np.zeros(1)}), "reserved"),
        (lambda a, m, d: a.update({"p.mask": np.zeros(1), "p.values": np.zeros(1)}), "no such layer"),
        (lambda a, m, d: d.update(mask_digest="sha256:0"), "mask_digest"),
        (lambda a, m, d: d.update(format="espalier-sparse-0"), "format"),
        (lambda a, m, d: d.update(layers=[]), "layers"),
        (lambda a, m, d: d.update(layers="many"), "layers"),
        (lambda a, m, d: d.update(density={"target": 0.4, "kept": 1, "total": 70}), "density.kept"),
    ],
)
def test_encode_refuses_what_does_not_add_up(change: Callable[..., object], message: str) -> None:
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    masks, manifest = dict(MASKS), dict(MANIFEST)
    change(arrays, masks, manifest)
    with pytest.raises(CheckpointMismatch, match=message):
        encode(arrays, masks, manifest, SCALING)


@pytest.mark.parametrize(
    "scaling", [{"mean": np.zeros(6)}, {"mean": np.zeros(6), "std": np.ones(6), "max": np.ones(6)}]
)
def test_encode_refuses_other_statistics(scaling: dict[str, np.ndarray]) -> None:
    with pytest.raises(CheckpointMismatch, match="mean"):
        encode(ARRAYS, MASKS, MANIFEST, scaling)


def test_encode_refuses_nan_in_the_manifest() -> None:
    with pytest.raises(ValueError, match="nan"):
        encode(ARRAYS, MASKS, {"metrics": {"loss": float("nan")}})


def test_a_buffer_named_mask_is_no_half_of_a_layer() -> None:
    data = encode(ARRAYS | {"attention.mask": np.ones((2, 2), bool)}, MASKS, MANIFEST)
    assert decode(data).arrays["attention.mask"].all()


def altered(change: Callable[[dict[str, np.ndarray], dict[str, Any]], object]) -> bytes:
    tensors, manifest = load(DATA), decode(DATA).manifest
    change(tensors, manifest)
    return save(tensors, {"espalier": canonical_json(manifest).decode()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("layers.0.weight.mask"), "lacks a mask"),
        (lambda t, m: t.pop("layers.0.weight.values"), "lacks a mask or values"),
        (lambda t, m: t.update({"layers.0.weight": np.zeros((5, 6), np.float32)}), "stored dense"),
        (lambda t, m: t.update({"layers.0.weight.mask": t["layers.0.weight.mask"][:-1]}), "not 4 bytes"),
        (lambda t, m: t.update({"layers.0.weight.mask": t["layers.0.weight.mask"].astype(np.int16)}), "not 4 bytes"),
        (lambda t, m: t["layers.0.weight.mask"].__ior__(np.array([0, 0, 0, 1], np.uint8)), "past its last"),
        (lambda t, m: t["layers.0.weight.mask"].__iand__(np.array([0, 255, 255, 255], np.uint8)), "keeps"),
        (
            lambda t, m: t["layers.0.weight.mask"].__setitem__(slice(0, 3), t["layers.0.weight.mask"][[2, 0, 1]]),
            "mask_digest",
        ),
        (lambda t, m: t.update({"layers.0.weight.values": t["layers.0.weight.values"][1:]}), "but its mask keeps"),
        (lambda t, m: t.update({"x.mask": np.zeros(1), "x.values": np.zeros(1)}), "no such layer"),
        (lambda t, m: t.update({"normalisation.max": np.zeros(1)}), "reserved"),
        (lambda t, m: t.pop("normalisation.mean"), "only one"),
        (lambda t, m: m.update(format="espalier-sparse-3"), "update espalier"),
        (lambda t, m: m.pop("layers"), "layers"),
        (lambda t, m: m["layers"][0].update(extra=1), "layers"),
        (lambda t, m: m["layers"][0].update(kept=True), "layers"),
        (lambda t, m: m["layers"][0].update(shape=[5, 7]), "total"),
        (lambda t, m: m["layers"][0].update(shape=[1] * 70 + [30]), "dimension"),
        (lambda t, m: m["layers"].append(m["layers"][0]), "twice"),
        (lambda t, m: m.pop("mask_digest"), "mask_digest"),
        (lambda t, m: m.update(density={"kept": 3}), "density.kept"),
        (lambda t, m: m.update(density=[]), "density"),
    ],
)
def test_decode_names_what_is_wrong(change: Callable[..., object], message: str) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        decode(altered(change))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04 something else", "not a safetensors file"),
        (DATA[:200], "cut off"),
        (DATA[:-1], "damaged"),
        (DATA + b"\0", "damaged"),
        (DATA[:20] + b"\xff" + DATA[21:], "damaged"),
        (save({"w": np.zeros(2)}), "not an Espalier checkpoint"),
        (save({"w": np.zeros(2)}, {"espalier": "{}", "pt": "1"}), "not an Espalier checkpoint"),
        (save({"w": np.zeros(2)}, {"espalier": "{ }"}), "not canonical"),
        (save({"w": np.zeros(2)}, {"espalier": '{"a":NaN}'}), "not canonical"),
        (save({"w": np.zeros(2)}, {"espalier": '{"a":1,"a":2}'}), "not canonical"),
        (save({"w": np.zeros(2)}, {"espalier": "[]"}), "not canonical"),
        (save({"w": np.zeros(2)}, {"espalier": "[" * 100_000}), "damaged"),
    ],
)
def test_decode_refuses_other_files(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        decode(data)


def test_decode_refuses_booleans_that_are_none() -> None:
    data = encode({"flags": np.array([True, False])}, {}, {})
    with pytest.raises(CheckpointMismatch, match="'flags' holds bytes that are no booleans"):
        decode(data[:-2] + b"\x02\x00")


def test_every_truncation_is_noticed() -> None:
    for end in range(0, len(DATA), 7):
        with pytest.raises(CheckpointMismatch):
            decode(DATA[:end])


def test_a_pruned_minus_zero_comes_back_as_zero() -> None:
    mask = np.array([[True, False]])
    data = encode({"w": np.array([[1.0, -0.0]])}, {"w": mask}, {})
    assert data == encode({"w": np.array([[1.0, 0.0]])}, {"w": mask}, {})
    assert not np.signbit(decode(data).arrays["w"]).any()


def test_dense_form_has_the_same_tensors_and_manifest() -> None:
    dense = encode_dense(decode(DATA))
    tensors = load(dense)
    assert tensors.keys() == {*ARRAYS, "normalisation.mean", "normalisation.std"}
    np.testing.assert_array_equal(tensors["layers.2.weight"], ARRAYS["layers.2.weight"])
    header = json.loads(dense[8 : 8 + int.from_bytes(dense[:8], "little")])
    carried = {"checkpoint": sha256_digest(DATA)}
    assert json.loads(header["__metadata__"]["espalier"]) == decode(DATA).manifest | carried
    with pytest.raises(CheckpointMismatch, match="format=sparse"):
        decode(dense)


def test_load_checkpoint_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "line-3-2.safetensors").write_bytes(DATA)
    assert espalier.load_checkpoint(str(tmp_path / "line-3-2.safetensors")).manifest["version"] == 2
    with pytest.raises(FileNotFoundError):
        espalier.load_checkpoint(tmp_path / "absent")


def test_load_into_fills_a_network() -> None:
    other, _, _ = network(seed=5)
    decode(DATA).load_into(other)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, MODULE.state_dict()[name]), name


def test_load_into_is_all_or_nothing_and_lists_what_differs() -> None:
    narrow = nn.Sequential(nn.Linear(6, 5))
    with pytest.raises(
        CheckpointMismatch, match=r"network lacks layers.*checkpoint lacks 0\.bias, 0.*hidden\": \[5, 5\]"
    ):
        decode(DATA).load_into(narrow)
    found = decode(DATA)
    other, before, _ = network(seed=5)
    wrong = found.arrays | {"steps": np.asarray(7.0), "layers.4.bias": np.zeros(4, np.float32)}
    with pytest.raises(CheckpointMismatch, match=r"layers\.4\.bias is float32 \(3,\).*steps is int64 \(\).*float64"):
        dataclasses.replace(found, arrays=wrong).load_into(other)
    for name, tensor in other.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


def test_normalise_is_signed_log_then_statistics_then_clip() -> None:
    x = np.array([[-1000, -1, 0, 1, 2, 1e6]])
    logged = np.sign(x) * np.log1p(np.abs(x))
    expected = np.clip((logged - SCALING["mean"]) / SCALING["std"], -1.5, 1.5)
    np.testing.assert_allclose(decode(DATA).normalise(x), expected, rtol=1e-6, atol=1e-6)
    assert decode(DATA).normalise(x).dtype == np.float32


def test_normalise_of_images_is_per_channel_and_bytes_may_stay_as_they_are() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    manifest = {"input": {"shape": [4, 4, 3], "normalisation": {"name": "fixed", "signed_log": False, "clip": None}}}
    scaled = Checkpoint(manifest, {}, {}, {"mean": np.float32([1, 2, 3]), "std": np.float32([2, 4, 8])}).normalise(x)
    np.testing.assert_array_equal(scaled[..., 2], (x[..., 2].astype(np.float32) - 3) / 8)
    np.testing.assert_array_equal(Checkpoint(manifest, {}, {}).normalise(x), x.astype(np.float32))
    assert Checkpoint({}, {}, {}).density == 1.0


def test_normalise_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\('n', 6\), not \('n', 7\)"):
        decode(DATA).normalise(np.zeros((2, 7)))


def test_logits_are_those_of_torch() -> None:
    found = decode(DATA)
    x = np.random.default_rng(0).normal(size=(20_000, 6))
    with torch.no_grad():
        expected = MODULE(torch.from_numpy(found.normalise(x))).numpy()
    np.testing.assert_allclose(found.logits(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.predict(x), expected.argmax(axis=1))
    assert found.predict(x).dtype == np.int64
    assert found.logits(x[:0]).shape == (0, 3)


def test_predict_flattens_images_channels_last() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    arrays = {"layers.0.weight": weight, "layers.0.bias": np.zeros(3, np.float32)}
    manifest = {"network": {"name": "mlp", "hidden": []}, "input": {"shape": [2, 2, 3]}, "layers": []}
    x = np.random.default_rng(1).normal(size=(5, 2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(Checkpoint(manifest, arrays, {}).logits(x), x.reshape(5, 12) @ weight.T, rtol=1e-5)


@pytest.mark.parametrize("described", [{"name": "resnet18"}, {"name": "mlp", "hidden": [5]}, None])
def test_other_networks_need_torch(described: dict[str, Any] | None) -> None:
    found = decode(DATA)
    with pytest.raises(UnsupportedNetwork, match="load_into"):
        dataclasses.replace(found, manifest=found.manifest | {"network": described}).predict(np.zeros((1, 6)))


def test_the_reader_in_the_format_page_works() -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    page: dict[str, Any] = {}
    exec(compile(snippets[0], str(PAGE), "exec"), page)  # the page's own reader, as a stranger would paste it
    for data in (OLD, DATA, LARGE):
        same(page["read_checkpoint"](data), decode(data))


def test_the_example_in_the_format_page_is_what_is_written() -> None:
    dump = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)", PAGE.read_text(), flags=re.MULTILINE)
    weight = np.float32([[0, 0.5, 0, 0, 0], [0, 0, 0, 0, -2]])
    mask = weight != 0
    mask[1, 0] = True
    data = encode({"w": weight, "b": np.float32([1, 0])}, {"w": mask}, {})
    assert bytes.fromhex("".join(dump)) == data
    (planes,) = re.findall(r"four planes are `([^.]*)`\.", PAGE.read_text())
    content = bytes.fromhex("".join(re.findall("[0-9a-f ]{8}", planes)))
    entry = {"dtype": "F32", "shape": [3], "planes": [3] * 4, "data": content}
    assert reader.array(entry, "w").tolist() == [1.0, -2.0, 0.5]


def test_public_names_resolve_and_are_all() -> None:
    assert set(espalier.__all__) <= set(dir(espalier))
    for name in set(espalier.__all__):
        assert getattr(espalier, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        espalier.no_such_name  # noqa: B018


@pytest.mark.parametrize("shape", [(6,), (4, 3), (2, 4, 3)])
def test_numpy_runs_the_mlp_that_the_server_trains(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    options = recipe.Mlp(hidden=(7, 7))
    module = architectures.mlp(options, (int(np.prod(shape)),), 4)
    arrays = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    masks = {name: np.ones(array.shape, bool) for name, array in arrays.items() if array.ndim == 2}
    data = encode(arrays, masks, {"network": options.model_dump(), "input": {"shape": shape}})
    x = np.random.default_rng(0).normal(size=(9, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x).flatten(1)).numpy()
    np.testing.assert_allclose(decode(data).logits(x), expected, rtol=1e-5, atol=1e-6)


def test_the_version_is_that_of_the_distribution() -> None:
    assert espalier.__version__ == version("espalier-ml")


# -- what is compressed ------------------------------------------------------------------------------------------------


def drawn(shape: tuple[int, ...], density: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights as training and pruning by magnitude leave them, and their mask."""
    weight = np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)
    mask = np.abs(weight) >= np.quantile(np.abs(weight), 1 - density)
    return np.where(mask, weight, np.float32(0)), mask


def wide(density: float = 0.05, **manifest: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], bytes]:
    weight, mask = drawn((300, 400), density)
    arrays = {"w": weight, "b": np.zeros(400, np.float32), "e": drawn((100, 100), 1)[0]}
    return arrays, {"w": mask}, encode(arrays, {"w": mask}, manifest)


LARGE = wide()[2]


def header_of(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def coded_of(data: bytes) -> dict[str, Any]:
    coded: dict[str, Any] = json.loads(header_of(data)["__metadata__"]["coded"])
    return coded


def same(read: tuple[Any, ...], found: Checkpoint) -> None:
    """What a reader gives is what ``decode`` gives, bit for bit."""
    assert read[0] == found.manifest
    for ours, theirs in zip((found.arrays, found.masks, found.normalisation), read[1:], strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
            assert array.tobytes() == theirs[name].tobytes()


def entropy(counts: np.ndarray) -> float:
    """Bits of all draws together that a code for one at a time cannot do without."""
    share = counts[counts > 0] / counts.sum()
    return float(-(counts[counts > 0] * np.log2(share)).sum())


@pytest.mark.parametrize("density", [0.9, 0.366, 0.1, 0.05, 0.01])
def test_a_layer_takes_little_more_than_its_entropy(density: float) -> None:
    weight, mask = drawn((1000, 1000), density)
    values = weight[mask].view(np.uint8).reshape(-1, 4)
    floor = entropy(np.bincount(mask.reshape(-1))) + sum(entropy(np.bincount(plane)) for plane in values.T)
    assert len(encode({"w": weight}, {"w": mask}, {})) <= 1.05 * floor / 8 + 600


def test_what_is_compressed_comes_back() -> None:
    arrays, masks, data = wide()
    found = decode(data)
    assert coded_of(data).keys() == {"b", "e", "w.gaps", "w.values"}
    for name, array in arrays.items():
        assert found.arrays[name].tobytes() == array.tobytes()
    np.testing.assert_array_equal(found.masks["w"], masks["w"])
    assert encode(found.arrays, found.masks, found.manifest) == data
    found.arrays["w"][0, 0] = 1  # an array of its own


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "<i2", ">i4", "i8", "u1", "u2", "u4", "u8", "?"])
def test_every_dtype_is_lossless_in_planes(kind: str) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 8 * 500, dtype=np.uint8)
    odd = (bits[:500] % 2).astype(bool) if kind == "?" else bits.view(kind)  # NaN of every payload among the floats
    array = np.concatenate([odd, np.zeros(3000, kind)])
    mask = np.arange(len(array)) % 3 > 0
    kept = np.where(mask, array, np.zeros(1, kind)).astype(kind)
    data = encode({"a": array, "w": kept}, {"w": mask}, {})
    assert {"a", "w.values"} <= coded_of(data).keys()
    native = np.dtype(kind).newbyteorder("=")
    assert decode(data).arrays["a"].tobytes() == array.astype(native).tobytes()
    assert decode(data).arrays["w"].tobytes() == kept.astype(native).tobytes()


@pytest.mark.parametrize(
    "where",
    [[], [0], [253], [254], [255], [256], [509], [510], [511], [0, 1, 257, 513, 1023], [1023], range(3, 1024, 250)],
)
def test_gaps_of_any_length_come_back(where: Any) -> None:
    mask = np.zeros((32, 32), bool)
    mask.reshape(-1)[list(where)] = True
    data = encode({"w": mask.astype(np.float32)}, {"w": mask}, {})
    assert "w.gaps" in header_of(data)
    np.testing.assert_array_equal(decode(data).masks["w"], mask)


def test_the_mask_is_stored_in_the_shortest_way() -> None:
    zeros = {"w": np.zeros(80_000, np.float32)}
    where = np.random.default_rng(0).random(80_000)
    stored = {}
    for name, mask in {"rare": where < 0.02, "half": where < 0.5, "block": np.arange(80_000) < 30_000}.items():
        header = header_of(data := encode(zeros, {"w": mask}, {}))
        stored[name] = [part for part in ("w.mask", "w.gaps") if part in header], coded_of(data).keys() & {"w.mask"}
    assert stored == {"rare": (["w.gaps"], set()), "half": (["w.mask"], set()), "block": (["w.mask"], {"w.mask"})}


def test_signs_of_kept_zeros_stay() -> None:
    weight = np.tile(np.float32([-0.0, 0.0, 1.0, 0.0]), 300)
    mask = np.tile([True, True, True, False], 300)
    found = decode(encode({"w": weight}, {"w": mask}, {}))
    assert found.arrays["w"].tobytes() == weight.tobytes()
    np.testing.assert_array_equal(found.masks["w"], mask)


@pytest.mark.parametrize(("kind", "torch_kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_values_are_rounded_as_torch_rounds(kind: str, torch_kind: torch.dtype) -> None:
    arrays, masks, exact = wide()
    special = np.float32([1e-30, -1e-30, np.nan, np.inf, -np.inf, -0.0, 1.00390625, 1.01171875, 65504])
    arrays["w"][masks["w"]] = np.resize(np.concatenate([special, arrays["w"][masks["w"]]]), masks["w"].sum())
    data = encode(arrays, masks, {"values": kind})
    found = decode(data)
    assert found.manifest["values"] == kind
    assert found.arrays["w"].dtype == np.float32
    expected = torch.from_numpy(arrays["w"]).to(torch_kind).float().numpy()
    np.testing.assert_array_equal(found.arrays["w"], expected)
    np.testing.assert_array_equal(found.masks["w"], masks["w"])  # 1e-30 is a zero of float16, and kept
    assert found.arrays["e"].tobytes() == arrays["e"].tobytes()  # what is not pruned is not rounded
    assert encode(found.arrays, masks, found.manifest) == data
    sizes = [sum(coded_of(each)["w.values"]["planes"]) for each in (data, exact)]
    assert sizes[0] < 0.65 * sizes[1]


def test_rounding_refuses_what_becomes_infinite() -> None:
    mask = np.ones(2, bool)
    with pytest.raises(CheckpointMismatch, match="70000, more than float16 holds: set checkpoint.values to bfloat16"):
        encode({"w": np.float32([1, 7e4])}, {"w": mask}, {"values": "float16"})
    with pytest.raises(CheckpointMismatch, match=r"bfloat16 holds: set checkpoint.values to float32"):
        encode({"w": np.float32([1, np.finfo(np.float32).max])}, {"w": mask}, {"values": "bfloat16"})


def recoded(change: Callable[[dict[str, bytes], dict[str, Any], dict[str, Any]], object], data: bytes = LARGE) -> bytes:
    """The file with its coded tensors, their description, or its manifest changed, all offsets right again."""
    stored = {name: tensor.tobytes() for name, tensor in load(data).items()}
    metadata = header_of(data)["__metadata__"]
    coded, manifest = json.loads(metadata["coded"]), json.loads(metadata["espalier"])
    change(stored, coded, manifest)
    tensors = {name: np.frombuffer(content, np.uint8) for name, content in stored.items()}
    return save(tensors, {"coded": json.dumps(coded), "espalier": canonical_json(manifest).decode()})


def packed(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(content)


def replaced(content: bytes, unpacked: int) -> Callable[..., None]:
    """Other gap bytes, said to unpack to so many."""

    def change(stored: dict[str, bytes], coded: dict[str, Any], manifest: dict[str, Any]) -> None:
        stored["w.gaps"] = content
        coded["w.gaps"] = {"dtype": "U8", "shape": [unpacked], "planes": [len(content)]}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(packed(bytes(10**7)), 6000), "does not unpack to 6000"),
        (replaced(packed(bytes(6000), write_content_size=False), 6000), "does not unpack to 6000"),
        (replaced(packed(bytes(6000)) + packed(bytes(6000)), 6000), "damaged"),
        (replaced(packed(bytes(6000)) + b"\0", 6000), "damaged"),
        (replaced(packed(bytes(6000))[:-1], 6000), "damaged"),
        (replaced(b"nothing like it", 6000), "damaged"),
        (replaced(packed(bytes(6001)), 6001), "keeps 6001 weights, but the manifest says 6000"),
        (replaced(packed(b"\xff" * 6000), 6000), "reach past"),
        (replaced(packed(b"\xfe" * 6000), 6000), "reach past"),
        (replaced(packed(bytes(200_000)), 200_000), "not 200000 bytes, for 120000 weights"),
        (lambda s, c, m: c["w.gaps"].update(shape=[-1]), "not coded"),
        (lambda s, c, m: c["w.gaps"].update(shape=[1.5]), "not coded"),
        (lambda s, c, m: c["w.gaps"].update(dtype="F4"), "not coded"),
        (lambda s, c, m: c["w.gaps"].update(dtype=["U8"]), "damaged"),
        (lambda s, c, m: c["w.gaps"].update(more=1), "not coded"),
        (lambda s, c, m: c["w.gaps"].update(planes=[]), "do not add up"),
        (lambda s, c, m: c["w.values"].update(planes=c["w.values"]["planes"][:3]), "do not add up"),
        (lambda s, c, m: c["w.values"]["planes"].append(0), "do not add up"),
        (lambda s, c, m: c["w.values"]["planes"].__setitem__(0, 10**15), "do not add up"),
        (lambda s, c, m: c["e"].update(shape=[2**62, 0]), "do not add up"),
        (lambda s, c, m: c["e"].update(shape=[100, 101]), "does not unpack|damaged"),
        (lambda s, c, m: c.update(other=c["e"]), "not coded"),
        (lambda s, c, m: c.update({"w.mask": c.pop("w.gaps")}) or s.update({"w.mask": s.pop("w.gaps")}), "not 15000"),
        (lambda s, c, m: s.update({"w.mask": bytes(15_000)}), "has two masks"),
        (
            lambda s, c, m: c["b"].update(dtype="BOOL", shape=[1600], planes=[len(s["b"])]),
            "no booleans|does not unpack",
        ),
        (lambda s, c, m: m.update(values="float8"), "float8"),
    ],
)
def test_decode_names_what_is_wrong_with_what_is_coded(change: Callable[..., object], message: str) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        decode(recoded(change))


@pytest.mark.parametrize("coded", ["[]", "1", "[" * 100_000, "{", '{"w.gaps":1}', '{"w.gaps":{"dtype":"U8"}}'])
def test_decode_refuses_any_other_description(coded: str) -> None:
    metadata = header_of(LARGE)["__metadata__"]
    with pytest.raises(CheckpointMismatch, match=r"damaged|not coded"):
        decode(save(load(LARGE), metadata | {"coded": coded}))


def test_a_small_file_does_not_unfold_to_a_huge_network() -> None:
    def swell(stored: dict[str, bytes], coded: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest["layers"][0].update(shape=[10**6, 10**6], total=10**12)

    def grow(stored: dict[str, bytes], coded: dict[str, Any], manifest: dict[str, Any]) -> None:
        coded["e"] = {"dtype": "U8", "shape": [1 << 40], "planes": [len(stored["e"])]}

    for change in (swell, grow):
        tracemalloc.start()
        with pytest.raises(CheckpointMismatch, match="unfolds to up to"):
            decode(recoded(change))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20
    with pytest.raises(CheckpointMismatch, match=r"more than the 1,000,000 that are allowed"):
        decode(LARGE, most=10**6)
    assert decode(LARGE, most=10**7).masks["w"].size == 120_000


def test_memory_stays_near_what_comes_out() -> None:
    arrays, masks = {}, {}
    for index in range(24):
        arrays[f"w{index}"], masks[f"w{index}"] = drawn((256, 1024), 0.3, index)
    largest, total = 4 << 18, 24 * (4 << 18)
    tracemalloc.start()
    data = encode(arrays, masks, {})
    _, writing = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    decode(data)
    _, reading = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert writing < 1.25 * len(data) + 8 * largest
    assert reading - before < 1.25 * total + 8 * largest  # arrays, a byte for each weight's mask, and two layers' parts


# -- the reader to copy ------------------------------------------------------------------------------------------------

READER = Path(reader.__file__)
LONELY = """
import sys
blocked = dict.fromkeys(sys.argv[1].split(","))
sys.modules.update(blocked)
sys.path.insert(0, sys.argv[2])
import reader
print(reader.read(open(sys.argv[3], "rb").read())[0]["mask_digest"])
"""


def alone(tmp_path: Path, data: bytes, without: str) -> subprocess.CompletedProcess[str]:
    """The reader, copied to a folder of its own, in an interpreter that lacks these packages."""
    (tmp_path / "reader.py").write_text(READER.read_text())
    (tmp_path / "file").write_bytes(data)
    command = [sys.executable, "-I", "-c", LONELY, without, str(tmp_path), str(tmp_path / "file")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_reader_needs_numpy_alone_where_nothing_is_compressed(tmp_path: Path) -> None:
    without = "espalier,safetensors,torch,zstandard"
    found = alone(tmp_path, DATA, without)
    assert found.stdout.strip() == decode(DATA).manifest["mask_digest"], found.stderr
    assert "pip install zstandard" in alone(tmp_path, LARGE, without).stderr
    assert alone(tmp_path, LARGE, "espalier,safetensors,torch").returncode == 0


def test_the_reader_prints_what_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    printed = subprocess.run([sys.executable, READER, tmp_path / "file"], capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == decode(LARGE).manifest


def test_the_reader_is_short_enough_to_be_read() -> None:
    assert len(READER.read_text().splitlines()) < 150


def test_the_reader_refuses_by_value_error_alone() -> None:
    for at in range(0, len(DATA), 3):
        for data in (DATA[:at], DATA[:at] + bytes([DATA[at] ^ 0x20]) + DATA[at + 1 :]):
            with contextlib.suppress(ValueError):
                reader.read(data)
