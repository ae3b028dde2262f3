"""``espalier webhook``: addresses that are told what happens.

Law: a new secret stands on standard output alone, so that it can be piped; what is said about it goes to standard
error.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from espalier.commands.durations import duration
from espalier.console import NONE, line, plural, when
from espalier.errors import EspalierClientError
from espalier.session import Limit, Reason, Session, command, group
from espalier.webhooks import CreatedWebhook, Delivery, Webhook

_Id = Annotated[int, typer.Argument(metavar="ID", min=1, help="Id of the webhook.")]
_DeliveryId = Annotated[int, typer.Argument(metavar="DELIVERY", min=1, help="Id of the delivery.")]
_Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", "-k", help="Kind of audit entry that it is told of, repeatable; without: all."),
]
_Models = Annotated[
    list[str] | None, typer.Option("--model", "-m", help="Model that it is told of, repeatable; without: all.")
]
_STATES = ("pending", "delivered", "failed", "skipped")
_LOOK_SECONDS = 0.25


def register(app: typer.Typer) -> None:
    """Add the commands."""
    webhook = group(app, "webhook", "Webhooks: create, try out, deliveries, secrets.")
    command(webhook, "create")(create)
    command(webhook, "list")(listing)
    command(webhook, "show")(show)
    command(webhook, "change")(change)
    command(webhook, "test")(try_out)
    command(webhook, "deliveries")(deliveries)
    command(webhook, "redeliver")(redeliver)
    command(webhook, "rotate-secret")(rotate_secret)
    command(webhook, "enable")(enable)
    command(webhook, "disable")(disable)
    command(webhook, "delete")(delete)


def create(
    session: Session,
    to: Annotated[str, typer.Argument(metavar="URL", help="Where deliveries are posted to.")],
    kind: _Kinds = None,
    model: _Models = None,
    description: Annotated[str, typer.Option("--description", help="What it is for.")] = "",
) -> None:
    """Make a webhook and print its secret, this once: on standard output, alone."""
    made = session.client.webhooks.create(to, kinds=kind, models=model, description=description)
    _tell_secret(session, made, f"this is the secret of webhook {made.id} ({_told(made)}); it is not shown again")


def listing(session: Session) -> None:
    """List webhooks."""
    found = list(session.client.webhooks.list())
    rows = [(w.id, _state(w), w.url, _names(w.kinds), _names(w.models), w.sent_through) for w in found]
    columns = ("id", "state", "url", "kinds", "models", "told through")
    session.table(found, columns, rows, "there are no webhooks: make one with `espalier webhook create URL`")


def show(session: Session, id: _Id) -> None:
    """Show where a webhook leads, what it is told of, and how far it is."""
    found = session.client.webhooks.get(id)
    rows: dict[str, object] = {
        "webhook": found.id,
        "url": found.url,
        "for": found.description or NONE,
        "state": _state(found),
        "kinds": _names(found.kinds),
        "models": _names(found.models),
        "told through": f"entry {found.sent_through}",
        "made": f"{when(found.created_at)} by {found.created_by}",
        "changed": when(found.changed_at),
    }
    if found.disabled_reason is not None:
        rows["disabled because"] = found.disabled_reason
    if found.former_secrets_until is not None:
        rows["former secrets until"] = when(found.former_secrets_until)
    session.pairs(found, rows)


def change(
    session: Session,
    id: _Id,
    to: Annotated[str | None, typer.Option("--to", metavar="URL", help="Where deliveries are posted to.")] = None,
    kind: _Kinds = None,
    model: _Models = None,
    all_kinds: Annotated[bool, typer.Option("--all-kinds", help="Tell it of every kind.")] = False,
    all_models: Annotated[bool, typer.Option("--all-models", help="Tell it of every model.")] = False,
    description: Annotated[str | None, typer.Option("--description", help="What it is for.")] = None,
) -> None:
    """Change where a webhook leads or what it is told of; what is left out stays."""
    done = session.client.webhooks.change(
        id,
        url=to,
        kinds=None if all_kinds else kind or (),
        models=None if all_models else model or (),
        description=description,
    )
    session.result(done, f"webhook {done.id} leads to {done.url} ({_told(done)})")


def try_out(
    session: Session,
    id: _Id,
    seconds: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the answer.")] = 15.0,
) -> None:
    """Send a webhook an event that says nothing, and say how that went; exit code 1 when it did not arrive."""
    _wait_for(session, session.client.webhooks.test(id), seconds)


def deliveries(
    session: Session,
    id: _Id,
    state: Annotated[
        str | None, typer.Option("--state", help=f"In this state only: {', '.join(_STATES)}.", show_default=False)
    ] = None,
    limit: Limit = 20,
) -> None:
    """List what a webhook was told, is to be told, or could not be; the newest first."""
    if state is not None and state not in _STATES:
        raise typer.BadParameter(f"--state {state}: write one of {', '.join(_STATES)}")
    found = list(session.client.webhooks.deliveries(id, state=state, limit=limit))
    rows = [
        (d.id, d.kind, d.model or NONE, d.seq or NONE, d.state, len(d.attempts), _last(d), when(d.next_at))
        for d in found
    ]
    columns = ("id", "kind", "model", "entry", "state", "attempts", "last answer", "next attempt")
    session.table(found, columns, rows, "there are no deliveries: `espalier webhook test` makes one")


def redeliver(
    session: Session,
    id: _Id,
    delivery: _DeliveryId,
    seconds: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the answer.")] = 15.0,
) -> None:
    """Send an event once more, now, under the same id, and say how that went; exit code 1 when it did not arrive."""
    _wait_for(session, session.client.webhooks.redeliver(id, delivery), seconds)


def rotate_secret(
    session: Session,
    id: _Id,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="For how long the former secret signs, too: 0s, 12h, 3d.")
    ] = "1d",
) -> None:
    """Give a webhook a new secret and print it, this once: on standard output, alone."""
    lasts = duration(overlap)
    if lasts is None:
        raise typer.BadParameter(f"--overlap {overlap}: write 0s, 30m, 12h or 3d")
    made = session.client.webhooks.rotate_secret(id, lasts)
    ends = made.former_secrets_until
    said = "no longer signs" if ends is None else f"signs, too, until {when(ends)}"
    _tell_secret(session, made, f"this is the new secret of webhook {made.id}; the former one {said}")


def enable(
    session: Session,
    id: _Id,
    reason: Reason,
    skip_missed: Annotated[bool, typer.Option("--skip-missed", help="Go on with what comes from now on.")] = False,
) -> None:
    """Tell a webhook again, from where it stopped."""
    done = session.client.webhooks.enable(id, reason, skip_missed=skip_missed)
    session.result(done, f"webhook {done.id} is told what comes after entry {done.sent_through}")


def disable(session: Session, id: _Id, reason: Reason) -> None:
    """Send a webhook nothing but tests and what is redelivered."""
    done = session.client.webhooks.disable(id, reason)
    session.result(done, f"webhook {done.id} is disabled: {done.disabled_reason}")


def delete(session: Session, id: _Id) -> None:
    """Forget a webhook, its secrets and its deliveries."""
    session.client.webhooks.delete(id)
    session.result({"deleted": id}, f"webhook {id} is deleted")


def _tell_secret(session: Session, made: CreatedWebhook, about: str) -> None:
    if session.as_json:
        session.document(made)
        return
    sys.stdout.write(made.secret + "\n")
    sys.stdout.flush()
    if not session.quiet:
        line(session.errors, about)


def _wait_for(session: Session, delivery: Delivery, seconds: float) -> None:
    """Stay until the attempt that was just asked for was made.

    Raises:
        EspalierClientError: it did not arrive, or was not made in time.
    """
    before, end = len(delivery.attempts), time.monotonic() + seconds
    while len(delivery.attempts) == before and delivery.state == "pending":
        if time.monotonic() >= end:
            raise EspalierClientError(
                f"delivery {delivery.id} was not sent within {seconds:g} s: is a worker running (`espalier work`)?"
            )
        time.sleep(_LOOK_SECONDS)
        delivery = session.client.webhooks.delivery(delivery.webhook, delivery.id)
    if delivery.state != "delivered":
        raise EspalierClientError(f"delivery {delivery.id} did not arrive: {_last(delivery)}")
    session.result(delivery, f"delivery {delivery.id} arrived: {_last(delivery)}")


def _last(delivery: Delivery) -> str:
    if not delivery.attempts:
        return NONE
    last = delivery.attempts[-1]
    return last.error or f"{last.status} in {last.seconds:.2f} s"


def _state(webhook: Webhook) -> str:
    return "enabled" if webhook.enabled else "disabled"


def _names(names: tuple[str, ...] | None) -> str:
    return "all" if names is None else ", ".join(names)


def _told(webhook: Webhook) -> str:
    kinds = "all kinds" if webhook.kinds is None else plural(len(webhook.kinds), "kind")
    models = "all models" if webhook.models is None else plural(len(webhook.models), "model")
    return f"{kinds}, {models}"
