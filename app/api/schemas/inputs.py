"""Inputs: what a model is fed.

Knows: how shapes, classes and normalisation are asked for and shown, and how examples are counted by class name. Must
never know: how they are inferred from a megabatch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from app import domain
from app.api.schemas.wire import Asked, example

INPUT = {
    "shape": [128],
    "dtype": "float32",
    "classes": ["ethanol", "ethylene"],
    "normalisation": {"name": "first-megabatch", "signed_log": True, "clip": 8.0, "mean": [], "std": []},
    "unseen_classes": "reject",
    "label": None,
    "features": None,
    "resize": "reject",
}


class NewNormalisation(Asked):
    """How inputs are scaled before the network sees them."""

    name: Literal["none", "fixed", "first-megabatch", "running"] = Field(
        "first-megabatch",
        description="`first-megabatch`: its statistics, then frozen; `running`: those of all training examples so far; "
        "`fixed`: `mean` and `std` given here; `none`.",
    )
    signed_log: bool = Field(
        False, description="Apply `sign(x) * log1p(|x|)` first: sensor values of very different scales."
    )
    clip: float | None = Field(8.0, description="Clamp scaled values to `[-clip, clip]`; null leaves them.")
    mean: list[float] = Field(
        [], max_length=2**20, description="One value per feature, or per channel of images; for `fixed` only."
    )
    std: list[float] = Field([], max_length=2**20, description="As `mean`; every value above 0.")

    def to_domain(self) -> domain.Normalisation:
        """As the rooms below say it."""
        return domain.Normalisation(self.name, self.signed_log, self.clip, tuple(self.mean), tuple(self.std))


class NewInput(Asked):
    """What is known of the input. What is left out is inferred from the first megabatch."""

    model_config = example(
        {"classes": ["ethanol", "ethylene"], "shape": [128], "dtype": "float32"},
        {"classes": 10},
        {"unseen_classes": "extend"},
        {"label": "species", "features": ["height", "width", "petals"]},
    )

    shape: list[Annotated[int, Field(ge=1, le=2**31)]] | None = Field(
        None,
        max_length=8,
        description="Shape of one example: `[features]`, `[height, width]` or `[height, width, channels]`.",
    )
    dtype: Literal["float32", "uint8"] | None = Field(None, description="How values are stored.")
    classes: (
        list[Annotated[str, Field(min_length=1, max_length=200)]] | Annotated[int, Field(ge=2, le=100_000)] | None
    ) = Field(None, description="Class names in label order, or how many classes there are.")
    normalisation: NewNormalisation | None = Field(None, description="How inputs are scaled.")
    unseen_classes: Literal["reject", "extend"] = Field(
        "reject",
        description="What becomes of a megabatch with a label beyond the classes: `reject` refuses it, `extend` adds "
        "the class, and an output of the network with it.",
    )
    label: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None,
        description="Column that holds the labels, in uploads with columns (Parquet, Arrow, CSV, JSON lines). Null: "
        "the one of `label`, `labels`, `y`, `target`, `class` that is there.",
    )
    features: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(
        None,
        min_length=1,
        max_length=2**20,
        description="Columns that become the features, in this order. Null: those of the first upload with columns, in "
        "its order.",
    )
    resize: Literal["reject", "stretch", "crop", "pad"] = Field(
        "reject",
        description="What becomes of an image of another height and width: `reject` refuses the megabatch, `stretch` "
        "scales it, `crop` scales its short side and cuts, `pad` scales its long side and fills with zeros.",
    )

    def to_domain(self) -> domain.InputSpec:
        """As the rooms below say it."""
        names = map(str, range(self.classes)) if isinstance(self.classes, int) else self.classes
        return domain.InputSpec(
            shape=None if self.shape is None else tuple(self.shape),
            dtype=self.dtype,
            classes=None if names is None else tuple(names),
            normalisation=None if self.normalisation is None else self.normalisation.to_domain(),
            unseen_classes=self.unseen_classes,
            label=self.label,
            features=None if self.features is None else tuple(self.features),
            resize=self.resize,
        )


class Normalisation(BaseModel):
    """How inputs are scaled before the network sees them."""

    name: str = Field(description="`first-megabatch`, `running`, `fixed` or `none`.")
    signed_log: bool = Field(description="Whether `sign(x) * log1p(|x|)` comes first.")
    clip: float | None = Field(description="Scaled values are clamped to `[-clip, clip]`; null: they are not.")
    mean: list[float] = Field(description="One value per feature or channel; empty unless `fixed`.")
    std: list[float] = Field(description="As `mean`.")

    @classmethod
    def from_domain(cls, given: domain.Normalisation) -> Self:
        """From the domain's value."""
        return cls(
            name=given.name, signed_log=given.signed_log, clip=given.clip, mean=list(given.mean), std=list(given.std)
        )


class Input(BaseModel):
    """What a model is fed; null is not known before the first megabatch."""

    model_config = example(INPUT)

    shape: list[int] | None = Field(description="Shape of one example.")
    dtype: str | None = Field(description="`float32` or `uint8`.")
    classes: list[str] | None = Field(description="Class names in label order.")
    normalisation: Normalisation | None = Field(description="How inputs are scaled.")
    unseen_classes: str = Field(
        description="What becomes of a label beyond the classes: `reject` refuses it, `extend` adds the class."
    )
    label: str | None = Field(description="Column that holds the labels; null: the usual names are tried.")
    features: list[str] | None = Field(
        description="Columns that become the features, in order; null before the first upload with columns."
    )
    resize: str = Field(description="What becomes of images of another size: `reject`, `stretch`, `crop` or `pad`.")

    @classmethod
    def from_domain(cls, spec: domain.InputSpec) -> Self:
        """From the domain's value."""
        return cls(
            shape=None if spec.shape is None else list(spec.shape),
            dtype=spec.dtype,
            classes=None if spec.classes is None else list(spec.classes),
            normalisation=None if spec.normalisation is None else Normalisation.from_domain(spec.normalisation),
            unseen_classes=spec.unseen_classes,
            label=spec.label,
            features=None if spec.features is None else list(spec.features),
            resize=spec.resize,
        )


def by_class(histogram: tuple[int, ...], spec: domain.InputSpec) -> dict[str, int]:
    """Examples by class name; of classes that came later there were none."""
    names = spec.classes or ()
    return dict(zip(names, (*histogram, *(0 for _ in names[len(histogram) :])), strict=False))
