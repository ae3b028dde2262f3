"""One seeded small run, and how to write down its figures anew.

    python -m tests.golden.learning_run

writes ``learning.json``. A change of numerics must change that file, and the commit must say why.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from app.domain import Phase, Progress
from tests.learning.cases import Snapshot, clusters, first_cycle, next_cycle, run, small_recipe

FILE = Path(__file__).with_name("learning.json")


def environment() -> dict[str, str]:
    """What may move last bits, and with them digests."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine()}


def figures() -> list[dict[str, Any]]:
    """Density, mask digest, losses and accuracies of five cycles, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _figures()
    finally:
        torch.set_num_threads(threads)


def _figures() -> list[dict[str, Any]]:
    recipe = small_recipe(training={"epochs": 3})
    given, found = first_cycle(recipe, clusters(1)), []
    for number in range(2, 7):
        losses: list[float] = []

        def watch(progress: Progress, snapshot: Snapshot, losses: list[float] = losses) -> None:
            if progress.phase is Phase.TRAIN and progress.loss is not None:
                losses.append(progress.loss)

        result = run(given, watch)
        pruned = [event.parameters for event in result.events if event.kind == "mask.pruned"]
        found.append(
            {
                "stage": result.stage,
                "target_density": result.target_density,
                "kept": result.kept,
                "layers": [layer.kept for layer in result.layers],
                "mask_digest": pruned[0]["mask_digest_after"] if pruned else None,
                "sample_digest": pruned[0]["sample_digest"] if pruned else None,
                "losses": losses,
                "metrics": result.metrics,
            }
        )
        given = next_cycle(given, result, clusters(number))
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps({"environment": environment(), "cycles": figures()}, indent=1) + "\n")
    print(f"wrote {FILE}")
