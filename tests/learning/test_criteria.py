"""Each criterion against a slow reference in float64: one weight at a time, by differences or by removal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain, pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import InvariantBroken, LearningFailed, TrainingDiverged
from app.learning.architectures import prunable_parameters
from app.learning.criteria import score, tally
from app.learning.recipe import Grasp, Magnitude, Random, Snip, SnipAbsolute, SynFlow, Taylor
from app.learning.seeds import seeded
from tests.learning.cases import CPU, noisy

Sample = list[tuple[Tensor, Tensor]]

SAMPLED = [Snip(), SnipAbsolute(), Grasp(temperature=2.0)]
ALL = [*SAMPLED, SynFlow(), Magnitude(), Random()]


def named(options: object) -> str:
    return type(options).__name__


def dense(n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network with running statistics of its own and a weight of every size, and a sample."""
    with seeded(0, CPU):
        network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
        network(1 + 2 * torch.randn(30, 4))  # so that running statistics differ from those of a minibatch
        x, y = torch.randn(n, 4, dtype=dtype), torch.randint(0, 3, (n,))
    return network.to(dtype), x, y


def convolutional(n: int = 7, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    with seeded(1, CPU):
        network = noisy((2, 4, 4), 3, width=3)
        network(torch.rand(9, 2, 4, 4))
        x, y = torch.rand(n, 2, 4, 4, dtype=dtype), torch.randint(0, 3, (n,))
    return network.to(dtype), x, y


PROBLEMS = pytest.mark.parametrize("problem", [dense, convolutional])


def minibatches(x: Tensor, y: Tensor, size: int = 5) -> Sample:
    return list(zip(x.split(size), y.split(size), strict=True))


def chain_of(widths: tuple[int, ...], seed: int = 3) -> nn.Sequential:
    with seeded(seed, CPU):
        pairs = ((nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths))
        return nn.Sequential(*chain.from_iterable(pairs))[:-1]


# -- references --------------------------------------------------------------------------------------------------------


def each_weight(network: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Every prunable weight: its tensor's name, the tensor as flat memory, its position."""
    for name, weight in prunable_parameters(network).items():
        for i in range(weight.numel()):
            yield name, weight.detach().view(-1), i


def slowly(network: nn.Module, change: Callable[[Tensor, int], float]) -> dict[str, Tensor]:
    """``change`` for each weight."""
    found: dict[str, Tensor] = {name: torch.empty_like(w) for name, w in prunable_parameters(network).items()}
    for name, flat, i in each_weight(network):
        found[name].detach().view(-1)[i] = change(flat, i)
    return {name: value.detach() for name, value in found.items()}


def slope(value: Callable[[], float], flat: Tensor, i: int, step: float = 1e-5) -> float:
    """Central difference by one weight."""
    before = flat[i].item()
    flat[i] = before + step
    above = value()
    flat[i] = before - step
    below = value()
    flat[i] = before
    return (above - below) / (2 * step)


def mean_loss(network: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    return functional.cross_entropy(network.eval()(x) / temperature, y)


def squared_norm(network: nn.Module, x: Tensor, y: Tensor, temperature: float) -> float:
    """Of the gradient by the prunable weights that are not zero."""
    weights = list(prunable_parameters(network).values())
    gradients = torch.autograd.grad(mean_loss(network, x, y, temperature), weights)
    return sum(float((g * (w != 0)).square().sum()) for g, w in zip(gradients, weights, strict=True))


def close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-9)


# -- SNIP --------------------------------------------------------------------------------------------------------------


@PROBLEMS
def test_snip_is_weight_times_slope_of_the_loss(problem: Callable[[], tuple[nn.Module, Tensor, Tensor]]) -> None:
    network, x, y = problem()
    expected = slowly(
        network, lambda flat, i: abs(flat[i].item() * slope(lambda: mean_loss(network, x, y).item(), flat, i))
    )
    close(score(Snip(), network, prunable_parameters(network), minibatches(x, y), 0), expected)


def test_snip_sums_signed_gradients_over_minibatches() -> None:
    """Gradients that cancel score nothing: the absolute value comes after the sum, as published."""
    network = nn.Linear(1, 2, bias=False)
    nn.init.ones_(network.weight)
    x = torch.ones(1, 1)
    opposed = [(x, torch.tensor([0])), (x, torch.tensor([1]))]
    prunable = prunable_parameters(network)
    assert not score(Snip(), network, prunable, opposed, 0)["weight"].any()
    assert score(Snip(), network, prunable, opposed[:1], 0)["weight"].all()
    assert score(SnipAbsolute(), network, prunable, opposed, 0)["weight"].all()


@PROBLEMS
def test_snip_absolute_adds_what_each_minibatch_scores(
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]],
) -> None:
    network, x, y = problem()
    parts = minibatches(x, y, 3)  # the last one is smaller, and weighs less

    def of_one(flat: Tensor, i: int) -> float:
        slopes = [
            abs(slope(lambda part=part: len(part[1]) * mean_loss(network, *part).item(), flat, i)) for part in parts
        ]
        return abs(flat[i].item()) * sum(slopes) / len(y)

    close(score(SnipAbsolute(), network, prunable_parameters(network), parts, 0), slowly(network, of_one))


