"""One seeded run, figure by figure. On purpose or not: who changes numerics changes ``learning.json`` and says why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.golden.learning_run import FILE, environment, figures

REMEDY = "numerics changed: if that is meant, run `python -m tests.golden.learning_run` and say why in the commit"
EXACT = ("stage", "target_density", "kept", "sample_digest")  # the same everywhere
HERE = ("mask_digest", "layers")  # may differ where a last bit decides a tie or an order


def test_the_seeded_run_repeats() -> None:
    golden: dict[str, Any] = json.loads(FILE.read_text())
    cycles = figures()
    same = golden["environment"] == environment()
    for cycle, expected in zip(cycles, golden["cycles"], strict=True):
        for key in (*EXACT, *HERE) if same else EXACT:
            assert cycle[key] == expected[key], f"{key}: {REMEDY}"
        if same:
            assert cycle["losses"] == pytest.approx(expected["losses"], rel=1e-5), REMEDY
            assert cycle["metrics"] == pytest.approx(expected["metrics"], rel=1e-5), REMEDY
    assert cycles[0]["losses"] == pytest.approx(golden["cycles"][0]["losses"], rel=0.02), REMEDY
