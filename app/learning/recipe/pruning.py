"""What to prune, how much, and when: criteria, distributions, schedules, pace.

Knows: their names and bounds. Must never know: torch, or how an option is carried out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field

from app.learning.recipe.options import Options

TARGETS: dict[str, float] = {"safe": 0.366, "balanced": 0.20, "small": 0.10, "tiny": 0.05}
"""Final densities by name."""


def _named(value: Any) -> Any:
    if isinstance(value, str):
        if value not in TARGETS:
            raise ValueError(f"unknown target {value!r}: give a density in (0, 1], or one of: {', '.join(TARGETS)}")
        return TARGETS[value]
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value <= 1:
        raise ValueError(
            f"{value} is no density: give the share of weights to keep, in (0, 1], where 0.1 keeps a tenth"
        )
    return value


def _within_training(value: Any) -> Any:
    if isinstance(value, int | float) and value > 1:
        raise ValueError(f"a ramp over {value} of the training is longer than it: give a share in (0, 1]")
    return value


Target = Annotated[
    float,
    BeforeValidator(_named, json_schema_input_type=Union[float, Literal["safe", "balanced", "small", "tiny"]]),
    Field(gt=0, le=1),
]
"""A final density, or the name of one."""

Stages = Annotated[int, Field(ge=1, le=100_000)]

# -- which: criteria ---------------------------------------------------------------------------------------------------


class Stability(Options):
    """What to do when the masks of two disjoint halves of a sample disagree.

    Agreement is the share of weights that both halves keep, of those that one keeps, among the weights that were kept
    before.
    """

    at_least: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Least agreement of the two masks; 0 never asks for a remedy, 1 always does."
    )
    remedy: Literal["larger-sample", "median"] = Field(
        "larger-sample",
        description="`larger-sample` doubles the sample until the halves agree or every training example is scored; "
        "`median` ranks by the median of the scores of disjoint parts of the sample.",
    )
    parts: Annotated[int, Field(ge=2, le=64)] = Field(8, description="Parts of the sample, for `median`.")


class _Sampled(Options):
    sample: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="Size of the sample as a share of the newest megabatch, drawn from all replayed examples."
    )
    iterations: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Pruning steps where a cycle prunes at its start, each scored anew."
    )
    stability: Stability = Field(Stability(), description="What to do when two halves of the sample disagree.")


class Snip(_Sampled):
    """|w * dL/dw| on a random sample of the replayed training examples, on the trained weights (Lee et al. 2019).

    The gradient is summed over the sample before the absolute value is taken.
    """

    name: Literal["snip"] = "snip"


class SnipAbsolute(_Sampled):
    """Sum over the minibatches of the sample of |w * dL/dw|: SNIP with the absolute value taken first."""

    name: Literal["snip-absolute"] = "snip-absolute"


class Grasp(_Sampled):
    """w * H g: how much the gradient's norm loses with the weight (Wang et al. 2020, arXiv 2002.07376)."""

    name: Literal["grasp"] = "grasp"
    temperature: Annotated[float, Field(gt=0, le=10_000)] = Field(
        200.0, description="What the logits are divided by, as in the authors' code."
    )


class SynFlow(Options):
    """|w * dR/dw|, R the sum of outputs of the network of absolute weights on an input of ones (Tanaka et al. 2020).

    It looks at no data.
    """

    name: Literal["synflow"] = "synflow"
    iterations: Annotated[int, Field(ge=1, le=1000)] = Field(
        100, description="Pruning steps where a cycle prunes at its start, each scored anew."
    )


class Taylor(Options):
    """Running mean of |w * dL/dw| from the gradients of training itself (Molchanov et al. 2017). Needs pace `ramp`."""

    name: Literal["taylor"] = "taylor"
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.98, description="Decay of the running mean per optimizer step."
    )


class Magnitude(Options):
    """|w|."""

    name: Literal["magnitude"] = "magnitude"


class Random(Options):
    """Uniform random scores: the control."""

    name: Literal["random"] = "random"


Criterion = Annotated[Union[Snip, SnipAbsolute, Taylor, Magnitude, Grasp, SynFlow, Random], Field(discriminator="name")]

# -- where: distributions ----------------------------------------------------------------------------------------------


class _Distribution(Options):
    floor: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Least share of each layer's weights that is kept, against collapse."
    )


class Global(_Distribution):
    """One ranking of all prunable weights."""

    name: Literal["global"] = "global"


class Uniform(_Distribution):
    """The same density in every layer."""

    name: Literal["uniform"] = "uniform"


