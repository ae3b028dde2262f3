"""Streams: megabatches in order, what each stage is tested on, and the protocol that all rows share.

Knows: data sets and their protocols. Must never know: which methods are compared.

Laws:
    * The same name and seed give the same stream.
    * No test example, and no image that the whitening of ``tabular`` was made from, is ever in a megabatch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from app.domain import InputSpec, Normalisation

Labelled = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Where real data lies beside a checkout; see its README. ``--data`` names another folder."""

GAS = Path("gas_drift", "gas_drift.npz")
FASHION = Path("fashion_mnist")


@dataclass(frozen=True, eq=False)
class Stream:
    """Megabatches in order, and the test set of each stage.

    Attributes:
        name: as ``--streams`` takes it.
        train: megabatches.
        test: one test set for each stage; where the stream drifts, the megabatch that comes next (prequential).
        input: what the network is fed.
        network: as a recipe names it.
        training: epochs, learning rate and minibatch, the same for all rows.
        prequential: whether stage t is tested on megabatch t + 1.
    """

    name: str
    train: list[Labelled]
    test: list[Labelled]
    input: InputSpec
    network: dict[str, Any]
    training: dict[str, Any]
    prequential: bool = False

    @property
    def examples(self) -> int:
        """Examples of all megabatches."""
        return sum(len(y) for _, y in self.train)


@dataclass(frozen=True)
class Source:
    """How a stream is made, which data it needs, and whether it is too much for a processor."""

    make: Callable[[Path, int], Stream]
    needs: Path | None = None
    gpu: bool = False


# -- digits ------------------------------------------------------------------------------------------------------------


def _digits(stages: int) -> Callable[[Path, int], Stream]:
    def make(_: Path, seed: int) -> Stream:
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(y))
        x, y = x[order].astype(np.float32), y[order].astype(np.int64)
        name = "digits" if stages == 8 else f"digits-{stages}"
        return Stream(
            name, _split(x[:1296], y[:1296], stages), [(x[1296:1796], y[1296:1796])] * stages, _spec((64,), 10),
            {"name": "mlp", "hidden": [128, 128]}, {"epochs": 25, "learning_rate": 0.1, "minibatch": 64},
        )  # fmt: skip

    return make


# -- gas ---------------------------------------------------------------------------------------------------------------


def _gas(data: Path, seed: int) -> Stream:
    with np.load(data / GAS, allow_pickle=False) as found:
        x, y, batch = found["x"], found["y"].astype(np.int64), found["batch"]
    parts = [(x[batch == number], y[batch == number]) for number in np.unique(batch)]
    spec = _spec((128,), 6, Normalisation(signed_log=True, clip=8.0))
    return Stream(
        "gas", parts[:-1], parts[1:], spec, {"name": "mlp", "hidden": [128, 64]},
        {"epochs": 12, "learning_rate": 0.05, "minibatch": 64}, prequential=True,
    )  # fmt: skip


# -- Fashion-MNIST -----------------------------------------------------------------------------------------------------


@cache
def _fashion(data: Path) -> tuple[Labelled, Labelled]:
    """Training images and test images, as published."""
    parts = []
    for name in ("train_0", "train_1", "test"):
        with np.load(data / FASHION / f"fashion_mnist_{name}.npz", allow_pickle=False) as found:
            parts.append((found["x"], found["y"].astype(np.int64)))
    first, second, test = parts
    return (np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])), test


_WHITENED_FROM = 10_000
"""The last training images: ``tabular`` takes its axes from them alone, and no stream draws from them."""


_TESTED = 5_000
"""The first test images: every stage is tested, and ten thousand would take longer than training."""


def _images(name: str, stages: int, size: int, network: dict[str, Any], training: dict[str, Any], like: str = ""):
    """``stages`` megabatches of ``size`` images."""

    def make(data: Path, seed: int) -> Stream:
        (x, y), (test_x, test_y) = _fashion(data)
        chosen = np.random.default_rng(seed).permutation(len(y) - _WHITENED_FROM)[: stages * size]
        x, y = x[chosen], y[chosen]
        if like == "cifar":
            x, test_x = _as_cifar(x), _as_cifar(test_x)
        test = [(test_x[:_TESTED], test_y[:_TESTED])] * stages
        return Stream(name, _split(x, y, stages), test, _spec(x.shape[1:], 10, dtype="uint8"), network, training)

    return make


