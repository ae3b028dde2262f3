"""Auditing: the pages of the audit log; an entry with its proof, and the whole log verified when somebody asks."""

from __future__ import annotations

from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.api.dependencies import MAX_NUMBER, NotaryDep, StoreDep
from app.api.web.audit_page import Filter, rows_of
from app.api.web.audit_page import shown as entry_shown
from app.api.web.rendering import render, speech_of, wants_fragment
from app.errors import Fault
from app.service import history
from app.service.attestation import attest
from app.store.audit import LOOKED

router = APIRouter(prefix="/audit", include_in_schema=False)

ROWS = 50
"""Entries on a page."""

_Model = Annotated[str, Query(pattern=r"^[a-z0-9-]{0,63}$")]
_Kind = Annotated[str, Query(pattern=r"^[a-z._-]{0,64}$")]
_Actor = Annotated[str, Query(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
_Time = Annotated[str, Query(pattern=r"^([0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?)?)?$")]
_Text = Annotated[str, Query(max_length=100, pattern=r"^[^\x00-\x1f]*$")]
_Before = Annotated[int | None, Query(ge=1, le=2**53 - 1)]


@router.get("")
def audit_page(
    request: Request,
    store: StoreDep,
    model: _Model = "",
    kind: _Kind = "",
    actor: _Actor = "",
    since: _Time = "",
    until: _Time = "",
    text: _Text = "",
    before: _Before = None,
) -> Response:
    """Entries of the log, the newest first."""
    asked = Filter(model, kind, actor.strip(), since, until, text.strip())
    found = history.find_entries(store, asked.sought(), start=before, limit=ROWS, newest=True)
    rows, head = rows_of(found.items, speech_of(request)), history.log_head(store)
    return render(
        request,
        "audit.html",
        active="audit",
        rows=rows,
        next=found.next,
        head=head,
        asked=asked,
        before=before,
        looked=LOOKED if found.next and len(rows) < ROWS else 0,
    )


@router.get("/{seq}")
def entry_page(
    seq: Annotated[int, Path(ge=1, le=MAX_NUMBER)], request: Request, store: StoreDep, notary: NotaryDep
) -> Response:
    """One entry: all that it says, and whether it is in what was signed."""
    entry, proof = history.audit_entry(store, seq), attest(store, notary, seq)
    return render(request, "entry.html", active="audit", page=entry_shown(entry, proof, speech_of(request)))


@router.post("/verify")
def verify_here(request: Request, store: StoreDep) -> Response:
    """Recompute the whole log, and say in words whether it holds. It changes nothing."""
    began = perf_counter()
    try:
        head, fault = history.verify_log(store), ""
    except Fault as error:
        head, fault = None, str(error)
    template = "verified.html" if wants_fragment(request) else "dialog_page.html"
    took = perf_counter() - began
    return render(request, template, active="audit", part="verified.html", head=head, fault=fault, seconds=took)
