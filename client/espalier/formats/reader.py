"""Read an Espalier checkpoint with numpy alone: one file, to copy to where a network is used.

Knows: how bytes become arrays (docs/checkpoint-format.md). Must never know: the rest of Espalier, or any package but
numpy and, where something is compressed, zstandard. ``python reader.py FILE`` prints the manifest of a whole file.

Laws:
    * Nothing is allocated before its size was checked, against the file and against a limit; never pickle.
    * What is missing or does not add up raises ``ValueError``, which says what and where.
"""

import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

try:
    import zstandard
except ImportError:  # a file in which nothing is compressed can be read all the same
    zstandard = None  # type: ignore[assignment]  # a module, or nothing

FORMATS = ("espalier-sparse-1", "espalier-sparse-2")
MOST = 1 << 35  # bytes that a file may unfold to, unless the caller allows more: a small file can say much
STRANGE = (json.JSONDecodeError, AttributeError, TypeError)  # of a header that is no JSON, or says other things
BLOCK = 1 << 16  # weights that are handled at a time: they fit the processor's cache
DTYPES = {f"{kind}{8 * n}": np.dtype(f"<{kind.lower()}{n}") for kind in "IUF" for n in (1, 2, 4, 8)[kind == "F" :]}
DTYPES["BOOL"] = np.dtype("?")


def read(data: Any, most: int = MOST, parse: Callable[[str], Any] = json.loads) -> tuple[Any, Any, Any, Any]:
    """Manifest, dense arrays, masks and normalisation statistics of a checkpoint's bytes."""
    try:
        manifest, stored = container(data, parse)
        return manifest, *unfolded(manifest, stored, most)
    except (UnicodeError, LookupError, OverflowError, RecursionError, *STRANGE) as error:
        raise ValueError(f"the file is damaged, download it again and compare its digest: {error!r:.99}") from None


def container(data: Any, parse: Callable[[str], Any]) -> tuple[Any, dict[str, Any]]:
    """The manifest; by name, what is stored: dtype, shape, data, and planes where it lies in byte planes."""
    need(len(data) > 8 and data[8:9] == b"{", "this is not a safetensors file: download a checkpoint, format=sparse")
    start = 8 + int.from_bytes(data[:8], "little")
    need(start <= len(data), f"the file is cut off inside its header, at {len(data)} bytes: download it again")
    stored, rest, at = json.loads(bytes(data[8:start])), memoryview(data)[start:], 0
    metadata = stored.pop("__metadata__", {})
    need({*metadata} in ({"espalier"}, {"espalier", "coded"}), "this safetensors file is not an Espalier checkpoint")
    need(all(_is_entry(entry, "data_offsets") for entry in stored.values()), "the file's header is damaged")
    for name, entry in sorted(stored.items(), key=lambda item: item[1]["data_offsets"]):
        end = at + _nbytes(entry)
        need([at, end] == entry["data_offsets"], f"the file is damaged: {name!r} does not lie at {at} to {end}")
        at, entry["data"] = end, rest[at:end]
    need(at == len(rest), f"the file is cut off or damaged: it has {len(rest)} bytes of tensors, not {at}")
    for name, code in json.loads(metadata.get("coded", "{}")).items():
        need(name in stored and _is_entry(code, "planes"), f"{name!r} is not coded as dtype, shape, planes")
        planes, code["data"] = code["planes"], stored[name]["data"]
        fit = len(planes) == DTYPES[code["dtype"]].itemsize and max(planes) <= math.prod(code["shape"])
        need(fit and sum(planes) == len(code["data"]), f"the planes of {name!r} do not add up")
        stored[name] = code
    return parse(metadata["espalier"]), stored


def unfolded(manifest: Any, stored: dict[str, Any], most: int) -> tuple[dict[str, Any], ...]:
    """Dense arrays, masks and normalisation statistics of what is stored."""
    need(manifest.get("format") in FORMATS, f"the format {manifest.get('format')!r} is not known here: update espalier")
    size = sum(map(_nbytes, stored.values())) + sum(9 * layer["total"] for layer in manifest["layers"])
    need(size <= most, f"the file unfolds to up to {size:,} bytes, more than the {most:,} that are allowed")
    with ThreadPoolExecutor(2) as pool:  # no more at a time, so that memory stays small
        layers = list(pool.map(lambda layer: _layer(stored, **layer), manifest["layers"]))
    arrays, masks = ({layer[0]: layer[part] for layer in layers} for part in (1, 2))
    parts = {name + part for name in masks for part in (".mask", ".gaps", ".values")}
    arrays |= {name: array(entry, name) for name, entry in stored.items() if name not in parts}
    keys = [key for key in ("mean", "std") if "normalisation." + key in arrays]
    return arrays, masks, {key: arrays.pop("normalisation." + key) for key in keys}


