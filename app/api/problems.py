"""Problems: the one table from an error to its HTTP answer.

Knows: which status, slug and title every class of ``app.errors`` has, and how a problem document (RFC 9457) looks.
Must never know: which route raised the error.

Laws:
    * Every answer of 400 and above is ``application/problem+json`` with ``type``, ``title``, ``status``, ``detail``,
      ``errors`` and ``request_id``; ``detail`` says what to do.
    * ``type`` is stable; programs compare it, never the words of ``detail``.
    * What nobody foresaw is a 500 that names the request id and is logged with its traceback; it tells nothing else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from app import errors

PROBLEM_JSON = "application/problem+json"
REQUEST_ID = "espalier.request_id"
"""Where the edge leaves the request id in an ASGI scope."""

_log = logging.getLogger("app.api")


@dataclass(frozen=True, slots=True)
class Kind:
    """What all problems of one kind have in common."""

    status: int
    slug: str
    title: str
    headers: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "urn:espalier:problem:"

    @property
    def type(self) -> str:
        """The URI that programs compare."""
        return f"{self.namespace}{self.slug}"


TABLE: dict[type[errors.EspalierError], Kind] = {
    errors.InvalidName: Kind(422, "invalid-name", "The name cannot be used"),
    errors.InvalidRecipe: Kind(422, "invalid-recipe", "The recipe cannot work"),
    errors.InvalidInputSpec: Kind(422, "invalid-input", "The declared input cannot work"),
    errors.InvalidMegabatch: Kind(422, "invalid-megabatch", "The upload cannot be used as a megabatch"),
    errors.InvalidWeights: Kind(422, "invalid-weights", "The initial weights cannot be used"),
    errors.InvalidCursor: Kind(400, "invalid-cursor", "The cursor was not made by this listing"),
    errors.DigestMismatch: Kind(400, "digest-mismatch", "The bytes do not have the declared digest"),
    errors.UploadTooLarge: Kind(413, "upload-too-large", "The upload is too large"),
    errors.LengthMismatch: Kind(400, "length-mismatch", "The upload does not have the declared length"),
    errors.ChecksumMismatch: Kind(460, "checksum-mismatch", "The part does not have its checksum"),
    errors.KeyReused: Kind(422, "idempotency-key-reused", "The idempotency key came with other content before"),
    errors.InvalidWebhook: Kind(422, "invalid-webhook", "The webhook's address cannot be used"),
    errors.InvalidStamp: Kind(422, "invalid-stamp", "A decision is stamped with no version of this model"),
    errors.NotAnAncestor: Kind(422, "not-an-ancestor", "The champion does not descend from this version"),
    errors.UnknownModel: Kind(404, "unknown-model", "No such model"),
    errors.UnknownMegabatch: Kind(404, "unknown-megabatch", "No such megabatch"),
    errors.UnknownEvaluationSet: Kind(404, "unknown-evaluation-set", "The model has no evaluation set"),
    errors.UnknownCycle: Kind(404, "unknown-cycle", "No such cycle"),
    errors.UnknownVersion: Kind(404, "unknown-version", "No such version"),
    errors.NotRecorded: Kind(404, "not-recorded", "This was not written down for the version"),
    errors.VersionSwept: Kind(410, "version-swept", "The version's bytes were removed"),
    errors.UnknownAlias: Kind(404, "unknown-alias", "No such alias"),
    errors.UnknownRevision: Kind(404, "unknown-revision", "No such revision of the recipe"),
    errors.UnknownProposal: Kind(404, "unknown-proposal", "No such proposal"),
    errors.UnknownEntry: Kind(404, "unknown-entry", "No such audit entry"),
    errors.UnknownKey: Kind(404, "unknown-key", "No such key"),
    errors.UnknownUpload: Kind(404, "unknown-upload", "No such upload"),
    errors.UnknownWebhook: Kind(404, "unknown-webhook", "No such webhook"),
    errors.UnknownDelivery: Kind(404, "unknown-delivery", "No such delivery"),
    errors.UploadExpired: Kind(410, "upload-expired", "The upload has expired"),
    errors.OffsetMismatch: Kind(409, "offset-mismatch", "The upload goes on elsewhere"),
    errors.UploadBusy: Kind(423, "upload-busy", "Another request is writing the upload", {"Retry-After": "1"}),
    errors.UploadClosed: Kind(409, "upload-closed", "The upload is complete"),
    errors.KeyInUse: Kind(409, "idempotency-key-in-use", "The first request still runs", {"Retry-After": "1"}),
    errors.ModelExists: Kind(409, "model-exists", "The name is taken"),
    errors.KeyNameTaken: Kind(409, "key-name-taken", "The name of the key is taken"),
    errors.MegabatchQuarantined: Kind(409, "megabatch-quarantined", "This content is quarantined"),
    errors.MegabatchErased: Kind(409, "megabatch-erased", "This content was erased"),
    errors.EvaluationEmptied: Kind(409, "evaluation-emptied", "The evaluation set would be empty"),
    errors.InputUnknown: Kind(409, "input-unknown", "The model's input is not known yet"),
    errors.NothingToTrain: Kind(409, "nothing-to-train", "Nothing to train on"),
    errors.RecipeUnchanged: Kind(409, "recipe-unchanged", "The recipe says that already"),
    errors.ModelPaused: Kind(409, "model-paused", "The model is paused"),
    errors.VerdictStands: Kind(409, "verdict-stands", "Guardrails withheld this version"),
    errors.ProposalClosed: Kind(409, "proposal-closed", "The proposal is no longer open"),
    errors.AliasMoved: Kind(412, "alias-moved", "The alias was moved meanwhile"),
    errors.PreconditionMissing: Kind(428, "precondition-missing", "If-Match is missing"),
    errors.LeaseLost: Kind(409, "lease-lost", "The cycle is no longer this worker's"),
    errors.SelfApproval: Kind(403, "self-approval", "Another person must approve this"),
    errors.ScopeMissing: Kind(403, "scope-missing", "The key does not allow this"),
    errors.OtherModel: Kind(403, "other-model", "The key is for other models"),
    errors.KeyRequired: Kind(401, "key-required", "A key is needed", {"WWW-Authenticate": 'Bearer realm="espalier"'}),
    errors.StoreBusy: Kind(503, "store-busy", "The database is busy", {"Retry-After": "1"}),
    errors.BytesErased: Kind(503, "bytes-erased", "The same bytes were erased meanwhile", {"Retry-After": "1"}),
    errors.StorageFull: Kind(507, "storage-full", "The disk is full"),
    errors.StorageFailed: Kind(503, "storage-failed", "The disk reports errors", {"Retry-After": "60"}),
    errors.StorageUnreachable: Kind(
        503, "storage-unreachable", "The bucket of the blobs does not answer", {"Retry-After": "5"}
    ),
    errors.StorageRefused: Kind(503, "storage-refused", "The bucket of the blobs denies access", {"Retry-After": "60"}),
    errors.TooManyUploads: Kind(429, "too-many-uploads", "Too many uploads are unfinished", {"Retry-After": "10"}),
    errors.TooManyRequests: Kind(429, "too-many-requests", "Too many requests", {"Retry-After": "1"}),
    errors.TrainingDiverged: Kind(500, "training-diverged", "Training diverged"),
    errors.NetworkUnusable: Kind(500, "network-unusable", "The network cannot be used"),
    errors.UnauditedChange: Kind(500, "unaudited-change", "A change without an audit entry was rolled back"),
    errors.RefusedSql: Kind(500, "refused-sql", "A statement was refused"),
    errors.SchemaMismatch: Kind(503, "schema-mismatch", "The database is at another schema", {"Retry-After": "30"}),
    errors.CorruptBlob: Kind(500, "corrupt-blob", "Stored bytes are damaged"),
    errors.MissingBlob: Kind(500, "missing-blob", "Stored bytes are missing"),
    errors.LogBehind: Kind(503, "log-behind", "The log does not continue what was signed", {"Retry-After": "60"}),
    errors.InvariantBroken: Kind(500, "invariant-broken", "An invariant is broken"),
    # Branches, for an error that has no leaf of its own.
    errors.BadInput: Kind(422, "bad-input", "The request cannot be used"),
    errors.NotFound: Kind(404, "unknown", "No such thing"),
    errors.Conflict: Kind(409, "conflict", "Not in the present state"),
    errors.Denied: Kind(403, "denied", "Not allowed"),
    errors.LearningFailed: Kind(500, "learning-failed", "A cycle cannot make a version"),
    errors.Unavailable: Kind(503, "unavailable", "Not available now", {"Retry-After": "1"}),
    errors.Fault: Kind(500, "fault", "Stored state does not hold"),
}
"""Every leaf and branch of ``app.errors``; an error answers as its class, or the nearest parent of it, stands here."""

INTERNAL = Kind(500, "internal", "The service failed")
INVALID_REQUEST = Kind(422, "invalid-request", "The request cannot be understood")
MALFORMED_JSON = Kind(400, "malformed-json", "The body is not usable JSON")
MALFORMED_HEADER = Kind(400, "malformed-header", "A header cannot be understood")
BODY_TOO_LARGE = Kind(413, "body-too-large", "The JSON body is too large")
UNSUPPORTED_MEDIA = Kind(415, "unsupported-media-type", "The body has another type than expected")
TOO_SLOW = Kind(408, "upload-stalled", "The upload stalled")
RANGE = Kind(416, "range-not-satisfiable", "The range lies outside the checkpoint")
MISDIRECTED = Kind(421, "misdirected", "This service does not answer to that name")
CROSS_ORIGIN = Kind(403, "cross-origin", "Refused from another origin")
DISCONNECTED = Kind(400, "client-disconnected", "The client went away")

TUS_VERSION = Kind(412, "tus-version", "Another version of tus is spoken here")

_IANA = "https://iana.org/assignments/http-problem-types#"
MISMATCHING_OFFSET = Kind(409, "mismatching-upload-offset", "The upload goes on elsewhere", namespace=_IANA)
COMPLETED_UPLOAD = Kind(400, "completed-upload", "The upload is complete", namespace=_IANA)
INCONSISTENT_LENGTH = Kind(400, "inconsistent-upload-length", "The lengths contradict each other", namespace=_IANA)

_POINTER_ROOT: dict[type[errors.EspalierError], str] = {
    errors.InvalidRecipe: "/recipe",
    errors.InvalidInputSpec: "/input",
}
"""Errors that point into one member of the body; their own pointers start there."""

_ADVICE = {
    404: "nothing is at this address: the paths stand in /openapi.json",
    405: "this address does not know the method: the Allow header lists those that it knows",
}


class HttpProblem(HTTPException):
    """A fault of the HTTP request itself, which the rooms below know nothing of."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        extension: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(kind.status, detail, {**kind.headers, **(headers or {})})
        self.kind = kind
        self.errors = tuple(errors)
        self.extension = extension or {}


