"""How the network is retrained: the order of examples, optimizer, learning rate, regularisation, what is published.

Knows: names and bounds. Must never know: torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, Union

from pydantic import Field, model_validator

from app.learning.recipe.options import Options

Share = Annotated[float, Field(ge=0, lt=1)]


class Sgd(Options):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Share = Field(0.9, description="Momentum.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="L2 penalty, added to the gradient.")


class AdamW(Options):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    beta1: Share = Field(0.9, description="Decay of the mean of gradients.")
    beta2: Share = Field(0.999, description="Decay of the mean of squared gradients.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="Decoupled weight decay.")


Optimizer = Annotated[Union[Sgd, AdamW], Field(discriminator="name")]


class Cosine(Options):
    """From the peak to zero along a half cosine, restarted in every cycle (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"] = "cosine"
    warmup: Share = Field(0.0, description="Share of the steps that rises linearly to the peak.")


class Multistep(Options):
    """Times `factor` at each milestone, a share of the epochs."""

    name: Literal["multistep"] = "multistep"
    warmup: Share = Field(0.0, description="Share of the steps that rises linearly to the peak.")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.4, 0.8), description="When to step, as shares of the epochs, increasing."
    )
    factor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="What the rate is multiplied by.")

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must increase")
        if self.milestones and self.warmup > self.milestones[0]:
            raise ValueError("warmup must end before the first milestone: lower it, or move the milestone")
        return self


class OneCycle(Options):
    """Up to the peak along a half cosine, then down to nearly zero along another (Smith 2018, arXiv 1803.09820)."""

    name: Literal["one-cycle"] = "one-cycle"
    rise: Annotated[float, Field(gt=0, lt=1)] = Field(0.3, description="Share of the steps on the way up.")
    start: Annotated[float, Field(gt=0, le=1)] = Field(0.04, description="First rate, as a share of the peak.")
    end: Share = Field(1e-4, description="Last rate, as a share of the first.")


LearningRate = Annotated[Union[Cosine, Multistep, OneCycle], Field(discriminator="name")]


class NoAveraging(Options):
    """The weights as the optimizer leaves them."""

    name: Literal["none"] = "none"


class TailAveraging(Options):
    """The mean of the weights at the end of each of the last epochs (Izmailov et al. 2018).

    Epochs under a larger mask than the last are no part of it. Running statistics of normalisation layers are taken
    anew for it, in one pass over the training examples.
    """

    name: Literal["tail"] = "tail"
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="Share of the epochs, the last ones; one at least."
    )


class ExponentialAveraging(Options):
    """An exponential moving average of the weights after each step, that starts anew when the mask shrinks.

    The weights before the first step are no part of it. Running statistics of normalisation layers are taken anew for
    it, in one pass over the training examples.
    """

    name: Literal["ema"] = "ema"
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.99, description="Decay per optimizer step.")


Averaging = Annotated[Union[NoAveraging, TailAveraging, ExponentialAveraging], Field(discriminator="name")]


class Augmentation(Options):
    """Random changes of training examples, drawn anew in every epoch."""

    crop: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="Pixels of zero padding of which a random crop of the former size is taken; images only."
    )
    flip: bool = Field(False, description="Mirror left and right, half of the time; images only.")
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="Alpha of mixup's beta distribution (Zhang et al. 2018); 0 is off."
    )


class ExactReading(Options):
    """Every epoch in an order that is uniform among all orders: each example is read from wherever it lies.

    From a buffer that outgrows memory this reads two to four times what it uses, at a small part of the disk's speed.
    """

    name: Literal["exact"] = "exact"


class BlockReading(Options):
    """Every epoch by blocks of examples that lie side by side, each read once, at the disk's sequential speed.

    Blocks come in random order; several of them form a pool, whose examples come in random order. Every example is
    shown exactly once an epoch. Examples that fit into one pool come in the same order as with `exact`.
    """

    name: Literal["blocks"] = "blocks"
    block_bytes: Annotated[int, Field(ge=1, le=2**30)] = Field(
        256 * 2**10, description="Bytes of a block, as stored; one example at least."
    )
    pool_bytes: Annotated[int, Field(ge=1, le=2**32)] = Field(
        32 * 2**20, description="Bytes of examples, as stored, that are shuffled together; one block at least."
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.block_bytes > self.pool_bytes:
            raise ValueError("a pool is made of blocks: raise pool_bytes, or lower block_bytes")
        return self


Reading = Annotated[Union[ExactReading, BlockReading], Field(discriminator="name")]


class Training(Options):
    """How the network is retrained under its mask."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        10, description="Passes over the replayed examples in one cycle."
    )
    least_steps: Annotated[int, Field(ge=0, le=10**7)] = Field(
        300, description="Optimizer steps that a cycle makes at least: epochs are added where examples are few."
    )
    minibatch: Annotated[int, Field(ge=1, le=65536)] = Field(64, description="Examples in a minibatch.")
    reading: Reading = Field(BlockReading(), description="In which order an epoch shows the examples.")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(0.1, description="Peak learning rate.")
    rate: LearningRate = Field(Cosine(warmup=0.05), description="How the learning rate moves within a cycle.")
    optimizer: Optimizer = Field(Sgd(), description="Optimizer; its state starts anew in every cycle.")
    label_smoothing: Share = Field(0.1, description="Label smoothing of the training loss.")
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        description="Weight of each class in the training loss, in label order; `balanced` weighs by the inverse of "
        "its share of the training examples; null weighs all alike. Weights are scaled so that their mean over the "
        "training examples is 1.",
    )
    augmentation: Augmentation = Field(Augmentation(), description="Random changes of training examples.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest L2 norm of the gradient of all weights that are kept; null does not clip."
    )
    averaging: Averaging = Field(NoAveraging(), description="Whether averaged weights are published.")
    select: Literal["best-epoch", "last"] = Field(
        "last", description="Which epoch's weights are published; the best one is chosen on validation accuracy."
    )
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None,
        description="Stop after this many epochs without a better one, once the cycle's density is reached; null "
        "trains to the end. The learning rate moves as if all epochs came. Needs select `best-epoch`.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="`bfloat16` runs forward and backward passes under autocast; weights stay float32. Made for GPUs.",
    )

    @model_validator(mode="after")
    def _selected(self) -> Self:
        if self.patience is not None and self.select == "last":
            raise ValueError("patience needs select best-epoch: without it no epoch is better than another")
        if self.averaging.name != "none" and self.select == "best-epoch":
            raise ValueError(f"averaging {self.averaging.name} publishes the averaged weights: set select to last")
        return self
