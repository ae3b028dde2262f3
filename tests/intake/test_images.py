"""Decoding archives of images: layouts, modes, sizes; what is hostile is refused with a reason and a remedy."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import struct
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.errors import InvalidMegabatch
from app.intake import arrays, classes, images
from app.intake import folder as folders
from app.intake.archive import read_directory
from app.intake.arrays import DecodedFiles, Limits, Reading
from app.intake.images import decode_images
from espalier.formats.megabatch import arrays_digest, example_ids
from tests.intake.hostile import Entry, archive
from tests.intake.hostile_images import (
    HOSTILE_IMAGES,
    Case,
    chunk,
    colour,
    damaged,
    folder,
    gray,
    huge_png,
    png,
    saved,
    tarred,
    zipped,
)

PLAIN = Reading()
LIMITS = Limits(max_bytes=64 << 20, seconds=10, memory_bytes=256 << 20)


def decoded(data: bytes, work: Path, reading: Reading = PLAIN, limits: Limits = LIMITS) -> DecodedFiles:
    (work / "upload").write_bytes(data)
    return decode_images(work / "upload", work, limits, reading)


def one(data: bytes, work: Path, **reading: Any) -> np.ndarray:
    """The pixels of one image, alone in its archive."""
    return np.load(decoded(zipped({"cat/1.png": data}), work, Reading(**reading)).x)[0]


def refused(data: bytes, work: Path, reading: Reading = PLAIN, limits: Limits = LIMITS) -> InvalidMegabatch:
    with pytest.raises(InvalidMegabatch) as caught:
        decoded(data, work, reading, limits)
    return caught.value


# -- archives and layouts ---------------------------------------------------------------------------------------------


def by_zipfile(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for folder_name in dict.fromkeys(name.rpartition("/")[0] for name in files):
            packed.mkdir(folder_name)
        for name, data in files.items():
            packed.writestr(name, data)
    return out.getvalue()


def gnu(files: dict[str, bytes]) -> bytes:
    return tarred(files, tarfile.GNU_FORMAT)


def ustar(files: dict[str, bytes]) -> bytes:
    return tarred(files, tarfile.USTAR_FORMAT)


def gzipped(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tarred(files))


def stored(files: dict[str, bytes]) -> bytes:
    return zipped(files, deflate=False)


PACKERS = [zipped, stored, by_zipfile, tarred, gnu, ustar, gzipped]


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("top", ["", "data/", "./"])
def test_every_packing_gives_the_same_megabatch(pack: Any, top: str, tmp_path: Path) -> None:
    files = folder(7)
    found = decoded(pack({top + name: data for name, data in reversed(files.items())}), tmp_path)
    ordered = sorted(files)
    x = np.stack([np.asarray(Image.open(io.BytesIO(files[name]))) for name in ordered])
    y = np.array([name.startswith("dog") for name in ordered], np.int64)
    np.testing.assert_array_equal(np.load(found.x), x)
    np.testing.assert_array_equal(np.load(found.y), y)
    np.testing.assert_array_equal(np.load(found.ids), example_ids(x))
    assert found.digest == arrays_digest(x, y)
    assert (found.classes, found.labels) == (("cat", "dog"), ((0, 4), (1, 3)))
    assert (found.examples, found.shape, found.dtype, found.format) == (7, (6, 5, 3), "uint8", "images")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "upload", "x.npy", "y.npy"]


COMMANDS = [
    "tar -cf ../u .",
    "tar -czf ../u cat dog",
    "tar --format=gnu -cf ../u cat dog",
    "zip -qr ../u.zip cat dog",
    "zip -q0r ../u.zip .",
    "zip -qr - . | cat > ../u.zip",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_archivers_write_is_read(command: str, tmp_path: Path) -> None:
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"no {command.split()[0]} here")
    for name, data in folder(5).items():
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "made" / "cat" / ("long " * 40 + ".png")).write_bytes(saved(colour(9)))
    subprocess.run(command, shell=True, check=True, cwd=tmp_path / "made")
    (made,) = tmp_path.glob("u*")
    found = decode_images(made, tmp_path, LIMITS, Reading())
    assert (found.classes, found.labels) == (("cat", "dog"), ((0, 4), (1, 2)))


def test_as_many_members_as_a_zip_can_count() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for n in range(65_535):
            packed.writestr(zipfile.ZipInfo(str(n)), b"")
    assert len(read_directory(out, 65_535)) == 65_535


def test_long_names_are_read(tmp_path: Path) -> None:
    name = "c" * 90 + "/" + "1" * 150 + ".png"
    for pack in (tarred, gnu, zipped):
        assert decoded(pack({name: saved(gray())}), tmp_path).classes == ("c" * 90,)


def test_notes_of_file_managers_are_ignored(tmp_path: Path) -> None:
    junk = {
        "__MACOSX/cat/._000.png": b"x",
        "cat/._000.png": b"x",
        "cat/.DS_Store": b"x",
        ".DS_Store": b"x",
        "dog/Thumbs.db": b"x",
    }
    assert decoded(zipped({**folder(4), **junk}), tmp_path).digest == decoded(tarred(folder(4)), tmp_path).digest


def test_empty_folders_are_ignored(tmp_path: Path) -> None:
    entries = [Entry(name, data) for name, data in folder(4).items()]
    found = decoded(archive(Entry("birds/", b"", mode=0o40755), *entries), tmp_path)
    assert found.classes == ("cat", "dog")


def test_names_in_an_old_code_page_and_in_unicode(tmp_path: Path) -> None:
    data = archive(Entry("café/1.png", saved(gray())), Entry("caf/1.png", saved(gray())))
    assert decoded(data, tmp_path).classes == ("caf", "café")
    old = data.replace("café".encode(), b"caf\x82s")
    assert decoded(old, tmp_path).classes == ("caf", "cafés")
    apart = zipped({"cafe\u0301/1.png": saved(gray())})
    assert decoded(apart, tmp_path, Reading(classes=("tea", "café"))).labels == ((1, 1),)


def test_folders_that_are_numbers_are_class_numbers(tmp_path: Path) -> None:
    found = decoded(zipped({f"{n}/1.png": saved(gray(n)) for n in (0, 2, 10)}), tmp_path)
    assert (found.labels, found.classes) == (((0, 1), (2, 1), (10, 1)), None)


def test_folders_that_are_classes_by_name_are_those(tmp_path: Path) -> None:
    files = zipped({f"{n}/1.png": saved(gray(n)) for n in (3, 8)})
    found = decoded(files, tmp_path, Reading(classes=("8", "3", "5")))
    assert found.labels == ((0, 1), (1, 1))
    np.testing.assert_array_equal(np.load(found.y), [1, 0])


def test_a_folder_that_is_no_class_is_refused_or_added(tmp_path: Path) -> None:
    why = refused(zipped(folder(4)), tmp_path, Reading(classes=("cat", "bird")))
    assert why.reason == "unknown-class"
    assert "'dog'" in str(why)
    found = decoded(zipped(folder(4)), tmp_path, Reading(classes=("cat", "bird"), extend=True))
    assert (found.classes, found.labels) == (("cat", "bird", "dog"), ((0, 2), (2, 2)))


@pytest.mark.parametrize("top", ["", "data/"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\nb.png,dog\nin/a.png,cat\nc.png,dog\n"),
        ("labels.csv", "\ufeffname,label\r\n./b.png,dog\r\nin/a.png,cat\r\nc.png,dog"),
        ("labels.csv", 'label,file\n"dog",b.png\ncat,in/a.png\ndog,c.png\n\n'),
        ("labels.jsonl", '{"file": "b.png", "label": "dog"}\n{"file": "in/a.png", "label": "cat"}\n'
                         '{"label": "dog", "name": "c.png"}\n'),
    ],
)  # fmt: skip
def test_a_labels_file_says_class_and_order(top: str, name: str, text: str, tmp_path: Path) -> None:
    shown = {"b.png": gray(1), "in/a.png": gray(2), "c.png": gray(3)}
    files = {top + path: saved(image) for path, image in sorted(shown.items())} | {top + name: text.encode()}
    for pack in (zipped, tarred):
        found = decoded(pack(files), tmp_path)
        np.testing.assert_array_equal(np.load(found.x)[..., 0], [np.asarray(image) for image in shown.values()])
        np.testing.assert_array_equal(np.load(found.y), [1, 0, 1])
        assert found.classes == ("cat", "dog")


def test_numbers_in_a_labels_file_are_class_numbers(tmp_path: Path) -> None:
    for name, text in [
        ("labels.csv", "file,label\n1.png,7\n2.png,0\n"),
        ("labels.jsonl", '{"file":"1.png","label":7}\n{"file":"2.png","label":0}'),
    ]:
        found = decoded(zipped({"1.png": saved(gray()), "2.png": saved(gray()), name: text.encode()}), tmp_path)
        np.testing.assert_array_equal(np.load(found.y), [7, 0])
        assert found.classes is None


# -- pixels -----------------------------------------------------------------------------------------------------------

A = np.random.default_rng(3).integers(0, 256, (6, 5, 4), dtype=np.uint8)
GRAY, RGB, ALPHA = A[..., 0], A[..., :3], A[..., 3:]
LUMA = np.asarray(Image.fromarray(RGB).convert("L"))


def on_black(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(float) * alpha / 255).astype(np.uint8)


def palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GRAY), GRAY[..., None]),
        (Image.fromarray(GRAY > 99), np.where(GRAY > 99, 255, 0)[..., None]),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(A), on_black(RGB, ALPHA)),
        (Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(A[..., 3])]), on_black(GRAY[..., None], ALPHA)),
        (Image.fromarray(GRAY.astype(np.uint16) * 256 + 200), GRAY[..., None]),
        (palette(), np.asarray(palette().convert("RGB"))),
        (Image.fromarray(GRAY).convert("P"), GRAY[..., None]),
    ],
    ids=["L", "1", "RGB", "RGBA", "LA", "I;16", "P", "P of gray"],
)
def test_every_mode_of_png_becomes_gray_or_rgb(image: Image.Image, expected: np.ndarray, tmp_path: Path) -> None:
    found = one(saved(image), tmp_path)
    np.testing.assert_array_equal(found, expected)
    gray_shape, rgb_shape = (6, 5, 1), (6, 5, 3)
    as_gray = one(saved(image), tmp_path, shape=gray_shape)
    as_rgb = one(saved(image), tmp_path, shape=rgb_shape)
    np.testing.assert_array_equal(as_rgb, np.broadcast_to(expected, rgb_shape))
    rgb = Image.fromarray(np.ascontiguousarray(np.broadcast_to(expected, rgb_shape).astype(np.uint8)))
    np.testing.assert_array_equal(as_gray[..., 0], np.asarray(rgb.convert("L")))


def test_transparent_entries_and_colours_become_black(tmp_path: Path) -> None:
    indexed = palette()
    clear = int(np.asarray(indexed)[2, 2])
    expected = np.asarray(indexed.convert("RGB")).copy()
    expected[np.asarray(indexed) == clear] = 0
    np.testing.assert_array_equal(one(saved(indexed, transparency=clear), tmp_path), expected)
    deep = Image.fromarray(GRAY.astype(np.uint16) * 256 + 200)
    expected = np.where(GRAY[1, 1] == GRAY, 0, GRAY)
    found = one(saved(deep, transparency=int(GRAY[1, 1]) * 256 + 200), tmp_path)
    np.testing.assert_array_equal(found[..., 0], expected)


def test_deep_colour_keeps_its_upper_bytes(tmp_path: Path) -> None:
    deep = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB.astype(np.uint32) * 256 + 77)
    data = png(5, 6, chunk(b"IDAT", zlib.compress(deep)), depth=16, colour=2)
    np.testing.assert_array_equal(one(data, tmp_path), RGB)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_decoded(mode: str, tmp_path: Path) -> None:
    data = saved(Image.fromarray(RGB).convert(mode), "JPEG", quality=95)
    image = Image.open(io.BytesIO(data))
    expected = np.asarray(image if mode == "L" else image.convert("RGB")).reshape(6, 5, -1)
    np.testing.assert_array_equal(one(data, tmp_path), expected)


def test_filling_between_the_segments_of_a_jpeg_is_skipped(tmp_path: Path) -> None:
    data = saved(Image.fromarray(RGB), "JPEG")
    at = data.index(b"\xff\xdb")
    for filling in (b"\xff\xff", b"\xff\0"):
        np.testing.assert_array_equal(one(data[:at] + filling + data[at:], tmp_path), one(data, tmp_path))


@pytest.mark.parametrize("options", [{"lossless": True, "exact": True}, {"quality": 80}])
@pytest.mark.parametrize("image", [Image.fromarray(RGB), Image.fromarray(A)], ids=["RGB", "RGBA"])
def test_webps_are_decoded(image: Image.Image, options: dict[str, Any], tmp_path: Path) -> None:
    data = saved(image, "WEBP", **options)
    shown = Image.open(io.BytesIO(data))
    values = np.asarray(shown.convert("RGBA"))
    np.testing.assert_array_equal(one(data, tmp_path), on_black(values[..., :3], values[..., 3:]))


def test_names_say_nothing_about_formats(tmp_path: Path) -> None:
    files = {"cat/1.jpg": saved(colour(1)), "cat/2": saved(colour(2), "JPEG"), "cat/3.png": saved(colour(3), "WEBP")}
    assert decoded(zipped(files), tmp_path).examples == 3


def test_channels_are_the_models_or_those_of_the_most_colourful(tmp_path: Path) -> None:
    files = zipped({"cat/1.png": saved(gray(1)), "cat/2.png": saved(colour(2))})
    assert decoded(files, tmp_path).shape == (6, 5, 3)
    assert decoded(files, tmp_path, Reading(shape=(6, 5, 1))).shape == (6, 5, 1)
    flat = decoded(files, tmp_path, Reading(shape=(6, 5)))
    assert flat.shape == (6, 5)
    np.testing.assert_array_equal(np.load(flat.x)[0], np.asarray(gray(1)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_is_applied(orientation: int, format: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    data = saved(colour(4), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright is not None
    np.testing.assert_array_equal(one(data, tmp_path), np.asarray(upright))


@pytest.mark.parametrize("exif", [b"", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"junk" * 10])
def test_damaged_exif_is_no_orientation(exif: bytes, tmp_path: Path) -> None:
    data = saved(colour(4))
    data = data[:33] + chunk(b"eXIf", exif) + data[33:]
    np.testing.assert_array_equal(one(data, tmp_path), np.asarray(colour(4)))


def test_an_orientation_that_is_none_is_ignored(tmp_path: Path) -> None:
    data = saved(colour(4))
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<2HLHH", 0x0112, 3, 1, 77, 0)
    data = data[:33] + chunk(b"eXIf", exif) + data[33:]
    np.testing.assert_array_equal(one(data, tmp_path), np.asarray(colour(4)))


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_other_sizes_are_refused_with_what_was_found(tmp_path: Path) -> None:
    files = {f"cat/{n}.png": saved(colour(n, height=10 + n // 3)) for n in range(7)}
    why = refused(zipped(files), tmp_path, Reading(shape=(32, 48, 3)))
    assert why.reason == "wrong-shape"
    assert "32 x 48" in str(why)
    assert "10 x 5 (3 times), 11 x 5 (3 times), 12 x 5 (1 times)" in str(why)
    assert "input.resize" in str(why)
    assert refused(zipped(files), tmp_path).reason == "mixed-sizes"


@pytest.mark.parametrize("shape", [(4,), (6, 5, 4), (6, 5, 2), (6, 5, 3, 1)])
def test_a_model_of_no_images_takes_none(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert refused(zipped(folder(2)), tmp_path, Reading(shape=shape)).reason == "wrong-shape"


def test_a_model_of_fractions_takes_no_images(tmp_path: Path) -> None:
    assert decoded(zipped(folder(2)), tmp_path, Reading(dtype="uint8")).dtype == "uint8"
    assert refused(zipped(folder(2)), tmp_path, Reading(dtype="float32")).reason == "wrong-dtype"


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_resizing_needs_a_declared_shape(resize: Any, tmp_path: Path) -> None:
    why = refused(zipped(folder(2)), tmp_path, Reading(resize=resize))
    assert why.reason == "shape-unknown"
    assert "input.shape" in str(why)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_images_of_the_right_size_are_not_touched(resize: Any, tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        one(saved(colour(5)), tmp_path, resize=resize, shape=(6, 5, 3)), np.asarray(colour(5))
    )


def test_stretched_images_are_averaged_over_what_a_pixel_covers(tmp_path: Path) -> None:
    image = colour(5, 60, 40)
    found = one(saved(image), tmp_path, resize="stretch", shape=(6, 5, 3))
    np.testing.assert_array_equal(found, np.asarray(image.resize((5, 6), Image.Resampling.BILINEAR)))
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert np.ptp(one(saved(checks), tmp_path, resize="stretch", shape=(8, 8, 1))) <= 2


def test_cropped_images_keep_their_middle(tmp_path: Path) -> None:
    bars = np.zeros((20, 60, 1), np.uint8)
    bars[:, 20:40] = 200
    np.testing.assert_array_equal(
        one(saved(Image.fromarray(bars[..., 0])), tmp_path, resize="crop", shape=(10, 10, 1))[:, 1:-1], 200
    )
    tall = Image.fromarray(np.ascontiguousarray(bars[..., 0].T))
    np.testing.assert_array_equal(one(saved(tall), tmp_path, resize="crop", shape=(10, 10, 1))[1:-1], 200)


def test_padded_images_are_whole_on_zeros(tmp_path: Path) -> None:
    full = Image.fromarray(np.full((20, 60), 200, np.uint8))
    found = one(saved(full), tmp_path, resize="pad", shape=(12, 12, 1))[..., 0]
    expected = np.zeros((12, 12), np.uint8)
    expected[4:8] = 200
    np.testing.assert_array_equal(found, expected)
    assert one(saved(full), tmp_path, resize="pad", shape=(1, 1, 1)).shape == (1, 1, 1)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    to=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    resize=st.sampled_from(["stretch", "crop", "pad"]),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_size_becomes_the_models(
    height: int, width: int, to: tuple[int, int], resize: Any, tmp_path: Path
) -> None:
    found = one(saved(Image.new("L", (width, height), 100)), tmp_path, resize=resize, shape=(*to, 1))
    assert set(np.unique(found)) <= ({100} if resize != "pad" else {0, 100})
    assert 100 in found


def test_a_long_image_is_not_scaled_beyond_memory(tmp_path: Path) -> None:
    thin = zipped({"cat/1.png": saved(Image.new("L", (1, 60_000)))})
    why = refused(thin, tmp_path, Reading(shape=(8, 2000, 1), resize="stretch"))
    assert (why.reason, "too high" in str(why)) == ("too-large", True)
    assert decoded(thin, tmp_path, Reading(shape=(8, 20, 1), resize="stretch")).examples == 1


# -- limits and hostility ---------------------------------------------------------------------------------------------


def test_the_arrays_are_bounded_before_a_pixel_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = png(500, 500, chunk(b"IDAT", b"no pixels"))
    files = zipped({f"cat/{n}.png": broken for n in range(20)})
    assert refused(files, tmp_path, limits=Limits(4 << 20)).reason == "too-large"
    assert refused(files, tmp_path, limits=Limits(16 << 20)).reason == "corrupt"


def test_memory_is_bounded_by_a_block(tmp_path: Path) -> None:
    files = tarred({f"cat/{n:05}.png": saved(Image.new("RGB", (200, 200), (n, 0, 0))) for n in range(200)})
    tracemalloc.start()
    try:
        found = decoded(files, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.bytes > 20 << 20
    assert peak < 8 << 20


def test_blocks_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decoded(zipped(folder(7)), tmp_path).digest
    monkeypatch.setattr(images, "BLOCK", 200)
    assert decoded(zipped(folder(7)), tmp_path).digest == whole


@pytest.mark.parametrize("case", HOSTILE_IMAGES, ids=[case[0] for case in HOSTILE_IMAGES])
def test_hostile_archives_are_refused(case: Case, tmp_path: Path) -> None:
    _, make, reason = case
    data = make if isinstance(make, bytes) else make()
    began = time.monotonic()
    why = refused(data, tmp_path)
    assert time.monotonic() - began < 10
    assert reason == why.reason or (reason == "any" and why.reason in ("truncated", "corrupt")), str(why)
    message = str(why)
    assert len(message) < 400
    assert re.search(r"send|write|use|number|name|add|rename", message), f"no remedy: {message}"
    assert not (tmp_path / "unpacked.tar").exists()


def test_a_huge_image_is_refused_at_once(tmp_path: Path) -> None:
    data = zipped({"cat/1.png": huge_png()})
    assert len(data) < 130_000
    began = time.monotonic()
    assert "30000 x 30000" in str(refused(data, tmp_path))
    assert time.monotonic() - began < 0.5


def test_every_reason_is_documented() -> None:
    told = " ".join(module.__doc__ or "" for module in (images, folders, arrays, classes))
    documented = set(re.findall(r"[a-z]+(?:-[a-z]+)*", told))
    assert {reason for _, _, reason in HOSTILE_IMAGES} - {"any"} <= documented


def test_every_refusal_names_the_file(tmp_path: Path) -> None:
    for data in (b"GIF89a" + bytes(50), saved(colour(7))[:-20], huge_jpeg()):
        assert "'dog/the one.png'" in str(refused(zipped({**folder(3), "dog/the one.png": data}), tmp_path))


def huge_jpeg() -> bytes:
    data = bytearray(saved(colour(7), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    return bytes(data)


SEEDS = [
    zipped(folder(2)),
    zipped(folder(2, "WEBP"), deflate=False),
    zipped(folder(2, "JPEG"), deflate=False),
    tarred(folder(2)),
    gnu(folder(2)),
    gzipped(folder(2)),
]
IMAGES = [
    saved(colour(1)), saved(palette(), transparency=1), saved(Image.fromarray(GRAY.astype(np.uint16) * 99)),
    saved(colour(1), "JPEG"), saved(colour(1), "WEBP"), saved(Image.fromarray(A), "WEBP", lossless=True),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Some bytes changed, some taken out, some doubled."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["set", "cut", "double", "end"]))
        length = draw(st.integers(1, 40))
        if kind == "set":
            data[at : at + length] = draw(st.binary(min_size=1, max_size=length))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        else:
            del data[max(1, at) :]
    return bytes(data)


FUZZ = settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))


def only_refusals(data: bytes, work: Path, reading: Reading) -> None:
    with suppress(InvalidMegabatch):
        found = decoded(data, work, reading, Limits(1 << 20, 10, 64 << 20))
        assert np.load(found.x).shape == (found.examples, *found.shape)


@FUZZ
@given(data=mutated(SEEDS))
def test_fuzzed_archives_are_refused_or_read(data: bytes, tmp_path: Path) -> None:
    only_refusals(data, tmp_path, Reading())


@FUZZ
@given(image=mutated(IMAGES))
def test_fuzzed_images_are_refused_or_read(image: bytes, tmp_path: Path) -> None:
    only_refusals(zipped({"cat/1.png": image}), tmp_path, Reading(shape=(6, 5, 3), resize="crop"))


def test_a_crc_is_checked_at_the_pixels_too(tmp_path: Path) -> None:
    data = saved(colour(7))
    for at in range(8, len(data)):
        assert refused(zipped({"cat/1.png": damaged(data, at)}), tmp_path).reason in (
            "corrupt", "truncated", "too-large", "animated",
        )  # fmt: skip
