"""The wire: what requests and answers about any noun share.

Knows: how times, digests, request bodies, pages and problems look on the wire, and the values that examples of several
nouns agree on. Must never know: any one noun.

Law: an unknown key in a request is an error that lists the known ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app import domain
from app.api.dependencies import encode_cursor

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
"""Of RFC 3339; the seconds may be left out."""


def _as_written(time: Any) -> Any:
    """Pydantic alone would take numbers for times, too: seconds or milliseconds since 1970, by how large they are."""
    if not (isinstance(time, str) and _RFC_3339.fullmatch(time)):
        raise ValueError(f"write it with its time zone, as RFC 3339 says, such as {TIME}")
    return time


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years 1 to 9999 in UTC") from None


Time = Annotated[datetime, AfterValidator(lambda time: time.astimezone(UTC))]
Instant = Annotated[AwareDatetime, BeforeValidator(_as_written), AfterValidator(_in_utc)]
"""A time in a request."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

T = TypeVar("T")
D = TypeVar("D")

TIME = "2026-03-02T09:30:00Z"
DIGEST = "sha256:" + "0f" * 32
OTHER_DIGEST = "sha256:" + "a7" * 32


def example(first: Mapping[str, Any], *more: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a schema that shows these examples."""
    return ConfigDict(json_schema_extra={"examples": [dict(first), *map(dict, more)]})


class Asked(BaseModel):
    """A request body, or a part of one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, value: Any) -> Any:
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            known = list(cls.model_fields)
            raise PydanticCustomError("unknown_keys", "unknown keys", {"unknown": unknown, "known": known})
        return value


class Reason(Asked):
    """Why something is done; it stands in the audit log."""

    model_config = example({"reason": "line 3 is being recalibrated"})

    reason: str = Field(description="In words, for the audit log.", min_length=1, max_length=2000)


class Page(BaseModel, Generic[T]):
    """One page of a listing."""

    items: list[T] = Field(description="What is on this page.")
    next_cursor: str | None = Field(description="Send it as `?cursor=` for the next page; null on the last one.")

    @classmethod
    def from_domain(cls, listing: str, page: domain.Page[D], item: Callable[[D], T]) -> Self:
        """A page of domain objects; ``listing`` is what its cursor is good for."""
        following = None if page.next is None else encode_cursor(listing, page.next)
        return cls(items=[item(found) for found in page.items], next_cursor=following)


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    model_config = example({"in": "body", "pointer": "/recipe/schedule/tau", "detail": "must be at most 60.0"})

    where: str = Field(alias="in", description="`body`, `query`, `path` or `header`.")
    pointer: str = Field(
        description="JSON pointer into the body, or `/` and the parameter's name; empty: the whole of it."
    )
    detail: str = Field(description="What is wrong, and what is possible instead.")


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = example(
        {
            "type": "urn:espalier:problem:unknown-model",
            "title": "No such model",
            "status": 404,
            "detail": "no model is named 'gas-sensor': list the models to see their names",
            "errors": [],
            "request_id": "b7d8a0f2",
        }
    )

    type: str = Field(description="Stable URI of the kind of problem; programs compare this.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="HTTP status code.")
    detail: str = Field(description="What is wrong this time, and what to do.")
    errors: list[Fault] = Field(description="One item for each thing that is wrong, where they can be told apart.")
    request_id: str | None = Field(description="What the service's log calls this request.")
    reason: str | None = Field(
        None, description="A stable word for why an upload was refused, such as `not-npz`; else absent."
    )
