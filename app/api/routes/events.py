"""Events: what happens, as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from app import errors
from app.api.broadcast import EventStream, Wanted
from app.api.declared import problems
from app.api.dependencies import NAME_PATTERN, BroadcastDep, CallerDep, ModelDep, StoreDep
from app.api.strict_query import StrictRoute
from app.domain import AuditEntry
from app.errors import OtherModel
from app.service import history
from app.store.database import Store

router = APIRouter(prefix="/v1", tags=["events"], route_class=StrictRoute)

_PAGE = 500
_STREAM = {
    "description": "Events as they come: `id` is the number of the audit entry, `event` its kind, `data` JSON.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}

_Model = Annotated[str | None, Query(pattern=NAME_PATTERN, description="Of this model only.", examples=["gas-sensors"])]
_Kinds = Annotated[
    list[Annotated[str, Query(min_length=1, max_length=64)]] | None,
    Query(
        alias="kind",
        max_length=64,
        description="Of these kinds of audit entries only; repeatable.",
        examples=[["alias.moved"]],
    ),
]
_Last = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=2**53 - 1,
        description="Begin after this event; by default with what comes from now on.",
        examples=[42],
    ),
]


@router.get("/events", response_class=Response, summary="Follow what happens", responses={200: _STREAM, **problems()})
def follow_events(
    store: StoreDep,
    broadcast: BroadcastDep,
    caller: CallerDep,
    model: _Model = None,
    kind: _Kinds = None,
    last: _Last = None,
) -> Response:
    """Every audit entry as a server-sent event, as soon as it is made.

    A comment comes every 15 seconds. A stream that falls far behind is ended; `Last-Event-ID` takes it up again without
    a gap, from the log. A key for some models is told of these alone.
    """
    if model is not None and not caller.sees(model):
        raise OtherModel(f"the key {caller.name!r} is for other models: leave the model out, or name one of its own")
    wanted = Wanted(model, frozenset(kind or ()), caller.models)
    head = history.log_head(store).size
    # A number that the log has not reached is of another log, such as one before a backup was restored.
    after = head if last is None else min(last, head)
    return EventStream(broadcast, wanted, after, partial(_page, store, wanted))


@router.get(
    "/models/{model}/events",
    response_class=Response,
    summary="Follow what happens to a model",
    responses={200: _STREAM, **problems(errors.UnknownModel)},
)
def follow_model(
    model: ModelDep,
    store: StoreDep,
    broadcast: BroadcastDep,
    caller: CallerDep,
    kind: _Kinds = None,
    last: _Last = None,
) -> Response:
    """The audit entries of one model as server-sent events, such as `version.published` and `alias.moved`."""
    return follow_events(store, broadcast, caller, model.model.name, kind, last)


def _page(store: Store, wanted: Wanted, after: int) -> Sequence[AuditEntry]:
    only = next(iter(wanted.kinds)) if len(wanted.kinds) == 1 else None
    return history.audit_entries(store, model=wanted.model, after=after, limit=_PAGE, kind=only).items
