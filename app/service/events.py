"""Events: an audit entry as others are told of it, in an event stream or by a webhook.

Knows: what of an entry is told, and by which id it is known. Must never know: HTTP, or who listens.

Laws:
    * Streams and webhooks say the same of an entry.
    * An event's id is made of its entry alone: the same whoever tells of it, however often, and of no other entry, of
      another log or of a log that was restored and went on differently, either.
"""

from __future__ import annotations

import json
from typing import Any

from app.domain import AuditEntry

TYPE_PREFIX = "espalier."
_LONGEST = 200


def data_of(entry: AuditEntry) -> dict[str, Any]:
    """What is told of an entry: all of it but its digests and those of its parameters that are not short."""
    document = entry.document
    parameters = document["parameters"]
    return {
        "seq": entry.seq,
        "kind": entry.kind,
        "time": document["time"],
        "model": entry.model,
        "actor": entry.actor,
        "reason": document["reason"],
        "parameters": {name: value for name, value in sorted(parameters.items()) if _short(value)},
    }


def event_id(entry: AuditEntry) -> str:
    """``<seq>-<16 digits of the entry's leaf hash>``."""
    return f"{entry.seq}-{entry.leaf[:16]}"


def cloud_event(id: str, kind: str, data: dict[str, Any], *, source: str) -> bytes:
    """A CloudEvent 1.0 in structured JSON.

    Args:
        id: of the event.
        kind: of the entry.
        data: what is told of it.
        source: which service tells.
    """
    about = {} if data["model"] is None else {"subject": data["model"]}
    document = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": TYPE_PREFIX + kind,
        "time": data["time"],
        **about,
        "datacontenttype": "application/json",
        "data": data,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def source_of(first: AuditEntry) -> str:
    """Which service tells, by the first entry of its log."""
    return f"urn:espalier:{first.leaf[:16]}"


def _short(value: object) -> bool:
    return not isinstance(value, dict | list) and len(str(value)) <= _LONGEST
