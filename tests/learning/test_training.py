from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from app.domain import InputSpec, Normalisation
from app.errors import InvariantBroken, NothingToTrain, TrainingDiverged
from app.learning.architectures import build, prunable_parameters
from app.learning.mask import Mask, top_k
from app.learning.normalisation import Preparation
from app.learning.recipe import Mlp, Training
from app.learning.rows import Rows
from app.learning.seeds import seed_for
from app.learning.training import Best, Fit, balanced_accuracy, evaluate, minibatch_bounds, rate_at
from tests.learning.cases import CPU, clusters


def options(**over: Any) -> Training:
    return Training.model_validate({"epochs": 2, "minibatch": 16, "learning_rate": 0.05} | over)


def rows(number: int = 1, n: int = 50) -> Rows:
    examples = clusters(number, n)
    spec = InputSpec((8,), "float32", ("a", "b", "c"), Normalisation(name="none", signed_log=True))
    return Rows([examples], [np.ones(n, bool)], Preparation(spec, None, Mlp(), CPU), device=CPU, classes=3)


def fit_of(
    training: Rows, chosen: Training, *, density: float = 0.5, selection: Rows | None = None, seed: int = 0
) -> tuple[nn.Module, Mask, Fit]:
    network = build(Mlp(hidden=(12,)), (8,), 3)
    prunable = prunable_parameters(network)
    mask = Mask.full(prunable)
    scores = {name: weight.detach().abs() for name, weight in prunable.items()}
    mask = top_k(scores, mask, round(density * mask.total)).mask
    mask.apply(prunable)
    return network, mask, Fit(network, prunable, mask, training, selection, chosen, lambda p: seed_for(seed, 1, 0, p))


def silent(loss: float | None) -> None:
    """A pulse that nobody feels."""


# -- rates and minibatches ---------------------------------------------------------------------------------------------


def test_step_rates_fall_at_shares_of_the_steps() -> None:
    chosen = options(learning_rate=1.0, rate={"name": "step", "milestones": [0.4, 0.8], "factor": 0.1})
    rates = [rate_at(chosen, step, 50) for step in range(50)]
    np.testing.assert_allclose(rates, [1.0] * 20 + [0.1] * 20 + [0.01] * 10)


def test_cosine_rises_over_the_warmup_then_falls_to_nothing() -> None:
    chosen = options(learning_rate=2.0, rate={"name": "cosine", "warmup": 0.1})
    rates = [rate_at(chosen, step, 100) for step in range(100)]
    np.testing.assert_allclose(rates[:11], [0.2 * (step + 1) for step in range(10)] + [2.0])
    assert all(b < a for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(1.0) and rates[-1] < 1e-3


@pytest.mark.parametrize(
    ("n", "size", "bounds"),
    [
        (10, 4, [(0, 4), (4, 8), (8, 10)]),
        (9, 4, [(0, 4), (4, 9)]),
        (8, 4, [(0, 4), (4, 8)]),
        (3, 8, [(0, 3)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_minibatches_cover_all_and_leave_none_alone(n: int, size: int, bounds: list[tuple[int, int]]) -> None:
    assert minibatch_bounds(n, size) == bounds


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_evaluation_is_that_of_the_whole_set_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, given = build(Mlp(hidden=(6,)), (8,), 3), rows(n=100)
    monkeypatch.setattr(given, "chunk", 7)
    pulses: list[None] = []
    answers = evaluate(network.train(), given, lambda: pulses.append(None))
    assert network.training and len(pulses) == 15
    x, y = given.gather(torch.arange(100))
    with torch.no_grad():
        logits = network(x)
    np.testing.assert_array_equal(answers.correct, (logits.argmax(1) == y).numpy())
    assert answers.accuracy == pytest.approx(answers.correct.mean())
    assert answers.loss == pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-5)


def test_evaluation_uses_running_statistics_and_no_dropout() -> None:
    network = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 3))
    before = network[0].running_mean.clone()
    first, second = evaluate(network, rows()), evaluate(network, rows())
    assert first.loss == second.loss
    assert torch.equal(network[0].running_mean, before)


def test_balanced_accuracy_weighs_classes_alike_and_skips_absent_ones() -> None:
    labels = np.array([0, 0, 0, 0, 2, 2])
    correct = np.array([True, True, True, True, True, False])
    assert balanced_accuracy(labels, correct, 4) == pytest.approx((1 + 0.5) / 2)


# -- the fit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{"name": "sgd"}, {"name": "sgd", "momentum": 0}, {"name": "adamw"}])
def test_pruned_weights_and_their_optimizer_state_stay_exactly_zero(optimizer: dict[str, Any]) -> None:
    network, mask, fit = fit_of(rows(), options(optimizer=optimizer))
    prunable = prunable_parameters(network)
    before = {name: weight.detach().clone() for name, weight in prunable.items()}

    def look(loss: float | None) -> None:
        assert mask.holds(prunable)
        for name, weight in prunable.items():
            for value in fit._optimizer.state[weight].values():
                if isinstance(value, torch.Tensor) and value.ndim:
                    assert not value[~mask[name]].any()

    fit.run(look)
    assert all(not torch.equal(before[name], weight) for name, weight in prunable.items())


def test_a_dense_mask_trains_as_if_there_were_none() -> None:
    chosen = options(epochs=3)
    network, _, fit = fit_of(rows(), chosen, density=1.0)
    plain = build(Mlp(hidden=(12,)), (8,), 3)
    fit.run(silent)
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    given, step = rows(), 0
    for epoch in range(3):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed_for(0, 1, 0, f"epoch-{epoch}")))
        for start, end in minibatch_bounds(50, 16):
            optimizer.param_groups[0]["lr"] = rate_at(chosen, step, fit.steps)
            x, y = given.gather(order[start:end])
            optimizer.zero_grad()
            functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
            step += 1
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert fit.step == fit.steps == step and fit.examples_seen == 150


