"""Architectures: network builders, and which of a network's tensors are prunable.

Knows: layers, shapes, classes. Must never know: masks, training, data.

Laws:
    * Weights of convolutions and linear layers are prunable, the last layer's too; biases and norms never.
    * The same options, shape, classes and seed give the same initial weights, and leave torch's generators alone.
    * A network maps (n, *network_shape) float32 to (n, classes) logits; one that does not is refused when it is built.

``mlp`` names its layers ``layers.0``, ``layers.1``, ...; the others are written out below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from app.errors import NetworkUnusable
from app.learning.recipe import Cnn, Custom, Mlp, Network, ResNet18, ResNet50, Vgg16
from app.learning.registry import Registry
from app.learning.seeds import seeded

Factory = Callable[..., nn.Module]
"""A user's network: ``factory(input_shape, classes, **options) -> nn.Module``; see ``build``."""

_CPU = torch.device("cpu")

_FLOATS = (torch.float16, torch.float32, torch.float64)


class Builder(Protocol):
    """Builds one kind of network; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Build it for examples of ``shape`` as ``forward`` gets them: (features,) or (channels, height, width)."""
        ...


BUILDERS: Registry[Builder] = Registry("network")


def build(
    network: Network,
    shape: tuple[int, ...],
    classes: int,
    *,
    seed: int = 0,
    device: torch.device = _CPU,
    factory: Factory | None = None,
) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        network: a network of the recipe.
        shape: of one example as ``forward`` gets it: (features,), or (channels, height, width).
        classes: number of logits.
        seed: for the initial weights, which are drawn on the CPU.
        device: where the network ends up.
        factory: the user's, called as ``factory(shape, classes, **options)``; for ``custom`` only.

    Raises:
        NetworkUnusable: when the network does not fit the shape or the classes.
    """
    with seeded(seed, _CPU):
        if isinstance(network, Custom):
            if factory is None:
                raise NetworkUnusable(f"no factory is known for {network.architecture!r}: set ESPALIER_ARCHITECTURES")
            built = factory(shape, classes, **network.options)
        else:
            built = BUILDERS[network](network, shape, classes)
        _check(built, network.name, shape, classes)
    return built.to(device)


def prunable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that may be pruned, by name, in the order of the network's ``state_dict``."""
    return {name: parameter for name, parameter, reason in _examined(network) if reason is None}


def unprunable_parameters(network: nn.Module) -> dict[str, str]:
    """Why each of the other parameters is never pruned, by name."""
    return {name: reason for name, _, reason in _examined(network) if reason is not None}


