from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.domain import InputSpec, Normalisation
from app.errors import InvalidRecipe, InvariantBroken, NothingToTrain, TrainingDiverged
from app.learning import snapshot as snapshots
from app.learning.architectures import build, prunable_parameters
from app.learning.best_epoch import Best, tensors_of
from app.learning.evaluation import evaluate
from app.learning.mask import Mask, top_k
from app.learning.normalisation import NormalisationState, Preparation
from app.learning.optimizers import minibatch_bounds, rate_at
from app.learning.recipe import Cnn, Mlp, Training
from app.learning.rows import Examples, Rows
from app.learning.running import RunningScores
from app.learning.seeds import permutation, seed_for, seeded
from app.learning.training import Fit, epochs_of
from tests.learning.cases import CPU, clusters, images, noisy

CLASSES = ("a", "b", "c")


def options(**over: Any) -> Training:
    plain = {
        "epochs": 2, "least_steps": 0, "minibatch": 16, "learning_rate": 0.05, "rate": {"name": "cosine"},
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}, "label_smoothing": 0.0,
    }  # fmt: skip
    return Training.model_validate(plain | over)


def rows(number: int = 1, n: int = 50, examples: Examples | None = None) -> Rows:
    given = examples or clusters(number, n)
    spec = InputSpec((8,), "float32", CLASSES, Normalisation(name="none", signed_log=True))
    return Rows([given], [np.ones(len(given), bool)], Preparation(spec, None, Mlp(), CPU), device=CPU, classes=3)


def pictures(number: int = 1, n: int = 24) -> Rows:
    given, spec = images(number, n), InputSpec((8, 8, 1), "uint8", CLASSES, Normalisation(name="fixed"))
    scale = NormalisationState(np.full(1, 90, np.float32), np.full(1, 50, np.float32))
    return Rows([given], [np.ones(n, bool)], Preparation(spec, scale, Cnn(), CPU), device=CPU, classes=3)


def largest(network: nn.Module, mask: Mask, density: float) -> Mask:
    weights = {name: weight.detach().abs() for name, weight in prunable_parameters(network).items()}
    return top_k(weights, mask, min(mask.kept, round(density * mask.total))).mask


def fit_over(
    network: nn.Module, training: Rows, chosen: Training, *, density: float = 0.5, selection: Rows | None = None,
    seed: int = 0, mask: Mask | None = None, decay: float | None = None,
) -> tuple[Mask, Fit]:  # fmt: skip
    prunable = prunable_parameters(network)
    mask = mask or largest(network, Mask.full(prunable), density)
    mask.apply(prunable)

    def seed_of(purpose: str) -> int:
        return seed_for(seed, 1, 0, purpose)

    def order(epoch: int) -> Tensor:
        return permutation(len(training), seed_of(f"epoch-{epoch}"))

    running = None if decay is None else RunningScores(prunable, decay)
    return mask, Fit(network, prunable, mask, training, selection, chosen, seed_of, order, running)


def fit_of(training: Rows, chosen: Training, **over: Any) -> tuple[nn.Module, Mask, Fit]:
    network = build(Mlp(hidden=(12,)), (8,), 3)
    return network, *fit_over(network, training, chosen, **over)


def picture_network() -> nn.Module:
    """A convolution, batch normalisation, dropout, and a buffer that no checkpoint holds."""
    with seeded(5, CPU):
        return noisy((1, 8, 8), 3)


def silent(loss: float | None) -> None:
    """A pulse that nobody feels."""