def array(entry: Any, name: str) -> Any:
    """The values of a stored tensor, in memory of their own."""
    kind, count, at, parts = DTYPES[entry["dtype"]], math.prod(entry["shape"]), 0, []
    for size in entry.get("planes", []):
        part, at = entry["data"][at : at + size], at + size
        parts.append(np.frombuffer(part if size == count else _unpacked(part, count, name), "u1"))
    rows = np.empty((count, kind.itemsize), "u1") if parts else np.frombuffer(entry["data"], "u1").copy()
    for begin in range(0, count if parts else 0, BLOCK):
        block = rows[begin : begin + BLOCK]
        for significance, part in enumerate(parts):
            block[:, significance] = part[begin : begin + BLOCK]
        if kind.kind == "f":  # the sign was moved to the end, so that the exponent fills a byte
            word = block.view(f"<u{kind.itemsize}")
            np.bitwise_or(word >> 1, word << (8 * kind.itemsize - 1), out=word)
    need(entry["dtype"] != "BOOL" or not (rows > 1).any(), f"{name!r} holds bytes that are no booleans")
    return rows.reshape(-1).view(kind).reshape(entry["shape"])


def _layer(stored: dict[str, Any], name: str, shape: list[int], kept: int, total: int) -> tuple[str, Any, Any]:
    bits, gaps, values = (stored.get(name + part, {}) for part in (".mask", ".gaps", ".values"))
    need(name not in stored, f"{name!r} is stored dense: for its mask download the checkpoint with format=sparse")
    need(values and bool(bits) != bool(gaps), f"{name!r} lacks a mask or values, or has two masks")
    need(values["shape"] == [kept], f"{name!r} has {values['shape']} values, but its mask keeps {kept} weights")
    entry, size = (gaps, _nbytes(gaps)) if gaps else (bits, -(-total // 8))
    fits = [entry["dtype"], entry["shape"]] == ["U8", [size]] and size <= total
    need(fits, f"the mask of {name!r} is {entry['dtype']} {entry['shape']}, not {size} bytes, for {total} weights")
    which, flat, at = array(entry, name), np.zeros(total, DTYPES[values["dtype"]]), 0
    if gaps:
        mask = np.zeros(total, "?")
        last = which < 255  # 255 says that as many are pruned, and that more follow
        where = np.cumsum(which + last, dtype=np.int64)[last] - 1
        need(not kept or (last[-1] and where[-1] < total), f"the gaps of {name!r} reach past its last weight")
        mask[where], places = True, iter([(0, where)])
    else:
        mask = np.unpackbits(which).view("?")
        need(not mask[total:].any(), f"the mask of {name!r} has bits past its last weight")
        places = ((begin, np.flatnonzero(mask[begin : begin + BLOCK])) for begin in range(0, total, BLOCK))
    found, ordered = np.count_nonzero(mask), array(values, name + ".values")
    need(found == kept, f"the mask of {name!r} keeps {found} weights, but the manifest says {kept}")
    for begin, where in places:
        at, flat[begin:][where] = at + len(where), ordered[at : at + len(where)]
    return name, flat.reshape(shape), mask[:total].reshape(shape)


def _nbytes(entry: Any) -> int:
    return int(math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize)


def _unpacked(part: Any, count: int, name: str) -> Any:
    need(zstandard, "this checkpoint is compressed: pip install zstandard")
    try:
        need(zstandard.frame_content_size(part) == count, f"{name!r} does not unpack to {count} bytes")
        return zstandard.ZstdDecompressor().decompress(part, max_output_size=count, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"{name!r} is damaged: {error}") from None


def _is_entry(entry: Any, sizes: str) -> bool:
    known = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", sizes} and entry["dtype"] in DTYPES
    return known and all(type(n) is int and n >= 0 for n in [*entry["shape"], *entry[sizes]])


def need(holds: Any, otherwise: str) -> None:
    """Refuse the file, unless it holds."""
    if not holds:
        raise ValueError(otherwise)


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]).read_bytes())[0], indent=1))
