"""Webhooks: made, changed, tried out, and what they were told."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app import errors
from app.api import schemas
from app.api.declared import JSON_BODY, Responses, problems, with_headers
from app.api.dependencies import MAX_NUMBER, ActorDep, CursorText, Limit, SettingsDep, StoreDep, decode_number
from app.api.idempotency import TOLD_ONCE
from app.api.strict_json import JsonRoute
from app.domain import DeliveryState
from app.service import webhooks

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=JsonRoute)

WebhookId = Annotated[int, Path(alias="webhook", ge=1, le=MAX_NUMBER, description="Id of a webhook.", examples=[1])]
DeliveryId = Annotated[int, Path(alias="delivery", ge=1, le=2**53 - 1, description="Id of a delivery.", examples=[1])]
_State = Annotated[DeliveryState | None, Query(description="In this state only.", examples=["failed"])]

_TOLD = with_headers("Made; the only answer that holds its secret.", {"Location": "Path of the webhook."})
_LATER: Responses = {202: {"description": "It will be sent by a worker; ask for it again to see how that went."}}
_UNUSABLE = (errors.InvalidWebhook, errors.BadInput, errors.UnknownModel)


@router.post(
    "",
    status_code=201,
    summary="Make a webhook",
    responses={201: _TOLD, **problems(*_UNUSABLE, errors.Conflict, *JSON_BODY)},
)
def create_webhook(
    body: schemas.NewWebhook,
    request: Request,
    response: Response,
    store: StoreDep,
    settings: SettingsDep,
    actor: ActorDep,
) -> schemas.CreatedWebhook:
    """Make a webhook: an address that is told of audit entries from now on, of this one as the first. The secret that
    its deliveries are signed with is told this once, and no repeated request is told it.
    """
    made = webhooks.create_webhook(store, settings, body.to_domain(), actor=actor)
    response.headers["Location"] = f"/v1/webhooks/{made.webhook.id}"
    return _told_once(made, request, response)


@router.get("", summary="List webhooks", responses=problems(errors.InvalidCursor))
def list_webhooks(store: StoreDep, limit: Limit = 50, cursor: CursorText = None) -> schemas.Webhooks:
    """Webhooks in the order in which they were made; never their secrets."""
    page = webhooks.list_webhooks(store, after=decode_number("webhooks", cursor), limit=limit)
    return schemas.Webhooks.from_domain("webhooks", page, schemas.Webhook.from_domain)


@router.get("/{webhook}", summary="Look at a webhook", responses=problems(errors.UnknownWebhook))
def get_webhook(id: WebhookId, store: StoreDep) -> schemas.Webhook:
    """Where it leads, what it is told of, and whether it is enabled; never its secret."""
    return schemas.Webhook.from_domain(webhooks.get_webhook(store, id))


@router.patch(
    "/{webhook}", summary="Change a webhook", responses=problems(errors.UnknownWebhook, *_UNUSABLE, *JSON_BODY)
)
def change_webhook(
    id: WebhookId, body: schemas.ChangedWebhook, store: StoreDep, settings: SettingsDep, actor: ActorDep
) -> schemas.Webhook:
    """Change where it leads or what it is told of; what is left out stays. It holds for whatever was not sent yet."""
    return schemas.Webhook.from_domain(webhooks.change_webhook(store, settings, id, **body.changes(), actor=actor))


@router.delete("/{webhook}", status_code=204, summary="Delete a webhook", responses=problems(errors.UnknownWebhook))
def delete_webhook(id: WebhookId, store: StoreDep, actor: ActorDep) -> None:
    """Forget it, its secrets and its deliveries. What is just being sent may still arrive."""
    webhooks.delete_webhook(store, id, actor=actor)


@router.post("/{webhook}/enable", summary="Enable a webhook", responses=problems(errors.UnknownWebhook, *JSON_BODY))
def enable_webhook(id: WebhookId, body: schemas.Enabling, store: StoreDep, actor: ActorDep) -> schemas.Webhook:
    """Go on where it stopped, so that nothing is missed; or, with `skip_missed`, with what comes from now on."""
    done = webhooks.enable_webhook(store, id, reason=body.reason, skip_missed=body.skip_missed, actor=actor)
    return schemas.Webhook.from_domain(done)


@router.post("/{webhook}/disable", summary="Disable a webhook", responses=problems(errors.UnknownWebhook, *JSON_BODY))
def disable_webhook(id: WebhookId, body: schemas.Reason, store: StoreDep, actor: ActorDep) -> schemas.Webhook:
    """Send it nothing but tests and what is redelivered, until it is enabled again."""
    return schemas.Webhook.from_domain(webhooks.disable_webhook(store, id, reason=body.reason, actor=actor))


@router.post(
    "/{webhook}/rotate-secret",
    summary="Give a webhook a new secret",
    responses=problems(errors.UnknownWebhook, errors.BadInput, *JSON_BODY),
)
def rotate_webhook_secret(
    id: WebhookId, body: schemas.Rotation, request: Request, response: Response, store: StoreDep, actor: ActorDep
) -> schemas.CreatedWebhook:
    """Sign with a new secret, which is told this once. Until the overlap is over every delivery bears a signature by
    the former secret, too, so that receivers can be given the new one at leisure.
    """
    made = webhooks.rotate_secret(store, id, overlap=timedelta(seconds=body.overlap_seconds), actor=actor)
    return _told_once(made, request, response)


@router.post(
    "/{webhook}/test",
    status_code=202,
    summary="Try a webhook out",
    responses={**_LATER, **problems(errors.UnknownWebhook)},
)
def test_webhook(id: WebhookId, store: StoreDep, actor: ActorDep) -> schemas.Delivery:
    """Send an event of type `espalier.webhook.test`, once, whether or not the webhook is enabled."""
    return schemas.Delivery.from_domain(webhooks.send_test(store, id, actor=actor))


@router.get(
    "/{webhook}/deliveries",
    summary="List deliveries",
    responses=problems(errors.UnknownWebhook, errors.InvalidCursor),
)
def list_deliveries(
    id: WebhookId, store: StoreDep, state: _State = None, limit: Limit = 50, cursor: CursorText = None
) -> schemas.Deliveries:
    """What it was told, is to be told, or could not be; the newest first, for 30 days."""
    before = decode_number("deliveries", cursor)
    page = webhooks.list_deliveries(store, id, before=before, limit=limit, state=state)
    return schemas.Deliveries.from_domain("deliveries", page, schemas.Delivery.from_domain)


@router.get(
    "/{webhook}/deliveries/{delivery}",
    summary="Look at a delivery",
    responses=problems(errors.UnknownWebhook, errors.UnknownDelivery),
)
def get_delivery(id: WebhookId, delivery: DeliveryId, store: StoreDep) -> schemas.Delivery:
    """One delivery, with every attempt: when, what the receiver answered, and how long it took."""
    return schemas.Delivery.from_domain(webhooks.get_delivery(store, id, delivery))


@router.post(
    "/{webhook}/deliveries/{delivery}/redeliver",
    status_code=202,
    summary="Send an event once more",
    responses={**_LATER, **problems(errors.UnknownWebhook, errors.UnknownDelivery)},
)
def redeliver(id: WebhookId, delivery: DeliveryId, store: StoreDep, actor: ActorDep) -> schemas.Delivery:
    """Send the same event again, under the same id, now and once; one that waits for its next attempt stops waiting."""
    return schemas.Delivery.from_domain(webhooks.redeliver(store, id, delivery, actor=actor))


def _told_once(made: webhooks.Made, request: Request, response: Response) -> schemas.CreatedWebhook:
    request.scope[TOLD_ONCE] = True
    response.headers["Cache-Control"] = "no-store"
    return schemas.CreatedWebhook.made(made.webhook, made.secret)
