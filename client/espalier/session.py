"""What every command shares: where the service is, how to print, and the options that say so.

Knows: typer, the global options, output for people and for programs. Must never know: what any one command does.

Laws:
    * ``--url``, ``--key``, ``--json`` and ``--quiet`` mean the same before a command and after it; after it wins.
    * With ``--json`` standard output holds JSON alone, as the service said it.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from typer.core import TyperGroup

from espalier.client import Client
from espalier.console import Bars, bars, consoles, line, pairs, plain, table
from espalier.errors import EspalierClientError
from espalier.records import Record, Reference

UNPUBLISHED = 5
"""Exit code when a cycle that was waited for did not publish."""

_PANEL = "Connection and output"

Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="Address of the service [env: ESPALIER_URL].", rich_help_panel=_PANEL, show_default=False
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", help="Key of the service [env: ESPALIER_KEY].", rich_help_panel=_PANEL, show_default=False),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON; errors as a problem document on stderr.", rich_help_panel=_PANEL)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no remarks: results alone.", rich_help_panel=_PANEL)
]

_SHARED: dict[str, tuple[Any, Any]] = {
    "url": (Url, None),
    "key": (Key, None),
    "as_json": (AsJson, False),
    "quiet": (Quiet, False),
}


@dataclass
class Session:
    """One run of the command line."""

    url: str | None = None
    key: str | None = None
    as_json: bool = False
    quiet: bool = False
    console: Console = field(default_factory=lambda: consoles()[0])
    errors: Console = field(default_factory=lambda: consoles()[1])
    _client: Client | None = None

    def with_options(self, url: str | None, key: str | None, as_json: bool, quiet: bool) -> Session:
        """The session with options that stand after a command."""
        return Session(url or self.url, key or self.key, self.as_json or as_json, self.quiet or quiet)

    @property
    def client(self) -> Client:
        """The service, connected to when it is first asked for."""
        if self._client is None:
            self._client = Client(self.url, self.key)
        return self._client

    def client_with(self, log_key: str | None) -> Client:
        """The service, with the public key of its log, where a command was given it."""
        if self._client is None and log_key is not None:
            self._client = Client(self.url, self.key, log_key=log_key)
        return self.client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def bars(self) -> AbstractContextManager[Bars]:
        """Bars for what takes time; nothing with ``--json`` or ``--quiet``."""
        return bars(self.console, self.errors, self.as_json or self.quiet)

    def remark(self, text: str) -> None:
        """Say something that is no result."""
        if not self.quiet and not self.as_json:
            line(self.console, text)

    def result(self, document: object, *lines: str) -> None:
        """Print a result: as JSON, or as lines for people."""
        if self.as_json:
            self.document(document)
            return
        for text in lines:
            line(self.console, text)

    def pairs(self, record: Record, rows: Mapping[str, object]) -> None:
        """Print one thing: as JSON, or as names and values."""
        if self.as_json:
            self.document(record)
            return
        pairs(self.console, rows)

    def table(
        self, records: Sequence[Record], columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str
    ) -> None:
        """Print a listing: as a JSON array, or as a table; ``empty`` says what to do when there is nothing."""
        if self.as_json:
            self.document(list(records))
        elif rows:
            table(self.console, columns, rows)
        else:
            self.remark(empty)

    def document(self, value: object, compact: bool = False) -> None:
        """Print JSON."""
        text = json.dumps(jsonable(value), indent=None if compact else 2, ensure_ascii=False)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def jsonable(value: object) -> object:
    """Records as the service sent them, inside lists and objects too."""
    if isinstance(value, Record):
        return value.document
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command whose first parameter is the ``Session``; it gets the shared options besides its own."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for option, (annotation, default) in _SHARED.items()
        ]

        @functools.wraps(function)
        def run(ctx: typer.Context, **given: Any) -> None:
            options = {option: given.pop(option) for option in _SHARED}
            outer = ctx.obj if isinstance(ctx.obj, Session) else Session()
            with outer.with_options(**options) as session:
                function(session, **given)

        signature = inspect.Signature([context, *own, *shared])
        run.__dict__["__signature__"] = signature
        run.__annotations__ = {option: parameter.annotation for option, parameter in signature.parameters.items()}
        app.command(name)(run)
        return function

    return add


class Noun(TyperGroup):
    """The commands of a noun, and those that another package has for it, loaded only when they are needed."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The client's own command of this name, else a joined one."""
        return super().get_command(ctx, cmd_name) or self._joined(ctx).get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """The client's own commands first."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in self._joined(ctx) if name not in own)]

    def _joined(self, ctx: Any) -> dict[str, Any]:
        joined = getattr(ctx.find_root().command, "joined", {}).get(self.name)
        return dict(joined.commands) if isinstance(joined, TyperGroup) else {}


def group(app: typer.Typer, name: str, help: str) -> typer.Typer:
    """Add a noun, to which commands are added."""
    noun = typer.Typer(cls=Noun, help=help, no_args_is_help=True, rich_markup_mode="markdown")
    app.add_typer(noun, name=name)
    return noun


def noun(app: typer.Typer, name: str) -> typer.Typer:
    """A noun that was added before."""
    return next(found.typer_instance for found in app.registered_groups if found.name == name and found.typer_instance)


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of models for the shell's completion; none when the service does not answer at once."""
    root = ctx.find_root().params
    try:
        with Client(root.get("url"), root.get("key"), timeout=1.0, retries=0) as client:
            return [model.name for model in client.models() if model.name.startswith(incomplete)]
    except EspalierClientError:
        return []


def reference(text: str) -> Reference:
    """Read a reference to a version from the command line."""
    try:
        return Reference.parse(text)
    except EspalierClientError as error:
        raise typer.BadParameter(plain(error)) from error


ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.", autocompletion=model_names)]
Ref = Annotated[
    Reference,
    typer.Argument(
        metavar="REF",
        parser=reference,
        help="A version: gas-sensors:7, gas-sensors@champion, or gas-sensors alone for its champion.",
    ),
]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it stands in the audit log.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
