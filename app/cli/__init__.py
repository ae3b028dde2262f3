"""The server's commands. They join ``espalier`` where it is installed.

Knows: which commands there are. Must never know: torch, or what a use case decides.

Laws:
    * Settings are built once, here; an option overrides its ``ESPALIER_*`` variable, for child processes too.
    * Nothing listens on an address that other machines reach without a key.
    * The embedded database is migrated by ``serve``; any other one only by ``migrate``.
"""

from __future__ import annotations

import typer

from app.cli import audit
from app.cli.backups import backup, restore
from app.cli.keys import admin_key
from app.cli.serving import serve, work
from app.cli.trial import demo
from app.cli.upkeep import doctor, migrate, retention


def register(app: typer.Typer) -> None:
    """Add the server's commands to a command line."""
    for command in (serve, work, migrate, doctor, backup, restore, retention, demo):
        app.command(rich_help_panel="Server")(command)
    app.command("admin-key", rich_help_panel="Server")(admin_key)
    audit.register(app)
