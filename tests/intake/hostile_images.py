"""Images and archives of them that no well-meaning program writes; and the table of what is said to them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from tests.intake.hostile import Entry, archive

Files = Mapping[str, bytes]


def gray(seed: int = 0, height: int = 6, width: int = 5) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def colour(seed: int = 0, height: int = 6, width: int = 5) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that says whatever it is told to."""
    header = chunk(b"IHDR", struct.pack(">2L5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def huge_png() -> bytes:
    """900 megapixels in 109 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 30_000 // 8)
    packed = b"".join(packer.compress(row) for _ in range(30_000)) + packer.flush()
    return png(30_000, 30_000, chunk(b"IDAT", packed), depth=1)


def huge_webp() -> bytes:
    return b"RIFF" + (22).to_bytes(4, "little") + b"WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0" + b"\xff\x3f\0"


def frames(format: str) -> bytes:
    return saved(colour(1), format, save_all=True, append_images=[colour(2), colour(3)], duration=100)


def zipped(files: Files, deflate: bool = True) -> bytes:
    return archive(*(Entry(name, data, deflate=deflate) for name, data in files.items()))


def tarred(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def folder(n: int = 6, format: str = "PNG", **sizes: int) -> dict[str, bytes]:
    """Images of two classes, a folder each."""
    return {f"{('cat', 'dog')[i % 2]}/{i:03}.png": saved(colour(i, **sizes), format) for i in range(n)}


def tar_member(name: str, kind: bytes, **fields: Any) -> bytes:
    """A tar with an honest folder, and one member of some other kind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, data in folder(2).items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo(name)
        info.type = kind
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info)
    return out.getvalue()


def tar_note(kind: bytes, notes: Mapping[str, str]) -> bytes:
    """A tar whose first member follows a pax header of these records."""
    records = b""
    for key, value in notes.items():
        length = len(f" {key}={value}\n")
        length += len(str(length + len(str(length))))
        records += f"{length} {key}={value}\n".encode()
    info = tarfile.TarInfo("notes")
    info.type, info.size = kind, len(records)
    padded = records + bytes(-len(records) % 512)
    return info.tobuf(tarfile.USTAR_FORMAT) + padded + tarred(folder(2), tarfile.USTAR_FORMAT)


def tar_claim(size: int) -> bytes:
    """A tar whose one member claims a size."""
    info = tarfile.TarInfo("cat/1.png")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def unsummed(data: bytes) -> bytes:
    """A tar whose second header was changed by one bit."""
    at = data.index(b"dog/001.png")
    return data[:at] + b"eog" + data[at + 3 :]


def with_one(name: str, data: bytes) -> bytes:
    return zipped({**folder(3), name: data})


def table(text: str, name: str = "labels.csv") -> bytes:
    return zipped({"1.png": saved(gray(1)), "2.png": saved(gray(2)), name: text.encode()})


def of_zip(**lies: Any) -> bytes:
    honest = [Entry(name, data) for name, data in folder(3).items()]
    return archive(*honest, Entry(**{"name": "cat/x.png", "data": saved(colour(9)), **lies}))


def overlapping() -> bytes:
    """Two members whose bytes are the same."""
    data = saved(colour(0))
    inner = archive(Entry("dog/2.png", data))
    body = data + inner
    return archive(Entry("cat/1.png", body), Entry("dog/2.png", data, offset=30 + 9 + len(data)))


def zip_bomb() -> bytes:
    """A thousand members of 60 MB each, every one an image with a chunk of zeros, in 60 MB less."""
    blown = png(1, 1, chunk(b"zero", bytes(30 << 20)))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(blown) + packer.flush()
    return archive(
        *(Entry(f"cat/{n}.png", b"", method=8, body=body, size=len(blown), crc=zlib.crc32(blown)) for n in range(20))
    )


def lying_bomb() -> bytes:
    data = saved(colour(0))
    return archive(Entry("cat/1.png", data + bytes(50 << 20), deflate=True, size=len(data), crc=zlib.crc32(data)))


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def gzip_bomb() -> bytes:
    return gzip.compress(bytes(100 << 20))


def many() -> bytes:
    """More members than a zip can count without zip64."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for n in range(66_000):
            packed.writestr(zipfile.ZipInfo(f"cat/{n}"), b"")
    return out.getvalue()


Case = tuple[str, bytes | Callable[[], bytes], str]

HOSTILE_IMAGES: list[Case] = [
    ("900 megapixels", lambda: with_one("cat/x.png", huge_png()), "too-large"),
    ("900 megapixels in a tar", lambda: tarred({"cat/x.png": huge_png()}), "too-large"),
    ("268 megapixels of WebP", lambda: with_one("cat/x.png", huge_webp()), "too-large"),
    ("a very long PNG", lambda: with_one("cat/x.png", png(2**31 - 1, 1, chunk(b"IDAT", b""))), "too-large"),
    ("a size of nothing", lambda: with_one("cat/x.png", png(0, 5)), "corrupt"),
    ("truncated PNG", lambda: with_one("cat/x.png", saved(colour(7))[:-20]), "truncated"),
    ("PNG cut in its pixels", lambda: with_one("cat/x.png", saved(colour(7, 50, 50))[:900]), "truncated"),
    ("PNG of too few pixels", lambda: with_one("cat/x.png", png(5, 6, chunk(b"IDAT", zlib.compress(b"\0")))), "any"),
    ("PNG without pixels", lambda: with_one("cat/x.png", png(5, 6)), "any"),
    ("PNG with a flipped bit", lambda: with_one("cat/x.png", damaged(saved(colour(7)), 60)), "corrupt"),
    ("truncated JPEG", lambda: with_one("cat/x.png", saved(colour(7, 6, 5), "JPEG")[:-40]), "truncated"),
    ("JPEG cut in its header", lambda: with_one("cat/x.png", saved(colour(7), "JPEG")[:100]), "truncated"),
    ("JPEG without a frame", lambda: with_one("cat/x.png", b"\xff\xd8\xff\xda\0\x02" + bytes(50)), "corrupt"),
    ("truncated WebP", lambda: with_one("cat/x.png", saved(colour(7), "WEBP")[:-10]), "truncated"),
    ("WebP of nothing", lambda: with_one("cat/x.png", b"RIFF\x04\0\0\0WEBP"), "corrupt"),
    ("animated PNG", lambda: with_one("cat/x.png", frames("PNG")), "animated"),
    ("animated WebP", lambda: with_one("cat/x.png", frames("WEBP")), "animated"),
    ("pictures in a JPEG", lambda: with_one("cat/x.png", frames("MPO")), "animated"),
    ("GIF called PNG", lambda: with_one("cat/x.png", saved(gray(), "GIF")), "not-an-image"),
    ("TIFF called PNG", lambda: with_one("cat/x.png", saved(gray(), "TIFF")), "not-an-image"),
    ("BMP called PNG", lambda: with_one("cat/x.png", saved(gray(), "BMP")), "not-an-image"),
    ("text called PNG", lambda: with_one("cat/x.png", b"this is no image"), "not-an-image"),
    ("an empty file", lambda: with_one("cat/x.png", b""), "not-an-image"),
    ("a script", lambda: with_one("cat/run.sh", b"#!/bin/sh\n"), "not-an-image"),
    ("an archive within", lambda: with_one("cat/x.zip", zipped(folder(2))), "not-an-image"),
    ("two sizes", lambda: with_one("cat/x.png", saved(colour(7, 6, 6))), "mixed-sizes"),
    ("images in the root", lambda: zipped({"1.png": saved(gray())}), "layout"),
    ("folders in folders", lambda: with_one("cat/small/1.png", saved(colour(1))), "layout"),
    ("a file beside the folders", lambda: with_one("readme.txt", b"hello"), "layout"),
    ("no member", lambda: zipped({}), "empty"),
    ("folders alone", lambda: archive(Entry("cat/", b"", mode=0o40755)), "empty"),
    ("junk alone", lambda: zipped({"__MACOSX/cat/._1.png": b"", ".DS_Store": b"x"}), "empty"),
    ("table without its header", lambda: table("1.png,cat\n2.png,dog\n"), "labels-file"),
    ("table with more columns", lambda: table("file,label,url\n1.png,cat,x\n2.png,dog,y\n"), "labels-file"),
    ("ragged table", lambda: table("file,label\n1.png,cat,x\n2.png,dog\n"), "labels-file"),
    ("a file twice", lambda: table("file,label\n1.png,cat\n1.png,dog\n2.png,dog\n"), "labels-file"),
    ("open quotes", lambda: table('file,label\n1.png,"cat\n'), "labels-file"),
    ("an empty table", lambda: table(""), "labels-file"),
    ("a header alone", lambda: table("file,label\n"), "labels-file"),
    ("not UTF-8", lambda: zipped({"1.png": saved(gray()), "labels.csv": b"file,label\n1.png,\xff\n"}), "labels-file"),
    ("a missing image", lambda: table("file,label\n1.png,cat\n2.png,dog\n3.png,dog\n"), "missing-member"),
    ("a path outside", lambda: table("file,label\n../../etc/passwd,cat\n"), "missing-member"),
    ("a missing label", lambda: table("file,label\n1.png,cat\n"), "missing-label"),
    ("no name", lambda: table("file,label\n1.png,\n2.png,dog\n"), "label-name"),
    ("label -1", lambda: table("file,label\n1.png,-1\n2.png,0\n"), "label-out-of-range"),
    ("lines of lists", lambda: table("[1, 2]\n", "labels.jsonl"), "labels-file"),
    ("a key twice", lambda: table('{"file": "1.png", "label": 1, "label": 2}', "labels.jsonl"), "labels-file"),
    ("deep JSON", lambda: table("[" * 100_000, "labels.jsonl"), "labels-file"),
    (
        "label 2**63",
        lambda: table('{"file": "1.png", "label": 9223372036854775808}', "labels.jsonl"),
        "label-out-of-range",
    ),
    ("label 0.5", lambda: table('{"file": "1.png", "label": 0.5}', "labels.jsonl"), "label-not-integer"),
    ("label NaN", lambda: table('{"file": "1.png", "label": NaN}', "labels.jsonl"), "label-not-integer"),
    ("label true", lambda: table('{"file": "1.png", "label": true}', "labels.jsonl"), "label-not-integer"),
    (
        "names and numbers",
        lambda: table('{"file": "1.png", "label": 1}\n{"file": "2.png", "label": "cat"}', "labels.jsonl"),
        "mixed-labels",
    ),
    ("absolute name", lambda: of_zip(name="/etc/passwd"), "unsafe-member"),
    ("parent folder", lambda: of_zip(name="../cat/1.png"), "unsafe-member"),
    ("backslash", lambda: of_zip(name="..\\cat\\1.png"), "unsafe-member"),
    ("NUL", lambda: of_zip(name="cat/1.png\0.txt"), "unsafe-member"),
    ("no name between", lambda: of_zip(name="cat//x.png"), "unsafe-member"),
    ("symlink", lambda: of_zip(mode=0o120777), "unsafe-member"),
    ("device", lambda: of_zip(mode=0o060777), "unsafe-member"),
    ("folder that is a file", lambda: of_zip(name="cat/x/"), "corrupt"),
    ("file that is a folder", lambda: of_zip(mode=0o040755), "unsafe-member"),
    ("one name in two ways", lambda: of_zip(name="./cat/000.png"), "duplicate-member"),
    ("duplicate", lambda: of_zip(name="cat/000.png"), "duplicate-member"),
    ("encrypted", lambda: of_zip(flags=1), "encrypted"),
    ("lzma", lambda: of_zip(method=14), "compression"),
    ("wrong crc", lambda: of_zip(crc=1), "corrupt"),
    ("overlapping", overlapping, "overlapping-members"),
    ("truncated zip", lambda: zipped(folder(4))[:-30], "truncated"),
    ("zip bomb", zip_bomb, "too-large"),
    ("lying bomb", lying_bomb, "corrupt"),
    ("a member that claims 1 TB", lambda: of_zip(size=2**32 - 2, deflate=True), "too-large"),
    ("100,000 members", many, "too-many-members"),
    ("100,000 members of a tar", lambda: tarred({f"cat/{n}": b"" for n in range(65_600)}), "too-many-members"),
    ("tar: symlink", lambda: tar_member("cat/x.png", tarfile.SYMTYPE, linkname="/etc/passwd"), "unsafe-member"),
    ("tar: hard link", lambda: tar_member("cat/x.png", tarfile.LNKTYPE, linkname="cat/000.png"), "unsafe-member"),
    ("tar: long link", lambda: tar_member("cat/x.png", tarfile.SYMTYPE, linkname="a" * 200), "unsafe-member"),
    ("tar: device", lambda: tar_member("cat/x.png", tarfile.CHRTYPE), "unsafe-member"),
    ("tar: pipe", lambda: tar_member("cat/x.png", tarfile.FIFOTYPE), "unsafe-member"),
    ("tar: sparse", lambda: tar_member("cat/x.png", b"S"), "unsafe-member"),
    ("tar: unknown kind", lambda: tar_member("cat/x.png", b"Z"), "unsafe-member"),
    ("tar: absolute", lambda: tarred({"/cat/1.png": saved(gray())}), "unsafe-member"),
    ("tar: parent", lambda: tarred({"cat/../../1.png": saved(gray())}), "unsafe-member"),
    ("tar: backslash", lambda: tarred({"cat\\1.png": saved(gray())}), "unsafe-member"),
    ("tar: no name", lambda: tarred({"": saved(gray())}), "unsafe-member"),
    ("tar: sparse by pax", lambda: tar_note(b"x", {"GNU.sparse.major": "1"}), "unsafe-member"),
    ("tar: one path for all", lambda: tar_note(b"g", {"path": "/etc/passwd"}), "unsafe-member"),
    ("tar: parent by pax", lambda: tar_note(b"x", {"path": "../1.png"}), "unsafe-member"),
    ("tar: size by pax", lambda: tar_note(b"x", {"size": "99999999999"}), "truncated"),
    ("tar: negative size by pax", lambda: tar_note(b"x", {"size": "-1"}), "corrupt"),
    ("tar: endless notes", lambda: tar_note(b"x", {"comment": "a" * 70_000}), "corrupt"),
    ("tar: duplicate", lambda: tarred(folder(1))[:1024] + tarred(folder(1)), "duplicate-member"),
    ("tar: claims 1 TB", lambda: tar_claim(2**40), "truncated"),
    ("tar: damaged header", lambda: unsummed(tarred(folder(2), tarfile.USTAR_FORMAT)), "corrupt"),
    ("tar: cut", lambda: tarred(folder(3))[:2000], "truncated"),
    ("tar: cut at a member", lambda: tarred(folder(3), tarfile.USTAR_FORMAT)[:2048], "truncated"),
    ("tar: goes on", lambda: tarred(folder(3)) + b"more", "corrupt"),
    ("gzip bomb", gzip_bomb, "too-large"),
    ("gzip of text", lambda: gzip.compress(b"x,y\n1,2\n"), "truncated"),
    ("cut gzip", lambda: gzip.compress(tarred(folder(3)))[:-9], "truncated"),
    ("damaged gzip", lambda: damaged(gzip.compress(tarred(folder(3))), 100), "any"),
    ("gzip that goes on", lambda: gzip.compress(tarred(folder(3))) + b"more", "corrupt"),
]