def trained(fit: Fit) -> Fit:
    fit.run_to(fit.steps, silent)
    fit.finish()
    return fit


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- a step under a mask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("averaging", ["none", "tail", "ema"])
@pytest.mark.parametrize("optimizer", [{"name": "sgd"}, {"name": "sgd", "momentum": 0}, {"name": "adamw"}])
def test_what_is_pruned_stays_exactly_zero(optimizer: dict[str, Any], averaging: str, clip: float | None) -> None:
    chosen = options(optimizer=optimizer, averaging={"name": averaging}, clip_norm=clip)
    network, mask, fit = fit_of(rows(), chosen)
    prunable, before = prunable_parameters(network), weights_of(network)

    def look(loss: float | None) -> None:
        assert mask.holds(prunable) and mask.holds(fit._average.mean)
        for name, weight in prunable.items():
            for value in fit._optimizer.state[weight].values():
                if isinstance(value, Tensor) and value.ndim:
                    assert not value[~mask[name]].any()

    fit.run_to(3, look)
    mask = largest(network, mask, 0.3)
    fit.shrink(mask)
    fit.run_to(fit.steps, look)
    fit.finish(look)
    assert mask.holds(prunable) and all(not torch.equal(before[name], weight) for name, weight in prunable.items())


def test_a_dense_mask_trains_as_if_there_were_none() -> None:
    chosen = options(epochs=3, label_smoothing=0.1)
    network, _, fit = fit_of(rows(), chosen, density=1.0)
    plain = build(Mlp(hidden=(12,)), (8,), 3)
    trained(fit)
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    given, step = rows(), 0
    for epoch in range(3):
        order = permutation(50, seed_for(0, 1, 0, f"epoch-{epoch}"))
        for start, end in minibatch_bounds(50, 16):
            optimizer.param_groups[0]["lr"] = rate_at(chosen, step, fit.steps)
            x, y = given.gather(order[start:end])
            optimizer.zero_grad()
            functional.cross_entropy(plain(x), y, label_smoothing=0.1).backward()
            optimizer.step()
            step += 1
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert fit.step == fit.steps == step and fit.examples_seen == 150


def test_few_examples_are_shown_more_often_until_there_are_enough_steps() -> None:
    assert epochs_of(options(least_steps=9), 50) == 3, "four minibatches"
    assert epochs_of(options(least_steps=8), 50) == epochs_of(options(), 50) == 2
    _, _, fit = fit_of(rows(), options(least_steps=9))
    assert (fit.epochs, fit.steps) == (3, 12)
    assert trained(fit).epoch == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions_learn(precision: str) -> None:
    training = rows(n=200)
    network, _, fit = fit_of(training, options(epochs=8, precision=precision, label_smoothing=0.1))
    before = evaluate(network, training).accuracy
    trained(fit)
    assert evaluate(network, training).accuracy > before + 0.3
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_bfloat16_is_used() -> None:
    seen: set[torch.dtype] = set()
    network, _, fit = fit_of(rows(), options(precision="bfloat16"))
    network.register_forward_hook(lambda module, x, logits: seen.add(logits.dtype))
    fit.run_to(1, silent)
    assert seen == {torch.bfloat16}


def test_clipping_bounds_the_gradient_that_is_left_by_the_mask() -> None:
    plain = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    network, _, fit = fit_of(rows(), options(clip_norm=1e-3, optimizer=plain))
    before = weights_of(network)
    fit.run_to(1, silent)
    moved = torch.cat([(weight - before[name]).flatten() for name, weight in weights_of(network).items()])
    assert moved.norm().item() == pytest.approx(0.05 * 1e-3, rel=1e-3), "learning rate times norm"


def test_a_gradient_below_the_bound_is_not_clipped() -> None:
    results = []
    for clip in (None, 1e6):
        network, _, fit = fit_of(rows(), options(clip_norm=clip))
        trained(fit)
        results.append(weights_of(network))
    assert same(*results)


def test_scores_are_taken_before_mask_and_clip() -> None:
    """A weight's score is what its own gradient says, whatever is done to it for the step."""
    network, _, fit = fit_of(rows(), options(clip_norm=1e-6), decay=0.9)
    before, (x, y) = weights_of(network), rows().gather(permutation(50, seed_for(0, 1, 0, "epoch-0"))[:16])
    functional.cross_entropy(network(x), y).backward()
    expected = {name: (weight.grad * before[name]).abs() for name, weight in prunable_parameters(network).items()}
    fit.run_to(1, silent)
    assert fit.running is not None
    for name, scores in fit.running.scores().items():
        torch.testing.assert_close(scores, expected[name])


