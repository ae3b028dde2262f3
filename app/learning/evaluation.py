"""Evaluation: how a network answers some rows, and the figures that follow.

Knows: logits, labels, counts. Must never know: masks, or what a figure is used for.

Laws:
    * A network's mode, weights and buffers are as before afterwards.
    * A network may know fewer classes than there are: examples of the others are wrong, and no part of the mean loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from app.learning.rows import Rows

BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a network answers some rows, in the rows' order.

    Attributes:
        loss: mean cross entropy in nats, without label smoothing, over examples of classes that the network knows; NaN
            when there are none.
        classes: how many there are.
        labels: (n,) int64: the right answers.
        predicted: (n,) int64: the network's.
        confidence: (n,) float32: softmax probability of what it predicted.
        unknown: how many are of classes that the network does not know.
    """

    loss: float
    classes: int
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    unknown: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) bool: right or wrong."""
        return np.asarray(self.labels == self.predicted)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())

    @property
    def errors(self) -> int:
        """Wrong answers."""
        return int((~self.correct).sum())

    @property
    def by_class(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Right answers and examples of each class: two (classes,) int64."""
        right = np.bincount(self.labels[self.correct], minlength=self.classes)
        return right, np.bincount(self.labels, minlength=self.classes)

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that occur of the share of right answers."""
        right, examples = self.by_class
        there = examples > 0
        return float((right[there] / examples[there]).mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): mean over ``BINS`` bins of confidence,
        weighted by their examples, of |accuracy - confidence|.
        """
        bins = np.minimum((self.confidence * BINS).astype(np.int64), BINS - 1)
        right = np.bincount(bins, weights=self.correct, minlength=BINS)
        sure = np.bincount(bins, weights=self.confidence, minlength=BINS)
        return float(np.abs(right - sure).sum() / len(self))


def evaluate(network: nn.Module, rows: Rows, pulse: Callable[[], None] = lambda: None) -> Evaluation:
    """Let ``network`` answer all ``rows`` in float32 and eval mode; its mode is as before afterwards.

    Args:
        network: on the rows' device.
        rows: at least one.
        pulse: called after every chunk; may raise to stop.
    """
    predicted = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    confidence = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    loss = torch.zeros((), dtype=torch.float64, device=rows.device)
    done, counted, training = 0, 0, network.training
    network.eval()
    try:
        with torch.inference_mode():
            for x, y in rows.chunks():
                logits = network(x).float()
                part = slice(done, done + len(y))
                confidence[part], predicted[part] = logits.softmax(1).max(1)
                if logits.shape[1] < rows.classes:
                    known = y < logits.shape[1]
                    logits, y = logits[known], y[known]
                loss += functional.cross_entropy(logits, y, reduction="sum")
                counted += len(y)
                done = part.stop
                pulse()
    finally:
        network.train(training)
    mean = float(loss) / counted if counted else math.nan
    return Evaluation(
        mean, rows.classes, rows.labels, predicted.cpu().numpy(), confidence.cpu().numpy(), unknown=len(rows) - counted
    )
