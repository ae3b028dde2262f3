"""Hooking: the pages of webhooks; making one, trying it out, switching it, and sending a delivery once more.

Every question is a page of its own, too, for browsers without scripts; a script shows it as a dialog instead.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from app.api.dependencies import MAX_NUMBER, ActorDep, SettingsDep, StoreDep
from app.api.idempotency import TOLD_ONCE
from app.api.web.forms import Fields, Form
from app.api.web.rendering import render, wants_fragment
from app.api.web.webhooks_page import deliveries_of, rows_of
from app.domain import Actor, DeliveryState, Webhook
from app.errors import BadInput
from app.service import webhooks
from app.store.database import Store

router = APIRouter(prefix="/webhooks", include_in_schema=False)

ROWS = 50
"""Webhooks, or deliveries, on a page."""

OVERLAPS = (0, 1, 7, 30)
"""Days that a former secret may go on for."""

_MOST_TEXT = 8000
Move = Literal["test", "enable", "disable", "rotate", "delete"]

_Id = Annotated[int, Path(alias="webhook", ge=1, le=MAX_NUMBER)]
_Delivery = Annotated[int, Path(alias="delivery", ge=1, le=2**53 - 1)]
_After = Annotated[int | None, Query(ge=0, le=MAX_NUMBER)]
_Before = Annotated[int | None, Query(ge=1, le=2**53 - 1)]
_State = Annotated[DeliveryState | Literal[""], Query()]


@router.get("")
def webhooks_page(request: Request, store: StoreDep, after: _After = None) -> Response:
    """Every webhook, and whether it is enabled."""
    found = webhooks.list_webhooks(store, after=after, limit=ROWS)
    part = request.headers.get("hx-target") == "webhooks"
    template = "webhooks_part.html" if part else "webhooks.html"
    return render(request, template, active="webhooks", rows=rows_of(found.items), next=found.next, after=after)


@router.get("/new")
def ask_new_webhook(request: Request) -> Response:
    """Where it shall lead, and what it shall be told of."""
    return _answer(request, "ask_new_webhook.html")


@router.post("")
def do_new_webhook(request: Request, form: Form, store: StoreDep, settings: SettingsDep, actor: ActorDep) -> Response:
    """Make it, and show its secret."""
    wanted = webhooks.Wanted(
        form.needed("url"), form.text("description"), _names(form, "kinds"), _names(form, "models")
    )
    made = webhooks.create_webhook(store, settings, wanted, actor=actor)
    return _told_once(request, made, "made")


@router.get("/{webhook}")
def webhook_page(id: _Id, request: Request, store: StoreDep, state: _State = "", before: _Before = None) -> Response:
    """One webhook: where it leads, what it is told of, and what became of that."""
    webhook = webhooks.get_webhook(store, id)
    found = webhooks.list_deliveries(store, id, before=before, limit=ROWS, state=state or None)
    part = request.headers.get("hx-target") == "webhook"
    return render(
        request,
        "webhook_part.html" if part else "webhook.html",
        active="webhooks",
        row=rows_of([webhook])[0],
        deliveries=deliveries_of(found.items),
        states=list(DeliveryState),
        state=state,
        before=before,
        next=found.next,
    )


@router.get("/{webhook}/{move}")
def ask_webhook(id: _Id, move: Move, request: Request, store: StoreDep) -> Response:
    """What a move would do."""
    row = rows_of([webhooks.get_webhook(store, id)])[0]
    return _answer(request, "ask_webhook.html", row=row, move=move, overlaps=OVERLAPS)


@router.post("/{webhook}/{move}")
def do_webhook(id: _Id, move: Move, request: Request, form: Form, store: StoreDep, actor: ActorDep) -> Response:
    """Make the move."""
    if move == "rotate":
        overlap = timedelta(days=_overlap(form))
        return _told_once(request, webhooks.rotate_secret(store, id, overlap=overlap, actor=actor), "rotated")
    webhook = webhooks.get_webhook(store, id)
    _MOVES[move](store, webhook, form, actor)
    answer = _answer(request, "done_webhook.html", row=rows_of([webhook])[0], move=move)
    if move != "delete":  # its page has nothing left to show
        answer.headers["HX-Trigger"] = "espalier-changed"
    return answer


@router.get("/{webhook}/deliveries/{delivery}/redeliver")
def ask_redelivery(id: _Id, delivery: _Delivery, request: Request, store: StoreDep) -> Response:
    """Whether to send an event once more."""
    row = rows_of([webhooks.get_webhook(store, id)])[0]
    sent = deliveries_of([webhooks.get_delivery(store, id, delivery)])[0]
    return _answer(request, "ask_redelivery.html", row=row, sent=sent)


@router.post("/{webhook}/deliveries/{delivery}/redeliver")
def do_redelivery(id: _Id, delivery: _Delivery, request: Request, store: StoreDep, actor: ActorDep) -> Response:
    """Send it once more."""
    webhooks.redeliver(store, id, delivery, actor=actor)
    row = rows_of([webhooks.get_webhook(store, id)])[0]
    answer = _answer(request, "done_webhook.html", row=row, move="redeliver")
    answer.headers["HX-Trigger"] = "espalier-changed"
    return answer


def _test(store: Store, webhook: Webhook, form: Fields, actor: Actor) -> None:
    webhooks.send_test(store, webhook.id, actor=actor)


def _enable(store: Store, webhook: Webhook, form: Fields, actor: Actor) -> None:
    reason, skip = form.needed("reason"), form.given("skip_missed")
    webhooks.enable_webhook(store, webhook.id, reason=reason, skip_missed=skip, actor=actor)


def _disable(store: Store, webhook: Webhook, form: Fields, actor: Actor) -> None:
    webhooks.disable_webhook(store, webhook.id, reason=form.needed("reason"), actor=actor)


def _delete(store: Store, webhook: Webhook, form: Fields, actor: Actor) -> None:
    webhooks.delete_webhook(store, webhook.id, actor=actor)


_MOVES = {"test": _test, "enable": _enable, "disable": _disable, "delete": _delete}


def _told_once(request: Request, made: webhooks.Made, what: str) -> Response:
    request.scope[TOLD_ONCE] = True
    row = rows_of([made.webhook])[0]
    answer = _answer(request, "done_secret.html", row=row, secret=made.secret, what=what)
    answer.headers["HX-Trigger"] = "espalier-changed"
    return answer


def _answer(request: Request, part: str, **context: Any) -> Response:
    template = part if wants_fragment(request) else "dialog_page.html"
    return render(request, template, active="webhooks", part=part, **context)


def _names(form: Fields, field: str) -> frozenset[str] | None:
    """Names with commas or spaces between; None, which is all, where there are none."""
    return frozenset(name for name in re.split(r"[\s,、]+", form.text(field, most=_MOST_TEXT)) if name) or None


def _overlap(form: Fields) -> int:
    days = form.number("days")
    if days not in OVERLAPS:
        raise BadInput(f"a former secret goes on for {', '.join(map(str, OVERLAPS))} days: choose one of these")
    return days
