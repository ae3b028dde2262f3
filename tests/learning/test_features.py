from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import InvalidRecipe
from app.learning import rows as module
from app.learning.architectures import build
from app.learning.features import check_features, features_of, losses_of
from app.learning.normalisation import Preparation
from app.learning.recipe import Cnn, Custom, Mlp, Network, ResNet18, Vgg16
from app.learning.rows import Examples, Rows
from tests.learning.cases import CPU, Noisy, clusters, images, spec_of


def prepared(examples: Examples, network: Network, hold: bool = True) -> Rows:
    prepare = Preparation(spec_of(examples, name="none", clip=None), None, network, CPU)
    return Rows([examples], [np.ones(len(examples), bool)], prepare, device=CPU, classes=3, hold=hold)


def custom(features: str | None) -> Custom:
    return Custom(architecture="own", features=features)


class Attentive(nn.Module):
    """A module that is given its input by name, one that never runs, and one that sees the axes turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.named = nn.Identity()
        self.idle = nn.Linear(8, 3)
        self.turned = nn.Identity()
        self.blocks = nn.ModuleList([nn.Linear(8, 5), nn.Linear(5, 3)])

    def forward(self, x: Tensor) -> Tensor:
        self.turned(x.T)
        return self.blocks[1](torch.relu(self.blocks[0](self.named(input=x))))


# -- what they are -----------------------------------------------------------------------------------------------------


def test_features_are_what_the_last_linear_layer_sees() -> None:
    options, rows = Mlp(hidden=(6, 4)), prepared(clusters(1), Mlp())
    network = build(options, (8,), 3, seed=1)
    hidden = torch.relu(network.layers[1](torch.relu(network.layers[0](torch.from_numpy(clusters(1).x)))))
    got = features_of(network, options, rows, np.arange(60))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, hidden.detach().numpy())


@pytest.mark.parametrize(
    ("options", "side", "width"),
    [(Cnn(channels=(2, 3)), 8, 12), (ResNet18(width=2), 8, 16), (Vgg16(width=2), 32, 16)],
)
def test_every_network_has_features(options: Network, side: int, width: int) -> None:
    rows = prepared(images(1, 12, side), options)
    network = build(options, (1, side, side), 3, seed=1)
    got = features_of(network, options, rows, np.arange(12))
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    logits = network.eval()(rows.gather(torch.arange(12))[0])
    assert got.shape == (12, width)
    np.testing.assert_allclose(last(torch.from_numpy(got)).detach(), logits.detach(), rtol=1e-5, atol=1e-6)


def test_rows_are_those_asked_for_in_their_order() -> None:
    options, rows = Mlp(hidden=(6,)), prepared(clusters(1), Mlp())
    network = build(options, (8,), 3, seed=1)
    at = np.array([7, 3, 59, 3])
    np.testing.assert_array_equal(
        features_of(network, options, rows, at), features_of(network, options, rows, np.arange(60))[at]
    )
    np.testing.assert_allclose(losses_of(network, rows, at), losses_of(network, rows, np.arange(60))[at], rtol=1e-5)


def test_losses_are_cross_entropy_without_smoothing() -> None:
    rows, network = prepared(clusters(1), Mlp()), build(Mlp(hidden=(6,)), (8,), 3, seed=1)
    x, y = rows.gather(torch.arange(60))
    expected = functional.cross_entropy(network(x), y, reduction="none").detach().numpy()
    got = losses_of(network, rows, np.arange(60))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert losses_of(network, rows, np.arange(0)).shape == (0,)


def test_a_named_module_says_where_the_features_are() -> None:
    rows, network = prepared(images(1), custom("norm")), Noisy((1, 8, 8), 3, 6)
    got = features_of(network, custom("norm"), rows, np.arange(40))
    expected = network.conv(rows.gather(torch.arange(40))[0]).flatten(1).detach()
    assert got.shape == (40, 6 * 8 * 8), "flattened"
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_a_custom_network_that_names_none_uses_its_last_linear_layer() -> None:
    rows, network = prepared(images(1), custom(None)), Noisy((1, 8, 8), 3, 6)
    np.testing.assert_array_equal(
        features_of(network, custom(None), rows, np.arange(40)),
        features_of(network, custom("head"), rows, np.arange(40)),
    )


# -- what cannot work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("blocks.2", "is not there"),
        ("named", "gets no tensor with one row per example"),
        ("idle", "gets no tensor with one row per example"),
        ("turned", "gets no tensor with one row per example"),
    ],
)
def test_a_name_that_gives_no_features_is_refused_with_the_names_there_are(name: str, why: str) -> None:
    network = Attentive().train()
    with pytest.raises(InvalidRecipe, match=f"'{name}' whose input are the features {why}") as caught:
        check_features(network, custom(name), (8,))
    ((pointer, message),) = caught.value.errors
    assert pointer == "/network/features"
    assert message.endswith("one of: named, idle, turned, blocks, blocks.0, blocks.1")
    assert network.training and not any(layer._forward_pre_hooks for layer in network.modules())


def test_long_lists_of_names_are_cut() -> None:
    network = nn.Sequential(*[nn.Linear(2, 2) for _ in range(70)])
    with pytest.raises(InvalidRecipe, match="one of: 0, 1, .*, 63, and 6 more$"):
        check_features(network, custom("head"), (2,))


def test_a_network_without_linear_layers_needs_a_name() -> None:
    network, rows = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), prepared(images(1), custom(None))
    check_features(network, custom(None), (1, 8, 8))
    check_features(network, custom("1"), (1, 8, 8))
    with pytest.raises(InvalidRecipe, match="must be named: the network has no linear layer"):
        features_of(network, custom(None), rows, np.arange(2))


# -- what it leaves behind ---------------------------------------------------------------------------------------------


def test_the_network_is_as_it_was() -> None:
    """A norm that its owner froze stays in eval mode, though the network is in train mode."""
    rows, network = prepared(images(1), custom("head")), Noisy((1, 8, 8), 3, 6).train()
    network.norm.eval()
    before = {name: value.clone() for name, value in [*network.state_dict().items(), ("calls", network.calls)]}
    random = torch.get_rng_state()
    for _ in range(2):
        features_of(network, custom("head"), rows, np.arange(40))
        losses_of(network, rows, np.arange(40))
    after = {**network.state_dict(), "calls": network.calls}
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert network.training and network.conv.training and not network.norm.training
    assert not any(layer._forward_pre_hooks for layer in network.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state()) and torch.is_grad_enabled()


def test_a_stop_leaves_it_as_it_was_too() -> None:
    rows, network = prepared(images(1), custom("head")), Noisy((1, 8, 8), 3, 6).train()

    def stop() -> None:
        raise KeyboardInterrupt

    for take in (
        lambda: features_of(network, custom("head"), rows, np.arange(40), stop),
        lambda: losses_of(network, rows, np.arange(40), stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            take()
        assert all(layer.training and not layer._forward_pre_hooks for layer in network.modules())


def test_rows_pass_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    options, rows = Mlp(hidden=(6,)), prepared(clusters(1, 200), Mlp(), hold=False)
    network, sizes, beats = build(options, (8,), 3, seed=1), list[int](), list[int]()
    network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    got = features_of(network, options, rows, np.arange(200), lambda: beats.append(1))
    assert sizes == [64, 64, 64, 8] and len(beats) == 4
    whole = features_of(network, options, prepared(clusters(1, 200), Mlp()), np.arange(200))
    np.testing.assert_allclose(got, whole, rtol=1e-6)
