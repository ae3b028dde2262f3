"""Training: the loop under a mask, which may shrink between two steps.

Knows: minibatches, the order of things in a step and an epoch, the best epoch, when to stop. Must never know: why the
mask is what it is, or what is done with the result.

Laws:
    * A fit that is put down after any optimizer step and taken up elsewhere (same device kind, threads, torch) gives
      the same bits as one that was not.
    * Pruned weights, their optimizer state and their average are exactly zero after every step: they are set to zero
      when the mask shrinks, and their gradients before each step. A check after every epoch says so.
    * Every random draw comes from generators that are seeded for the epoch, whatever ran before it.
    * No arithmetic of a step is Python per layer; losses stay on the device.
    * A loss that is not finite ends the fit with ``TrainingDiverged``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.errors import InvariantBroken, NothingToTrain, TrainingDiverged
from app.learning.augmentation import augmented
from app.learning.averaging import Average, retake_statistics
from app.learning.best_epoch import Best, BestEpoch, copy_into, tensors_of
from app.learning.evaluation import evaluate
from app.learning.losses import Loss
from app.learning.mask import Mask
from app.learning.optimizers import minibatch_bounds, optimizer_for, rate_at
from app.learning.recipe import Training
from app.learning.rows import Rows
from app.learning.running import RunningScores
from app.learning.seeds import random_state, seeded, set_random_state

Pulse = Callable[[float | None], None]
"""Called at every step with the latest known loss; may raise to stop."""

_LOOK = 16
"""Optimizer steps between two looks at the loss on an accelerator, where each look waits for the device."""


class Fit:
    """One retraining of a network under a mask, which can be put down after any step and taken up again.

    Args:
        network: with the mask applied; trained in place.
        prunable: its prunable parameters, by name, in the mask's order.
        mask: at the start; ``shrink`` gives a smaller one.
        training: at least two rows.
        selection: rows to choose the best epoch on; None keeps the last epoch.
        options: the recipe's. The learning rate follows the planned epochs, also when patience ends the fit before.
        seed: purpose -> seed.
        order: epoch -> positions of the training rows in the order in which that epoch shows them.
        running: scores to keep up to date until ``settle``; None keeps none.

    Attributes:
        epochs, steps: that are planned.
        epoch: whole epochs done.
        loss: the latest known training loss; after an epoch, its mean over that epoch.
        first_loss: the mean training loss of the first epoch, once it is done.

    Raises:
        NothingToTrain: with fewer than two training rows.
        InvalidRecipe: when there is not one class weight for each class.
    """

    def __init__(
        self,
        network: nn.Module,
        prunable: Mapping[str, nn.Parameter],
        mask: Mask,
        training: Rows,
        selection: Rows | None,
        options: Training,
        seed: Callable[[str], int],
        order: Callable[[int], Tensor],
        running: RunningScores | None = None,
    ) -> None:
        if len(training) < 2:
            raise NothingToTrain("fewer than two training examples: upload more, or lower validation_share")
        self._network, self._prunable = network, prunable
        self._training, self._selection, self._options, self._seed = training, selection, options, seed
        self._order, self.running = order, running
        self._device = training.device
        self._bounds = minibatch_bounds(len(training), options.minibatch)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = optimizer_for(options, self._parameters)
        self._loss_of = Loss(options, training.labels, training.classes, self._device)
        self.epochs = epochs_of(options, len(training))
        self.steps = self.epochs * len(self._bounds)
        self._average = Average(options.averaging, network, self.epochs)
        self._chosen = BestEpoch(options.patience)
        self.epoch, self._in_epoch = 0, 0
        self.loss: float | None = None
        self.first_loss: float | None = None
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._random: dict[str, Tensor] | None = None  # of the epoch under way, while the fit is put down
        self._under(mask)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.epoch * len(self._bounds) + self._in_epoch

    @property
    def stopped(self) -> bool:
        """Whether patience ran out: no epoch follows the ``epoch`` that are done."""
        return self._chosen.given_up(self.epoch)

    @property
    def best(self) -> Best | None:
        """The best epoch under the present mask so far, if epochs are selected."""
        return self._chosen.best

    @property
    def examples_seen(self) -> int:
        """Examples that optimizer steps have seen, repetitions counted."""
        done = self._bounds[self._in_epoch - 1][1] if self._in_epoch else 0
        return self.epoch * len(self._training) + done

    def shown(self, step: int) -> npt.NDArray[np.bool_]:
        """Which training rows the first ``step`` optimizer steps show: (n,) bool."""
        rows = np.zeros(len(self._training), dtype=np.bool_)
        for epoch in range(-(-step // len(self._bounds))):
            here = min(step - epoch * len(self._bounds), len(self._bounds))
            rows[self._order(epoch)[: self._bounds[here - 1][1]].numpy()] = True
            if rows.all():  # after the first epoch, as a rule
                break
        return rows

    def run_to(self, step: int, pulse: Pulse) -> None:
        """Train until ``step`` optimizer steps are done, or patience runs out; an epoch that ends there is ended.

        Args:
            step: of the whole fit, <= ``steps``.
            pulse: called at every optimizer step and evaluated chunk, with the latest known training loss.

        Raises:
            TrainingDiverged: when a loss is not finite.
            InvariantBroken: when a pruned weight is not zero after an epoch.
        """
        self._network.train()
        while not self.stopped and (self.step < step or self._in_epoch == len(self._bounds)):
            with seeded(self._seed(f"noise-{self.epoch}"), self._device):
                if self._random is not None:
                    set_random_state(self._random, self._device)
                    self._random = None
                self._make_steps(step - self.epoch * len(self._bounds), pulse)
                if self._in_epoch < len(self._bounds):
                    self._random = random_state(self._device)
            if self._in_epoch == len(self._bounds):
                self._end_epoch(pulse)

    def shrink(self, mask: Mask) -> None:
        """Go on under a smaller mask: what it prunes becomes zero, in the weights and in the optimizer's state.

        Epochs before it are no longer candidates for the best one, and weights before it no part of an average.
        """
        mask.apply(self._prunable)
        states = [self._optimizer.state.get(parameter, {}) for parameter in self._prunable.values()]
        for state, kept in zip(states, mask.values(), strict=True):
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == kept.shape:
                    value.masked_fill_(~kept, 0)
        self._under(mask)
        self._chosen.restart()
        self._average.restart()
        self.check()

    def settle(self) -> None:
        """No more pruning is to come: keep no running scores, and count patience, from now on."""
        self.running = None
        self._chosen.settle(self.epoch)

    def finish(self, pulse: Pulse = lambda loss: None) -> None:
        """Let the network hold the weights to publish. Call after the last step; when broken off, call it again.

        Args:
            pulse: called at every minibatch that statistics of averaged weights are taken from.
        """
        self._chosen.apply(self._network)
        if self._average.mean:
            self._average.apply()
            self._network.train()
            with seeded(self._seed("statistics"), self._device):
                retake_statistics(self._network, self._once_more(pulse))
        self.check()

    def check(self) -> None:
        """Check that what is pruned is exactly zero: in the weights, the optimizer's state and the average.

        Raises:
            InvariantBroken: when it is not, or the mask's tensors were changed.
        """
        where = f"in epoch {min(self.epoch + 1, self.epochs)}"
        states = [self._optimizer.state.get(parameter, {}) for parameter in self._prunable.values()]
        kinds = {key for state in states for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
        for kind in kinds:
            held = {name: state[kind] for name, state in zip(self._prunable, states, strict=True) if kind in state}
            if not self._mask.holds(held):
                raise InvariantBroken(f"{kind} of pruned weights is not zero {where}")
        if not self._mask.holds(self._average.mean):
            raise InvariantBroken(f"the average of pruned weights is not zero {where}")
        if not self._mask.intact() or not self._mask.holds(self._prunable):
            raise InvariantBroken(f"pruned weights are not zero {where}")

    def trains(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether the optimizer moves exactly these tensors: what is scored is what is trained."""
        ours = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return all(id(p) in ours and p is self._prunable.get(name) for name, p in parameters.items())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that ``restore`` needs to go on from here with the same bits: tensors, and plain values."""
        tensors = {f"network/{name}": tensor for name, tensor in tensors_of(self._network).items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._chosen.tensors.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self._average.mean.items()}
        if 0 < self._in_epoch < len(self._bounds):  # else an epoch's generators are yet to be seeded, or done with
            random = random_state(self._device) if self._random is None else self._random
            tensors |= {f"random/{name}": tensor for name, tensor in random.items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items() if value is not None}
        if self.running is not None:
            tensors |= {f"running/{name}": tensor for name, tensor in self.running.state().items()}
        facts = {
            "epoch": self.epoch,
            "in_epoch": self._in_epoch,
            "loss_sum": float(self._loss_sum),
            "loss": self.loss,
            "first_loss": self.first_loss,
            "averaged": self._average.taken,
            **self._chosen.facts(),
        }
        return tensors, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave, in a fit that was made from the same arguments and the mask of then."""
        copy_into(self._network, _named("network/", tensors))
        self._chosen.restore({name: t.to(self._device) for name, t in _named("best/", tensors).items()}, facts)
        self._average.restore(_named("average/", tensors), facts["averaged"])
        self._random = _named("random/", tensors) or None
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _named("optimizer/", tensors).items():
            index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})
        if running := _named("running/", tensors):
            assert self.running is not None
            self.running.restore(running)
        else:
            self.running = None
        self.epoch, self._in_epoch = facts["epoch"], facts["in_epoch"]
        self.loss, self.first_loss = facts["loss"], facts["first_loss"]
        self._loss_sum.fill_(facts["loss_sum"])

    def _under(self, mask: Mask) -> None:
        self._mask = mask
        pruned = mask.kept < mask.total
        self._masked = list(zip(self._prunable.values(), mask.floats(), strict=True)) if pruned else []

    def _make_steps(self, until: int, pulse: Pulse) -> None:
        """Optimizer steps of this epoch, in its order, until so many of them are done or it ends."""
        order, bounds = self._shown(self.epoch), self._bounds[self._in_epoch : max(until, self._in_epoch)]
        look = 1 if self._device.type == "cpu" else _LOOK
        for x, y in self._training.minibatches(order[start:end] for start, end in bounds):
            loss = self._learn(x, y)
            self._loss_sum += loss * len(y)
            self._in_epoch += 1
            if self._in_epoch % look == 0:
                self.loss = self._finite(float(loss))
            pulse(self.loss)

    def _learn(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer step; the minibatch's loss, on the device."""
        rate = rate_at(self._options, self.step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        x, targets = augmented(self._options.augmentation, x, y)
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._options.precision == "bfloat16"):
            logits = self._network(x)
        loss = self._loss_of(logits.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.running is not None:
            self.running.update()
        if self._masked:
            found = [(weight.grad, mask) for weight, mask in self._masked if weight.grad is not None]
            torch._foreach_mul_([gradient for gradient, _ in found], [mask for _, mask in found])
        if self._options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._options.clip_norm, foreach=True)
        self._optimizer.step()
        self._average.after_step()
        return loss.detach()

    def _end_epoch(self, pulse: Pulse) -> None:
        """Look at the epoch that was trained, then go to the next; what a pulse may break off is done first."""
        self.loss = self._finite(float(self._loss_sum) / len(self._training))
        self.check()
        if self._selection is not None:
            answers = evaluate(self._network, self._selection, lambda: pulse(self.loss))
            self._chosen.offer(Best(self.epoch, answers.accuracy, self._finite(answers.loss)), self._network)
        self._average.after_epoch(self.epoch)
        self.first_loss = self.loss if self.epoch == 0 else self.first_loss
        self.epoch, self._in_epoch = self.epoch + 1, 0
        self._loss_sum.zero_()

    def _shown(self, epoch: int) -> Tensor:
        """Positions of the training rows in the epoch's order, where they can be sliced without waiting."""
        order = self._order(epoch)
        return order.to(self._device) if self._training.held else order

    def _once_more(self, pulse: Pulse) -> Iterator[Tensor]:
        """The input of all training rows, as an epoch after the last planned one would show it, unchanged."""
        order = self._shown(self.epochs)
        for x, _ in self._training.minibatches(order[start:end] for start, end in self._bounds):
            yield x
            pulse(self.loss)

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise TrainingDiverged(
            f"the loss became {loss} in epoch {self.epoch + 1} of {self.epochs}: lower training.learning_rate (now "
            f"{self._options.learning_rate}), set training.clip_norm or training.rate.warmup, or check the "
            "normalisation of the inputs"
        )


def epochs_of(options: Training, examples: int) -> int:
    """Epochs of a cycle over so many training examples: the recipe's, or as many as its least number of steps needs."""
    return max(options.epochs, -(-options.least_steps // len(minibatch_bounds(examples, options.minibatch))))


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
