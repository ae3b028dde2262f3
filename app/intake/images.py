"""A folder of images in a zip or tar archive -> a megabatch.

Knows: how a folder says which class each image is, and what sizes become of it. Must never know: a format of images or
archives from within, SQL, torch.

Laws:
    * Headers come before pixels: the size, frames and bytes of every image are checked before one of them is decoded.
    * Equal folders give equal megabatches, however they were packed: images stand in the order of their paths, or of
      the labels file.
    * Each image has one label, and each label of a labels file an image; what is neither is refused by its name.
    * Memory is bounded by one image and one block.

Reasons of refusal, stable words for programs, beside those of ``folder`` and ``arrays``:

    the folder    layout, labels-file, missing-label, missing-member, label-not-integer
    an image      not-an-image, animated, truncated, corrupt, too-large
    its size      mixed-sizes, wrong-shape, shape-unknown
    its values    wrong-dtype
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.intake.arrays import BLOCK, DecodedFiles, Labels, Limits, Reading, check_example, refuse, refuse_size, write
from app.intake.folder import File, opened
from app.intake.image_headers import LONGEST_SIDE, Header, Kind, read_header
from app.intake.labels import LABEL_FILES, read_labels
from app.intake.pixels import fitted, pixels

_PIXEL_BYTES: dict[Kind, int] = {"PNG": 20, "JPEG": 20, "WEBP": 32}
"""What one pixel may take while it is decoded: some images of four bytes each, and the file."""

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NAMED = 5


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One image, and its class as the folder says it: a name, or a number."""

    file: File
    label: str | int


def decode_images(path: Path, work: Path, limits: Limits, reading: Reading) -> DecodedFiles:
    """Decode a zip, tar or gzipped tar of PNG, JPEG and WebP images into ``work/x.npy``, ``y.npy`` and ``ids.npy``.

    The label of an image is its folder's name (``cats/001.png``; all folders may lie in one), or stands in a
    ``labels.csv`` or ``labels.jsonl`` beside the folders. Labels that are whole numbers all are class numbers, unless
    all are names of the model's classes. Empty folders and the notes of file managers are ignored.

    ``reading.shape`` gives height, width and channels; without it the images must be of one size, and are RGB if any
    of them has colour. ``reading.resize`` says what becomes of an image of another size: ``reject``; ``stretch`` it;
    ``crop`` it, its short side scaled, around the centre; or ``pad`` it with zeros, its long side scaled. Scaling is
    bilinear over all pixels that a new one covers.

    Args:
        path: the upload; nothing about it is trusted.
        work: a folder; on a refusal it may hold partial files.
        limits: ``max_bytes`` of the arrays; no image may need more than ``memory_bytes`` to be decoded.
        reading: what the model's input says.

    Raises:
        InvalidMegabatch: with one of the reasons above.
    """
    _check_model(reading)
    with opened(path, work, limits) as files:
        labelled = _labelled(files)
        headers = [_checked_header(each.file, limits) for each in labelled]
        shape = _target(headers, reading)
        check_example(shape, 1)
        size = len(labelled) * (int(np.prod(shape)) + 8)
        if size > limits.max_bytes:
            refuse_size("the megabatch", size, limits)
        for each, header in zip(labelled, headers, strict=True):
            _check_scaling(each.file, header, shape, limits)
        blocks = _blocks(labelled, headers, shape, reading)
        return write(blocks, work, limits, reading, format="images", examples=len(labelled))


# -- labels -----------------------------------------------------------------------------------------------------------


def _labelled(files: list[File]) -> list[_Labelled]:
    """Each image with its label."""
    if not files:
        refuse("empty", "there is no image in the archive: send one folder of images for each class")
    top = {file.path[0] for file in files if len(file.path) > 1}
    roots: list[tuple[str, ...]] = [(), *((name,) for name in top if len(top) == 1)]
    tables = [file for file in files if file.path[-1] in LABEL_FILES and file.path[:-1] in roots]
    if len(tables) > 1:
        refuse("labels-file", f"there are {tables[0].name!r} and {tables[1].name!r}: send one labels file")
    if tables:
        return _by_table(files, tables[0])
    return _by_folder(files)


def _by_folder(files: list[File]) -> list[_Labelled]:
    depth = 3 if all(len(file.path) == 3 and file.path[0] == files[0].path[0] for file in files) else 2
    for file in files:
        if len(file.path) != depth:
            refuse(
                "layout",
                f"{file.name!r} lies in no folder of its class: send one folder of images for each class, such as "
                "cats/001.png, or a labels.csv (file,label) beside the images",
            )
    return [_Labelled(file, file.path[-2]) for file in files]


