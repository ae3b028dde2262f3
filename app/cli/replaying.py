"""``espalier audit replay``: a past cycle, run once more on the server.

Knows: how the process that runs it is started. Must never know: torch (that process is one of its own), or what is
compared.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from app.cli.deployment import DataDir, settings_of

COMMAND = (sys.executable, "-P", "-m", "app.worker.rerun")


def replay(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str, typer.Argument(help="The version whose cycle is run: number or alias.")] = "champion",
    cycle: Annotated[int | None, typer.Option(help="Run this cycle instead of a version's.", min=1)] = None,
    step: Annotated[int | None, typer.Option(help="Stop after this pruning step, from 1.", min=1)] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:<n>; by default the kind that the cycle ran on.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; by default as many as the cycle had.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Run a version's cycle once more from its pinned inputs, and compare masks and checkpoint with the log. Server.

    Changes nothing. Exit status 0: the same, bit by bit; 4: not as the log says; 1: inputs are gone, or it differs
    where equality was not to be expected.
    """
    settings_of(data_dir=data_dir)
    named = {"cycle": cycle, "step": step, "device": device, "threads": threads}
    given = [f"--{name}={value}" for name, value in named.items() if value is not None]
    flags = [*(["--json"] if as_json else []), *(["--quiet"] if quiet else [])]
    # Settings reach it through the environment; its output is this command's own.
    raise typer.Exit(subprocess.run([*COMMAND, *given, *flags, "--", model, version], check=False).returncode)
