"""Sparse checkpoints: which weights are kept, their values and a manifest, in one plain safetensors file.

Knows: how a network's tensors and masks become bytes and come back, and how inputs are normalised. Must never know:
torch (a network is filled by its own methods), a service, or where files are kept. ``docs/checkpoint-format.md``
describes the bytes for other readers; ``reader`` and ``writer`` lay them out.

Laws:
    * ``decode(encode(...))`` gives back the same arrays, masks and manifest, bit for bit; a kept 0.0 stays kept, and a
      pruned weight is 0.0 (a -0.0 under a cleared mask bit loses its sign).
    * The same content gives the same bytes under one version of the zstd library, whatever the order of names or of
      memory. Under any version it gives the same dense form, masks and ``mask_digest``.
    * Values are rounded only where the manifest says so, in ``values``.
    * Nothing is guessed: what is missing, unknown or does not add up raises ``CheckpointMismatch``. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from espalier.errors import CheckpointMismatch, UnsupportedNetwork
from espalier.formats import reader, writer
from espalier.formats.canonical import canonical_json, exact, sha256_digest
from espalier.formats.stamp import CARRIED, Decision, Stamp, stamp_of

Array = npt.NDArray[Any]

FORMAT = "espalier-sparse-2"
"""The manifest's ``format``, as it is written. ``reader`` still knows the one before."""

METADATA_KEY = "espalier"
"""The key of the safetensors metadata whose value is the manifest as canonical JSON."""

_WHICH, _VALUES, _NORMALISATION = (".mask", ".gaps"), ".values", "normalisation."
_STATISTICS = ("mean", "std")
_ROWS = 8192


class Network(Protocol):
    """What ``load_into`` needs of a network; every ``torch.nn.Module`` has it."""

    def state_dict(self) -> Mapping[str, Any]:
        """Its parameters and buffers by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Replace them."""