def test_a_balanced_loss_finds_the_rare_class() -> None:
    """Two clusters that overlap, 19 to 1: what is likelier is no longer what is commoner."""
    random = np.random.default_rng(0)
    y = (np.arange(400) % 20 == 0).astype(np.int64)
    x = np.zeros((400, 8), np.float32)
    x[:, 0] = y + random.normal(size=400)
    training = rows(examples=replace(clusters(1, 400), x=x, y=y))
    found = {}
    for weights in (None, "balanced"):
        network, _, fit = fit_of(training, options(epochs=10, class_weights=weights), density=1.0)
        trained(fit)
        with torch.no_grad():
            answers = network(training.gather(torch.arange(400))[0]).argmax(1).numpy()
        found[weights] = float((answers == 1)[y == 1].mean())
    assert found[None] < 0.2 and found["balanced"] > 0.5


def test_class_weights_that_do_not_fit_are_refused_before_training() -> None:
    with pytest.raises(InvalidRecipe, match="has 2 weights for 3 classes"):
        fit_of(rows(), options(class_weights=[1, 2]))


def test_all_augmentations_learn() -> None:
    training, network = pictures(n=120), build(Cnn(channels=(8, 8)), (1, 8, 8), 3)
    chosen = options(epochs=12, augmentation={"crop": 1, "flip": True, "mixup": 0.2}, label_smoothing=0.1)
    _, fit = fit_over(network, training, chosen, density=1.0)
    trained(fit)
    assert evaluate(network, training).accuracy > 0.6


def test_images_are_asked_for_where_they_are_needed() -> None:
    _, _, fit = fit_of(rows(), options(augmentation={"flip": True}))
    with pytest.raises(InvalidRecipe, match="crop and flip need images"):
        fit.run_to(1, silent)


# -- what is published -------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_published() -> None:
    selection = rows(2)
    network, _, fit = fit_of(rows(), options(epochs=6, learning_rate=0.3, select="best-epoch"), selection=selection)
    seen: list[tuple[float, float, int]] = []
    for epoch in range(6):
        fit.run_to((epoch + 1) * 4, silent)
        answers = evaluate(network, selection)
        seen.append((-answers.accuracy, answers.loss, epoch))
    fit.finish()
    assert fit.best == Best(min(seen)[2], -min(seen)[0], min(seen)[1])
    assert evaluate(network, selection).loss == min(seen)[1]


def test_epochs_before_the_last_pruning_are_no_candidates() -> None:
    network, mask, fit = fit_of(rows(), options(epochs=3, select="best-epoch"), selection=rows(2))
    fit.run_to(8, silent)
    assert fit.best is not None
    fit.shrink(largest(network, mask, 0.05))
    assert fit.best is None
    trained(fit)
    assert fit.best.epoch == 2


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_tail_publishes_the_mean_of_the_last_epochs(share: float) -> None:
    network, _, fit = fit_of(rows(), options(epochs=4, averaging={"name": "tail", "share": share}))
    ends: list[dict[str, Tensor]] = []
    for epoch in range(4):
        fit.run_to((epoch + 1) * 4, silent)
        ends.append(weights_of(network))
    fit.finish()
    last = ends[-round(4 * share) :]
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight, sum(end[name] for end in last) / len(last))


def test_ema_publishes_the_mean_of_the_steps_since_the_last_pruning() -> None:
    network, mask, fit = fit_of(rows(), options(averaging={"name": "ema", "decay": 0.8}))
    fit.run_to(3, silent)
    fit.shrink(largest(network, mask, 0.3))
    steps: list[dict[str, Tensor]] = []
    for step in range(4, 9):
        fit.run_to(step, silent)
        steps.append(weights_of(network))
    fit.finish()
    shares = 0.8 ** np.arange(4, -1, -1)
    shares /= shares.sum()
    for name, weight in network.named_parameters():
        expected = sum(float(share) * values[name] for share, values in zip(shares, steps, strict=True))
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("averaging", ["tail", "ema"])
def test_averaged_weights_have_statistics_of_their_own(averaging: str) -> None:
    training, network = pictures(), picture_network()
    _, fit = fit_over(network, training, options(averaging={"name": averaging}), density=1.0)
    trained(fit)
    x, _ = training.gather(torch.arange(len(training)))
    with torch.no_grad():
        shown = network.conv(x).double()
    torch.testing.assert_close(network.norm.running_mean.double(), shown.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.norm.running_var.double(), shown.var((0, 2, 3)), rtol=0.2, atol=0)
    assert network.calls == fit.steps, "other buffers are as training left them"