def test_the_best_epoch_is_published() -> None:
    selection = rows(2)
    network, _, fit = fit_of(rows(), options(epochs=6, learning_rate=0.3), selection=selection)
    seen: list[tuple[float, float, int]] = []

    original = fit._end_epoch

    def watched(pulse: Callable[[float | None], None]) -> None:
        answers = evaluate(network, selection)
        seen.append((-answers.accuracy, answers.loss, fit.epoch))
        original(pulse)

    fit._end_epoch = watched  # type: ignore[method-assign]
    fit.run(silent)
    assert fit.best is not None and fit.best.epoch == min(seen)[2]
    assert evaluate(network, selection).loss == pytest.approx(min(seen)[1])


def test_better_is_more_accurate_then_lower_loss_then_earlier() -> None:
    best = Best(0, 0.5, 1.0)
    assert best.beats(None)
    assert Best(1, 0.6, 9.0).beats(best) and Best(1, 0.5, 0.9).beats(best)
    assert not Best(1, 0.5, 1.0).beats(best) and not Best(1, 0.4, 0.1).beats(best)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions_learn(precision: str) -> None:
    training = rows(n=200)
    network, _, fit = fit_of(training, options(epochs=8, precision=precision, label_smoothing=0.1))
    before = evaluate(network, training).accuracy
    fit.run(silent)
    assert evaluate(network, training).accuracy > before + 0.3
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_a_loss_that_is_not_finite_ends_the_fit_with_a_remedy() -> None:
    _, _, fit = fit_of(rows(), options(epochs=50, learning_rate=10.0, optimizer={"name": "sgd", "weight_decay": 50.0}))
    with pytest.raises(TrainingDiverged, match=r"in epoch \d+ of 50: lower training.learning_rate \(now 10.0\)"):
        fit.run(silent)


def test_a_single_example_is_too_few() -> None:
    with pytest.raises(NothingToTrain, match="fewer than two training examples"):
        fit_of(rows(n=1), options())


def test_a_weight_that_comes_back_is_noticed() -> None:
    network, mask, fit = fit_of(rows(), options(optimizer={"name": "sgd", "weight_decay": 0}))
    name = next(iter(mask))

    def meddle(loss: float | None) -> None:
        with torch.no_grad():
            network.get_parameter(name)[~mask[name]] = 1e-3

    with pytest.raises(InvariantBroken, match="pruned weights are not zero after epoch 1"):
        fit.run(meddle)


def test_optimizer_state_of_a_pruned_weight_is_noticed() -> None:
    network, mask, fit = fit_of(rows(), options(learning_rate=1e-30))
    name = next(iter(mask))

    def meddle(loss: float | None) -> None:
        fit._optimizer.state[network.get_parameter(name)]["momentum_buffer"][~mask[name]] = 1e-3

    with pytest.raises(InvariantBroken, match="momentum_buffer of pruned weights is not zero"):
        fit.run(meddle)


def test_seeds_decide_the_order_of_minibatches() -> None:
    results = []
    for seed in (0, 0, 1):
        network, _, fit = fit_of(rows(), options(), seed=seed)
        fit.run(silent)
        results.append(network.state_dict()["layers.0.weight"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_gathered_minibatches_train_as_held_ones_do() -> None:
    states = []
    for hold in (True, False):
        training = rows()
        training.held = hold
        network, _, fit = fit_of(training, options())
        fit.run(silent)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