class ErdosRenyiKernel(_Distribution):
    """Density of a layer in proportion to (inputs + outputs + kernel) / (inputs * outputs * kernel).

    Evci et al. 2020, arXiv 1911.11134; small layers stay denser.
    """

    name: Literal["erdos-renyi-kernel"] = "erdos-renyi-kernel"


Distribution = Annotated[Union[Global, Uniform, ErdosRenyiKernel], Field(discriminator="name")]

# -- how much: schedules -----------------------------------------------------------------------------------------------


class App(Options):
    """Anytime Progressive Pruning: density 0.8 ** delta, delta linear from 1 to tau over T megabatches; then constant.

    Misra et al., arXiv 2204.01640. tau = 4.5 ends at 0.366.
    """

    name: Literal["app"] = "app"
    tau: Annotated[float, Field(ge=1, le=60)] = Field(
        4.5, description="Last exponent; the final density is 0.8 ** tau."
    )
    stages: Stages = Field(8, description="T: pruning cycles until the final density; one stage goes straight to it.")


class Factor(Options):
    """The same factor at every stage: density target ** (stage / stages), then constant. Needs no end of the stream."""

    name: Literal["factor"] = "factor"
    target: Target = Field(0.366, description="Final density, or safe, balanced, small or tiny.")
    stages: Stages = Field(8, description="Pruning cycles until the final density.")


class OneShot(Options):
    """One pruning to the final density in the first cycle, then constant (Anytime-OSP)."""

    name: Literal["one-shot"] = "one-shot"
    target: Target = Field(0.366, description="Final density, or safe, balanced, small or tiny.")


class Linear(Options):
    """The same number of weights at every stage until the final density."""

    name: Literal["linear"] = "linear"
    target: Target = Field(0.366, description="Final density, or safe, balanced, small or tiny.")
    stages: Stages = Field(8, description="Pruning cycles until the final density.")


class Cubic(Options):
    """Fast first, slow at the end: target + (1 - target) * (1 - stage / stages) ** 3 (Zhu and Gupta 2017)."""

    name: Literal["cubic"] = "cubic"
    target: Target = Field(0.366, description="Final density, or safe, balanced, small or tiny.")
    stages: Stages = Field(8, description="Pruning cycles until the final density.")


class ByExamples(Options):
    """Density by the number of examples that have arrived: target ** (examples / until), then constant."""

    name: Literal["examples"] = "examples"
    target: Target = Field(0.366, description="Final density, or safe, balanced, small or tiny.")
    until: Annotated[int, Field(ge=1, le=10**12)] = Field(
        10_000, description="Examples, of all megabatches so far, at which the final density is reached."
    )


class Auto(Options):
    """One rung lower, times `factor`, only while validation stays within the noise of the best version so far.

    The best accuracy of the lineage minus the present one must not exceed what chance explains at `confidence`.
    """

    name: Literal["auto"] = "auto"
    target: Target = Field(0.05, description="Density below which it never goes, or safe, balanced, small or tiny.")
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.88, description="Density of a rung over that of the one before."
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.8, description="Confidence that a drop is not chance, above which the density is held."
    )


class Constant(Options):
    """The density stays where it is: 1 for a fresh network. The baseline."""

    name: Literal["constant"] = "constant"


Schedule = Annotated[
    Union[App, Factor, OneShot, Linear, Cubic, ByExamples, Auto, Constant], Field(discriminator="name")
]


def final_density(schedule: Schedule) -> float:
    """The density that a schedule ends at; the least that it can reach."""
    match schedule:
        case App():
            return float(0.8**schedule.tau)
        case Constant():
            return 1.0
        case _:
            return schedule.target


# -- when: pace --------------------------------------------------------------------------------------------------------


class AtStart(Options):
    """All pruning of a cycle comes before its training."""

    name: Literal["at-start"] = "at-start"


class Ramp(Options):
    """Pruning is spread over the first optimizer steps of a cycle."""

    name: Literal["ramp"] = "ramp"
    share: Annotated[float, BeforeValidator(_within_training), Field(gt=0, le=1)] = Field(
        0.5, description="Share of the cycle's optimizer steps after which its density is reached."
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = Field(20, description="Pruning steps, evenly spread.")
    shape: Literal["cubic", "linear"] = Field(
        "cubic", description="How density falls: `cubic` is fast first and slow at the end."
    )


Pace = Annotated[Union[AtStart, Ramp], Field(discriminator="name")]
