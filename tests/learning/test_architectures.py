from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.errors import NetworkUnusable
from app.learning.architectures import build, load_strictly, prunable_parameters, unprunable_parameters
from app.learning.recipe import Cnn, Custom, Mlp, ResNet18, ResNet50, Vgg16
from tests.learning.cases import noisy

NETWORKS = [
    (Mlp(hidden=(9, 7)), (8,)),
    (Mlp(hidden=()), (8,)),
    (Cnn(channels=(4, 6, 8, 8, 8)), (3, 7, 5)),
    (ResNet18(width=4), (3, 8, 8)),
    (ResNet50(width=4), (1, 8, 8)),
    (Vgg16(width=4), (3, 32, 33)),
    (Custom(architecture="noisy", options={"width": 5}), (2, 6, 6)),
]


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
def test_networks_train_and_keep_their_laws(network: Any, shape: tuple[int, ...]) -> None:
    random = torch.get_rng_state()
    built, again, other = (build(network, shape, 4, seed=seed, factory=noisy) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), random), "building must not move torch's generators"
    logits = built.train()(torch.randn(3, *shape))
    assert logits.shape == (3, 4)
    logits.sum().backward()
    weights = prunable_parameters(built)
    assert all(weight.grad is not None for weight in weights.values())
    pairs = zip(weights.values(), prunable_parameters(again).values(), prunable_parameters(other).values(), strict=True)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
def test_prunable_are_the_weights_of_convolutions_and_linear_layers(network: Any, shape: tuple[int, ...]) -> None:
    built = build(network, shape, 4, factory=noisy)
    expected = [
        f"{name}.weight".lstrip(".")
        for name, module in built.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert sorted(prunable_parameters(built)) == sorted(expected)
    state = list(built.state_dict())
    assert list(prunable_parameters(built)) == [name for name in state if name in expected], "in state_dict order"
    others = unprunable_parameters(built)
    assert others.keys() | set(expected) == dict(built.named_parameters()).keys()
    assert not others.keys() & set(expected)
    assert set(others.values()) <= {"a bias", "belongs to a normalisation layer"}


def test_frozen_and_tied_weights() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.scale = nn.Parameter(torch.ones(4))

    network = Odd()
    assert list(prunable_parameters(network)) == ["a.weight"], "a tied weight counts once"
    assert unprunable_parameters(network) == {
        "frozen.weight": "frozen: requires_grad is False",
        "frozen.bias": "frozen: requires_grad is False",
        "scale": "not the weight of a convolution or linear layer",
    }


def test_known_sizes() -> None:
    """As published: ResNet-18, ResNet-50 and VGG-16 in CIFAR form, ten classes."""
    sizes = {
        name: sum(p.numel() for p in build(network, (3, 32, 32), 10).parameters())
        for name, network in {"resnet18": ResNet18(), "resnet50": ResNet50(), "vgg16": Vgg16()}.items()
    }
    assert sizes == {
        "resnet18": 11_173_962,
        "resnet50": 23_520_842,
        "vgg16": 14_728_266 - 4_224,
    }  # no biases before norms


@pytest.mark.parametrize("network", [Cnn(), ResNet18(width=4), ResNet50(width=4)])
def test_image_networks_say_that_they_need_images(network: Any) -> None:
    with pytest.raises(NetworkUnusable, match=r"needs images, not input of shape \(64\); try mlp"):
        build(network, (64,), 3)


def test_vgg_says_how_large_images_must_be() -> None:
    with pytest.raises(NetworkUnusable, match="needs images of at least 32 x 32"):
        build(Vgg16(width=4), (1, 28, 28), 3)


class _Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (
            lambda shape, classes: nn.Linear(shape[0], classes + 1),
            r"must give logits of shape \(n, 3\); .* gave \(2, 4\)",
        ),
        (lambda shape, classes: nn.Linear(5, classes), r"does not take input of shape \(n, 8\)"),
        (lambda shape, classes: _Tuple(), "gave tuple"),
        (lambda shape, classes: nn.AdaptiveAvgPool1d(3), "nothing to prune"),
        (lambda shape, classes: nn.Linear(8, 3).to(torch.bfloat16), "not float16, float32 or float64"),
    ],
)
def test_a_factory_that_does_not_fit_is_told_why(factory: Any, words: str) -> None:
    with pytest.raises(NetworkUnusable, match=words):
        build(Custom(architecture="mine"), (8,), 3, factory=factory)


def test_a_custom_network_needs_its_factory() -> None:
    with pytest.raises(NetworkUnusable, match="no factory is known for 'mine': set ESPALIER_ARCHITECTURES"):
        build(Custom(architecture="mine"), (8,), 3)


def test_strict_loading_copies_all_or_nothing() -> None:
    source, target = build(Cnn(channels=(4,)), (1, 4, 4), 3, seed=1), build(Cnn(channels=(4,)), (1, 4, 4), 3, seed=2)
    arrays = {name: tensor.numpy().copy() for name, tensor in source.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    short = {name: array for name, array in arrays.items() if name != "classifier.bias"}
    odd = short | {"classifier.weight": np.zeros((3, 3), np.float32), "extra": np.zeros(1)}
    assert load_strictly(target, odd) == [
        "missing classifier.bias",
        "unexpected extra",
        "classifier.weight has shape (3, 3), not (3, 16)",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    assert load_strictly(target, arrays) == []
    assert all(np.array_equal(tensor.numpy(), arrays[name]) for name, tensor in target.state_dict().items())
