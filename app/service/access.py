"""Access: keys are made, looked at and revoked; browsers sign in and out.

Knows: what a key may be called, what it may allow, and who may make it. Must never know: HTTP, or what is asked for
with a key.

Laws:
    * Nobody makes a key that allows more than their own.
    * A key's text is returned by whoever made it, and is nowhere else. The log holds the key's name, its rights and the
      fingerprint of its hash, by which a row that was changed behind the service's back is found.
    * A session ends with its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.config import Settings
from app.domain import Actor, Caller, Key, Page, Scope
from app.errors import BadInput, EspalierError, InvalidName, KeyRequired, OtherModel, ScopeMissing
from app.service.agreement import RESTORE
from app.service.credentials import SETTINGS_KEY, fresh_key, fresh_session, hashed, session_hash
from app.service.keyring import LOCAL, Keyring
from app.service.opening import open_store
from app.store.database import Store
from app.store.registry import NAME

RESERVED = frozenset({"local", "key", "keyring", "anonymous", "reader", "environment", "settings"})
"""Names that the log uses for others than keys; beside these, everything that begins with ``worker``."""

MOST_MODELS = 100
WHOLE = frozenset({Scope.AUDIT, Scope.ADMIN})
"""Scopes that are about the service as a whole: a key for some models cannot have them."""

_PAGE = 500


@dataclass(frozen=True, slots=True, repr=False)
class Made:
    """A new key, with its text."""

    key: Key
    text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a key shall be.

    Attributes:
        models: None: all.
        requests_per_minute: None: as many as the settings say.
    """

    name: str
    scopes: frozenset[Scope]
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    expires_at: datetime | None = None


# -- keys --------------------------------------------------------------------------------------------------------------


def create_key(store: Store, wanted: Wanted, *, caller: Caller, actor: Actor) -> Made:
    """Make a key.

    Raises:
        InvalidName, BadInput: it cannot be. KeyNameTaken, UnknownModel.
        ScopeMissing, OtherModel: it would allow more than the caller's own key.
    """
    _check(wanted)
    _check_within(wanted, caller)
    fresh = fresh_key()
    with store.transaction(actor) as tx:
        if wanted.expires_at is not None and wanted.expires_at <= tx.now:
            raise BadInput("the key would be over before it began: give a time to come")
        for model in sorted(wanted.models or ()):
            tx.ledger.model(model)
        key = tx.keys.create(
            fresh.id,
            wanted.name,
            hash=fresh.hash,
            scopes=wanted.scopes,
            models=wanted.models,
            requests_per_minute=wanted.requests_per_minute,
            expires_at=wanted.expires_at,
            created_by=actor.name,
        )
        tx.audit.append("key.created", model=None, parameters=_described(key, fresh.hash))
    return Made(key, fresh.text)


def get_key(store: Store, name: str) -> Key:
    """One key.

    Raises:
        UnknownKey: with the remedy.
    """
    with store.reading() as tx:
        return tx.keys.key(name)


def list_keys(store: Store, *, after: str | None, limit: int) -> Page[Key]:
    """Keys by name, those that are over too."""
    with store.reading() as tx:
        return tx.keys.keys(after, limit)


def revoke_key(store: Store, name: str, *, reason: str, actor: Actor) -> Key:
    """End a key, and every session with it. One that is revoked already stays as it is.

    Raises:
        UnknownKey: with the remedy.
    """
    with store.transaction(actor) as tx:
        key = tx.keys.key(name)
        if key.revoked_at is not None:
            return key
        key = tx.keys.revoke(key, reason)
        tx.audit.append("key.revoked", model=None, parameters={"key": key.id, "name": key.name}, reason=reason)
    return key


def keys_exist(settings: Settings) -> bool:
    """Whether a key was ever created in this deployment; False where its database cannot be read."""
    try:
        store = open_store(settings)
    except (EspalierError, OSError):
        return False
    try:
        store.check_schema()
        with store.reading() as tx:
            return tx.keys.any()
    except Exception:  # whatever is wrong with the database, no key of it counts
        return False
    finally:
        store.dispose()


# -- sessions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class SignedIn:
    """A browser's new session."""

    caller: Caller
    text: str
    expires_at: datetime


def sign_in(store: Store, keyring: Keyring, caller: Caller, *, seconds: float) -> SignedIn:
    """Begin a session with the caller's key, which lasts so long, or as long as the key.

    Raises:
        KeyRequired: the service is open: there is nothing to sign in with.
    """
    if caller.key == LOCAL.key:
        raise KeyRequired("this service is open to everyone on this machine: there is nothing to sign in to")
    text, hash = fresh_session(_binding(keyring, caller.key))
    with store.transaction(Actor(caller.name)) as tx:
        ends = tx.now + timedelta(seconds=seconds)
        ends = ends if caller.expires_at is None else min(ends, caller.expires_at)
        tx.keys.begin_session(hash, caller.key, ends)
    return SignedIn(replace(caller, expires_at=ends), text, ends)


