"""Sparse checkpoints: what goes in comes out, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torch import nn

import espalier
from app.learning import architectures, recipe
from espalier.errors import CheckpointMismatch, UnsupportedNetwork
from espalier.formats.canonical import canonical_json, sha256_digest
from espalier.formats.checkpoint import Checkpoint, decode, encode, encode_dense, mask_digest

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
    assert manifest["format"] == "espalier-sparse-1"
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
    assert sha256_digest(data) == "sha256:d243d998c6ad19486d710ba5f65e26d8190f2f53d80227e58cf204e7f930807a"


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
        (lambda a, m, d: a.update({"normalisation.mean": np.zeros(1)}), "two tensors"),
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
        (lambda t, m: t.pop("layers.0.weight.mask"), "mask is missing"),
        (lambda t, m: t.pop("layers.0.weight.values"), "values is missing"),
        (lambda t, m: t.update({"layers.0.weight": np.zeros((5, 6), np.float32)}), "twice"),
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
        (lambda t, m: m.update(format="espalier-sparse-2"), "update espalier"),
        (lambda t, m: m.pop("layers"), "layers"),
        (lambda t, m: m["layers"][0].update(extra=1), "layers"),
        (lambda t, m: m["layers"][0].update(kept=True), "layers"),
        (lambda t, m: m["layers"][0].update(shape=[5, 7]), "total"),
        (lambda t, m: m["layers"][0].update(shape=[1] * 70 + [30]), "impossible shape"),
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
    assert json.loads(header["__metadata__"]["espalier"]) == decode(DATA).manifest
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
    reader: dict[str, Any] = {}
    exec(compile(snippets[0], str(PAGE), "exec"), reader)  # the page's own reader, as a stranger would paste it
    manifest, arrays, masks, normalisation = reader["read_checkpoint"](DATA)
    found = decode(DATA)
    assert manifest == found.manifest
    assert arrays.keys() == found.arrays.keys()
    assert masks.keys() == found.masks.keys()
    for ours, theirs in ((found.arrays, arrays), (found.masks, masks), (found.normalisation, normalisation)):
        for name, array in ours.items():
            assert array.dtype == theirs[name].dtype
            np.testing.assert_array_equal(array, theirs[name])


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
