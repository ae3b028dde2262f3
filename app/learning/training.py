"""Training: the loop under a fixed mask, and evaluation.

Knows: minibatches, optimizers, learning rates, the best epoch. Must never know: why the mask is what it is, or what is
done with the result.

Laws:
    * A fit that is put down after any optimizer step and taken up elsewhere (same device kind, threads, torch) gives
      the same bits as one that was not.
    * Pruned weights and their optimizer state are exactly zero after every step: their gradients are zeroed before it,
      and zero is where they start. A check after every epoch says so.
    * Nothing in a step is Python per layer beside what torch's optimizers do; losses stay on the device.
    * A loss that is not finite ends the fit with ``TrainingDiverged``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import InvariantBroken, NothingToTrain, TrainingDiverged
from app.learning.mask import Mask
from app.learning.recipe import AdamW, Cosine, Sgd, Step, Training
from app.learning.rows import Rows
from app.learning.seeds import permutation, random_state, seeded, set_random_state

Pulse = Callable[[float | None], None]
"""Called at every step with the latest known loss; may raise to stop."""

_LOOK = 16
"""Optimizer steps between two looks at the loss on an accelerator, where each look waits for the device."""


# -- evaluation --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a network answers some rows.

    Attributes:
        accuracy: share of right answers.
        loss: mean cross entropy in nats, without label smoothing.
        balanced_accuracy: mean over the classes that occur of the share of right answers.
        correct: (n,) bool, right or wrong, in the rows' order.
    """

    accuracy: float
    loss: float
    balanced_accuracy: float
    correct: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.correct)


def evaluate(network: nn.Module, rows: Rows, pulse: Callable[[], None] = lambda: None) -> Evaluation:
    """Let ``network`` answer all ``rows`` in float32 and eval mode; its mode is as before afterwards.

    Args:
        network: on the rows' device.
        rows: at least one.
        pulse: called after every chunk; may raise to stop.
    """
    correct = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
    loss = torch.zeros((), dtype=torch.float64, device=rows.device)
    done, training = 0, network.training
    network.eval()
    try:
        with torch.inference_mode():
            for x, y in rows.chunks():
                logits = network(x).float()
                loss += functional.cross_entropy(logits, y, reduction="sum")
                correct[done : done + len(y)] = logits.argmax(1) == y
                done += len(y)
                pulse()
    finally:
        network.train(training)
    answers = correct.cpu().numpy()
    return Evaluation(
        float(answers.mean()), float(loss) / done, balanced_accuracy(rows.labels, answers, rows.classes), answers
    )


def balanced_accuracy(labels: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_], classes: int) -> float:
    """Mean recall over the classes that occur in ``labels``."""
    counts = np.bincount(labels, minlength=classes)
    right = np.bincount(labels, weights=correct, minlength=classes)
    return float((right[counts > 0] / counts[counts > 0]).mean())


# -- learning rates, minibatches, optimizers ---------------------------------------------------------------------------


def rate_at(options: Training, step: int, steps: int) -> float:
    """Learning rate of optimizer step ``step`` (0 .. steps - 1) of a cycle of ``steps``."""
    peak = options.learning_rate
    match options.rate:
        case Cosine(warmup=warmup):
            rising = round(warmup * steps)
            if step < rising:
                return peak * (step + 1) / rising
            return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
        case Step(milestones=milestones, factor=factor):
            return peak * factor ** sum(step / steps >= milestone for milestone in milestones)


def minibatch_bounds(n: int, size: int) -> list[tuple[int, int]]:
    """Where the minibatches of an epoch begin and end.

    A single left-over example joins the minibatch before it: batch normalisation cannot take one alone.
    """
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1 and size > 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True))


