"""Pictures: examples that are images, small, one below the other in one PNG.

Knows: which shapes are images, and Pillow. Must never know: labels, HTTP, or where the values come from.

Laws:
    * ``uint8`` is brightness as it is. Other values go from black to white over the range that is given: what is beyond
      is black or white, what is not finite is black, and what has no range is grey.
    * Memory stays bounded however large an image is: of great ones only every so many rows and columns are read.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

MOST = 96
"""Pixels of a picture's longer side, at most."""

_CHANNELS = (1, 3, 4)
_READ = 4 * MOST
"""Pixels of an image's longer side that are read for a picture, about."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an example of some shape is an image: height, width, and the axis of its channels, if it has one.

    ``size``: width and height of its picture.
    """

    height: int
    width: int
    channels: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture: the image's own, unless that is larger than ``MOST``."""
        share = min(1.0, MOST / max(self.width, self.height))
        return max(1, round(self.width * share)), max(1, round(self.height * share))


def layout_of(shape: Sequence[int]) -> Layout | None:
    """How an example is an image: (height, width), or with 1, 3 or 4 channels, last or else first; None: it is none."""
    if len(shape) == 2:
        found = Layout(shape[0], shape[1], None)
    elif len(shape) == 3 and shape[2] in _CHANNELS:
        found = Layout(shape[0], shape[1], 2)
    elif len(shape) == 3 and shape[0] in _CHANNELS:
        found = Layout(shape[1], shape[2], 0)
    else:
        return None
    return found if min(found.height, found.width) > 1 else None


def sheet(examples: Iterable[npt.NDArray[np.generic]], count: int, layout: Layout, low: float, high: float) -> bytes:
    """A PNG of the pictures of some examples, one below the other.

    Args:
        examples: each of the shape that the layout is of; one is held at a time.
        count: how many there are.
        layout: of each.
        low, high: what is drawn black and white, where values are not ``uint8``.
    """
    width, height = layout.size
    whole = Image.new("RGB", (width, max(1, count) * height))
    for place, example in enumerate(examples):
        picture = Image.fromarray(_pixels(example, layout, low, high))
        if picture.size != layout.size:
            picture = picture.resize(layout.size, Image.Resampling.BOX)
        whole.paste(picture, (0, place * height))
    packed = io.BytesIO()
    whole.save(packed, "PNG")
    return packed.getvalue()


def _pixels(example: npt.NDArray[np.generic], layout: Layout, low: float, high: float) -> npt.NDArray[np.uint8]:
    """(height, width) or (height, width, 3) uint8. Of four channels the last, which mostly is opacity, is left out."""
    image = example if layout.channels is None else np.moveaxis(example, layout.channels, -1)
    step = max(1, max(layout.height, layout.width) // _READ)
    image = image[::step, ::step]
    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] == 1 else image[..., :3]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image, dtype=np.uint8)
    values = image.astype(np.float64)
    shares = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    shares = np.where(np.isfinite(values), np.clip(shares, 0, 1), 0)
    return np.ascontiguousarray(np.rint(255 * shares), dtype=np.uint8)
