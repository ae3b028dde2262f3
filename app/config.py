"""Where a deployment lives: settings from ``ESPALIER_*`` variables.

Knows: addresses, folders, limits and intervals. Must never know: anything that changes a number in a checkpoint (that
is the recipe's; device and threads may move last bits, which is why they stand in every manifest).
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_MIB = 1024 * 1024

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Settings(BaseSettings):
    """Every setting has a default that works on one machine; the description of each is its documentation."""

    model_config = SettingsConfigDict(env_prefix="ESPALIER_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path("espalier-data"), description="Folder for blobs, staged uploads and, by default, the SQLite database."
    )
    database_url: str = Field(
        "",
        repr=False,  # it may hold a password
        description="SQLAlchemy URL, such as `postgresql+psycopg://user:password@host/espalier`. "
        "Empty: SQLite at `<data_dir>/espalier.db`.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Any but a loopback address needs a key: one that was created "
        "(`espalier admin-key`), or `ESPALIER_API_KEY`.",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0 picks a free one.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="API processes that `espalier serve` starts.")
    api_key: SecretStr | None = Field(
        None,
        description="One key with every scope, sent as `Authorization: Bearer <key>`, as created keys are. "
        "Unset, and no key was ever created: open, on loopback only.",
    )
    requests_per_minute: Annotated[int, Field(ge=0)] = Field(
        60_000,
        description="Requests that one key may make a minute, in each API process; as many at once, and then evenly. "
        "0: as many as it likes. A key may have a limit of its own.",
    )
    wrong_keys_per_minute: Annotated[int, Field(ge=1)] = Field(
        60,
        description="Wrong keys that one address may show a minute, in each API process; then it is answered with 429.",
    )
    session_seconds: Annotated[float, Field(ge=60)] = Field(
        12 * 3600.0, description="How long a browser stays signed in, in seconds; never longer than its key is valid."
    )
    max_upload_bytes: Annotated[int, Field(ge=1024)] = Field(
        4096 * _MIB, description="Largest accepted request body, in bytes."
    )
    max_megabatch_bytes: Annotated[int, Field(ge=1024)] = Field(
        4096 * _MIB, description="Largest accepted megabatch after decoding, in bytes."
    )
    decode_seconds: Annotated[float, Field(gt=0)] = Field(
        60.0, description="Deadline for decoding one upload, in seconds; one second more for every 8 MiB of its body."
    )
    min_upload_bytes_per_second: Annotated[int, Field(ge=0)] = Field(
        1024,
        description="A body that comes slower than this, averaged over half a minute, is cut off; what a resumable "
        "upload received stays. 0 waits for the slowest.",
    )
    upload_expiry_seconds: Annotated[float, Field(ge=60)] = Field(
        24 * 3600.0, description="How long a resumable upload is kept after its last byte or its outcome, in seconds."
    )
    max_open_uploads: Annotated[int, Field(ge=1)] = Field(
        64, description="Resumable uploads of one model that may be unfinished at once."
    )
    max_staged_bytes: Annotated[int, Field(ge=1024)] = Field(
        64 * 1024 * _MIB, description="Bytes that all unfinished resumable uploads may come to, by declared length."
    )
    respond_async_bytes: Annotated[int, Field(ge=0)] = Field(
        512 * _MIB,
        description="A megabatch sent in one request is answered with 202 and decoded afterwards when its body is "
        "larger than this, or on `Prefer: respond-async`.",
    )
    idempotency_seconds: Annotated[float, Field(ge=60)] = Field(
        24 * 3600.0, description="How long the answer to an `Idempotency-Key` is kept, in seconds."
    )
    refresh_seconds: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2,
        description="How often an API process looks for what other processes changed, in seconds: "
        "what its polls and event streams say is at most so old, and the time of the look.",
    )
    longest_wait_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        60, description="Longest wait that a poll is granted with `Prefer: wait`, in seconds; 0 grants none."
    )
    polled_addresses: Annotated[int, Field(ge=0)] = Field(
        10_000, description="Polled addresses that an API process answers from memory; 0 reads the database every time."
    )
    accel_redirect: Annotated[str, Field(pattern=r"^((/[A-Za-z0-9._~-]+)+/)?$")] = Field(
        "",
        description="Prefix of an internal location of nginx that serves `<data_dir>/blobs`, such as "
        "`/internal-blobs/`: downloads are then answered with `X-Accel-Redirect`, and nginx sends the bytes. "
        "Empty: the service sends them.",
    )
    architectures: dict[str, str] = Field(
        default_factory=dict,
        description="Your own networks, as JSON: name to `module:factory`, where "
        "`factory(input_shape, classes, **options)` returns a `torch.nn.Module`. Workers import the module: "
        "install it there, or name its folder in `PYTHONPATH`. "
        'A recipe names them as `{"name": "custom", "architecture": "<name>"}`.',
    )
    device: str = Field(
        "auto", description="Where cycles run: `auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`."
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="Torch threads of a worker; 0 leaves torch's own choice. Stands in every manifest."
    )
    tick_seconds: Annotated[float, Field(gt=0)] = Field(
        0.25, description="How often a worker looks for queued cycles, in seconds."
    )
    lease_seconds: Annotated[float, Field(gt=0)] = Field(
        60.0, description="How long a worker's claim on a cycle lasts without a heartbeat, in seconds."
    )
    heartbeat_seconds: Annotated[float, Field(gt=0)] = Field(
        5.0, description="How often a worker renews its claim, in seconds; at most a third of the lease."
    )
    snapshot_seconds: Annotated[float, Field(ge=0)] = Field(
        20.0,
        description="How often a running cycle saves a snapshot to resume from, in seconds; 0 saves at every step.",
    )
    max_failures: Annotated[int, Field(ge=1)] = Field(
        3, description="Failures of one cycle in a row after which its model is paused."
    )
    retry_seconds: Annotated[float, Field(ge=0)] = Field(
        5.0, description="Wait before the first retry of a failed cycle, in seconds; doubles with each failure."
    )
    orphan_grace_seconds: Annotated[float, Field(ge=60)] = Field(
        24 * 3600.0, description="Age from which bytes that no row names are swept, in seconds."
    )
    blobs_url: str = Field(
        "",
        pattern=r"^(s3://[^/]+(/.*)?|file:///.+)?$",
        description="Where blobs lie: `s3://bucket/prefix`, with credentials, region and endpoint from the `AWS_*` "
        "variables, or `file:///folder`. Empty: `<data_dir>/blobs`.",
    )
    cache_bytes: Annotated[int, Field(ge=_MIB)] = Field(
        20 * 1024 * _MIB,
        description="Bytes that copies of a bucket's blobs may take in `<data_dir>/blobs/cache`. What any process of "
        "the machine has asked for within the last minute stays even beyond it.",
    )
    keep_versions: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Rollback window: so many of the newest versions of each model, and so many ancestors of what each "
        "alias names, keep their bytes. With `keep_days` unset, too, 0 keeps every version for ever.",
    )
    keep_days: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Rollback window by age: bytes of younger versions are kept, too, in days."
    )
    keep_every: Annotated[int, Field(ge=0)] = Field(
        0, description="Beside the rollback window, bytes of every version whose number this divides are kept; 0: none."
    )
    webhook_private_addresses: str = Field(
        "",
        description="Networks that webhooks may lead to although they are not public, such as "
        "`10.20.0.0/16, 127.0.0.1/32, fd00::/8`. Empty: public addresses alone.",
    )
    log_name: Annotated[str, Field(pattern=r"^[^\s+]*$", max_length=100)] = Field(
        "",
        description="Name of the audit log in its signed checkpoints, best one that nobody else has, such as "
        "`example.com/espalier`; it is part of the signing key from when that is made. Empty: a random one.",
    )
    log_key_file: Path | None = Field(
        None,
        description="File with the key that signs the audit log, which its owner alone can read. "
        "Unset: `<data_dir>/keys/log.key`, made when it is first needed. Machines with one database share the file.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe message to log.")

    @field_validator("webhook_private_addresses")
    @classmethod
    def _networks(cls, text: str) -> str:
        _networks_of(text)
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heartbeat_seconds > self.lease_seconds / 3:
            raise ValueError(
                "ESPALIER_HEARTBEAT_SECONDS must be at most a third of ESPALIER_LEASE_SECONDS, "
                "or a worker that is merely slow loses its claim"
            )
        return self

    @property
    def embedded_database(self) -> bool:
        """True on the default SQLite file, which `serve` migrates by itself."""
        return not self.database_url

    @property
    def resolved_database_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{quote(str((self.data_dir / 'espalier.db').absolute()))}"

    @property
    def log_keys(self) -> Path:
        """Where the key that signs the audit log lies."""
        return self.log_key_file or self.data_dir / "keys" / "log.key"

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        """Networks that webhooks may lead to, besides public addresses."""
        return _networks_of(self.webhook_private_addresses)

    @property
    def loopback(self) -> bool:
        """True when `host` can be reached from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _networks_of(text: str) -> tuple[Network, ...]:
    """Networks, separated by commas or spaces.

    Raises:
        ValueError: one of them is none, such as 10.0.0.1/8, which has bits beyond its prefix.
    """
    return tuple(ipaddress.ip_network(word) for word in re.split(r"[\s,]+", text) if word)