def optimizer_for(options: Training, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer, with fused or multi-tensor steps."""
    match options.optimizer:
        case Sgd(momentum=momentum, weight_decay=decay):
            return torch.optim.SGD(
                parameters, options.learning_rate, momentum=momentum, weight_decay=decay, **_fast(parameters)
            )
        case AdamW(beta1=beta1, beta2=beta2, weight_decay=decay):
            return torch.optim.AdamW(
                parameters, options.learning_rate, betas=(beta1, beta2), weight_decay=decay, **_fast(parameters)
            )


def _fast(parameters: Sequence[nn.Parameter]) -> dict[str, bool]:
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}


# -- the fit -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The best epoch so far: highest validation accuracy; then lowest validation loss; then the earliest."""

    epoch: int
    accuracy: float
    loss: float

    def beats(self, other: Best | None) -> bool:
        """Whether this epoch, a later one, is strictly better."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


class Fit:
    """One retraining of a network under a mask, which can be put down after any step and taken up again.

    Args:
        network: with the mask applied; trained in place.
        prunable: its prunable parameters, by name, in the mask's order.
        mask: fixed throughout.
        training: at least two rows.
        selection: rows to choose the best epoch on; None keeps the last epoch.
        options: the recipe's.
        seed: purpose -> seed.

    Raises:
        NothingToTrain: with fewer than two training rows.
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
    ) -> None:
        if len(training) < 2:
            raise NothingToTrain("fewer than two training examples: upload more, or lower validation_share")
        self._network, self._prunable, self._mask = network, prunable, mask
        self._training, self._selection, self._options, self._seed = training, selection, options, seed
        self._device = training.device
        self._bounds = minibatch_bounds(len(training), options.minibatch)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = optimizer_for(options, self._parameters)
        pruned = mask.kept < mask.total
        self._masked = list(zip(prunable.values(), mask.floats(), strict=True)) if pruned else []
        self.epochs, self.steps = options.epochs, options.epochs * len(self._bounds)
        self.epoch, self._in_epoch = 0, 0
        self.best: Best | None = None
        self.loss: float | None = None
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._best_tensors: dict[str, Tensor] = {}
        self._random: dict[str, Tensor] | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.epoch * len(self._bounds) + self._in_epoch

    @property
    def examples_seen(self) -> int:
        """Examples that optimizer steps have seen, repetitions counted."""
        done = self._bounds[self._in_epoch - 1][1] if self._in_epoch else 0
        return self.epoch * len(self._training) + done

    def run(self, pulse: Pulse) -> None:
        """Train through the last epoch; then the network holds the weights to publish.

        Args:
            pulse: called at every optimizer step and evaluated chunk, with the latest known training loss.

        Raises:
            TrainingDiverged: when a loss is not finite.
            InvariantBroken: when a pruned weight is not zero after an epoch.
        """
        self._network.train()
        while self.epoch < self.epochs:
            with seeded(self._seed(f"noise-{self.epoch}"), self._device):
                if self._random is not None:
                    set_random_state(self._random, self._device)
                    self._random = None
                self._finish_steps(pulse)
            self._end_epoch(pulse)
        if self._best_tensors:
            _copy(self._best_tensors, _tensors(self._network))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that ``restore`` needs to go on from here with the same bits: tensors, and plain values."""
        tensors = {f"network/{name}": tensor for name, tensor in _tensors(self._network).items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best_tensors.items()}
        if self._in_epoch:  # before its first step an epoch's generators are yet to be seeded
            tensors |= {f"random/{name}": tensor for name, tensor in random_state(self._device).items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items() if value is not None}
        facts = {
            "epoch": self.epoch,
            "in_epoch": self._in_epoch,
            "loss_sum": float(self._loss_sum),
            "loss": self.loss,
            "best": asdict(self.best) if self.best else None,
        }
        return tensors, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave, in a fit that was made from the same arguments."""
        _copy(_under("network/", tensors), _tensors(self._network))
        self._best_tensors = {key: value.to(self._device) for key, value in _under("best/", tensors).items()}
        self._random = _under("random/", tensors) or None
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer/", tensors).items():
            index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})
        self.epoch, self._in_epoch, self.loss = facts["epoch"], facts["in_epoch"], facts["loss"]
        self._loss_sum.fill_(facts["loss_sum"])
        self.best = Best(**facts["best"]) if facts["best"] else None

    def _finish_steps(self, pulse: Pulse) -> None:
        """The rest of the epoch's optimizer steps, in the epoch's order."""
        order = permutation(len(self._training), self._seed(f"epoch-{self.epoch}"))
        if self._training.held:
            order = order.to(self._device)
        look = 1 if self._device.type == "cpu" else _LOOK
        while self._in_epoch < len(self._bounds):
            start, end = self._bounds[self._in_epoch]
            loss = self._learn(*self._training.gather(order[start:end]))
            self._loss_sum += loss * (end - start)
            self._in_epoch += 1
            if self._in_epoch % look == 0:
                self.loss = self._finite(float(loss))
            pulse(self.loss)

    def _learn(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer step; the minibatch's loss, on the device."""
        rate = rate_at(self._options, self.step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._options.precision == "bfloat16"):
            logits = self._network(x)
        loss = functional.cross_entropy(logits.float(), y, label_smoothing=self._options.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self._masked:
            found = [(weight.grad, mask) for weight, mask in self._masked if weight.grad is not None]
            torch._foreach_mul_([gradient for gradient, _ in found], [mask for _, mask in found])
        self._optimizer.step()
        return loss.detach()

    def _end_epoch(self, pulse: Pulse) -> None:
        self.loss = self._finite(float(self._loss_sum) / len(self._training))
        self._check()
        if self._selection is not None:
            answers = evaluate(self._network, self._selection, lambda: pulse(self.loss))
            candidate = Best(self.epoch, answers.accuracy, self._finite(answers.loss))
            if candidate.beats(self.best):
                self.best = candidate
                self._best_tensors = {name: value.detach().clone() for name, value in _tensors(self._network).items()}
        self.epoch, self._in_epoch = self.epoch + 1, 0
        self._loss_sum.zero_()

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise TrainingDiverged(
            f"the loss became {loss} in epoch {self.epoch + 1} of {self.epochs}: lower training.learning_rate (now "
            f"{self._options.learning_rate}), warm up with rate cosine, or check the normalisation of the inputs"
        )

    def _check(self) -> None:
        """Nesting and count after an epoch: what is pruned is zero, in the weights and in the optimizer's state."""
        states = [self._optimizer.state.get(parameter, {}) for parameter in self._prunable.values()]
        kinds = {key for state in states for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
        for kind in kinds:
            held = {name: state[kind] for name, state in zip(self._prunable, states, strict=True) if kind in state}
            if not self._mask.holds(held):
                raise InvariantBroken(f"{kind} of pruned weights is not zero after epoch {self.epoch + 1}")
        if not self._mask.intact() or not self._mask.holds(self._prunable):
            raise InvariantBroken(f"pruned weights are not zero after epoch {self.epoch + 1}")


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, persistent or not."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(values[name])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
