"""An image's pixels as gray or RGB bytes, in the size that is wanted.

Knows: Pillow. Must never know: archives, labels, a model.

Laws:
    * Only what its header was checked for is decoded; Pillow must find the same size, and one frame.
    * An image is whole, or is refused; never repaired.

The rule of pixels: the orientation in EXIF is applied; 16-bit samples keep their upper byte; a palette is looked up;
CMYK becomes RGB; what is transparent is laid on black; colour becomes gray by ITU-R 601 luma, where gray is asked for,
and gray becomes colour by three equal channels.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin

from app.errors import InvalidMegabatch
from app.intake.image_headers import Header, refuse_corrupt, refuse_frames, refuse_truncated
from app.intake.reading import Resize

_PLUGINS = (PngImagePlugin, JpegImagePlugin, MpoImagePlugin, WebPImagePlugin)
"""Imported here, because Pillow would import them when it meets the first image, which is too late in a sandbox."""

Image.preinit()

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF (tag 0x0112); 1 is upright."""


def pixels(data: bytes, header: Header, channels: int, name: str) -> Image.Image:
    """Decode an image whose header was read and found to be small enough.

    Args:
        data: the whole file.
        header: what ``read_header`` said of it.
        channels: 1 or 3.
        name: for messages.

    Returns:
        An upright image in the mode ``L`` or ``RGB``.

    Raises:
        InvalidMegabatch: ``animated``, ``truncated`` or ``corrupt``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about notes in the file; its pixels are decoded or refused
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[header.kind])
            if getattr(image, "n_frames", 1) != 1:
                refuse_frames(name)
            if image.size != (header.width, header.height):
                refuse_corrupt(name, "has two sizes")
            image.load()
            plain = _plain(image, channels)
    except (InvalidMegabatch, MemoryError):
        raise
    except Exception as error:  # what Pillow raises at damaged bytes is listed nowhere
        if "truncated" in str(error).lower():
            refuse_truncated(name)
        refuse_corrupt(name, f"cannot be decoded ({type(error).__name__})")
    return plain.transpose(_TURNS[header.orientation]) if header.orientation > 1 else plain


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """The image without palette, transparency or deep samples."""
    if image.mode.startswith("I"):
        image = Image.fromarray(_upper_bytes(image))
    elif image.has_transparency_data:
        image = _on_black(image)
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _upper_bytes(image: Image.Image) -> npt.NDArray[np.uint8]:
    samples: npt.NDArray[Any] = np.asarray(image)
    gray = (samples >> 8).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        gray[samples == clear] = 0
    return gray


def _on_black(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    black = Image.new("RGB", image.size)
    black.paste(clear, mask=clear)
    return black


def fitted(image: Image.Image, width: int, height: int, resize: Resize) -> Image.Image:
    """The image in the given size: stretched, its middle, or the whole on zeros; bilinear over what a pixel covers."""
    if image.size == (width, height):
        return image
    if resize == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if resize == "crop":
        scale = min(image.width / width, image.height / height)
        x, y = max(0.0, (image.width - width * scale) / 2), max(0.0, (image.height - height * scale) / 2)
        return image.resize((width, height), Image.Resampling.BILINEAR, (x, y, image.width - x, image.height - y))
    scale = min(width / image.width, height / image.height)
    small = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return canvas