def kind_of(error: type[BaseException]) -> Kind:
    """The table's row for an error class: its own, or the nearest parent's."""
    return next((TABLE[parent] for parent in error.__mro__ if parent in TABLE), INTERNAL)


def problem_response(error: Exception, request_id: str | None) -> Response:
    """The problem document of an error. Faults of the service are logged here, once."""
    kind, detail, faults, headers, extra = _describe(error)
    if kind.status >= 500 and kind.status not in (503, 507):
        _log.error("request %s failed: %s", request_id, error, exc_info=error)
        if kind is INTERNAL:
            detail = f"this is a fault of the service, not of the request; its log names request {request_id}"
    document = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "errors": list(faults),
        "request_id": request_id,
        **extra,
    }
    return JSONResponse(document, kind.status, headers, media_type=PROBLEM_JSON)


_Described = tuple[Kind, str, Sequence[Mapping[str, str]], Mapping[str, str], Mapping[str, Any]]


def _describe(error: Exception) -> _Described:
    match error:
        case HttpProblem():
            return error.kind, error.detail, error.errors, error.headers or {}, error.extension
        case RequestValidationError():
            faults = list(_faults(error.errors()))
            told = "; ".join(f"{fault['pointer'] or 'body'}: {fault['detail']}" for fault in faults[:5])
            return INVALID_REQUEST, f"the request cannot be understood: {told}", faults, {}, {}
        case StarletteHTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            kind = Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase)
            return kind, _ADVICE.get(error.status_code, str(error.detail)), (), error.headers or {}, {}
        case ClientDisconnect():
            return DISCONNECTED, "the connection closed before the body was complete: send it again", (), {}, {}
        case errors.EspalierError():
            kind = kind_of(type(error))
            return kind, str(error), _own_faults(error), {**kind.headers, **_pause(error)}, _extension(error)
        case _:
            return INTERNAL, "", (), {}, {}