@dataclass(frozen=True)
class Checkpoint:
    """A version's network, decoded.

    Attributes:
        manifest: what the version is and how it was made (docs/checkpoint-format.md). Floats are strings in it.
        arrays: every parameter and buffer of the network by its ``state_dict`` name, dense, zero where pruned.
        masks: for each prunable tensor a bool array of its shape: True where the weight is kept, even as 0.0.
        normalisation: ``mean`` and ``std``, float32, one per feature or channel; empty if inputs are not standardised.
        digest: of the bytes that it was decoded from; empty where it was not.
    """

    manifest: dict[str, Any]
    arrays: dict[str, Array]
    masks: dict[str, npt.NDArray[np.bool_]]
    normalisation: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    digest: str = ""

    @property
    def stamp(self) -> Stamp:
        """Model, version and digest, to keep with every decision that is made with this checkpoint.

        Raises:
            CheckpointMismatch: it does not say which version it is, or was not decoded from a file.
        """
        return stamp_of(self.manifest, self.digest)

    @property
    def density(self) -> float:
        """Counted density: kept prunable weights / all prunable weights; 1.0 when nothing is prunable."""
        total = sum(mask.size for mask in self.masks.values())
        return sum(int(np.count_nonzero(mask)) for mask in self.masks.values()) / total if total else 1.0

    def normalise(self, x: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Scale inputs as the server does before the network sees them.

        float32; then ``sign(x) * log1p(|x|)`` if ``signed_log``; then ``(x - mean) / std`` on the last axis, if there
        are statistics; then clamped to ``[-clip, clip]``, if there is a clip.

        Args:
            x: (n, *shape) as uploaded; images channels last.

        Returns:
            (n, *shape) float32, a copy.

        Raises:
            ValueError: when the examples do not have the shape that the manifest says.
        """
        examples = np.array(x, dtype=np.float32)
        spec = self.manifest.get("input", {})
        shape = tuple(spec.get("shape") or examples.shape[1:])
        if examples.shape[1:] != shape:
            raise ValueError(f"this network is fed {('n', *shape)}, not {('n', *examples.shape[1:])}")
        scaling = spec.get("normalisation") or {}
        if scaling.get("signed_log"):
            examples = np.sign(examples) * np.log1p(np.abs(examples))
        if self.normalisation:
            examples = (examples - self.normalisation["mean"]) / self.normalisation["std"]
        if scaling.get("clip") is not None:
            clip = np.float32(float(scaling["clip"]))
            examples = np.clip(examples, -clip, clip)
        return examples

    def logits(self, x: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Run the network in numpy: only ``mlp`` (fully connected layers, ReLU between them).

        Args:
            x: (n, *shape) as uploaded, before normalisation.

        Returns:
            (n, classes) float32.

        Raises:
            UnsupportedNetwork: for any other network.
        """
        layers = self._fully_connected()
        examples = np.asarray(x)
        blocks = [self._forward(examples[start : start + _ROWS], layers) for start in range(0, len(examples), _ROWS)]
        return np.concatenate(blocks) if blocks else np.zeros((0, len(layers[-1][1])), np.float32)

    def predict(self, x: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The likeliest class of each example, as a label: an index into the manifest's ``input.classes``.

        Args:
            x: (n, *shape) as uploaded, before normalisation.

        Returns:
            (n,) int64.

        Raises:
            UnsupportedNetwork: for any network but ``mlp``.
        """
        return np.asarray(np.argmax(self.logits(x), axis=1), dtype=np.int64)

    def decide(self, x: npt.ArrayLike, ids: Sequence[str] | None = None) -> list[Decision]:
        """The likeliest class of each example, by name, with its confidence and the stamp of this version.

        Args:
            x: (n, *shape) as uploaded, before normalisation.
            ids: your own n names for the examples.

        Raises:
            UnsupportedNetwork: for any network but ``mlp``; run it in torch and give its logits to ``decided``.
            CheckpointMismatch: the checkpoint has no stamp.
        """
        return self.decided(self.logits(x), ids)

    def decided(self, logits: npt.ArrayLike, ids: Sequence[str] | None = None) -> list[Decision]:
        """Decisions from what the network gave for each example.

        Args:
            logits: (n, classes), before any softmax.
            ids: your own n names for the examples.

        Raises:
            CheckpointMismatch: the checkpoint has no stamp, or other classes.
            ValueError: there are not as many names as examples.
        """
        rows, stamp, now = np.asarray(logits, np.float64), self.stamp, datetime.now(UTC)
        classes = (self.manifest.get("input") or {}).get("classes") or ()
        _need(rows.ndim == 2 and rows.shape[1] == len(classes), f"logits of {len(classes)} classes are needed")
        names = [None] * len(rows) if ids is None else list(ids)
        if len(names) != len(rows):
            raise ValueError(f"there are {len(names)} ids for {len(rows)} examples")
        odds = np.exp(rows - rows.max(axis=1, keepdims=True))
        confidence = odds.max(axis=1) / odds.sum(axis=1)
        return [
            Decision(stamp, classes[answer], sure, name, now)
            for answer, sure, name in zip(rows.argmax(axis=1).tolist(), confidence.tolist(), names, strict=True)
        ]

    def load_into(self, network: Network) -> None:
        """Copy every array into a network of the same architecture; all of them or, on a mismatch, none.

        Works by the tensors' own methods, so that reading a checkpoint needs no torch. Tensors stay on their device.

        Args:
            network: a ``torch.nn.Module`` whose ``state_dict`` has exactly these names, shapes and dtypes.

        Raises:
            CheckpointMismatch: listing what is missing, unexpected, or of another shape or dtype.
        """
        state = network.state_dict()
        groups = {
            "the network lacks ": sorted(self.arrays.keys() - state.keys(), key=_natural),
            "the checkpoint lacks ": sorted(state.keys() - self.arrays.keys(), key=_natural),
            "": list(_differences(self.arrays, state)),
        }
        faults = [what + _listed(items) for what, items in groups.items() if items]
        if faults:
            described = self.manifest.get("network")
            raise CheckpointMismatch(
                f"this checkpoint does not fit the network: {'; '.join(faults)}. Build the network that its manifest "
                f"describes: {json.dumps(described)}"
            )
        network.load_state_dict(
            {name: state[name].new_tensor(array) for name, array in self.arrays.items()}, strict=True
        )

    def _fully_connected(self) -> list[tuple[Array, Array]]:
        network = self.manifest.get("network") or {}
        if network.get("name") != "mlp":
            raise UnsupportedNetwork(
                f"numpy alone runs the network 'mlp', and this one is {network.get('name')!r}: "
                "build it in torch and use load_into(network)"
            )
        listed = [layer["name"] for layer in self.manifest["layers"]]
        matrices = {name for name, array in self.arrays.items() if array.ndim == 2}
        names = listed if set(listed) == matrices else sorted(matrices, key=_natural)
        layers = [(self.arrays[name], self.arrays.get(name.removesuffix("weight") + "bias")) for name in names]
        widths = [weight.shape[0] for weight, _ in layers]
        if widths[:-1] != list(network.get("hidden", ())) or any(
            bias is None or bias.shape != weight.shape[:1] for weight, bias in layers
        ):
            raise UnsupportedNetwork(
                f"the layers {names} are not those of the 'mlp' that the manifest describes: "
                "build it in torch and use load_into(network)"
            )
        return [(weight, bias) for weight, bias in layers if bias is not None]

    def _forward(self, x: Array, layers: list[tuple[Array, Array]]) -> npt.NDArray[np.float32]:
        out: Array = self.normalise(x).reshape(len(x), -1)
        for depth, (weight, bias) in enumerate(layers):
            out = (np.maximum(out, 0) if depth else out) @ weight.T + bias
        return np.asarray(out, dtype=np.float32)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a sparse checkpoint from a file.

    Raises:
        CheckpointMismatch: when the file is not one, or is damaged.
        OSError: when it cannot be read.
    """
    return decode(Path(path))


def encode(
    arrays: Mapping[str, Array],
    masks: Mapping[str, npt.NDArray[np.bool_]],
    manifest: Mapping[str, Any],
    normalisation: Mapping[str, Array] | None = None,
) -> bytes:
    """Encode a network as a sparse checkpoint.

    Args:
        arrays: every parameter and buffer by name, in any memory order.
        masks: for each prunable tensor a bool array of its shape, in the network's order.
        manifest: its tree may hold floats and wide integers (they become strings) but neither NaN nor infinity.
            ``format``, ``layers`` (in the masks' order) and ``mask_digest`` are filled in; if given, they must agree.
            ``values`` says what the kept float32 weights are rounded to: ``float32`` (as they are), ``bfloat16`` or
            ``float16``; a weight that is rounded to zero stays kept.
        normalisation: ``mean`` and ``std``, if inputs are standardised.

    Returns:
        The file's bytes, the same for the same content under the same version of the zstd library.

    Raises:
        CheckpointMismatch: for a nonzero value under a cleared mask bit, a mask without its tensor, names that
            collide, a weight that is too large to be rounded, or a manifest that does not agree with the masks.
        ValueError: for a manifest that JSON cannot hold.
    """
    written = _complete(manifest, masks)
    statistics = {_NORMALISATION + name: _statistic(name, array) for name, array in (normalisation or {}).items()}
    _need(not statistics or len(statistics) == len(_STATISTICS), "a normalisation needs both mean and std")
    _need_known(arrays.keys(), written["layers"])
    others = {name: array for name, array in arrays.items() if name not in masks} | statistics
    tensors = {name: writer.stored(np.asarray(array), name) for name, array in others.items()}
    for name, mask in masks.items():
        tensors |= _packed(name, mask, arrays, written["values"])
    return writer.container(tensors, canonical_json(written).decode())


def decode(source: bytes | Path, *, most: int = reader.MOST) -> Checkpoint:
    """Decode a sparse checkpoint, strictly.

    Args:
        source: the file's bytes, or its path.
        most: bytes of arrays and masks that it may unfold to, since a small file can describe a huge network.

    Raises:
        CheckpointMismatch: naming what is wrong and what to do.
        OSError: when the path cannot be read.
    """
    data = source.read_bytes() if isinstance(source, Path) else source
    try:
        manifest, arrays, masks, statistics = reader.read(data, most, _manifest)
    except ValueError as error:
        raise CheckpointMismatch(str(error)) from None
    _need_known(arrays.keys(), manifest["layers"])
    _need(len(statistics) in (0, len(_STATISTICS)), "only one of normalisation.mean and normalisation.std is there")
    others = {name: arrays[name] for name in sorted(arrays.keys() - masks.keys(), key=_natural)}
    _need(manifest.get("mask_digest") == mask_digest(masks), "the masks do not have the manifest's mask_digest")
    ordered = {name: arrays[name] for name in masks} | others
    return Checkpoint(manifest, ordered, masks, statistics, sha256_digest(data))


def encode_dense(checkpoint: Checkpoint) -> bytes:
    """The same network as dense safetensors, for tools that know no masks: arrays under their names, and the manifest.

    Which zeros were kept is lost, so ``decode`` refuses it. The manifest gains ``checkpoint``, the digest of the sparse
    checkpoint, where it was decoded from one: so that a dense file can stamp decisions, too (``read_stamp``).
    """
    carried = {CARRIED: checkpoint.digest} if checkpoint.digest else {}
    tensors = {name: _portable(array) for name, array in checkpoint.arrays.items()}
    statistics = {_NORMALISATION + name: _statistic(name, array) for name, array in checkpoint.normalisation.items()}
    return save(tensors | statistics, {METADATA_KEY: canonical_json(checkpoint.manifest | carried).decode()})


def mask_digest(masks: Mapping[str, npt.NDArray[np.bool_]]) -> str:
    """Digest of all masks together.

    Returns:
        ``sha256:`` and 64 hexadecimal digits over, for each mask in order of its name's code points: one line of
        canonical JSON with ``name`` and ``shape``, then the mask's packed bits.
    """
    state = hashlib.sha256()
    for name in sorted(masks):
        state.update(canonical_json({"name": name, "shape": list(masks[name].shape)}) + b"\n")
        state.update(_bits(masks[name]).tobytes())
    return "sha256:" + state.hexdigest()


# -- writing ----------------------------------------------------------------------------------------------------------


def _packed(
    name: str, mask: npt.NDArray[np.bool_], arrays: Mapping[str, Array], values: str
) -> dict[str, writer.Stored]:
    _need(name in arrays, f"there is a mask for {name!r}, but no such tensor")
    array = np.asarray(arrays[name])
    _need(mask.dtype == np.bool_, f"the mask of {name!r} is {mask.dtype}, not bool")
    _need(mask.shape == array.shape, f"the mask of {name!r} has the shape {mask.shape}, its tensor {array.shape}")
    where = np.flatnonzero(mask)  # many times faster than indexing with the mask itself
    kept = array.reshape(-1)[where]
    stray = int(np.count_nonzero(array != 0)) - int(np.count_nonzero(kept != 0))
    _need(not stray, f"{stray} pruned weights of {name!r} are not zero: apply the mask before encoding")
    return writer.which(mask, where, name) | {name + _VALUES: writer.stored(writer.rounded(kept, values, name), name)}


def _bits(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Eight weights a byte in C order, the first in the most significant bit; the last byte is padded with zeros."""
    return np.packbits(mask.reshape(-1))


def _complete(manifest: Mapping[str, Any], masks: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, Any]:
    """The manifest with what follows from the masks, which must not contradict what it says already."""
    layers = [
        {"name": name, "shape": list(mask.shape), "kept": int(np.count_nonzero(mask)), "total": mask.size}
        for name, mask in masks.items()
    ]
    known: dict[str, Any] = {"format": FORMAT, "layers": layers, "mask_digest": mask_digest(masks), "values": "float32"}
    written: dict[str, Any] = known | exact(dict(manifest))
    _need(written["values"] in writer.VALUES, f"values are {' or '.join(writer.VALUES)}, not {written['values']!r}")
    for key in ("format", "mask_digest"):
        _need(written[key] == known[key], f"the manifest's {key} is {written[key]!r}, but the masks' is {known[key]!r}")
    by_name = {layer["name"]: layer for layer in _read_layers(written)}
    _need(by_name == {layer["name"]: layer for layer in layers}, "the manifest's layers are not those of the masks")
    return written


def _portable(array: Array) -> Array:
    """The array in C order and little-endian; a scalar stays a scalar."""
    array = np.asarray(array)
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _statistic(name: str, array: Array) -> npt.NDArray[np.float32]:
    _need(name in _STATISTICS, f"a normalisation has mean and std, not {name!r}")
    return np.asarray(array, dtype="<f4", order="C")


# -- reading ----------------------------------------------------------------------------------------------------------


def _manifest(text: Any) -> dict[str, Any]:
    """The manifest, checked as far as it can be without the tensors."""
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or not _canonical(manifest, text):
        raise CheckpointMismatch("the manifest is not canonical JSON: the file is damaged, or another program wrote it")
    if manifest.get("format") in reader.FORMATS:  # of others nothing is known, and the reader says so
        _read_layers(manifest)
        values = manifest.get("values", "float32")
        _need(values in writer.VALUES, f"the manifest's values are {values!r}, which is none of {writer.VALUES}")
    return manifest


def _canonical(manifest: Any, text: str) -> bool:
    try:
        return canonical_json(manifest).decode() == text
    except (ValueError, RecursionError):
        return False


def _read_layers(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    layers = manifest.get("layers")
    _need(
        isinstance(layers, list) and all(map(_is_layer, layers)),
        "the manifest's layers are not name, shape, kept, total",
    )
    assert isinstance(layers, list)
    names = {layer["name"] for layer in layers}
    _need(len(names) == len(layers), "the manifest names a layer twice")
    for layer in layers:
        _need(math.prod(layer["shape"]) == layer["total"], f"the shape of {layer['name']!r} does not hold its total")
    _need_counts(manifest, layers)
    return layers


def _is_layer(layer: object) -> bool:
    return (
        isinstance(layer, dict)
        and layer.keys() == {"name", "shape", "kept", "total"}
        and isinstance(layer["name"], str)
        and isinstance(layer["shape"], list)
        and all(type(number) is int and number >= 0 for number in (*layer["shape"], layer["kept"], layer["total"]))
    )


def _need_known(names: Iterable[str], layers: Iterable[Mapping[str, Any]]) -> None:
    """No name that a reader could not place: parts of a sparse tensor, of a layer or without one; other statistics."""
    known = set(names)
    taken = {layer["name"] + part for layer in layers for part in (*_WHICH, _VALUES)} & known
    halves = {name.removesuffix(part) for part in _WHICH for name in known if name.endswith(part)}
    orphans = {name for name in halves if name + _VALUES in known}
    strange = {name for name in known if name.startswith(_NORMALISATION)}
    _need(not taken, f"{_listed(sorted(taken))}: two tensors would be stored under this name: rename the network's")
    _need(not orphans, f"{_listed(sorted(orphans))}: mask and values, but no such layer in the manifest")
    _need(not strange, f"{_listed(sorted(strange))}: names that begin with 'normalisation.' are reserved")


def _need_counts(manifest: Mapping[str, Any], layers: Iterable[Mapping[str, Any]]) -> None:
    density = manifest.get("density", {})
    _need(isinstance(density, Mapping), "the manifest's density is not target, kept, total")
    for key in ("kept", "total"):
        counted = sum(layer[key] for layer in layers)
        _need(
            density.get(key, counted) == counted,
            f"the manifest's density.{key} is {density.get(key)}, its layers' {counted}",
        )


def _differences(arrays: Mapping[str, Array], state: Mapping[str, Any]) -> Iterable[str]:
    for name in sorted(arrays.keys() & state.keys()):
        ours = f"{arrays[name].dtype.name} {arrays[name].shape}"
        theirs = f"{str(state[name].dtype).removeprefix('torch.')} {tuple(state[name].shape)}"
        if ours != theirs:
            yield f"{name} is {theirs} in the network and {ours} in the checkpoint"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which ``layers.10`` follows ``layers.2``."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _listed(items: list[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckpointMismatch(otherwise)
