"""Access: who is asking.

Knows: the deployment's key. Must never know: HTTP, or what is asked for.
"""

from __future__ import annotations

import hmac

from pydantic import SecretStr

from app.errors import KeyRequired


def check_key(expected: SecretStr | None, presented: str | None) -> str:
    """The actor's name for a presented key.

    Raises:
        KeyRequired: a key is set and another one, or none, was presented. The comparison takes constant time.
    """
    if expected is None:
        return "local"
    if presented is None:
        raise KeyRequired(
            "this service needs a key: send it as `Authorization: Bearer <key>`, or set ESPALIER_KEY for the client"
        )
    if not hmac.compare_digest(expected.get_secret_value().encode(), presented.encode()):
        raise KeyRequired(
            "the key is not the one of this service: check ESPALIER_KEY against the server's ESPALIER_API_KEY"
        )
    return "key"
