"""Hostile uploads and requests over HTTP: each is refused by name, in time, and leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from httpx import Response

from app.config import Settings
from app.domain import Scope
from app.store.migrate import migrate
from espalier.formats.megabatch import encode
from tests.api.conftest import OCTETS, House, content_digest, examples, opened, problem, upload_bytes
from tests.api.test_scopes import bearer, key_of
from tests.intake.hostile import Entry, archive, npy, npy_header
from tests.intake.hostile_images import HOSTILE_IMAGES, colour, folder, saved, tarred, zipped
from tests.intake.hostile_tables import TABLES, to_parquet

SANDBOXED = True

LIMIT = 8 << 20
X, Y = examples()

IMAGE_CASES = {
    "900 megapixels", "truncated PNG", "truncated JPEG", "truncated WebP", "animated PNG", "animated WebP",
    "GIF called PNG", "TIFF called PNG", "text called PNG", "symlink", "overlapping", "zip bomb", "lying bomb",
    "duplicate", "absolute name", "parent folder", "backslash", "NUL", "encrypted", "100,000 members",
    "tar: symlink", "tar: device", "tar: sparse", "tar: parent", "tar: claims 1 TB", "tar: damaged header",
    "gzip bomb", "deep JSON", "label 2**63", "a path outside",
}  # fmt: skip
"""What goes over HTTP too; the whole tables stand in ``tests/intake``."""


TABLE_CASES = {
    "Parquet bomb", "lying Parquet bomb", "long page", "half a Parquet", "half a stream", "schema of 2 GB",
    "buffer of 10 TB", "offsets outside", "offsets backwards", "no UTF-8", "index outside the dictionary",
    "pickled type, Parquet", "pickled type, Arrow", "struct, Parquet", "map, Arrow", "uuid, Parquet", "union",
    "dates, Arrow", "label -1, Parquet", "label 2**63, Arrow", "infinity, Parquet", "no rows, Arrow", "column twice",
    "NUL in text", "UTF-16", "deep JSON",
}  # fmt: skip


@dataclass(frozen=True)
class Upload:
    """A body, how it is sent, and what is to be said to it."""

    name: str
    body: Callable[[], Any]
    reason: str | None = None
    status: int = 422
    slug: str = "invalid-megabatch"
    model: str = "gas"
    headers: dict[str, str] = field(default_factory=dict)


def npz(x: Any, y: Any = Y) -> bytes:
    return encode(np.asarray(x), np.asarray(y))


def members(x: bytes, y: bytes = npy(Y)) -> bytes:
    return archive(Entry("x.npy", x), Entry("y.npy", y))


def beside(name: str, mode: int = 0o100644) -> bytes:
    return archive(Entry("x.npy", npy(X)), Entry("y.npy", npy(Y)), Entry(name, b"#!", mode=mode))


def objects() -> bytes:
    return members(npy(np.array([[print]] * len(Y), object)))


def zip_bomb() -> bytes:
    """A quarter of a gigabyte of zeros in as many kilobytes."""
    header, mebibyte, count = npy_header("<f4", (1 << 24, 4)), bytes(1 << 20), 256
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(header) + b"".join(packer.compress(mebibyte) for _ in range(count)) + packer.flush()
    size = len(header) + (count << 20)
    return archive(
        Entry("x.npy", b"", method=8, body=body, size=size),
        Entry("y.npy", npy(np.zeros(1 << 24, np.uint8)), deflate=True),
    )


def overlapping() -> bytes:
    inner = archive(Entry("y.npy", npy(Y)))
    return archive(Entry("x.npy", npy(X) + inner), Entry("y.npy", npy(Y), offset=35 + len(npy(X))))


def with_value(value: float) -> bytes:
    x = X.copy()
    x[7, 2] = value
    return npz(x)


def with_label(value: Any, dtype: Any = np.int64) -> bytes:
    y = Y.astype(dtype)
    y[3] = value
    return npz(X, y)


def parquet_bomb() -> bytes:
    """A million rows of zeros in a few hundred bytes, which the footer counts a thousand times: 20 GB."""
    rows = 1_000_000
    columns = {name: np.zeros(rows, np.float32) for name in "abcd"}
    one = to_parquet(pa.table({**columns, "label": np.zeros(rows, np.int8)}))
    metadata = pq.read_metadata(io.BytesIO(one))
    for _ in range(10):
        metadata.append_row_groups(metadata)
    footer = io.BytesIO()
    metadata.write_metadata_file(footer)
    length = int.from_bytes(one[-8:-4], "little")
    return one[: -8 - length] + footer.getvalue()[4:]


def lines(text: str) -> Callable[[], bytes]:
    return text.encode


def pieces() -> Iterator[bytes]:
    """A body without a declared length, over the limit."""
    for _ in range(2 * LIMIT // 65_536):
        yield bytes(65_536)


ROW = '{"a": 1, "b": 2, "c": 3, "d": 4, "label": 0}\n'
LINES = {"Content-Type": "application/jsonl"}

UPLOADS = [
    Upload("npz of objects", objects, "object-array"),
    Upload("npy of 10 TB", lambda: members(npy_header("<f4", (2_500_000_000, 1000)) + bytes(100)), "too-large"),
    Upload("npz bomb", zip_bomb, "too-large"),
    Upload("npz overlapping", overlapping, "overlapping-members"),
    Upload("npz duplicate", lambda: beside("x.npy"), "duplicate-member"),
    Upload("npz absolute", lambda: beside("/etc/passwd"), "unsafe-member"),
    Upload("npz parent", lambda: beside("../x.npy"), "unsafe-member"),
    Upload("npz backslash", lambda: beside("..\\x.npy"), "unsafe-member"),
    Upload("npz symlink", lambda: beside("link", 0o120777), "unsafe-member"),
    Upload(
        "npz of 100,000 members",
        lambda: archive(*(Entry(f"{n}.npy", b"") for n in range(50_000)), count=0xFFFE),
        "too-many-members",
    ),
    Upload("Parquet bomb of row groups", parquet_bomb, "too-large"),
    Upload("NaN", lambda: with_value(np.nan), "not-finite"),
    Upload("infinity", lambda: with_value(-np.inf), "not-finite"),
    Upload("label -1", lambda: with_label(-1), "label-out-of-range"),
    Upload("label C", lambda: with_label(3), "label-out-of-range"),
    Upload("label 2**63", lambda: with_label(2**63, np.uint64), "label-out-of-range"),
    Upload("fractional label", lambda: with_label(0.5, np.float64), "label-not-integer"),
    Upload("fewer labels", lambda: npz(X, Y[:-1]), "length-mismatch"),
    Upload("no rows", lambda: npz(X[:0], Y[:0]), "empty"),
    Upload("another shape", lambda: npz(X[:, :3]), "wrong-shape"),
    Upload("another dtype", lambda: npz(X.astype(np.uint8)), "wrong-dtype"),
    Upload("images for a model of features", lambda: zipped({"0/1.png": saved(colour())}), "wrong-shape"),
    Upload("NaN in JSON", lines(ROW + ROW.replace("2", "NaN")), "any", headers=LINES),
    Upload("a key twice in JSON", lines(ROW.replace('"b": 2', '"b": 2, "b": 3')), "any", headers=LINES),
    Upload("100,000 levels of JSON", lines(ROW + "[" * 100_000), "any", headers=LINES),
    Upload("100,000 levels in a value", lines(ROW.replace("2", "[" * 100_000 + "]" * 100_000)), "any", headers=LINES),
    Upload(
        "wrong digest", upload_bytes, None, 400, "digest-mismatch", headers={"Content-Digest": content_digest(b"x")}
    ),
    Upload("declared longer", upload_bytes, None, 400, "length-mismatch", headers={"Content-Length": "100000"}),
    Upload("declared shorter", upload_bytes, None, 400, "length-mismatch", headers={"Content-Length": "10"}),
    Upload("over the limit", lambda: bytes(LIMIT + 1), None, 413, "upload-too-large"),
    Upload("over the limit in chunks", pieces, None, 413, "upload-too-large"),
    Upload(
        "gzip body bomb",
        lambda: gzip.compress(bytes(100 << 20)),
        None,
        415,
        "unsupported-media-type",
        headers={"Content-Encoding": "gzip"},
    ),
    Upload(
        "another format than declared",
        upload_bytes,
        "wrong-media-type",
        headers={"Content-Type": "application/vnd.apache.parquet"},
    ),
    Upload("a pickle", lambda: b"\x80\x04\x95" + bytes(50), "unknown-format"),
    *(Upload(f"table: {name}", make, reason, model="fresh") for name, make, reason in TABLES if name in TABLE_CASES),
    *(
        Upload(f"images: {name}", partial(bytes, make) if isinstance(make, bytes) else make, reason, model="fresh")
        for name, make, reason in HOSTILE_IMAGES
        if name in IMAGE_CASES
    ),
]


@pytest.fixture(scope="module")
def shut_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service that nothing may change: with a model that has a megabatch, and one that has none."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("hostile"), max_upload_bytes=LIMIT, max_megabatch_bytes=64 << 20
    )
    migrate(settings.resolved_database_url)
    with opened(settings) as house:
        house.create("gas", input={"classes": ["a", "b", "c"]}).raise_for_status()
        house.create("fresh").raise_for_status()
        house.upload().raise_for_status()
        yield house


def test_every_case_that_is_named_is_there() -> None:
    names = {case.name for case in UPLOADS}
    assert {f"images: {name}" for name in IMAGE_CASES} | {f"table: {name}" for name in TABLE_CASES} <= names


def state(house: House) -> list[Any]:
    """All that training and clients can see; the log may say that something was refused."""
    paths = ("megabatches", "cycles", "versions", "")
    pages = [house.http.get(f"/v1/models/{name}/{path}".rstrip("/")) for name in ("gas", "fresh") for path in paths]
    return [page.raise_for_status().json() for page in pages]


@pytest.mark.slow
@pytest.mark.parametrize("case", UPLOADS, ids=[case.name for case in UPLOADS])
def test_hostile_uploads_are_refused_by_name(case: Upload, shut_house: House) -> None:
    before, body = state(shut_house), case.body()
    began = time.monotonic()
    answer = shut_house.http.post(
        f"/v1/models/{case.model}/megabatches", content=body, headers={**OCTETS, **case.headers}
    )
    assert time.monotonic() - began < 10
    document = problem(answer, case.status, case.slug)
    if case.reason == "any":
        assert document["reason"] not in ("undecodable", "too-slow")
    else:
        assert document.get("reason") == case.reason, document
    assert shut_house.staged() == []
    assert state(shut_house) == before


def test_every_upload_over_a_resumable_door_is_refused_alike(shut_house: House) -> None:
    before, body = state(shut_house), with_value(np.nan)
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(body))}
    path = shut_house.http.post("/v1/models/gas/uploads", headers=headers).headers["Location"]
    part = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert (
        problem(shut_house.http.patch(path, content=body, headers=part), 422, "invalid-megabatch")["reason"]
        == "not-finite"
    )
    assert state(shut_house) == before


NAMES = ["%00", "a%00b", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..", "%2e%2e", "a" * 10_000, "%ff", "caf%C3%A9", "A"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rest", ["", "/megabatches", "/versions/1/checkpoint", "/evaluation-set"])
def test_hostile_names_are_refused(name: str, rest: str, shut_house: House) -> None:
    answer = shut_house.http.get(f"/v1/models/{name}{rest}")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.status_code in (404, 422)
    assert answer.json()["type"].startswith("urn:espalier:problem:")


BODIES = [
    '{"name": "other", "name": "gas"}',
    '{"name": "other", "recipe": {"seed": NaN}}',
    '{"name": "other", "recipe": {"seed": Infinity}}',
    '{"name": "other", "recipe": ' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    '{"name": "other", "recipe": {"seed": ' + "9" * 5_000 + "}}",
    '{"name": "\\u0000"}',
    '{"name": "\ud800"}',
    '{"name": "../other"}',
    "",
    "null",
    json.dumps({"name": "other", "recipe": {"a" * 100_000: 1}}),
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_hostile_json_is_refused(body: str, shut_house: House) -> None:
    before = state(shut_house)
    answer = shut_house.http.post(
        "/v1/models",
        content=body.encode("utf-8", "surrogatepass"),
        headers={"Content-Type": "application/json"},
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert state(shut_house) == before


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'\xef\xbb\xbf{"name": "gas"}', "byte order mark: send it without"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "a number has 5000 digits, and 400 are the most"),
    ],
)
def test_json_is_refused_in_words_for_who_sent_it(body: bytes, told: str, shut_house: House) -> None:
    answer = shut_house.http.post("/v1/models", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert told in answer.json()["detail"]


def test_the_service_still_takes_what_is_sound(shut_house: House) -> None:
    answer: Response = shut_house.upload(seed=99)
    assert answer.status_code == 201
    assert len(shut_house.http.get("/v1/models/gas/megabatches").json()["items"]) == 2
    pictures = zipped({f"{n % 2}/{n}.png": saved(colour(n)) for n in range(6)})
    assert shut_house.upload(data=pictures, name="fresh").status_code == 201
    spec = {"shape": [4, 4, 1], "dtype": "uint8", "classes": ["cat", "dog"], "resize": "crop"}
    shut_house.create("cropped", input=spec).raise_for_status()
    answer = shut_house.upload(data=tarred(folder(6)), name="cropped", **{"Content-Type": "application/x-tar"})
    assert (answer.json()["shape"], answer.json()["histogram"]) == ([4, 4, 1], {"cat": 3, "dog": 3})


# -- who may not -------------------------------------------------------------------------------------------------------


def test_nobody_uploads_with_the_wrong_key_or_none(tmp_path: Path) -> None:
    """Every other route and method is walked in ``test_scopes``: 401 without a key, 403 with one of another scope."""
    settings = Settings(data_dir=tmp_path / "data")
    migrate(settings.resolved_database_url)
    with opened(settings) as house:
        keys = {scope: key_of(house.store, f"only-{scope.value}", scope) for scope in Scope}
        admin = bearer(keys[Scope.ADMIN])
        house.http.post("/v1/models", json={"name": "gas"}, headers=admin).raise_for_status()
        doors = ("/v1/models/gas/megabatches", "/v1/models/nowhere/megabatches", "/v1/models/gas/uploads")
        for path in doors:
            body, before = objects(), house.http.get("/v1/audit/head", headers=admin).json()
            problem(house.http.post(path, content=body, headers=OCTETS), 401, "key-required")
            for scope in set(Scope) - {Scope.INGEST, Scope.ADMIN}:
                headers = {**OCTETS, **bearer(keys[scope])}
                problem(house.http.post(path, content=body, headers=headers), 403, "scope-missing")
            assert house.http.get("/v1/audit/head", headers=admin).json() == before
        assert house.staged() == []


HOSTILE_KEYS = [
    "",
    " ",
    "Bearer",
    "a" * 100_000,
    "esp_" * 20_000,
    "\x00",
    "é",
    "esp_0000000000000000_\xff",
    "' OR 1=1 --",
]


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=range(len(HOSTILE_KEYS)))
@pytest.mark.parametrize("header", ["Authorization", "Cookie"])
def test_hostile_keys_are_refused(key: str, header: str, locked_shut: House) -> None:
    value = f"Bearer {key}" if header == "Authorization" else f"espalier-session={key}"
    answer = locked_shut.http.get("/v1/models", headers={header: value.encode("latin-1")})
    problem(answer, 401, "key-required")


@pytest.fixture(scope="module")
def locked_shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("locked"), api_key="s3cret-key", wrong_keys_per_minute=1000)
    migrate(settings.resolved_database_url)
    with opened(settings) as found:
        yield found
