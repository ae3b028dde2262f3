from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import TrainingDiverged
from app.learning.architectures import prunable_parameters
from app.learning.criteria import score
from app.learning.recipe import Magnitude, Random, Snip


def network_and_sample(n: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    network(torch.randn(30, 4))  # so that running statistics differ from those of a minibatch
    return network, torch.randn(n, 4), torch.randint(0, 3, (n,))


def test_snip_is_weight_times_gradient_of_the_whole_sample() -> None:
    network, x, y = network_and_sample()
    prunable = prunable_parameters(network)
    scores = score(Snip(), network, prunable, [(x, y)], 0)
    functional.cross_entropy(network.eval()(x), y).backward()
    for name, weight in prunable.items():
        assert weight.grad is not None
        torch.testing.assert_close(scores[name], (weight * weight.grad).abs().detach())


def test_snip_sums_signed_gradients_over_minibatches() -> None:
    """Gradients that cancel score nothing: the absolute value comes after the sum, as published."""
    network = nn.Linear(1, 2, bias=False)
    nn.init.ones_(network.weight)
    x = torch.ones(1, 1)
    opposed = [(x, torch.tensor([0])), (x, torch.tensor([1]))]
    assert torch.count_nonzero(score(Snip(), network, prunable_parameters(network), opposed, 0)["weight"]) == 0
    assert torch.count_nonzero(score(Snip(), network, prunable_parameters(network), opposed[:1], 0)["weight"]) == 2


@pytest.mark.parametrize("size", [1, 5, 12])
def test_snip_does_not_depend_on_minibatches(size: int) -> None:
    network, x, y = network_and_sample()
    prunable = prunable_parameters(network)
    parts = list(zip(x.split(size), y.split(size), strict=True))
    whole, split = (score(Snip(), network, prunable, sample, 0) for sample in ([(x, y)], parts))
    for name in prunable:
        torch.testing.assert_close(whole[name], split[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [Snip(), Magnitude(), Random()])
def test_scoring_leaves_no_trace(options: object) -> None:
    network, x, y = network_and_sample()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    scores = score(options, network, prunable_parameters(network), [(x, y)], 3)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: value.shape for name, value in scores.items()} == {
        name: value.shape for name, value in prunable_parameters(network).items()
    }
    assert all(not value.requires_grad for value in scores.values())


def test_magnitude_is_the_absolute_weight() -> None:
    network, _, _ = network_and_sample()
    scores = score(Magnitude(), network, prunable_parameters(network), [], 0)
    assert torch.equal(scores["0.weight"], network.get_parameter("0.weight").abs())


def test_random_depends_on_its_seed_alone() -> None:
    network, _, _ = network_and_sample()
    a, b, c = (score(Random(), network, prunable_parameters(network), [], seed)["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_gradients_that_are_not_finite_are_told() -> None:
    network, x, y = network_and_sample()
    with pytest.raises(TrainingDiverged, match=r"lower training\.learning_rate"):
        score(Snip(), network, prunable_parameters(network), [(x * float("inf"), y)], 0)


def test_weights_that_do_not_take_part_score_nothing() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    network = Idle()
    _, x, y = network_and_sample()
    scores = score(Snip(), network, prunable_parameters(network), [(x, y)], 0)
    assert scores["used.weight"].any() and not scores["idle.weight"].any()
