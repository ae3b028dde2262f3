"""Statements about a checkpoint: an in-toto Statement v1 in a DSSE envelope.

Knows: what is signed and how it is spelled. Must never know: who signs, or which keys a reader trusts.

Laws:
    * What is signed is ``PAE(payloadType, payload)``, which no checkpoint of a log can be taken for: a note begins with
      the log's origin, which holds no space, and PAE with ``DSSEv1 ``.
    * An envelope is canonical JSON and a line end; so is its payload, without the line end. There is one spelling.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.errors import ProofRejected
from espalier.formats.canonical import canonical_json
from espalier.formats.note import VerifierKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:espalier:statement:checkpoint:v1"

_MOST_SIGNATURES = 100


def pae(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of an in-toto payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def statement(name: str, digest: str, predicate: Mapping[str, Any]) -> bytes:
    """The payload that says something of one file.

    Args:
        name: of the file.
        digest: ``sha256:<hex>`` of its bytes.
        predicate: what is said; a tree that has a canonical form.
    """
    subject = {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
    return canonical_json(
        {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": PREDICATE_TYPE, "predicate": dict(predicate)}
    )


def envelope(payload: bytes, signatures: Sequence[tuple[VerifierKey, bytes]]) -> bytes:
    """A payload with signatures over its ``pae``."""
    signed = [{"keyid": key_id(key), "sig": base64.b64encode(signature).decode()} for key, signature in signatures]
    document = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": signed}
    return canonical_json(document) + b"\n"


def key_id(key: VerifierKey) -> str:
    """How an envelope names a key: ``<name>+<8 hex digits>``, the beginning of the key's text."""
    return f"{key.name}+{key.hash.hex()}"


def opened(data: bytes, keys: Sequence[VerifierKey]) -> tuple[dict[str, Any], tuple[VerifierKey, ...]]:
    """The statement in an envelope, once a trusted key has signed it.

    Args:
        data: the envelope.
        keys: those that the reader trusts; one good signature is enough, a wrong one by any of them is refused.

    Returns:
        The statement, and the trusted keys that signed it.

    Raises:
        ProofRejected: it is no such envelope or statement, or not signed so.
    """
    document = _parsed(data.removesuffix(b"\n"), "the envelope")
    if document.keys() != {"payload", "payloadType", "signatures"} or document["payloadType"] != PAYLOAD_TYPE:
        raise ProofRejected(f"it is no DSSE envelope of the type {PAYLOAD_TYPE}")
    if canonical_json(document) + b"\n" != data:
        raise ProofRejected("the envelope is not canonical JSON and a line end: it was written anew")
    payload, signed = _bytes(document["payload"]), _signatures(document["signatures"])
    trusted = {key_id(key): key for key in keys}
    good = tuple(trusted[name] for name, _ in signed if name in trusted)
    for name, signature in signed:
        if name in trusted:
            trusted[name].verify_bytes(pae(payload), signature)
    if not good:
        names, wanted = ", ".join(name for name, _ in signed) or "nobody", ", ".join(trusted) or "none"
        raise ProofRejected(f"it is signed by {names}, but the keys that are trusted are {wanted}")
    return _statement(payload), good


def _statement(payload: bytes) -> dict[str, Any]:
    found = _parsed(payload, "the statement")
    if canonical_json(found) != payload or found.get("_type") != STATEMENT_TYPE:
        raise ProofRejected(f"the payload is no canonical statement of the type {STATEMENT_TYPE}")
    if found.get("predicateType") != PREDICATE_TYPE:
        raise ProofRejected(f"the statement says {found.get('predicateType')!r}, not {PREDICATE_TYPE!r}")
    return found


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
        canonical_json(found)
    except (ValueError, RecursionError) as error:
        raise ProofRejected(f"{what} cannot be read: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ProofRejected(f"{what} is no JSON object")
    return found


def _signatures(found: Any) -> list[tuple[str, bytes]]:
    if not isinstance(found, list) or len(found) > _MOST_SIGNATURES:
        raise ProofRejected("the envelope has no list of signatures, or too many")
    signed = []
    for item in found:
        if not isinstance(item, dict) or item.keys() != {"keyid", "sig"} or not isinstance(item["keyid"], str):
            raise ProofRejected("a signature of the envelope is not keyid and sig")
        signed.append((item["keyid"], _bytes(item["sig"])))
    if len({name for name, _ in signed}) != len(signed):
        raise ProofRejected("a key has signed the envelope twice")
    return signed


def _bytes(text: Any) -> bytes:
    """Bytes of plain base64, in its one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
        if base64.b64encode(data).decode() == text:
            return data
    except (binascii.Error, TypeError, ValueError):
        pass
    raise ProofRejected("the envelope holds something that is not base64 in its usual spelling")
