"""Everything that can go wrong on a client machine, drawn first, then defined.

    EspalierClientError
    ├── CheckpointMismatch       a checkpoint's bytes, or the network they should go into, are not as its manifest says
    ├── CustodyMismatch          a file of answers, samples or falls is not one, or is damaged
    ├── UnsupportedNetwork       this network cannot be run with numpy alone; load it into your own
    ├── DigestMismatch           bytes do not hash to the digest that was promised
    ├── ProofRejected            an audit log, a proof of it, a signature or a bundle does not hold; .seq names the
    │                            first bad entry, if there is one
    ├── WebhookRejected          what came is no delivery of this webhook, or an old one
    ├── CycleFailed              a cycle that was waited for ended without a version; .model .cycle .state .reason
    ├── CycleUnfinished          the wait for a cycle ran out; the cycle goes on; .model .cycle .state
    ├── ServiceUnreachable       no answer from the service
    └── ApiProblem               the service answered with a problem document (RFC 9457); .status .type .title .detail
                                 .errors .request_id .extensions

The message of an error says what is wrong and what to do. ``str(error)`` is that message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class EspalierClientError(Exception):
    """Root of the tree."""


class CheckpointMismatch(EspalierClientError):
    """A checkpoint's bytes, or the network they should go into, are not what its manifest says."""


class CustodyMismatch(EspalierClientError):
    """A file of answers, samples or falls is not one, or is damaged."""


class UnsupportedNetwork(EspalierClientError):
    """This network cannot be run with numpy alone."""


class DigestMismatch(EspalierClientError):
    """Bytes do not hash to the digest that was promised."""


class ProofRejected(EspalierClientError):
    """An audit log, a proof of it, a signature or a bundle does not hold.

    Attributes:
        seq: number of the first entry that is wrong; None when it is not an entry that is wrong.
    """

    def __init__(self, message: str, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq


class WebhookRejected(EspalierClientError):
    """What came is no delivery of this webhook: signed with another secret, too long ago, or no event."""


class CycleFailed(EspalierClientError):
    """A cycle that was waited for ended without a version (failed or superseded)."""

    def __init__(self, model: str, cycle: int, state: str, reason: str | None) -> None:
        super().__init__(f"cycle {cycle} of model {model!r} ended {state}: {reason or 'no reason was recorded'}")
        self.model = model
        self.cycle = cycle
        self.state = state
        self.reason = reason


class CycleUnfinished(EspalierClientError):
    """The wait for a cycle ran out. The cycle goes on: waiting again is safe."""

    def __init__(self, model: str, cycle: int, state: str, seconds: float) -> None:
        remedy = "is a worker running (`espalier work`)?" if state == "queued" else "it goes on: wait for it again"
        super().__init__(f"cycle {cycle} of model {model!r} is still {state} after {seconds:g} s; {remedy}")
        self.model = model
        self.cycle = cycle
        self.state = state


class ServiceUnreachable(EspalierClientError):
    """No answer from the service: it is not running, the address is wrong, or the network is down."""


class ApiProblem(EspalierClientError):
    """The service answered with a problem document (RFC 9457).

    Attributes:
        status: HTTP status code.
        type: ``urn:espalier:problem:<slug>``, for programs.
        title, detail: in words, for people.
        errors: ``{"pointer", "detail"}`` objects, one for each field that is wrong.
        request_id: what to look for in the service's logs.
        extensions: further members of the document, such as ``reason``.
    """

    def __init__(
        self,
        status: int,
        type: str,
        title: str,
        detail: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        request_id: str | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id
        self.extensions = dict(extensions or {})
