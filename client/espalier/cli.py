"""``espalier``: the command line.

Knows: which commands there are, and what becomes of errors. Must never know: the server. Where that is installed, its
commands (``serve``, ``work``, ``demo``, ``migrate``, ``doctor``) join through the entry-point group
``espalier.commands``: each entry point is a function ``register(app: typer.Typer) -> None``.

Laws:
    * Every error is printed without a traceback and says what to do next; with ``--json`` as a problem document.
    * The exit code says what kind of end it was:

    0    done
    1    refused: by the service, or by this machine (a disk that is full, a file that cannot be read)
    2    the command line cannot be understood
    3    the service cannot be reached
    4    verification failed: a digest, a checkpoint, or the audit log
    5    the cycle that was waited for did not publish: failed, superseded, withheld, or the wait ran out
    130  interrupted
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from espalier import __version__
from espalier.commands import (
    batches,
    custody,
    cycles,
    decisions,
    evaluation,
    keys,
    log,
    models,
    recipes,
    releases,
    verify,
    versions,
    webhooks,
)
from espalier.console import consoles, line, plain
from espalier.errors import (
    ApiProblem,
    CheckpointMismatch,
    CustodyMismatch,
    CycleFailed,
    CycleUnfinished,
    DigestMismatch,
    EspalierClientError,
    ProofRejected,
    ServiceUnreachable,
)
from espalier.session import UNPUBLISHED, AsJson, Key, Quiet, Session, Url

REFUSED, UNREACHABLE, UNVERIFIED = 1, 3, 4

EXIT_CODES: dict[type[EspalierClientError], int] = {
    ServiceUnreachable: UNREACHABLE,
    DigestMismatch: UNVERIFIED,
    CheckpointMismatch: UNVERIFIED,
    CustodyMismatch: UNVERIFIED,
    ProofRejected: UNVERIFIED,
    CycleFailed: UNPUBLISHED,
    CycleUnfinished: UNPUBLISHED,
}
"""What stands here ends with its own code, everything else with ``REFUSED``."""

_Misused: type[Any] = typer.BadParameter.__mro__[2]
"""``ClickException``: typer brings its own click since 0.20-odd, so it is taken from where typer has it."""

_EPILOG = (
    "Exit codes: 0 done, 1 refused, 2 usage, 3 service unreachable, 4 verification failed, "
    "5 a cycle that was waited for did not publish."
)


_ORDER = (
    "model",
    "recipe",
    "batch",
    "evaluation",
    "cycle",
    "version",
    "promote",
    "rollback",
    "alias",
    "proposal",
    "decision",
    "audit",
    "verify",
    "metrics",
    "key",
    "webhook",
    "whoami",
)


class _Commands(TyperGroup):
    """The client's commands, and those of other packages, which are loaded only when they are needed."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self.joined.get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        own = sorted(super().list_commands(ctx), key=_ORDER.index)
        return [*own, *(name for name in self.joined if name not in own)]

    @cached_property
    def joined(self) -> dict[str, Any]:
        """Commands and nouns of other packages, by name."""
        extra = typer.Typer(rich_markup_mode="markdown")
        extra.callback()(lambda: None)  # keeps a single command from taking the place of the group
        for entry_point in sorted(entry_points(group="espalier.commands"), key=lambda found: found.name):
            try:
                entry_point.load()(extra)
            except ImportError as error:
                line(consoles()[1], f"warning: the commands of {entry_point.value} cannot be loaded: {error}")
        group = typer.main.get_command(extra)
        return dict(group.commands) if isinstance(group, TyperGroup) else {}


app = typer.Typer(
    cls=_Commands,
    help="Espalier trains a network and prunes it at the same time, as labelled data comes.",
    epilog=_EPILOG,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_NOUNS = (
    *(models, recipes, batches, evaluation, cycles, versions, releases),
    *(log, verify, keys, webhooks, custody, decisions),
)
for noun in _NOUNS:
    noun.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"espalier {__version__}\n")
        raise typer.Exit


@app.callback()
def _shared(
    ctx: typer.Context,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    ctx.obj = Session(url, key, as_json, quiet)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its words without the program's name; by default the process's own.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words[: words.index("--") if "--" in words else None]
    try:
        code = app(words, prog_name="espalier", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except EspalierClientError as error:
        _report(problem_of(error), str(error), as_json)
        return exit_code(error)
    except (typer.Abort, KeyboardInterrupt):
        _report(_problem("interrupted", "interrupted"), "interrupted", as_json)
        return 130
    except _Misused as error:
        usage = _problem("usage", error.format_message())
        if as_json or not error.format_message():
            _report(usage, "", as_json)
        else:
            error.show()
        return int(error.exit_code)
    except OSError as error:
        _report(_problem("local-file", str(error)), str(error), as_json)
        return REFUSED
    except Exception as error:
        if os.environ.get("ESPALIER_TRACEBACK"):
            traceback.print_exc()
        text = f"{type(error).__name__}: {error}; this should not happen: ESPALIER_TRACEBACK=1 shows where it did"
        _report(_problem("bug", text), text, as_json)
        return REFUSED


def exit_code(error: EspalierClientError) -> int:
    """The exit code of an error."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), REFUSED)


def problem_of(error: EspalierClientError) -> dict[str, Any]:
    """An error as a problem document: the service's own, or one of the same form."""
    if isinstance(error, ApiProblem):
        return {
            "type": error.type,
            "title": error.title,
            "status": error.status,
            "detail": error.detail,
            "errors": list(error.errors),
            "request_id": error.request_id,
            **error.extensions,
        }
    return _problem(re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower(), str(error))


def _problem(slug: str, detail: str) -> dict[str, Any]:
    return {"type": f"urn:espalier:problem:{slug}", "title": slug.replace("-", " "), "detail": detail, "errors": []}


def _report(problem: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps(problem, ensure_ascii=False) + "\n")
        return
    request = f"\n(request {problem['request_id']})" if problem.get("request_id") else ""
    if text:
        line(consoles()[1], f"error: {plain(text)}{request}")


if __name__ == "__main__":
    sys.exit(main())
