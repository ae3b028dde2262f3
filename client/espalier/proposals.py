"""Proposals: moves of protected aliases that wait for other people.

Knows: how they are listed and decided. Must never know: who may decide; the service does.
"""

from __future__ import annotations

from collections.abc import Iterator

from espalier.records import Proposal
from espalier.resources import every, made, one
from espalier.transport import Transport, path_of


class Proposals:
    """``client.proposals``."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def list(self, name: str) -> Iterator[Proposal]:
        """A model's proposals, newest first."""
        return every(self._http, Proposal, path_of("models", name, "proposals"))

    def get(self, name: str, number: int) -> Proposal:
        """One proposal."""
        return one(self._http, Proposal, path_of("models", name, "proposals", number))

    def approve(self, name: str, number: int, reason: str) -> Proposal:
        """Consent to a move that somebody else proposed; the last approval that is needed carries it out.

        Raises:
            ApiProblem: with status 403 for whoever proposed it or approved it already; 409 when it is no longer open.
        """
        return made(self._http, Proposal, path_of("models", name, "proposals", number, "approve"), {"reason": reason})

    def reject(self, name: str, number: int, reason: str) -> Proposal:
        """Close a proposal without moving anything; its proposer withdraws it so.

        Raises:
            ApiProblem: with status 409 when it is no longer open.
        """
        return made(self._http, Proposal, path_of("models", name, "proposals", number, "reject"), {"reason": reason})
