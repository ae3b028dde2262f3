"""``espalier demo``: the whole flow, on a service of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.demo import Options, run


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your own .npz with x, y and, if megabatches are marked, batch. Without: scikit-learn's digits."
        ),
    ] = None,
    megabatches: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Megabatches before the rollback. [default: 8, or one per batch]"),
    ] = None,
    density: Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the weights kept at the end.")] = 0.366,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Epochs in each cycle. [default: the recipe's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of the recipe.")] = 0,
    network: Annotated[str, typer.Option(help="Widths of the mlp's hidden layers, with commas.")] = "128,128",
    data_dir: Annotated[Path | None, typer.Option(help="Folder for the demo's data; it is kept.")] = None,
    keep: Annotated[bool, typer.Option(help="Keep the temporary folder.")] = False,
) -> None:
    """See it work: upload, train and prune, download, roll back, go on. Starts a service of its own; under a minute."""
    try:
        hidden = tuple(int(width) for width in network.split(","))
    except ValueError:
        raise typer.BadParameter("widths of hidden layers, such as 128,128", param_hint="--network") from None
    raise typer.Exit(run(Options(data, megabatches, density, epochs, seed, hidden, data_dir, keep)))
