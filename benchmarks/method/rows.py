"""Rows: the methods that are compared, each one a recipe document of the product.

Knows: recipes. Must never know: how a row is run, or what came out.

Laws:
    * Every row of a stream has the same network, epochs, learning rate and minibatch, except where its title says so;
      the product's least number of steps, which adds epochs where examples are few, is off.
    * Pruned rows reach their density at the last megabatch: the schedule's stages are the stream's length.
    * Guardrails are off: a row prunes as its schedule says, whatever becomes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from app.errors import InvalidRecipe
from app.learning.architectures import build, prunable_parameters
from app.learning.criteria import CRITERIA
from app.learning.normalisation import network_shape
from app.learning.recipe import PRESETS, Network, Recipe, Training
from app.learning.replay import POLICIES
from benchmarks.method.streams import Stream

Document = dict[str, Any]

DENSITIES = {"36": 0.366, "20": 0.20, "10": 0.10, "05": 0.05}
"""Final densities, by the ending of a row's name."""


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: as ``--rows`` takes it.
        title: as the page says it.
        group: which table of the page it stands in.
        over: what differs from the stream's document.
        reference: whether it is the emulation of the authors' published code.
    """

    name: str
    title: str
    group: str
    over: Callable[[Stream], Document] = field(repr=False)
    reference: bool = False

    def recipe(self, stream: Stream, seed: int) -> Recipe:
        """The whole recipe."""
        training = {"least_steps": 0, **stream.training}
        base: Document = {"seed": seed, "network": stream.network, "training": training, "guardrails": []}
        return Recipe.resolve(_merged(base, self.over(stream)))


def _merged(base: Document, over: Document) -> Document:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(out.get(key), dict) and isinstance(value, dict)
        out[key] = _merged(out[key], value) if both and "name" not in value else value
    return out


# -- what differs ------------------------------------------------------------------------------------------------------


def _paper(**schedule: Any) -> Callable[[Stream], Document]:
    return lambda stream: {"preset": "app-paper", "schedule": schedule or {"stages": len(stream.train)}}


def _paper_to(density: float) -> Callable[[Stream], Document]:
    """The paper's schedule with the tau that ends at a density."""
    return lambda stream: {
        "preset": "app-paper",
        "schedule": {"tau": math.log(density) / math.log(0.8), "stages": len(stream.train)},
    }


def _epochs(stream: Stream, longer: bool) -> int:
    """The stream's, or one and a half times as many."""
    return math.ceil(1.5 * stream.training["epochs"]) if longer else stream.training["epochs"]


def _dense(training: Document | None = None, longer: bool = False) -> Callable[[Stream], Document]:
    return lambda stream: {"preset": "dense", "training": {"epochs": _epochs(stream, longer), **(training or {})}}


def _pruned(
    density: float, training: Document | None = None, longer: bool = False, **over: Any
) -> Callable[[Stream], Document]:
    return lambda stream: {
        "schedule": {"name": "factor", "target": density, "stages": len(stream.train)},
        "training": {"epochs": _epochs(stream, longer), **(training or {})},
        **over,
    }


def _small(density: float) -> Callable[[Stream], Document]:
    return lambda stream: {"preset": "dense", "network": small_network(stream, density)}


def _replay(name: str, share: float | None = None, **options: Any) -> Callable[[Stream], Document]:
    def document(stream: Stream) -> Document:
        cap = {} if share is None else {"examples": round(share * stream.examples)}
        return _pruned(DENSITIES["36"], replay={"name": name, **options, **cap})(stream)

    return document


# -- the small dense network -------------------------------------------------------------------------------------------

_NETWORK: TypeAdapter[Network] = TypeAdapter(Network)


def small_network(stream: Stream, density: float) -> Document:
    """The stream's network with its widths scaled down until it has as many weights as the pruned one keeps."""
    assert stream.input.shape is not None and stream.input.classes is not None
    shape, classes = stream.input.shape, len(stream.input.classes)
    wanted = density * _weights(_frozen(stream.network), shape, classes)
    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        less = _weights(_frozen(_scaled(stream.network, middle)), shape, classes) < wanted
        low, high = (middle, high) if less else (low, middle)
    candidates = (_scaled(stream.network, low), _scaled(stream.network, high))
    return min(candidates, key=lambda network: abs(_weights(_frozen(network), shape, classes) - wanted))


def _scaled(network: Document, by: float) -> Document:
    """All widths times ``by``."""
    whole = _NETWORK.validate_python(network).model_dump(mode="json")
    widths = next(key for key in ("hidden", "channels", "width") if key in whole)
    value = whole[widths]
    scaled = max(1, round(by * value)) if isinstance(value, int) else [max(1, round(by * each)) for each in value]
    return whole | {widths: scaled}


