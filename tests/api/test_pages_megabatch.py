"""The page of one megabatch: its facts, its examples, who may see them, and pictures drawn from the stored arrays."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import numpy as np
import pytest
from httpx import Response
from PIL import Image

from app.api.routes import megabatch_pages
from app.api.web.pictures import MOST, layout_of, sheet
from app.domain import MegabatchDraft, Prequential, Scope
from app.service import erasure, megabatches, peeks
from app.store.database import Store
from espalier.formats import megabatch
from tests.api.conftest import WORKER, House, problem, store_array
from tests.api.test_megabatch_pages import SHIFT
from tests.api.test_pages import key_of, sign_in, text_of
from tests.custody import FRESH, make_recorded

PATH = "/models/gas/megabatches"
NAMES = ["cat", "dog|<b>", "owl"]
IDS = r"<code[^>]*>(\d+)</code>"


def take(store: Store, x: np.ndarray, y: Any, name: str = "gas") -> list[str]:
    """Take arrays in as they are, also such as no decoder lets pass. Returns the examples' ids in order."""
    labels, ids = np.asarray(y, np.int64), megabatch.example_ids(x)
    parts = [store_array(store, array) for array in (x, labels, ids)]
    counts = tuple(np.bincount(labels, minlength=len(NAMES)).tolist())
    with store.transaction(WORKER) as tx:
        model = tx.ledger.lock_model(name)
        draft = MegabatchDraft(megabatch.arrays_digest(x, labels), *parts, len(x), x.nbytes, counts)
        taken, _ = tx.buffer.add_megabatch(model, draft)
        tx.audit.append("megabatch.accepted", model=name, parameters={"megabatch": taken.number})
    return [str(id) for id in ids]


@pytest.fixture
def named(house: House) -> House:
    house.create(input={"classes": NAMES}).raise_for_status()
    return house


def images(n: int = 7) -> np.ndarray:
    """(n, 8, 8) uint8, each of a brightness of its own: its row, times 30."""
    return np.broadcast_to((30 * np.arange(n, dtype=np.uint8))[:, None, None], (n, 8, 8)).copy()


def shown(house: House, path: str = f"{PATH}/1") -> list[tuple[str, str]]:
    """(class, id) of each example in the grid."""
    page = house.http.get(path).text
    found = re.findall(r"<li><svg.*?<b>(.*?)</b>" + IDS, page)
    return [(html.unescape(name), id) for name, id in found]


def sheet_of(house: House, path: str = f"{PATH}/1") -> Response:
    (address,) = set(re.findall(r'<image href="([^"]+)"', house.http.get(path).text))
    return house.http.get(html.unescape(address))


def pixels(answer: Response) -> np.ndarray:
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_the_right_picture_stands_over_the_right_id(named: House) -> None:
    ids = take(named.store, images(), [0, 1, 2, 0, 1, 2, 0])
    assert shown(named) == [(NAMES[row % 3], id) for row, id in enumerate(ids)]
    page = named.http.get(f"{PATH}/1").text
    assert re.findall(r'viewBox="0 (\d+) 8 8" width="96" height="96"', page) == [str(8 * row) for row in range(7)]
    answer = sheet_of(named)
    drawn = pixels(answer)
    assert drawn.shape == (7 * 8, 8, 3)
    assert drawn[::8, 0, 0].tolist() == [30 * row for row in range(7)]
    assert answer.headers["Cache-Control"] == megabatch_pages.CACHED


def test_a_class_alone_and_page_by_page(named: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megabatch_pages, "EXAMPLES_SHOWN", 2)
    monkeypatch.setattr(peeks, "_LABELS", 2)
    ids = take(named.store, images(), [0, 1, 0, 2, 0, 1, 0])
    path, seen = f"{PATH}/1", []
    page = named.http.get(path).text
    path = html.unescape(re.search(r'href="([^"#]+class=0)#examples"', page)[1])  # type: ignore[index]
    while path:
        seen.append(([id for _, id in shown(named, path)], pixels(sheet_of(named, path))[::8, 0, 0].tolist()))
        page = named.http.get(path).text
        following = re.search(r'href="([^"]+)#examples">Next page', page)
        path = html.unescape(following[1]) if following else ""
    assert seen == [([ids[0], ids[2]], [0, 60]), ([ids[4], ids[6]], [120, 180])]
    assert "No examples here" in text_of(named.http.get(f"{PATH}/1?class=9"))
    assert "No examples here" in text_of(named.http.get(f"{PATH}/1?after=2000000000"))
    assert named.http.get(f"{PATH}/1?after=-1").status_code == 422


