"""What is said about an upload before it is read, and how it is refused.

Knows: limits, and what a model's input says about reading. Must never know: a format, an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from app.errors import InvalidMegabatch

Resize = Literal["reject", "stretch", "crop", "pad"]
"""What becomes of an image whose height and width are not the model's."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How much decoding one upload may take.

    Attributes:
        max_bytes: of the decoded arrays together.
        seconds: until the deadline.
        memory_bytes: beyond what the bare decoder takes.
    """

    max_bytes: int
    seconds: float = 60.0
    memory_bytes: int = 512 * MIB


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model's input says about reading an upload; plain values, so that it travels as JSON.

    Attributes:
        label: name of the column that holds the labels; None: the usual names are tried.
        features: names of the columns that hold the features, in order; None: all others, in the file's order.
        classes: class names in label order, which labels given as names are looked up in; None: they are those found.
        extend: names that ``classes`` lacks are added to it, instead of refused.
        shape: of one example, where the format does not say; None: as the format says.
        dtype: ``float32`` or ``uint8``, where the format does not say; None: ``float32``.
        resize: what becomes of images of another size.
    """

    label: str | None = None
    features: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    extend: bool = False
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    resize: Resize = "reject"


def refuse_size(what: str, size: int, limits: Limits) -> NoReturn:
    """Refuse more bytes than the limit."""
    refuse(
        "too-large", f"{what} takes {size} bytes, over the limit of {limits.max_bytes}: send fewer examples at a time"
    )


def refuse(reason: str, message: str) -> NoReturn:
    """Refuse the upload. ``reason`` is a stable word, ``message`` says the remedy."""
    raise InvalidMegabatch(reason, message)
