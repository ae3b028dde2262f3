"""Keys and sessions on the wire.

Knows: how they look, and that a key's text stands in one answer alone: that of the request that made it. Must never
know: what a key allows.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from app import domain
from app.api.dependencies import MAX_NUMBER, NAME_PATTERN
from app.api.schemas.wire import TIME, Asked, Instant, Page, Time, example
from app.service.access import MOST_MODELS

_KEY = {
    "id": "9b1d2c3a4b5c6d7e",
    "name": "line-3",
    "scopes": ["ingest", "read"],
    "models": ["gas-sensors"],
    "requests_per_minute": None,
    "created_by": "admin",
    "created_at": TIME,
    "expires_at": "2026-05-31T09:30:00Z",
    "revoked_at": None,
    "revoked_reason": None,
    "used_at": None,
}
_MODELS = "The models that it is for; null: all, and the service as a whole."
_RATE = "Requests that it may make a minute, in each API process; 0: as many as it likes; null: as the settings say."


class NewKey(Asked):
    """A key to be made."""

    model_config = example({"name": "line-3", "scopes": ["ingest", "read"], "models": ["gas-sensors"]})

    name: str = Field(
        description="The actor's name in the audit log; no other key ever gets it.",
        max_length=1000,
        json_schema_extra={"pattern": NAME_PATTERN},
    )
    scopes: list[domain.Scope] = Field(description="What it allows.", min_length=1, max_length=len(domain.Scope))
    models: list[Annotated[str, Field(pattern=NAME_PATTERN)]] | None = Field(
        None, description=_MODELS, min_length=1, max_length=MOST_MODELS
    )
    expires_at: Instant | None = Field(None, description="When it ends; null: only when it is revoked.")
    requests_per_minute: Annotated[int, Field(ge=0, le=MAX_NUMBER)] | None = Field(None, description=_RATE)


class Key(BaseModel):
    """A key, without its text."""

    model_config = example(_KEY)

    id: str = Field(description="Stands in the key's text, after `esp_`.")
    name: str = Field(description="The actor's name in the audit log.")
    scopes: list[domain.Scope] = Field(description="What it allows; `admin` allows everything.")
    models: list[str] | None = Field(description=_MODELS)
    requests_per_minute: int | None = Field(description=_RATE)
    created_by: str = Field(description="Who made it.")
    created_at: Time = Field(description="When it was made.")
    expires_at: Time | None = Field(description="When it ends; null: only when it is revoked.")
    revoked_at: Time | None = Field(description="When it was revoked; null: it was not.")
    revoked_reason: str | None = Field(description="Why it was revoked.")
    used_at: Time | None = Field(description="When it was last used, to the minute; null: never.")

    @classmethod
    def from_domain(cls, key: domain.Key) -> Self:
        """From the domain's value."""
        return cls(
            id=key.id,
            name=key.name,
            scopes=sorted(key.scopes),
            models=None if key.models is None else sorted(key.models),
            requests_per_minute=key.requests_per_minute,
            created_by=key.created_by,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            revoked_reason=key.revoked_reason,
            used_at=key.used_at,
        )


class CreatedKey(Key):
    """A new key, with its text, which is told this once."""

    model_config = example({**_KEY, "key": "esp_9b1d2c3a4b5c6d7e_..."})

    key: str = Field(description="What to send as `Authorization: Bearer`. It is not stored: keep it now.")

    @classmethod
    def made(cls, key: domain.Key, text: str) -> Self:
        """From the domain's value and the text."""
        return cls(**Key.from_domain(key).model_dump(), key=text)


class Keys(Page[Key]):
    """Keys by name, those that are over too."""

    model_config = example({"items": [_KEY], "next_cursor": None})


class SignIn(Asked):
    """What a browser signs in with."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"key": "esp_9b1d2c3a4b5c6d7e_..."}]}, hide_input_in_errors=True
    )

    key: SecretStr = Field(description="A key.", min_length=1, max_length=1000)


class Session(BaseModel):
    """Who asks, and what they may do."""

    model_config = example(
        {"name": "line-3", "scopes": ["ingest", "read"], "models": ["gas-sensors"], "expires_at": TIME}
    )

    name: str = Field(description="The actor's name in the audit log; `local` on a service that is open.")
    scopes: list[domain.Scope] = Field(description="What they may do; `admin` is everything.")
    models: list[str] | None = Field(description=_MODELS)
    expires_at: Time | None = Field(description="When their session or key ends; null: neither has an end.")

    @classmethod
    def from_domain(cls, caller: domain.Caller) -> Self:
        """From the domain's value."""
        return cls(
            name=caller.name,
            scopes=sorted(caller.scopes),
            models=None if caller.models is None else sorted(caller.models),
            expires_at=caller.expires_at,
        )