@pytest.mark.parametrize("averaging", ["none", "tail", "ema"])
def test_a_pruning_after_the_last_step_publishes_the_weights_it_leaves(averaging: str) -> None:
    network, mask, fit = fit_of(rows(), options(averaging={"name": averaging}))
    fit.run_to(fit.steps, silent)
    fit.shrink(mask := largest(network, mask, 0.1))
    left = weights_of(network)
    fit.finish()
    assert same(left, weights_of(network)) and mask.holds(prunable_parameters(network))


def test_finishing_twice_is_finishing_once() -> None:
    network = picture_network()
    _, fit = fit_over(network, pictures(), options(averaging={"name": "ema"}))
    trained(fit)
    once = {name: value.clone() for name, value in tensors_of(network).items()}
    fit.finish()
    assert same(once, tensors_of(network))


# -- stopping before the end -------------------------------------------------------------------------------------------


def stubborn(**over: Any) -> tuple[nn.Module, Mask, Fit]:
    """A fit whose first epoch stays the best."""
    chosen = options(epochs=9, select="best-epoch", patience=2, learning_rate=1e-30, **over)
    return fit_of(rows(), chosen, selection=rows(2))


def test_patience_ends_the_fit() -> None:
    _, _, fit = stubborn()
    fit.settle()
    assert not fit.stopped
    fit.run_to(fit.steps, silent)
    assert fit.stopped and (fit.epoch, fit.step, fit.steps) == (3, 12, 36)
    assert fit.best is not None and fit.best.epoch == 0 and fit.examples_seen == 150
    fit.run_to(fit.steps, lambda loss: pytest.fail("it goes on"))


def test_patience_waits_for_the_density() -> None:
    network, mask, fit = stubborn()
    fit.run_to(18, silent)
    assert not fit.stopped and fit.epoch == 4
    fit.shrink(largest(network, mask, 0.3))
    fit.settle()
    fit.run_to(fit.steps, silent)
    assert fit.stopped and fit.epoch == 7, "the fifth epoch is the first under the final mask"
    assert fit.best is not None and fit.best.epoch == 4


def test_nobody_waits_where_no_epoch_is_selected() -> None:
    _, _, fit = fit_of(rows(), options(epochs=5, select="best-epoch", patience=1, learning_rate=1e-30))
    fit.settle()
    assert trained(fit).epoch == 5 and not fit.stopped


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_epochs() -> None:
    _, _, fit = fit_of(rows(), options(epochs=3))
    steps: list[float | None] = []
    fit.run_to(4, steps.append)
    first = sum(loss * (end - start) for loss, (start, end) in zip(steps, minibatch_bounds(50, 16), strict=True)) / 50
    assert fit.first_loss == fit.loss == pytest.approx(first)
    fit.run_to(5, steps.append)
    assert fit.loss == steps[-1] != fit.first_loss
    fit.run_to(12, steps.append)
    last = sum(loss * (end - start) for loss, (start, end) in zip(steps[-4:], minibatch_bounds(50, 16), strict=True))
    assert fit.loss == pytest.approx(last / 50) and fit.first_loss == pytest.approx(first)


def test_a_loss_that_is_not_finite_ends_the_fit_with_a_remedy() -> None:
    _, _, fit = fit_of(rows(), options(epochs=50, learning_rate=10.0, optimizer={"name": "sgd", "weight_decay": 50.0}))
    with pytest.raises(TrainingDiverged, match=r"in epoch \d+ of 50: lower training.learning_rate \(now 10.0\)"):
        trained(fit)


