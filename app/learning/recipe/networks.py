"""Networks that a recipe can name.

Knows: their names and sizes. Must never know: torch; ``app.learning.architectures`` builds them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field

from app.learning.recipe.options import Options


class Mlp(Options):
    """Fully connected layers with ReLU between them; inputs of any shape are flattened."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (128, 128), max_length=32, description="Widths of the hidden layers."
    )


class Cnn(Options):
    """Convolutions 3 x 3 with batch normalisation, pooled by two after each, then one linear layer. Needs images."""

    name: Literal["cnn"] = "cnn"
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (32, 64, 128), min_length=1, max_length=5, description="Output channels of the convolutions."
    )


class ResNet18(Options):
    """ResNet-18 in CIFAR form (3 x 3 stem, no pooling). Needs images."""

    name: Literal["resnet18"] = "resnet18"
    width: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="Channels of the first stage.")


class ResNet50(Options):
    """ResNet-50 in CIFAR form (3 x 3 stem, no pooling). Needs images."""

    name: Literal["resnet50"] = "resnet50"
    width: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="Channels of the first stage.")


class Vgg16(Options):
    """VGG-16 in CIFAR form (batch normalisation, one linear layer). Needs images of at least 32 x 32."""

    name: Literal["vgg16"] = "vgg16"
    width: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="Channels of the first stage.")


class Custom(Options):
    """A network of your own: `architecture` is a name from the server's `ESPALIER_ARCHITECTURES`."""

    name: Literal["custom"] = "custom"
    architecture: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="Name in the server setting ESPALIER_ARCHITECTURES."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the factory.")
    features: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Name of the module whose input are the features, for replay policies that compare them."
    )


Network = Annotated[Union[Mlp, Cnn, ResNet18, ResNet50, Vgg16, Custom], Field(discriminator="name")]
