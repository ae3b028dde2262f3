"""Augmentation: random changes of a minibatch, drawn anew in every epoch.

Knows: network input, labels, the augmentation options of a recipe. Must never know: the network, or how far training
is.

Laws:
    * Every draw comes from torch's global generator of the CPU, which the caller seeds and snapshots hold: what is
      drawn depends on its state and the minibatch's size alone, on every device.
    * All work is on whole minibatches, on their device; the tensors that are given are not changed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from app.errors import InvalidRecipe
from app.learning.losses import Targets
from app.learning.recipe import Augmentation


def augmented(options: Augmentation, x: Tensor, y: Tensor) -> tuple[Tensor, Targets]:
    """Crop, mirror, then mix the examples of a minibatch, as far as ``options`` say so.

    Args:
        options: the recipe's.
        x: (m, c, h, w) float32; any (m, ...) where only mixup is on.
        y: (m,) int64 labels.

    Returns:
        Input of the same shape, and what it is to be answered with.

    Raises:
        InvalidRecipe: when examples that are not images are to be cropped or mirrored.
    """
    if (options.crop or options.flip) and x.ndim != 4:
        shape = ", ".join(map(str, x.shape[1:]))
        message = f"training.augmentation crop and flip need images, not examples of shape ({shape}): set both off"
        raise InvalidRecipe(message, [("/training/augmentation", message)])
    if options.crop:
        x = cropped(x, options.crop)
    if options.flip:
        x = mirrored(x)
    return mixed(x, y, options.mixup) if options.mixup else (x, Targets(y))


def cropped(x: Tensor, pixels: int) -> Tensor:
    """A random window of each image after ``pixels`` of zeros were put around it: (m, c, h, w)."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (pixels,) * 4)
    top, left = torch.randint(2 * pixels + 1, (2, len(x))).to(x.device)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # every window of every image, without a copy
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def mirrored(x: Tensor) -> Tensor:
    """Each image, left and right exchanged in one of two: (m, c, h, w)."""
    turned = (torch.rand(len(x)) < 0.5).to(x.device)
    return torch.where(turned[:, None, None, None], x.flip(3), x)


def mixed(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Targets]:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412): share * x + (1 - share) * x of a random partner.

    The share is drawn from Beta(alpha, alpha), once for the minibatch, and partners are a random order of it, as in
    the authors' code.
    """
    share, partner = _beta(alpha), torch.randperm(len(x)).to(x.device)
    return torch.lerp(x.index_select(0, partner), x, share), Targets(y, y.index_select(0, partner), share)


def _beta(alpha: float) -> float:
    """A draw from Beta(alpha, alpha), in logarithms, so that a small alpha does not underflow.

    G / (G + G') with G = Gamma(alpha), and Gamma(alpha) = Gamma(alpha + 1) * U ** (1 / alpha).
    """
    grown = torch._standard_gamma(torch.full((2,), alpha + 1, dtype=torch.float64))
    first, second = grown.log() + torch.rand(2, dtype=torch.float64).log() / alpha
    return float(torch.sigmoid(first - second))
