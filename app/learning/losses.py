"""Losses: what training makes small, for a minibatch of answers and what was to be answered.

Knows: logits, labels, the training options of a recipe. Must never know: the network, the mask, or how far training is.

Law: the weights of classes have mean 1 over the training examples, so that they change what is learned and not how
fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from app.errors import InvalidRecipe
from app.learning.recipe import Training


@dataclass(frozen=True, eq=False)
class Targets:
    """What the examples of a minibatch are to be answered with.

    Attributes:
        labels: (m,) int64.
        partners: (m,) int64, the labels of the examples that each was mixed with; None when none was.
        share: of an example that is its own; the rest is its partner's.
    """

    labels: Tensor
    partners: Tensor | None = None
    share: float = 1.0


class Loss:
    """Cross entropy with label smoothing, times the weight of the example's class, meaned over the minibatch.

    A class's weight multiplies the whole loss of its examples, as if they were there so many times. (The ``weight`` of
    ``torch.nn.functional.cross_entropy`` multiplies each class's term instead: smoothing then pulls every example
    towards the rarest class.) A mixed example's loss is the mixture of its own and its partner's.

    Args:
        options: the recipe's.
        labels: (n,) of all training examples.
        classes: number of logits; labels lie in [0, classes).
        device: where minibatches are.

    Raises:
        InvalidRecipe: when there is not one weight for each class.
    """

    def __init__(self, options: Training, labels: npt.NDArray[np.int64], classes: int, device: torch.device) -> None:
        self._smoothing = options.label_smoothing
        weights = class_weights(options, labels, classes)
        self._weights = None if weights is None else torch.from_numpy(weights).to(device)

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """The loss of a minibatch, a scalar.

        Args:
            logits: (m, classes) float32.
            targets: of the same examples.
        """
        own = self._of(logits, targets.labels)
        if targets.partners is None:
            return own
        return targets.share * own + (1 - targets.share) * self._of(logits, targets.partners)

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._weights is None:
            return functional.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        losses = functional.cross_entropy(logits, labels, label_smoothing=self._smoothing, reduction="none")
        return (losses * self._weights.index_select(0, labels)).mean()


def class_weights(options: Training, labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32] | None:
    """Weight of each class, with mean 1 over the examples: (classes,) float32; None when all weigh alike.

    ``balanced`` is n / (classes that occur * examples of the class): all that occur count alike. A class without an
    example weighs nothing, which no example notices.

    Raises:
        InvalidRecipe: when there is not one weight for each class.
    """
    chosen = options.class_weights
    if chosen is None:
        return None
    counts = np.bincount(labels, minlength=classes)
    if chosen == "balanced":
        raw = np.divide(1.0, counts, out=np.zeros(classes), where=counts > 0)
    elif len(chosen) == classes:
        raw = np.asarray(chosen)
    else:
        message = (
            f"training.class_weights has {len(chosen)} weights for {classes} classes: give one for each, or balanced"
        )
        raise InvalidRecipe(message, [("/training/class_weights", message)])
    weights = np.where(counts > 0, raw, 0)
    weights /= weights.max()
    return (weights * (len(labels) / (weights @ counts))).astype(np.float32)