def test_what_is_no_image_is_a_table_with_drawings(named: House) -> None:
    x = np.array([[0, -1.5, np.nan, 7, 1e6, 2, 3, 4], [1, 2.5, np.inf, 7, 2e6, 4, 3, 4]], np.float32)
    ids = take(named.store, x, [0, 1])
    answer = named.http.get(f"{PATH}/1")
    assert re.findall(r'<th scope="row">' + IDS, answer.text) == ids
    cells = re.findall(r'<td class="num" data-label="(\d)">([^<]+)</td>', answer.text)
    assert cells[:6] == [("0", "0"), ("1", "−1.5"), ("2", "–"), ("3", "7"), ("4", "1e+06"), ("5", "2")]
    drawings = re.findall(r'<svg class="columns-of".*?</svg>', answer.text)[-2:]
    heights = [[float(high) for high in re.findall(r'height="([\d.]+)"/>', each)] for each in drawings]
    assert heights == [[0] * 8, [24, 24, 0, 0, 24, 24, 0, 0]]
    assert "2 more values" in text_of(answer) and "<image" not in answer.text
    problem(named.http.get(f"{PATH}/1/sheet?of=x"), 404, "unknown")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 6), (6, 8)),
        ((8, 6, 1), (6, 8)),
        ((8, 6, 3), (6, 8)),
        ((8, 6, 4), (6, 8)),
        ((3, 8, 6), (6, 8)),
        ((1, 8, 6), (6, 8)),
        ((3, 32, 3), (32, 3)),  # channels last, as an input spec says
        ((192, 960, 3), (MOST, 19)),
        ((8, 6, 2), None),
        ((1, 784), None),
        ((5,), None),
        ((2, 3, 4, 5), None),
    ],
)
def test_shapes_that_are_images(shape: tuple[int, ...], expected: tuple[int, int] | None) -> None:
    layout = layout_of(shape)
    assert (layout and layout.size) == expected
    if layout is not None:
        example = np.full(shape, 200, np.uint8)
        drawn = np.asarray(Image.open(io.BytesIO(sheet([example], 1, layout, 0, 0))))
        assert (drawn == 200).all() and drawn.shape[:2] == layout.size[::-1]


def test_colours_stay_in_their_channels() -> None:
    last = np.zeros((2, 2, 4), np.uint8)
    last[..., 1], last[..., 3] = 255, 7
    for example in (last, np.moveaxis(last, -1, 0)):
        layout = layout_of(example.shape)
        assert layout is not None
        drawn = np.asarray(Image.open(io.BytesIO(sheet([example], 1, layout, 0, 0))))
        assert (drawn == [0, 255, 0]).all()


def test_fractions_are_drawn_over_the_range_of_the_megabatch(named: House) -> None:
    x = np.zeros((3, 2, 2), np.float32)
    x[0], x[1] = [[-4, np.nan], [np.inf, 0]], 4
    take(named.store, x, [0, 0, 1])
    drawn = pixels(sheet_of(named, f"{PATH}/1?class=0"))[..., 0]
    assert drawn.tolist() == [[0, 0], [0, 128], [255, 255], [255, 255]]
    assert (pixels(sheet_of(named, f"{PATH}/1?class=1")) == 128).all()  # on the same scale
    take(named.store, np.full((2, 2, 2), 3.5, np.float32), [0, 1])
    assert (pixels(sheet_of(named, f"{PATH}/2")) == 128).all()


def test_a_range_is_of_a_few_examples_and_of_what_is_finite() -> None:
    x = np.arange(1000, dtype=np.float32)[:, None] * [1, -1]
    low, high = peeks.range_of(x)
    assert low.tolist() == [0, -999] and high.tolist() == [999, 0]
    low, high = peeks.range_of(np.full((2, 1), np.nan, np.float32))
    assert low.tolist() == high.tolist() == [0]


