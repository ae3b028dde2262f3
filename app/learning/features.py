"""Features and losses: what a trained network makes of some rows, for replay policies that compare them.

Knows: which module's input are the features, and how to listen there. Must never know: what is chosen by them.

Laws:
    * The network is as it was afterwards: weights, buffers, mode of each module, hooks.
    * Bounded memory: rows pass through in chunks; only what was asked for is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import InvalidRecipe
from app.learning.recipe import Custom, Network
from app.learning.rows import Rows

_LISTED = 64
"""Names of modules that an error lists at most."""

Positions = npt.NDArray[np.int64]


def features_of(
    network: nn.Module, options: Network, rows: Rows, positions: Positions, pulse: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float32]:
    """The features of the rows at ``positions``, in eval mode: (m, d) float32, flattened.

    They are what the network's last linear layer (in the order of its modules) sees; of the network ``custom``, the
    input of the module that ``features`` names.

    Args:
        network: on the rows' device.
        options: the recipe's network.
        rows: prepared as in training.
        positions: (m,) int64, at least one.
        pulse: called after every chunk; may raise to stop.

    Raises:
        InvalidRecipe: see ``check_features``.
    """
    parts = []
    with _listening(network, options) as heard:
        for x, _ in _chunks(rows, positions, pulse):
            parts.append(heard(x).float().flatten(1).cpu().numpy())
    return np.concatenate(parts)


def losses_of(
    network: nn.Module, rows: Rows, positions: Positions, pulse: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float32]:
    """Cross entropy of each row at ``positions``, in eval mode, without label smoothing: (m,) float32, in nats."""
    parts = [np.empty(0, np.float32)]
    with _evaluating(network):
        for x, y in _chunks(rows, positions, pulse):
            parts.append(functional.cross_entropy(network(x).float(), y, reduction="none").cpu().numpy())
    return np.concatenate(parts)


def check_features(network: nn.Module, options: Network, shape: tuple[int, ...]) -> None:
    """Refuse a recipe whose ``network.features`` names no module, or none that gets one row per example.

    Args:
        network: freshly built.
        options: the recipe's network.
        shape: of one example as ``forward`` gets it.

    Raises:
        InvalidRecipe: with the names of modules to choose from.
    """
    if isinstance(options, Custom) and options.features is not None:
        device = next(network.parameters()).device
        with _listening(network, options) as heard:
            heard(torch.zeros(2, *shape, device=device))


@contextmanager
def _listening(network: nn.Module, options: Network) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within, a function that runs the network and gives what the module of the features got: (n, ...)."""
    heard: list[object] = []
    module = _module(network, options)

    def features(x: Tensor) -> Tensor:
        heard.clear()
        network(x)
        got = heard[-1] if heard else None
        if not isinstance(got, Tensor) or got.ndim < 2 or len(got) != len(x):
            raise _unusable(network, options, "gets no tensor with one row per example")
        return got

    hook = module.register_forward_pre_hook(lambda _, given: heard.extend(given[:1]))
    try:
        with _evaluating(network):
            yield features
    finally:
        hook.remove()


def _module(network: nn.Module, options: Network) -> nn.Module:
    named = options.features if isinstance(options, Custom) else None
    if named is not None:
        modules: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
        if named not in modules:
            raise _unusable(network, options, "is not there")
        return modules[named]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise _unusable(network, options, "must be named: the network has no linear layer")
    return linear[-1]


def _unusable(network: nn.Module, options: Network, why: str) -> InvalidRecipe:
    names = [name for name, _ in network.named_modules() if name]
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    named = getattr(options, "features", None)
    message = (
        f"the module{f' {named!r}' if named else ''} whose input are the features {why}: set network.features to one "
        f"of: {', '.join(names[:_LISTED])}{more}"
    )
    return InvalidRecipe(message, [("/network/features", message)])


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients within; each module's own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _chunks(rows: Rows, positions: Positions, pulse: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(positions), rows.chunk):
        yield rows.gather(torch.from_numpy(positions[start : start + rows.chunk]))
        pulse()
