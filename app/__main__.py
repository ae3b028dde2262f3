"""``python -m app``: the server's commands without the ``espalier`` command line around them."""

from __future__ import annotations

import typer

from app.cli import register

if __name__ == "__main__":
    app = typer.Typer(no_args_is_help=True, add_completion=False, help="Espalier's server.")
    register(app)
    app(prog_name="python -m app")
