"""What the authors' published code does, as against what the paper says: the baseline ``app-reference``.

Knows: how it prunes. Must never know: the product's recipes; it is no option of the product.

What was found by running its own modules, and is done here alike:
    * From t = 2 on, SNIP scores a **fresh random network**: the checkpoint's keys (``weight_orig``) do not match
      (``weight``), and loading is not strict. Biases, norms and their statistics do match and are loaded.
    * Each mask has the planned density by itself, but torch's pruning container **multiplies** it onto the ones before,
      so the real density is about their product.
    * The sample is always the first 20 % of M_1.

Training is the paper's: the product's own cycle at constant density, under the mask that was made here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.learning import criteria
from app.learning.architectures import build, load_strictly, prunable_parameters
from app.learning.cycle import CycleInput, Parent
from app.learning.mask import Mask, top_k
from app.learning.normalisation import network_shape
from app.learning.plan import Plan
from app.learning.recipe import App, Snip
from app.learning.schedules import density_at, kept_at
from app.learning.seeds import seed_for

SHARE = 0.2
"""Of M_1, from its beginning."""


class Reference:
    """Prunes as the published code does.

    Args:
        first: the input of the first cycle.
        stages: T.
        device: where scores are taken.
    """

    def __init__(self, first: CycleInput, stages: int, device: torch.device) -> None:
        self._first, self._device = first, device
        self._plan = Plan(first, device)
        self._schedule = App(stages=stages)

    def before(self, t: int, parent: Parent | None) -> Parent:
        """What cycle ``t`` starts from: the parent under the product of all masks so far."""
        network = self._plan.network()
        if parent is not None:
            random = self._fresh(t)
            arrays = {name: value for name, value in parent.arrays.items() if name not in parent.masks}
            found = {name: value.cpu().numpy() for name, value in random.items()} | arrays
            assert not load_strictly(network, found)
        prunable = prunable_parameters(network)
        scores = criteria.score(Snip(), network, prunable, self._sample(), 0)
        whole = Mask.full(prunable)
        planned = kept_at(density_at(self._schedule, t), whole.total)
        masks = top_k(scores, whole, planned).mask.arrays()
        if parent is None:
            arrays = {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}
        else:
            masks = {name: kept & parent.masks[name] for name, kept in masks.items()}
            arrays = {name: value.copy() for name, value in parent.arrays.items()}
        for name, kept in masks.items():
            arrays[name][~kept] = 0
        if parent is None:
            return Parent(arrays, masks, 0, 0, None)
        return Parent(arrays, masks, parent.stage, parent.depth, parent.normalisation, parent.history)

    def _fresh(self, t: int) -> dict[str, Tensor]:
        recipe, spec = self._first.recipe, self._first.input
        assert spec.shape is not None and spec.classes is not None
        seed = seed_for(recipe.seed, t, 0, "app-reference")
        shape = network_shape(spec.shape, recipe.network)
        return build(recipe.network, shape, len(spec.classes), seed=seed, device=self._device).state_dict()

    def _sample(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The first 20 % of M_1, in minibatches."""
        size, minibatch = max(1, round(SHARE * len(self._plan.training))), self._first.recipe.training.minibatch
        for start in range(0, size, minibatch):
            yield self._plan.training.gather(torch.arange(start, min(start + minibatch, size)))