def _examined(network: nn.Module) -> Iterator[tuple[str, nn.Parameter, str | None]]:
    layers = (_ConvNd, nn.Linear)
    weights = {id(m._parameters.get("weight")) for m in network.modules() if isinstance(m, layers)}
    norms = {id(p) for m in network.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter, "frozen: requires_grad is False"
        elif id(parameter) in weights:
            yield name, parameter, None
        elif id(parameter) in norms:
            yield name, parameter, "belongs to a normalisation layer"
        elif name.endswith("bias"):
            yield name, parameter, "a bias"
        else:
            yield name, parameter, "not the weight of a convolution or linear layer"


def _check(network: nn.Module, name: str, shape: tuple[int, ...], classes: int) -> None:
    odd = [key for key, value in network.named_parameters() if value.dtype not in _FLOATS]
    if odd:
        raise NetworkUnusable(f"network {name} has parameters that are not float16, float32 or float64: {odd[0]}")
    training = network.training
    try:
        with torch.inference_mode():
            logits = network.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise NetworkUnusable(f"network {name} does not take input of shape (n, {_joined(shape)}): {error}") from error
    finally:
        network.train(training)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkUnusable(f"network {name} must give logits of shape (n, {classes}); for n = 2 it gave {got}")
    if not prunable_parameters(network):
        raise NetworkUnusable(f"network {name} has no convolution or linear layer, so nothing to prune")


def _joined(shape: tuple[int, ...]) -> str:
    return ", ".join(str(length) for length in shape)


def _image(shape: tuple[int, ...], name: str, least: int = 1) -> int:
    """Channels of an image shape; refuses anything else."""
    if len(shape) != 3 or min(shape[1:]) < least:
        size = f" of at least {least} x {least}" if least > 1 else ""
        raise NetworkUnusable(f"network {name} needs images{size}, not input of shape ({_joined(shape)}); try mlp")
    return shape[0]


class _MlpNetwork(nn.Module):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = functional.relu(layer(x))
        logits: Tensor = last(x)
        return logits


@BUILDERS.register(Mlp)
def mlp(options: Mlp, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    return _MlpNetwork((shape[0], *options.hidden, classes))


@BUILDERS.register(Cnn)
def cnn(options: Cnn, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Convolutions 3 x 3, each with batch normalisation, ReLU and pooling by two; then one linear layer."""
    channels, height, width = _image(shape, options.name), shape[1], shape[2]
    features: list[nn.Module] = []
    for out in options.channels:
        features += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        features.append(nn.MaxPool2d(2, ceil_mode=True))
        channels, height, width = out, -(-height // 2), -(-width // 2)
    return _Classifier(features, [nn.Flatten()], nn.Linear(channels * height * width, classes))


@BUILDERS.register(Vgg16)
def vgg16(options: Vgg16, shape: tuple[int, ...], classes: int) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2015) in CIFAR form: batch normalisation, global pooling, one linear layer."""
    channels = _image(shape, options.name, least=32)
    features: list[nn.Module] = []
    for multiple, layers in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(layers):
            out = multiple * options.width
            features += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        features.append(nn.MaxPool2d(2))
    return _initialised(_Classifier(features, [nn.AdaptiveAvgPool2d(1), nn.Flatten()], nn.Linear(channels, classes)))


class _Classifier(nn.Module):
    def __init__(self, features: list[nn.Module], pool: list[nn.Module], classifier: nn.Linear) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.pool = nn.Sequential(*pool)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(x)))
        return logits


class _Basic(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut (He et al. 2016)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        return functional.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def _shortcut(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class _ResNet(nn.Module):
    def __init__(
        self, block: type[_Basic] | type[_Bottleneck], blocks: tuple[int, ...], width: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, stages = width, []
        for stage, count in enumerate(blocks):
            layers = []
            for position in range(count):
                stride = 2 if stage and not position else 1
                layers.append(block(channels, width * 2**stage, stride))
                channels = width * 2**stage * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


@BUILDERS.register(ResNet18)
def resnet18(options: ResNet18, shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-18 in CIFAR form; names as in torchvision."""
    return _initialised(_ResNet(_Basic, (2, 2, 2, 2), options.width, _image(shape, options.name), classes))


@BUILDERS.register(ResNet50)
def resnet50(options: ResNet50, shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-50 in CIFAR form; names as in torchvision."""
    return _initialised(_ResNet(_Bottleneck, (3, 4, 6, 3), options.width, _image(shape, options.name), classes))


def _initialised(network: nn.Module) -> nn.Module:
    """He initialisation of convolutions by their fan-out, as both papers' reference code has it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def load_strictly(network: nn.Module, arrays: Mapping[str, Any]) -> list[str]:
    """Copy numpy ``arrays`` into the network when their names and shapes are exactly those of its ``state_dict``.

    Returns:
        What does not fit, in words; then nothing was copied. Empty when all was.
    """
    state = network.state_dict()
    faults = [f"missing {name}" for name in state if name not in arrays]
    faults += [f"unexpected {name}" for name in arrays if name not in state]
    for name, tensor in state.items():
        if name in arrays and tuple(tensor.shape) != tuple(arrays[name].shape):
            faults.append(f"{name} has shape {tuple(arrays[name].shape)}, not {tuple(tensor.shape)}")
    if not faults:
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(torch.tensor(arrays[name]))
    return faults