def _frozen(network: Document) -> tuple[tuple[str, Any], ...]:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in network.items())


@cache
def _weights(network: tuple[tuple[str, Any], ...], shape: tuple[int, ...], classes: int) -> int:
    options = _NETWORK.validate_python(dict(network))
    built = build(options, network_shape(shape, options), classes)
    return sum(parameter.numel() for parameter in prunable_parameters(built).values())


# -- all of them -------------------------------------------------------------------------------------------------------


def _percent(ending: str) -> str:
    return f"{100 * DENSITIES[ending]:g} %"


def _all() -> list[Row]:
    rows = [
        Row("dense-paper", "dense, the paper's training", "main", _paper(name="constant")),
        Row("dense", "dense, our training", "main", _dense()),
        Row("one-shot", "Anytime-OSP 36.6 %", "main", _paper(name="one-shot")),
        Row("app-paper", "APP as the paper says, 36.6 %", "main", _paper()),
        Row("app-reference", "APP as its code does", "main", _paper(name="constant"), reference=True),
    ]
    for ending, density in DENSITIES.items():
        rows.append(Row(f"espalier-{ending}", f"**espalier, {_percent(ending)}**", "main", _pruned(density)))
    for ending, density in DENSITIES.items():
        title = f"small dense network of {_percent(ending)}"
        rows.append(Row(f"small-{ending}", title, "main", _small(density)))
    for ending, density in DENSITIES.items():
        title = f"espalier, {_percent(ending)}, 1.5 x epochs"
        rows.append(Row(f"longer-{ending}", title, "main", _pruned(density, longer=True)))
    shipped = {"least_steps": Training().least_steps}
    drift = PRESETS["espalier-drift"]["training"]
    rows += [
        Row("app-paper-10", "APP as the paper says, 10 %", "controls", _paper_to(0.10)),
        Row("dense-longer", "dense, our training, 1.5 x epochs", "controls", _dense(longer=True)),
        Row("dense-drift", "dense, weight decay of `espalier-drift`", "controls", _dense(drift)),
        Row("drift-36", "`espalier-drift`, 36.6 %", "controls", _pruned(0.366, drift)),
        Row("drift-10", "`espalier-drift`, 10 %", "controls", _pruned(0.10, drift)),
        Row("dense-shipped", "dense, with the product's least steps", "controls", _dense(shipped)),
        Row("shipped-36", "espalier, 36.6 %, with the product's least steps", "controls", _pruned(0.366, shipped)),
        Row("auto", "espalier, `auto` schedule (not below 5 %)", "controls", lambda _: {"schedule": {"name": "auto"}}),
    ]
    for name, title, over in (
        ("replay-balanced", "class-balanced, 25 %", _replay("class-balanced", 0.25)),
        ("replay-reservoir", "reservoir, 25 %", _replay("reservoir", 0.25)),
        ("replay-herding", "herding, 25 %", _replay("herding", 0.25)),
        ("replay-k-centre", "k-centre, 25 %", _replay("k-centre", 0.25)),
        ("replay-hardest", "hardest first, 25 %", _replay("hardest-first", 0.25)),
        ("replay-last", "the last megabatch", _replay("last", megabatches=1)),
        ("replay-none", "none", _replay("none")),
    ):
        rows.append(Row(name, title, "replay", over))
    for ending in ("10", "05"):
        for name, title, over in (
            ("magnitude", "magnitude", {"criterion": {"name": "magnitude"}}),
            ("snip", "SNIP, all at the start", {"criterion": {"name": "snip"}, "pace": {"name": "at-start"}}),
            ("erk", "Erdos-Renyi-kernel widths", {"distribution": {"name": "erdos-renyi-kernel"}}),
            ("random", "random weights: the control", {"criterion": {"name": "random"}}),
        ):
            title = f"{title}, {_percent(ending)}"
            rows.append(Row(f"{name}-{ending}", title, "criteria", _pruned(DENSITIES[ending], **over)))
    return rows


ROWS: dict[str, Row] = {row.name: row for row in _all()}

GROUPS = tuple(dict.fromkeys(row.group for row in ROWS.values()))


def unusable(row: Row, stream: Stream) -> str | None:
    """Why a row cannot be run, if it cannot: its recipe is refused, or an option of it has no implementation yet."""
    try:
        recipe = row.recipe(stream, 0)
    except InvalidRecipe as refused:
        return str(refused)
    if recipe.criterion not in CRITERIA or recipe.replay not in POLICIES:
        return "an option of it has no implementation in this version"
    return None