def test_snip_absolute_of_one_minibatch_is_snip() -> None:
    network, x, y = dense()
    found = [score(options, network, prunable_parameters(network), [(x, y)], 0) for options in (SnipAbsolute(), Snip())]
    close(*found)


# -- GraSP -------------------------------------------------------------------------------------------------------------


@PROBLEMS
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_what_the_gradients_norm_loses_with_a_weight(
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]], temperature: float
) -> None:
    """d|g|^2 = 2 * H g * dw, and dw = -w when a weight goes: half of what the squared norm loses, to first order."""
    network, x, y = problem()

    def loses(flat: Tensor, i: int) -> float:
        return 0.5 * flat[i].item() * slope(lambda: temperature**2 * squared_norm(network, x, y, temperature), flat, i)

    found = score(Grasp(temperature=temperature), network, prunable_parameters(network), minibatches(x, y), 0)
    close({name: value * temperature**2 for name, value in found.items()}, slowly(network, loses))


def test_grasp_keeps_weights_whose_removal_lowers_the_gradients_norm() -> None:
    """The sign: really remove each weight of a small size, and compare."""
    network, x, y = dense()
    network[2] = nn.Tanh()  # without kinks
    with torch.no_grad():
        network[0].weight.mul_(0.01)  # so that removal is a small change
    found = score(Grasp(temperature=2.0), network, prunable_parameters(network), minibatches(x, y), 0)
    before = squared_norm(network, x, y, 2.0)

    def lost(flat: Tensor, i: int) -> float:
        kept, flat[i] = flat[i].item(), 0.0
        gradient = torch.autograd.grad(mean_loss(network, x, y, 2.0), list(prunable_parameters(network).values()))
        flat[i] = kept
        return before - sum(float(g.square().sum()) for g in gradient)

    expected = slowly(network, lost)["0.weight"]
    assert expected.max() > 0 > expected.min()
    torch.testing.assert_close(2 * found["0.weight"], expected, rtol=0.05, atol=1e-3 * float(expected.abs().max()))


def test_pruning_by_grasp_leaves_more_gradient_than_pruning_against_it() -> None:
    network, x, y = dense(n=40)
    found = score(Grasp(temperature=2.0), network, prunable_parameters(network), [(x, y)], 0)
    norms = []
    for sign in (1, -1):
        pruned = copy.deepcopy(network)
        ranked = (sign * found["0.weight"]).view(-1).argsort()
        with torch.no_grad():
            pruned[0].weight.view(-1)[ranked[:8]] = 0
        norms.append(squared_norm(pruned, x, y, 2.0))
    assert norms[0] > 1.2 * norms[1]


def test_pruned_weights_take_no_part_in_grasp() -> None:
    network, x, y = dense()
    with torch.no_grad():
        network[0].weight[0] = 0
    found = score(Grasp(temperature=2.0), network, prunable_parameters(network), [(x, y)], 0)
    assert not found["0.weight"][0].any()
    flat, i = network[4].weight.detach().view(-1), 7
    expected = 0.5 * flat[i].item() * slope(lambda: squared_norm(network, x, y, 2.0), flat, i)
    assert found["4.weight"].view(-1)[i].item() == pytest.approx(expected, rel=1e-5)