def session_of(store: Store, keyring: Keyring, text: str) -> Caller:
    """Who signed in.

    Raises:
        KeyRequired: the session is over, or its key. TooManyRequests: the key asks too often.
    """
    with store.reading() as tx:
        found = tx.keys.session(_hashes(keyring, text))
    if found is None or found.hash != session_hash(text, _binding(keyring, found.key)):
        raise KeyRequired("the session is over: sign in again")
    caller = keyring.returning(found.key)
    ends = found.expires_at if caller.expires_at is None else min(found.expires_at, caller.expires_at)
    return replace(caller, expires_at=ends)


def sign_out(store: Store, keyring: Keyring, text: str, *, actor: Actor) -> None:
    """End a session. One that is over already stays so."""
    with store.transaction(actor) as tx:
        tx.keys.end_session(_hashes(keyring, text))


def _hashes(keyring: Keyring, text: str) -> tuple[str, ...]:
    return (session_hash(text), session_hash(text, keyring.binding))


def _binding(keyring: Keyring, key: str) -> str:
    return keyring.binding if key == SETTINGS_KEY else ""


# -- what a key may be -------------------------------------------------------------------------------------------------


def _check(wanted: Wanted) -> None:
    if not NAME.fullmatch(wanted.name):
        raise InvalidName(f"{wanted.name[:63]!r} cannot name a key: use 1 to 63 lower-case letters, digits and hyphens")
    if wanted.name in RESERVED or wanted.name.startswith("worker"):
        raise InvalidName(f"{wanted.name!r} stands for somebody else in the audit log: choose another name")
    if not wanted.scopes:
        raise BadInput("a key without scopes could do nothing: give it at least one, such as read")
    if wanted.models is None:
        return
    if not 1 <= len(wanted.models) <= MOST_MODELS:
        raise BadInput(f"a key is for 1 to {MOST_MODELS} models, or for all: leave the models out")
    if whole := wanted.scopes & WHOLE:
        told = " and ".join(sorted(whole))
        raise BadInput(f"{told} are about the whole service: a key for some models cannot have them")


def _check_within(wanted: Wanted, caller: Caller) -> None:
    if beyond := sorted(scope.value for scope in wanted.scopes if not caller.may(scope)):
        raise ScopeMissing(f"your key {caller.name!r} has no {beyond[0]}, so it cannot make a key that has it")
    if caller.models is not None and (wanted.models is None or not wanted.models <= caller.models):
        raise OtherModel(f"your key {caller.name!r} is for some models only, and cannot make one for others")


def _described(key: Key, hash: str) -> dict[str, object]:
    return {
        "key": key.id,
        "name": key.name,
        "scopes": sorted(scope.value for scope in key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "requests_per_minute": key.requests_per_minute,
        "expires_at": None if key.expires_at is None else key.expires_at.isoformat(),
        "fingerprint": _fingerprint(hash),
    }


def _fingerprint(hash: str) -> str:
    """What the log holds of a hash: enough to see that it is the same one, and nothing that a key could be tried on."""
    return hashed(f"espalier key {hash}")[:16]


# -- whether the rows are what the log says ----------------------------------------------------------------------------


def examine_keys(store: Store) -> Iterator[tuple[str, str]]:
    """Keys whose rows are not what the log says: name, and what is wrong.

    Raises:
        StoreBusy: the database cannot be read.
    """
    created, revoked = _logged(store, "key.created"), _logged(store, "key.revoked")
    with store.reading() as tx:
        rows = {key.id: (key, hash) for key, hash in tx.keys.hashes()}
    for id, (key, hash) in rows.items():
        said = created.get(id)
        if said is None:
            yield key.name, "no entry of the audit log says that it was created: revoke it"
        elif any(said.get(name) != value for name, value in _described(key, hash).items()):
            yield key.name, "its row is not what the audit log says of its creation: revoke it"
        if (key.revoked_at is not None) != (id in revoked):
            yield key.name, f"the audit log and its row do not agree whether it was revoked: {RESTORE}"
    for id in created.keys() - rows.keys():
        name = str(created[id].get("name"))
        yield name, f"the audit log says that it was created, but its row is missing: {RESTORE}"


def _logged(store: Store, kind: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    after: int | None = None
    while True:
        with store.reading() as tx:
            page = tx.audit.entries(None, after, _PAGE, kind)
        found |= {str(e.document["parameters"]["key"]): dict(e.document["parameters"]) for e in page.items}
        if page.next is None:
            return found
        after = int(page.next)