def test_a_single_example_is_too_few() -> None:
    with pytest.raises(NothingToTrain, match="fewer than two training examples"):
        fit_of(rows(n=1), options())


# -- the check ---------------------------------------------------------------------------------------------------------


def test_a_weight_that_comes_back_is_noticed() -> None:
    network, mask, fit = fit_of(rows(), options(optimizer={"name": "sgd", "weight_decay": 0}))
    name = next(iter(mask))

    def meddle(loss: float | None) -> None:
        with torch.no_grad():
            network.get_parameter(name)[~mask[name]] = 1e-3

    with pytest.raises(InvariantBroken, match="pruned weights are not zero in epoch 1"):
        fit.run_to(fit.steps, meddle)


def test_optimizer_state_of_a_pruned_weight_is_noticed() -> None:
    network, mask, fit = fit_of(rows(), options(learning_rate=1e-30))
    name = next(iter(mask))

    def meddle(loss: float | None) -> None:
        fit._optimizer.state[network.get_parameter(name)]["momentum_buffer"][~mask[name]] = 1e-3

    with pytest.raises(InvariantBroken, match="momentum_buffer of pruned weights is not zero"):
        fit.run_to(fit.steps, meddle)


def test_an_average_with_a_pruned_weight_is_noticed() -> None:
    _, mask, fit = fit_of(rows(), options(averaging={"name": "ema"}))
    name = next(iter(mask))

    def meddle(loss: float | None) -> None:
        fit._average.mean[name][~mask[name]] = 1e-3

    with pytest.raises(InvariantBroken, match="the average of pruned weights is not zero in epoch 1"):
        fit.run_to(fit.steps, meddle)


# -- the same bits -----------------------------------------------------------------------------------------------------


def test_seeds_decide_the_order_of_minibatches() -> None:
    results = []
    for seed in (0, 0, 1):
        network, _, fit = fit_of(rows(), options(), seed=seed)
        trained(fit)
        results.append(weights_of(network))
    assert same(*results[:2]) and not same(*results[1:])


def test_gathered_minibatches_train_as_held_ones_do() -> None:
    states = []
    for hold in (True, False):
        training = rows()
        training.held = hold
        network, _, fit = fit_of(training, options(averaging={"name": "tail"}))
        trained(fit)
        states.append(weights_of(network))
    assert same(*states)


class Killed(Exception):
    """The worker is gone."""


PRUNING = ((0, 0.9), (2, 0.7), (3, 0.55), (4, 0.4))
"""Before the first step, within an epoch, at its end, and within the next one: optimizer steps done, density."""

EVERYTHING: dict[str, Any] = {
    "class_weights": "balanced",
    "augmentation": {"crop": 1, "flip": True, "mixup": 0.3},
    "clip_norm": 0.5,
    "label_smoothing": 0.1,
}

CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw, clipped": {"optimizer": {"name": "adamw"}, "clip_norm": 0.5},
    "no momentum": {"optimizer": {"name": "sgd", "momentum": 0}},
    "multistep": {"rate": {"name": "multistep", "warmup": 0.2}},
    "one-cycle": {"rate": {"name": "one-cycle"}},
    "least steps": {"epochs": 1, "least_steps": 7},
    "weights given": {"class_weights": [1, 2, 3]},
    "crop and flip": {"augmentation": {"crop": 2, "flip": True}},
    "mixup": {"augmentation": {"mixup": 0.3}, "label_smoothing": 0.1},
    "best epoch": {"select": "best-epoch"},
    "patience": {"select": "best-epoch", "patience": 1, "learning_rate": 1.0, "epochs": 8},
    "bfloat16": {"precision": "bfloat16"},
    "tail": {"averaging": {"name": "tail", "share": 0.7}},
    "tail, everything, adamw": {**EVERYTHING, "averaging": {"name": "tail"}, "optimizer": {"name": "adamw"}},
    "ema": {"averaging": {"name": "ema", "decay": 0.8}},
    "ema, everything": {**EVERYTHING, "averaging": {"name": "ema"}},
    "best epoch, everything": {**EVERYTHING, "select": "best-epoch"},
}