def _as_cifar(x: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """28 x 28 grey -> 32 x 32 in three channels."""
    return np.repeat(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), 3, axis=3)


@cache
def _whitened(data: Path) -> tuple[Labelled, Labelled]:
    """Sixteen whitened principal components: training images without those that the axes come from; test images."""
    (x, y), (test_x, test_y) = _fashion(data)
    flat, test_flat = (a.reshape(len(a), -1).astype(np.float32) / 255 for a in (x, test_x))
    axes = PCA(16, whiten=True, svd_solver="covariance_eigh").fit(flat[-_WHITENED_FROM:])
    kept = axes.transform(flat[:-_WHITENED_FROM]).astype(np.float32)
    return (kept, y[:-_WHITENED_FROM]), (axes.transform(test_flat).astype(np.float32), test_y)


def _tabular(data: Path, seed: int) -> Stream:
    (x, y), (test_x, test_y) = _whitened(data)
    chosen = np.random.default_rng(seed).permutation(len(y))[:4800]
    return Stream(
        "tabular", _split(x[chosen], y[chosen], 8), [(test_x[:8000], test_y[:8000])] * 8, _spec((16,), 10),
        {"name": "mlp", "hidden": [200, 200]}, {"epochs": 10, "learning_rate": 0.1, "minibatch": 128},
    )  # fmt: skip


# -- all of them -------------------------------------------------------------------------------------------------------


def _spec(
    shape: tuple[int, ...], classes: int, normalisation: Normalisation | None = None, dtype: str = "float32"
) -> InputSpec:
    return InputSpec(shape, dtype, tuple(map(str, range(classes))), normalisation or Normalisation())


def _split(x: npt.NDArray[Any], y: npt.NDArray[np.int64], stages: int) -> list[Labelled]:
    """``stages`` megabatches of equal size; what is left over is left out."""
    size = len(y) // stages
    return [(x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]) for i in range(stages)]


_CNN = {"name": "cnn", "channels": [16, 32, 64]}
_MLP = {"name": "mlp", "hidden": [128, 128]}
_FEW = {"epochs": 10, "learning_rate": 0.1, "minibatch": 64}


def _on_gpu(network: str) -> Source:
    training = {"epochs": 10, "learning_rate": 0.1, "minibatch": 64}
    made = _images(f"fashion-{network}", 8, 1500, {"name": network}, training, like="cifar")
    return Source(made, FASHION, gpu=True)


STREAMS: dict[str, Source] = {
    "digits": Source(_digits(8)),
    "gas": Source(_gas, GAS),
    "tabular": Source(_tabular, FASHION),
    "fashion": Source(_images("fashion", 8, 1500, _CNN, {"epochs": 2, "learning_rate": 0.1, "minibatch": 64}), FASHION),
    "digits-24": Source(_digits(24)),
    "digits-120": Source(_digits(120)),
    "fashion-24": Source(_images("fashion-24", 24, 100, _MLP, _FEW), FASHION),
    "fashion-120": Source(_images("fashion-120", 120, 100, _MLP, _FEW), FASHION),
    "fashion-resnet18": _on_gpu("resnet18"),
    "fashion-resnet50": _on_gpu("resnet50"),
    "fashion-vgg16": _on_gpu("vgg16"),
}
"""What the page says of them is in ``words``: it changes no number."""


def make(name: str, data: Path, seed: int) -> Stream:
    """One stream."""
    return STREAMS[name].make(data, seed)


def missing(name: str, data: Path, gpu: bool) -> str | None:
    """Why a stream cannot be run here, if it cannot."""
    source = STREAMS[name]
    if source.needs is not None and not (data / source.needs).exists():
        return f"{data / source.needs} is not there; name the folder of the data with --data PATH"
    return "needs a GPU, and torch sees none" if source.gpu and not gpu else None