def test_grasp_needs_a_sample_that_can_be_gone_through_twice() -> None:
    network, x, y = dense()
    with pytest.raises(InvariantBroken, match="twice"):
        score(Grasp(), network, prunable_parameters(network), iter([(x, y)]), 0)


# -- SynFlow -----------------------------------------------------------------------------------------------------------


def positive(network: nn.Module) -> nn.Module:
    """A copy in which every tensor is absolute, and what would shift a signal is zero."""
    copied = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for name, tensor in chain(copied.named_parameters(), copied.named_buffers()):
            tensor.abs_()
            if name.endswith(("bias", "running_mean")):
                tensor.zero_()
    return copied


@PROBLEMS
def test_synflow_is_the_flow_that_is_lost_with_a_weight(
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]],
) -> None:
    """R is linear in each weight, so w * dR/dw is what R loses when the weight goes."""
    network, x, y = problem()
    copied, ones = positive(network), torch.ones_like(x[:1])
    flow = copied(ones).sum().item()

    def lost(flat: Tensor, i: int) -> float:
        kept, flat[i] = flat[i].item(), 0.0
        left = copied(ones).sum().item()
        flat[i] = kept
        return (flow - left) / flow

    close(score(SynFlow(), network, prunable_parameters(network), [(x, y)], 0), slowly(copied, lost), rtol=1e-4)


def test_synflow_is_a_product_of_matrices() -> None:
    network = chain_of((5, 4, 3, 2))
    a, b, c = (weight.detach().abs() for weight in prunable_parameters(network).values())
    ones = torch.ones
    flow = ones(2) @ c @ b @ a @ ones(5)
    expected = [
        a * torch.outer(b.T @ c.T @ ones(2), ones(5)),
        b * torch.outer(c.T @ ones(2), a @ ones(5)),
        c * torch.outer(ones(2), b @ a @ ones(5)),
    ]
    found = score(SynFlow(), network, prunable_parameters(network), [(torch.zeros(1, 5), torch.zeros(1))], 0)
    for value, reference in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, reference / flow)


def test_synflow_looks_at_the_shape_of_the_data_alone() -> None:
    network, x, y = convolutional(dtype=torch.float32)
    prunable = prunable_parameters(network)
    first, second = (score(SynFlow(), network, prunable, [(data, y)], 0) for data in (x, float("nan") * x))
    assert all(torch.equal(first[name], second[name]) for name in prunable)
    with pytest.raises(LearningFailed, match="shape of the input"):
        score(SynFlow(), network, prunable, [], 0)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_synflow_holds_where_float32_does_not(scale: float) -> None:
    network = chain_of((6, 5, 5, 5, 3))
    sample = [(torch.zeros(1, 6), torch.zeros(1))]
    usual = score(SynFlow(), network, prunable_parameters(network), sample, 0)
    with torch.no_grad():
        for weight in prunable_parameters(network).values():
            weight.mul_(scale)
    found = score(SynFlow(), network, prunable_parameters(network), sample, 0)
    for name, value in usual.items():
        torch.testing.assert_close(found[name], value)
        assert found[name].dtype == torch.float32


def test_synflow_of_a_network_that_nothing_flows_through() -> None:
    network = chain_of((4, 3, 2))
    nn.init.zeros_(network[0].weight)
    found = score(SynFlow(), network, prunable_parameters(network), [(torch.zeros(1, 4), torch.zeros(1))], 0)
    assert not any(value.any() for value in found.values())


def test_synflow_says_when_float64_overflows() -> None:
    network = chain_of((4,) * 12)
    with torch.no_grad():
        for weight in prunable_parameters(network).values():
            weight.fill_(1e38)
    with pytest.raises(TrainingDiverged, match="overflows"):
        score(SynFlow(), network, prunable_parameters(network), [(torch.zeros(1, 4), torch.zeros(1))], 0)


# -- the weights alone, and training -----------------------------------------------------------------------------------