class Session:
    """Prunes and trains as a cycle does; takes a snapshot at its ``n``-th pulse and is killed there."""

    def __init__(self, case: str, n: int | None = None, snapshot: bytes | None = None) -> None:
        chosen = options(**{"epochs": 3, "minibatch": 8} | CASES[case])
        selection = pictures(2, 12) if chosen.select == "best-epoch" else None
        tensors, facts = snapshots.decode(snapshot) if snapshot else ({}, {})
        self.network = picture_network()
        kept = {name: tensors[f"mask/{name}"] for name in prunable_parameters(self.network) if tensors}
        mask = Mask(kept) if kept else Mask.full(prunable_parameters(self.network))
        self.mask, self.fit = fit_over(
            self.network, pictures(), chosen, selection=selection, mask=mask, decay=0.9 if "mixup" in case else None
        )
        self.n, self.calls, self.snapshot, self.pruned = n, 0, b"", facts.get("pruned", 0)
        if snapshot:
            self.fit.restore(tensors, facts)

    def run(self) -> Session:
        while self.pruned < len(PRUNING):
            when, density = PRUNING[self.pruned]
            self.fit.run_to(when, self.pulse)
            self.mask, self.pruned = largest(self.network, self.mask, density), self.pruned + 1
            self.fit.shrink(self.mask)
            if self.pruned == len(PRUNING):
                self.fit.settle()
            self.pulse(None)
        self.fit.run_to(self.fit.steps, self.pulse)
        self.fit.finish(self.pulse)
        return self

    def pulse(self, loss: float | None) -> None:
        if self.calls == self.n:
            tensors, facts = self.fit.state()
            masks = {f"mask/{name}": kept for name, kept in self.mask.items()}
            self.snapshot = snapshots.encode(tensors | masks, facts | {"pruned": self.pruned}, CPU)
            raise Killed
        self.calls += 1

    def outcome(self) -> tuple[Any, ...]:
        fit = self.fit
        return fit.loss, fit.first_loss, fit.best, fit.epoch, fit.step, fit.stopped, fit.examples_seen


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_pulse_and_resumed_gives_the_same_bits(case: str) -> None:
    whole = Session(case).run()
    assert whole.fit.stopped == (case == "patience")
    for n in range(whole.calls):
        killed = Session(case, n)
        with pytest.raises(Killed):
            killed.run()
        resumed = Session(case, snapshot=killed.snapshot).run()
        assert same(tensors_of(resumed.network), tensors_of(whole.network)), f"pulse {n}"
        assert resumed.outcome() == whole.outcome(), f"pulse {n}"


@pytest.mark.parametrize("case", ["tail, everything, adamw", "ema, everything", "best epoch, everything"])
def test_killed_again_and_again_it_still_gets_there(case: str) -> None:
    whole, snapshot = Session(case).run(), None
    for _ in range(40):
        session = Session(case, 3, snapshot)
        try:
            session.run()
        except Killed:
            snapshot = session.snapshot
        else:
            assert same(tensors_of(session.network), tensors_of(whole.network))
            assert session.outcome() == whole.outcome()
            return
    pytest.fail("no progress")


@pytest.mark.parametrize("case", ["ema, everything", "tail, everything, adamw"])
def test_stops_between_steps_change_nothing(case: str) -> None:
    """One call of ``run_to`` for all steps, or one for each: the same bits, and the caller keeps its generator."""
    before, results = torch.get_rng_state(), []
    for stops in ([], range(1, 8), [3, 3, 5]):
        network = picture_network()
        _, fit = fit_over(network, pictures(), options(**{"epochs": 3, "minibatch": 8} | CASES[case]))
        for step in stops:
            fit.run_to(step, silent)
        trained(fit)
        results.append({name: value.clone() for name, value in tensors_of(network).items()})
    assert same(*results[:2]) and same(*results[1:])
    assert torch.equal(torch.get_rng_state(), before)