def _by_table(files: list[File], table: File) -> list[_Labelled]:
    depth = len(table.path) - 1
    images = {"/".join(file.path[depth:]): file for file in files if file is not table and len(file.path) > depth}
    strays = [file for file in files if len(file.path) <= depth]
    labels = read_labels(table.read(), table.path[-1])
    for name in labels:
        if name not in images:
            refuse("missing-member", f"{table.name!r} names {name[-100:]!r}, which is not in the archive: send it too")
    for file in (*strays, *(image for name, image in images.items() if name not in labels)):
        refuse("missing-label", f"{table.name!r} has no label for {file.name!r}: add it, or leave that file out")
    return [_Labelled(images[name], label) for name, label in labels.items()]


def _are_numbers(labelled: Sequence[_Labelled], reading: Reading) -> bool:
    """Whether labels are class numbers: whole numbers all, and not all of them names of the model's classes."""
    found = {each.label for each in labelled}
    if any(isinstance(label, int) for label in found):
        return True
    return not found <= set(reading.classes or ()) and all(_WHOLE.fullmatch(str(label)) for label in found)


# -- sizes ------------------------------------------------------------------------------------------------------------


def _checked_header(file: File, limits: Limits) -> Header:
    header = read_header(file.read(), file.name)
    count, most = header.width * header.height, limits.memory_bytes // _PIXEL_BYTES[header.kind]
    if count > most or max(header.size) > LONGEST_SIDE:
        refuse(
            "too-large",
            f"the image {file.name!r} has {header.width} x {header.height} pixels; {most} are decoded, and "
            f"{LONGEST_SIDE} on a side: send it smaller",
        )
    return header


def _target(headers: Sequence[Header], reading: Reading) -> tuple[int, ...]:
    """The shape of one example: the model's, or else that of the images."""
    shape, sizes = reading.shape, Counter(header.size for header in headers)
    if shape is None:
        if len(sizes) > 1:
            refuse("mixed-sizes", f"the images have {_told(sizes)}: {_REMEDY}")
        return (*next(iter(sizes)), max(header.channels for header in headers))
    if reading.resize == "reject" and set(sizes) != {shape[:2]}:
        refuse("wrong-shape", f"the model takes {shape[0]} x {shape[1]}, and the images have {_told(sizes)}: {_REMEDY}")
    return shape


def _check_model(reading: Reading) -> None:
    """Check that images are what the model takes at all."""
    shape = reading.shape
    if shape is None and reading.resize != "reject":
        refuse(
            "shape-unknown",
            f"the model is to {reading.resize} images, but its size is not known yet: declare input.shape, as "
            "[height, width, channels], when the model is created",
        )
    if shape is not None and (len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,))):
        refuse(
            "wrong-shape",
            f"the model takes examples of shape {shape}, and images are (height, width, 1 or 3): send another format",
        )
    if reading.dtype not in (None, "uint8"):
        refuse(
            "wrong-dtype",
            f"images hold bytes (uint8), but the model takes {reading.dtype}, and nobody can know its scale: send x "
            "scaled as before, in an npz; or create a model whose input.dtype is uint8",
        )


_REMEDY = (
    "send them in one size (height x width), or create a model with input.shape and input.resize (stretch, crop, pad)"
)


def _told(sizes: Counter[tuple[int, int]]) -> str:
    most = ", ".join(f"{height} x {width} ({count} times)" for (height, width), count in sizes.most_common(_NAMED))
    return most + (f" and {len(sizes) - _NAMED} other sizes" if len(sizes) > _NAMED else "")


def _check_scaling(file: File, header: Header, shape: tuple[int, ...], limits: Limits) -> None:
    """Scaling goes over the rows first: there are as many of them as before, as wide as in the end."""
    if header.size[0] * shape[1] > limits.memory_bytes // _PIXEL_BYTES[header.kind]:
        refuse(
            "too-large", f"the image {file.name!r} is too high to be scaled to {shape[0]} x {shape[1]}: send it smaller"
        )


# -- pixels -----------------------------------------------------------------------------------------------------------


def _blocks(
    labelled: Sequence[_Labelled], headers: Sequence[Header], shape: tuple[int, ...], reading: Reading
) -> Iterator[tuple[npt.NDArray[np.uint8], Labels]]:
    """Decoded images, a block at a time."""
    numbers = _are_numbers(labelled, reading)
    height, width, channels = (*shape, 1)[:3]
    rows = max(1, BLOCK // (height * width * channels))
    for start in range(0, len(labelled), rows):
        some = labelled[start : start + rows]
        block = np.empty((len(some), height, width, channels), np.uint8)
        for at, (each, header) in enumerate(zip(some, headers[start : start + rows], strict=True)):
            image = pixels(each.file.read(), header, channels, each.file.name)
            block[at] = np.asarray(fitted(image, width, height, reading.resize)).reshape(height, width, channels)
        labels = [each.label for each in some]
        yield (
            block.reshape(len(some), *shape),
            np.array([int(label) for label in labels], np.int64) if numbers else list(map(str, labels)),
        )