def test_magnitude_is_the_absolute_weight() -> None:
    network, _, _ = dense()
    scores = score(Magnitude(), network, prunable_parameters(network), [], 0)
    assert torch.equal(scores["0.weight"], network.get_parameter("0.weight").abs())


def test_random_depends_on_its_seed_alone() -> None:
    network, _, _ = dense()
    a, b, c = (score(Random(), network, prunable_parameters(network), [], seed)["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.min() >= 0 and a.max() < 1


def test_taylor_is_never_taken_from_a_sample() -> None:
    network, x, y = dense()
    with pytest.raises(LearningFailed, match="set pace to ramp, or criterion to snip"):
        score(Taylor(), network, prunable_parameters(network), [(x, y)], 0)


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ALL, ids=named)
@PROBLEMS
def test_scoring_leaves_no_trace(problem: Callable[..., tuple[nn.Module, Tensor, Tensor]], options: object) -> None:
    network, x, y = problem(dtype=torch.float32)
    norm = next(module for module in network.modules() if "BatchNorm" in type(module).__name__)
    norm.eval()  # as a user's network may have it
    tensors = dict(chain(network.named_parameters(), network.named_buffers()))
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    next(iter(tensors.values())).grad = torch.ones_like(next(iter(tensors.values())))
    random = torch.get_rng_state()
    with torch.no_grad():
        scores = score(options, network, prunable_parameters(network), minibatches(x, y), 3)
    assert network.training and not norm.training and all(m.training for m in network.modules() if m is not norm)
    after = dict(chain(network.named_parameters(), network.named_buffers()))
    assert all(tensor is tensors[name] and torch.equal(tensor, before[name]) for name, tensor in after.items())
    grads = [parameter.grad for parameter in network.parameters()]
    assert grads[0] is not None and bool((grads[0] == 1).all()) and all(grad is None for grad in grads[1:])
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    expected = {name: (value.shape, torch.float32) for name, value in prunable_parameters(network).items()}
    assert {name: (value.shape, value.dtype) for name, value in scores.items()} == expected
    assert all(not value.requires_grad for value in scores.values())
    usual = score(options, network, prunable_parameters(network), minibatches(x, y), 3)  # outside of no_grad
    assert all(torch.equal(value, usual[name]) and value.any() for name, value in scores.items())


@pytest.mark.parametrize("options", ALL, ids=named)
def test_the_same_again_gives_the_same_bits(options: object) -> None:
    network, x, y = convolutional(n=20, dtype=torch.float32)
    first, second = (score(options, network, prunable_parameters(network), minibatches(x, y), 3) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", SAMPLED, ids=named)
@PROBLEMS
def test_tallies_of_disjoint_samples_add_up(
    problem: Callable[[], tuple[nn.Module, Tensor, Tensor]], options: object
) -> None:
    network, x, y = problem()
    prunable, sample = prunable_parameters(network), minibatches(x, y, 2)
    whole = tally(options, network, prunable, sample, 0)
    first, second = (tally(options, network, prunable, part, 0) for part in (sample[:1], sample[1:]))
    close((first + second).scores(), whole.scores())
    close((second + first).scores(), whole.scores())


@pytest.mark.parametrize("options", SAMPLED, ids=named)
def test_an_empty_sample_scores_nothing(options: object) -> None:
    network, _, _ = dense()
    scores = score(options, network, prunable_parameters(network), [], 0)
    assert not any(value.any() for value in scores.values())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("options", SAMPLED, ids=named)
def test_gradients_that_are_not_finite_are_told(options: object, bad: float) -> None:
    network, x, y = dense()
    with pytest.raises(TrainingDiverged, match=r"lower training\.learning_rate"):
        score(options, network, prunable_parameters(network), [(x * bad, y)], 0)
    assert network.training


@pytest.mark.parametrize("options", [*SAMPLED, SynFlow()], ids=named)
def test_weights_that_do_not_take_part_score_nothing(options: object) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with seeded(5, CPU):
        network = Idle().double()
    _, x, y = dense()
    scores = score(options, network, prunable_parameters(network), [(x, y)], 0)
    assert scores["used.weight"].any() and not scores["idle.weight"].any()
