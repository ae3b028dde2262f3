"""A recipe that rounds: the checkpoint, its manifest, the version and the dense form say the same."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load

from app.service import release
from espalier.formats import checkpoint
from espalier.formats.canonical import exact, sha256_digest
from espalier.formats.writer import ZSTD, rounded
from tests.service.conftest import RECIPE, House


@pytest.mark.parametrize("values", ["bfloat16", "float16"])
def test_what_is_published_is_rounded_everywhere(house: House, values: str) -> None:
    house.create(recipe={**RECIPE, "checkpoint": {"values": values}})
    house.grow(2)
    version = release.get_version(house.store, "gas", "2").version
    saved = checkpoint.decode(release.open_checkpoint(house.store, "gas", "2", "sparse").path)
    for name in saved.masks:
        np.testing.assert_array_equal(saved.arrays[name], rounded(saved.arrays[name], values, name))
    assert saved.manifest == exact(dict(house.manifest(2)))
    assert saved.manifest["values"] == values
    assert saved.manifest["environment"]["zstd"] == ZSTD
    assert {"validation_accuracy", "unrounded_validation_accuracy"} <= version.metrics.keys()
    dense = release.open_checkpoint(house.store, "gas", "2", "dense").path.read_bytes()
    assert sha256_digest(dense) == version.dense
    for name, array in load(dense).items():
        if name in saved.arrays:
            np.testing.assert_array_equal(array, saved.arrays[name])