def _own_faults(error: errors.EspalierError) -> list[dict[str, str]]:
    root = _POINTER_ROOT.get(type(error), "")
    return [
        {"in": "body", "pointer": root + pointer, "detail": message}
        for pointer, message in getattr(error, "errors", ())
    ]


def _pause(error: errors.EspalierError) -> dict[str, str]:
    return {"Retry-After": str(error.seconds)} if isinstance(error, errors.TooManyRequests) else {}


def _extension(error: errors.EspalierError) -> dict[str, str]:
    return {"reason": error.reason} if isinstance(error, errors.InvalidMegabatch) else {}


def _faults(items: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, str]]:
    """FastAPI's validation errors as (in, pointer, detail); one unknown key is one fault."""
    for item in items:
        place, *path = item["loc"]
        pointer = "".join("/" + escape(part) for part in path if not _is_branch(part))
        if item["type"] == "unknown_keys":
            known = ", ".join(item["ctx"]["known"]) or "none"
            what = "parameter" if place == "query" else "key"
            for key in item["ctx"]["unknown"][:20]:
                yield {
                    "in": place,
                    "pointer": f"{pointer}/{escape(key)}",
                    "detail": f"unknown {what}; known {what}s: {known}",
                }
        elif item["type"] == "missing" and not path:
            yield {"in": place, "pointer": "", "detail": "a JSON body is needed, with Content-Type: application/json"}
        else:
            yield {"in": place, "pointer": pointer, "detail": str(item["msg"]).removeprefix("Value error, ")}


def escape(part: object) -> str:
    """One reference token of a JSON pointer (RFC 6901)."""
    return str(part)[:100].replace("~", "~0").replace("/", "~1")


def _is_branch(part: object) -> bool:
    """Pydantic puts a union's branch into ``loc``, such as ``list[str]`` or ``int``; a pointer must not hold it."""
    return (
        isinstance(part, str) and re.fullmatch(r"int|str|(list|constrained-\w+|function-[\w-]+)\b.*", part) is not None
    )