def test_facts_stand_beside_the_examples(named: House) -> None:
    take(named.store, images(), [0, 1, 2, 0, 1, 2, 0])
    with named.store.transaction(WORKER) as tx:
        model = tx.ledger.lock_model("gas")
        drift = {"inputs": SHIFT, "labels": {**SHIFT, "alarm": False}, "accuracy": None}
        tx.buffer.record_prequential(model, 1, Prequential(1, 0.6667, 1.1, 9, drift))
        tx.audit.append("cycle.judged", model="gas", parameters={})
    version = make_recorded(named.store, model, {1: {11: FRESH}})
    assert f'href="{PATH}/1"' in named.http.get(PATH).text and f'href="{PATH}/1"' in named.http.get("/models/gas").text
    answer = named.http.get(f"{PATH}/1")
    page = text_of(answer)
    for said in (
        "7 examples",
        "dog|<b> 2 28.6 %",
        "drifted",
        "effect 0.62, p < 0.001",
        "9 examples against 18",
        "sha256:",
    ):
        assert said in page, said
    assert page.count("drifted") == 1 and f'href="/models/gas/versions/{version.number}"' in answer.text
    problem(named.http.get(f"{PATH}/2"), 404, "unknown-megabatch")
    problem(named.http.get(f"{PATH}/2/sheet?of=x"), 404, "unknown-megabatch")
    problem(named.http.get("/models/air/megabatches/1"), 404, "unknown-model")


def test_quarantined_ones_are_marked_and_erased_ones_show_nothing(named: House) -> None:
    ids = take(named.store, images(), [0, 1, 2, 0, 1, 2, 0])
    before = html.unescape(re.findall(r'<image href="([^"]+)"', named.http.get(f"{PATH}/1").text)[0])
    asked = erasure.Asked(samples=(int(ids[2]), int(ids[3])))
    erasure.erase(named.store, "gas", asked, reason="asked for", actor=WORKER)
    assert [id for _, id in shown(named)] == [ids[row] for row in (0, 1, 4, 5, 6)]
    assert pixels(sheet_of(named))[::8, 0, 0].tolist() == [0, 30, 120, 150, 180]
    assert "2 examples were erased for good" in text_of(named.http.get(f"{PATH}/1"))
    problem(named.http.get(before), 404, "unknown")
    after = html.unescape(re.findall(r'<image href="([^"]+)"', named.http.get(f"{PATH}/1").text)[0])
    megabatches.quarantine_megabatch(named.store, "gas", 1, reason="wrong", actor=WORKER)
    assert "In quarantine" in text_of(named.http.get(f"{PATH}/1")) and len(shown(named)) == 5
    erasure.erase(named.store, "gas", erasure.Asked(megabatches=(1,)), reason="asked for", actor=WORKER)
    answer = named.http.get(f"{PATH}/1")
    assert "its examples were erased" in text_of(answer) and "<image" not in answer.text and ids[0] not in answer.text
    assert f"{PATH}/1/" not in answer.text
    problem(named.http.get(after), 409, "megabatch-erased")


def test_arrays_that_cannot_be_read_leave_the_facts(named: House) -> None:
    take(named.store, images(), [0, 1, 2, 0, 1, 2, 0])
    with named.store.reading() as tx:
        found = tx.buffer.megabatch("gas", 1)
    path = named.store.blobs.path(found.y)
    path.chmod(0o600)
    path.write_bytes(b"no array")
    page = text_of(named.http.get(f"{PATH}/1"))
    assert "cannot be read" in page and "dog|<b> 2" in page
    problem(named.http.get(f"{PATH}/1/sheet?of={found.x}"), 500, "corrupt-blob")


def test_values_are_shown_to_those_who_may_see_them(named: House) -> None:
    ids = take(named.store, images(), [0, 1, 2, 0, 1, 2, 0])
    sign_in(named, key_of(named, "looks", Scope.READ, Scope.INGEST, Scope.RELEASE, Scope.AUDIT))
    page = named.http.get(f"{PATH}/1")
    assert "scope “train”" in text_of(page) and "dog|<b> 2" in text_of(page)
    assert (
        "<image" not in page.text and ids[0] not in page.text and "class=" not in re.sub(r'\sclass="', " ", page.text)
    )
    with named.store.reading() as tx:
        address = f"{PATH}/1/sheet?of={tx.buffer.megabatch('gas', 1).x}"
    assert named.http.get(address).status_code == 403
    sign_in(named, key_of(named, "trains", Scope.READ, Scope.TRAIN))
    assert len(shown(named)) == 7 and named.http.get(address).status_code == 200
