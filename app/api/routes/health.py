"""Health: is the process there, is the service ready; and the page at `/`."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from app import errors
from app.api import schemas
from app.api.declared import OPEN, problems
from app.api.dependencies import CallerDep, StoreDep
from app.service import history, models

router = APIRouter(tags=["health"])

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_SECURITY = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Espalier</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{text-align:left;padding:.3rem 1.2rem .3rem 0}}</style></head>
<body><h1>Espalier</h1>
<table><thead><tr><th>model<th>state<th>megabatches<th>champion<th>density</tr></thead>
<tbody>
{rows}
</tbody></table>
<p><a href="v1/models">models</a>, <a href="v1/audit">audit log</a>, <a href="readyz">readiness</a>,
<a href="openapi.json">OpenAPI</a></p>
</body></html>
"""


@router.get("/livez", summary="Ask whether the process is there", openapi_extra=OPEN)
async def livez() -> schemas.Alive:
    """Answers while the process does; nothing else is looked at."""
    return schemas.Alive()


@router.get(
    "/readyz",
    summary="Ask whether the service is ready",
    openapi_extra=OPEN,
    responses=problems(errors.SchemaMismatch, errors.StoreBusy, always=()),
)
def readyz(store: StoreDep) -> schemas.Ready:
    """Answers 200 when the database is there and at this version's schema; says when a worker was last heard of."""
    return schemas.Ready.from_domain(history.health(store))


@router.get("/", include_in_schema=False)
def home(store: StoreDep, caller: CallerDep) -> HTMLResponse:
    """The first hundred models, for a person with a browser. Nothing on the page comes from elsewhere."""
    page = models.list_models(store, after=None, limit=100, only=caller.models)
    rows = "\n".join(_row(schemas.Model.from_domain(summary)) for summary in page.items) or "<tr><td>none yet</tr>"
    return HTMLResponse(_PAGE.format(rows=rows), headers=_SECURITY)


def _row(model: schemas.Model) -> str:
    address, name = f"v1/models/{model.name}", escape(model.name)
    champion = model.champion
    version = f'<a href="{address}/versions/champion">{champion.number}</a>' if champion else "none yet"
    density = f"{champion.density:.3f}" if champion else ""
    counted = f'<a href="{address}/megabatches">{model.megabatches}</a>'
    return f'<tr><td><a href="{address}">{name}</a><td>{model.state}<td>{counted}<td>{version}<td>{density}</tr>'
