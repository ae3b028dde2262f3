"""Health: whether the process answers, takes requests, and has a worker.

Knows: how that looks. Must never know: how it is found out.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from app.api.schemas.wire import TIME, Time, example
from app.service import history


class Alive(BaseModel):
    """The process answers."""

    model_config = example({"status": "alive"})

    status: Literal["alive"] = Field("alive", description="Always `alive`.")


class WorkerHealth(BaseModel):
    """What is known of workers."""

    last_heartbeat: Time | None = Field(
        description="When any worker was last seen alive; null if none was within a day."
    )
    queued_cycles: int = Field(description="Cycles that wait for a worker, over all models.")
    running_cycles: int = Field(description="Cycles that run, over all models.")


class Ready(BaseModel):
    """The service can take requests."""

    model_config = example(
        {
            "status": "ready",
            "database": "sqlite",
            "worker": {"last_heartbeat": TIME, "queued_cycles": 0, "running_cycles": 1},
        }
    )

    status: Literal["ready"] = Field(
        "ready", description="A service that is not ready answers with a problem document instead."
    )
    database: str = Field(description="`sqlite` or `postgresql`.")
    worker: WorkerHealth = Field(description="Whether cycles are being worked on.")

    @classmethod
    def from_domain(cls, health: history.Health) -> Self:
        """From the service's answer."""
        worker = WorkerHealth(
            last_heartbeat=health.last_heartbeat, queued_cycles=health.queued, running_cycles=health.running
        )
        return cls(database=health.database, worker=worker)
