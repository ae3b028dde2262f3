"""Client: the service's HTTP API as typed methods.

Knows: what each path means and answers. Must never know: how a model is trained, or how things are printed.

Laws:
    * A method either returns what the service confirmed, or raises an ``EspalierClientError`` that says what to do.
    * What is not safe to repeat is sent once; moves of an alias name the revision of it that was seen.
    * Bytes that come are compared with their digest before anyone sees them.

    with Client("http://localhost:8000") as client:
        client.upload("gas-sensors", x, y, wait=True)
        client.download("gas-sensors@champion", "model.safetensors")
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

import httpx
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from espalier.custody import Custody
from espalier.decisions import Decisions
from espalier.download import Progress, fetch, promised_digest
from espalier.errors import (
    ApiProblem,
    CycleFailed,
    CycleUnfinished,
    DigestMismatch,
    EspalierClientError,
    ProofRejected,
)
from espalier.evidence import Evidence
from espalier.export import export_log
from espalier.formats.bundle import VerifiedBundle, verify_bundle
from espalier.formats.canonical import sha256_digest
from espalier.formats.checkpoint import Checkpoint, decode
from espalier.formats.note import LogCheckpoint
from espalier.formats.proof import verify_log
from espalier.keys import Keys
from espalier.proposals import Proposals
from espalier.recipes import Recipes
from espalier.records import (
    CHAMPION,
    Alias,
    AliasMove,
    AuditEntry,
    Cycle,
    Erased,
    EvaluationSet,
    InitialWeights,
    LogHead,
    Megabatch,
    Model,
    Moved,
    Proposal,
    Protection,
    Record,
    Reference,
    RolledBack,
    SortedMegabatch,
    TimePoint,
    Version,
)
from espalier.resources import PAGE, every, made, one, page
from espalier.sources import LABEL, OCTETS, Data, Source, prepared
from espalier.transport import Transport, json_of, path_of
from espalier.upload import send, send_megabatch
from espalier.watch import Watch, follow
from espalier.webhooks import Webhooks

DEFAULT_URL = "http://127.0.0.1:8000"

Form = Literal["sparse", "dense", "bundle"]
Evident = Literal["digest", "log"]
Wanted = Version | Reference | str

R = TypeVar("R", bound=Record)


class Client:
    """One service, seen from a client machine. Use it as a context manager, or close it.

    Args:
        url: the service's address; by default ``ESPALIER_URL``, else ``http://127.0.0.1:8000``.
        key: the service's key; by default ``ESPALIER_KEY``, else none.
        timeout: seconds to wait for the network at each step of a request.
        retries: how often a request that is safe to repeat is sent again.
        transport: an httpx transport to use instead of the network.
        log_key: the public key of the service's audit log, or a file with it; by default ``ESPALIER_LOG_KEY``, else
            none: then the key that the service names first is trusted from then on.
        pins: folder in which the last signed checkpoint of each log is remembered; by default ``ESPALIER_PINS``, else
            the user's state folder.

    Attributes:
        recipes: the revisions of models' recipes, and what the next one would do.
        proposals: moves of protected aliases that wait for other people.
        log: what the audit log has signed, checked against what this machine saw of it before.
        webhooks: addresses that are told what happens, and what they were told.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
        log_key: str | Path | None = None,
        pins: str | Path | None = None,
    ) -> None:
        self._http = Transport(
            url or os.environ.get("ESPALIER_URL") or DEFAULT_URL,
            key or os.environ.get("ESPALIER_KEY"),
            timeout=timeout,
            retries=retries,
            transport=transport,
        )
        self.recipes = Recipes(self._http)
        self.proposals = Proposals(self._http)
        self.log = Evidence(self._http, log_key, pins)
        self.keys = Keys(self._http)
        self.webhooks = Webhooks(self._http)
        self.custody = Custody(self._http)
        self.decisions = Decisions(self._http)

    @property
    def url(self) -> str:
        """The service's address."""
        return self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- models --------------------------------------------------------------------------------------------------------

    def create_model(
        self,
        name: str,
        recipe: Mapping[str, Any] | None = None,
        *,
        preset: str | None = None,
        input: Mapping[str, Any] | None = None,
        initial_weights: str | Path | Mapping[str, Any] | None = None,
    ) -> Model:
        """Register a model. The same name with the same recipe and input again returns the first one.

        Args:
            name: lower-case letters, digits and hyphens.
            recipe: what differs from the preset; unknown keys are errors.
            preset: name of the recipe to start from.
            input: ``shape``, ``dtype``, ``classes`` (names, or how many), ``normalisation``; what is left out is
                inferred from the first megabatch. ``unseen_classes``: ``"reject"`` (a megabatch with a label beyond the
                classes is refused) or ``"extend"`` (it adds the class).
            initial_weights: a safetensors file, or arrays (numpy or torch) by name, to start from as version 0.
        """
        document = dict(recipe or {})
        if preset is not None:
            document["preset"] = preset
        if initial_weights is not None:
            document["initial_weights"] = self.upload_weights(initial_weights).digest
        body: dict[str, Any] = {"name": name, "recipe": document}
        if input is not None:
            body["input"] = dict(input)
        answer = self._http.request("POST", path_of("models"), json=body)
        return Model.from_json({**json_of(answer), "replayed": answer.status_code == 200})

    def upload_weights(
        self, weights: str | Path | Mapping[str, Any], progress: Progress | None = None
    ) -> InitialWeights:
        """Upload initial weights, for a recipe to name by digest. Only safetensors: never pickle."""
        if isinstance(weights, Mapping):
            data = save({name: _array(value) for name, value in weights.items()})
            source = Source(data, OCTETS, len(data), "initial weights")
        else:
            path = Path(weights)
            source = Source(path, OCTETS, path.stat().st_size, path.name)
        answer = send(self._http, "POST", path_of("initial-weights"), source, progress)
        return InitialWeights.from_json(json_of(answer))

    def model(self, name: str) -> Model:
        """One model, with its recipe, champion and queue."""
        return self._get(Model, path_of("models", name))

    def models(self) -> Iterator[Model]:
        """All models, by name."""
        return self._all(Model, path_of("models"))

    def pause(self, name: str, reason: str) -> Model:
        """Stop starting cycles; uploads are still taken in."""
        return self._make(Model, path_of("models", name, "pause"), {"reason": reason})

    def resume(self, name: str, reason: str) -> Model:
        """Start cycles again."""
        return self._make(Model, path_of("models", name, "resume"), {"reason": reason})

    # -- megabatches ---------------------------------------------------------------------------------------------------

    def upload(
        self,
        name: str,
        data: Data,
        labels: npt.ArrayLike | str | None = None,
        *,
        wait: bool = False,
        progress: Progress | None = None,
        on_cycle: Callable[[Cycle], None] | None = None,
        timeout: float | None = None,
    ) -> Megabatch:
        """Upload a megabatch. A large one is resumed where it broke off: after a lost connection, a restart of the
        service, and by the next process that uploads the same.

        Args:
            name: the model.
            data: examples, (n, features), (n, height, width) or (n, height, width, channels); or columns: a data frame,
                an Arrow table, a mapping of names to columns; or the path of a file in any format that the service
                reads, or of a folder of images.
            labels: (n,) class numbers beside an array; beside columns also names, or the name of the column that holds
                them; None with a path.
            wait: stay until the cycle that trains on this megabatch, if one is enqueued, has ended.
            progress: told the bytes that are there, and all of them.
            on_cycle: with ``wait``, told the cycle at every look.
            timeout: with ``wait``, the longest wait in seconds.

        Returns:
            The megabatch, with ``.cycle``, and ``.replayed`` when the same arrays were there already (an upload whose
            answer was lost, too: its cycle is found again).

        Raises:
            CycleFailed, CycleUnfinished: with ``wait``; the megabatch is accepted all the same.
        """
        with prepared(data, labels, column=self._label_column(name, data, labels)) as source:
            sent = send_megabatch(self._http, name, source, progress)
        document = {**sent.document, "replayed": sent.replayed}
        if (sent.replayed or sent.apart) and document.get("cycle") is None:
            document["cycle"] = self._open_cycle(name, int(document["number"]))
        megabatch = Megabatch.from_json(document)
        if wait and megabatch.cycle is not None:
            self.wait_for_cycle(name, megabatch.cycle, on_progress=on_cycle, timeout=timeout)
        return megabatch

    def megabatches(self, name: str, limit: int | None = None) -> Iterator[Megabatch]:
        """A model's megabatches, in order of arrival: the first ``limit`` of them, or all."""
        return self._all(Megabatch, path_of("models", name, "megabatches"), limit)

    def megabatch(self, name: str, number: int) -> Megabatch:
        """One megabatch."""
        return self._get(Megabatch, path_of("models", name, "megabatches", number))

    def pin(self, name: str, number: int, reason: str) -> Megabatch:
        """Replay a megabatch in every cycle from now on, whatever the replay policy keeps."""
        return self._make(Megabatch, path_of("models", name, "megabatches", number, "pin"), {"reason": reason})

    def unpin(self, name: str, number: int, reason: str) -> Megabatch:
        """Leave a megabatch to the replay policy again."""
        return self._make(Megabatch, path_of("models", name, "megabatches", number, "unpin"), {"reason": reason})

    def quarantine(self, name: str, number: int, reason: str) -> SortedMegabatch:
        """Keep a megabatch out of all training until it is released; versions that saw it stay."""
        path = path_of("models", name, "megabatches", number, "quarantine")
        return self._make(SortedMegabatch, path, {"reason": reason})

    def release(self, name: str, number: int, reason: str) -> SortedMegabatch:
        """Let a megabatch out of quarantine: the next cycle may train on it again."""
        path = path_of("models", name, "megabatches", number, "release")
        return self._make(SortedMegabatch, path, {"reason": reason})

    def erase(
        self,
        name: str,
        megabatches: Sequence[int] = (),
        *,
        samples: Sequence[int | str] = (),
        reason: str,
        retrain: bool = False,
        preview: bool = False,
    ) -> Erased:
        """Remove values from the service, for good. What is erased already stays so.

        Args:
            name: the model.
            megabatches: numbers of those that go whole.
            samples: ids of single examples; each goes from every megabatch and evaluation set that holds it.
            reason: for the audit log.
            retrain: also move the champion to its nearest ancestor that took in nothing of this, and train on what is
                left; where there is none, the next cycle begins afresh.
            preview: only say what it would do.

        Returns:
            What went, the versions that had taken it in, and what follows.

        Raises:
            ApiProblem: with status 409 when the evaluation set would have no examples left.
        """
        body = {
            "megabatches": [int(number) for number in megabatches],
            "samples": [str(int(sample)) for sample in samples],
            "reason": reason,
            "retrain": retrain,
            "preview": preview,
        }
        return self._make(Erased, path_of("models", name, "erasures"), body)

    # -- the evaluation set --------------------------------------------------------------------------------------------

    def set_evaluation(
        self,
        name: str,
        data: Data,
        labels: npt.ArrayLike | str | None = None,
        *,
        progress: Progress | None = None,
    ) -> EvaluationSet:
        """Set a model's evaluation set: fixed labelled examples that are never trained on.

        It takes the place of the one before, in cycles that start from now on. Examples of megabatches that are in it
        are left out of training; ``.overlap`` says how many.

        Args:
            name: the model, which has a megabatch, or whose input is declared.
            data: examples, columns, a file or a folder, as ``upload`` takes them.
            labels: their labels, as ``upload`` takes them.
            progress: told the bytes sent, and all of them.

        Returns:
            The set, with ``.replayed`` when it was in force already.
        """
        with prepared(data, labels, column=self._label_column(name, data, labels)) as source:
            answer = send(self._http, "PUT", path_of("models", name, "evaluation-set"), source, progress)
        replayed = answer.headers.get("idempotency-replayed", "").lower() == "true"
        return EvaluationSet.from_json({**json_of(answer), "replayed": replayed})

    def evaluation_set(self, name: str) -> EvaluationSet:
        """A model's evaluation set."""
        return self._get(EvaluationSet, path_of("models", name, "evaluation-set"))

    # -- cycles --------------------------------------------------------------------------------------------------------

    def train(self, name: str, reason: str | None = None) -> Cycle:
        """Ask for a cycle now."""
        return self._make(Cycle, path_of("models", name, "cycles"), {"reason": reason} if reason else {})

    def cycles(self, name: str, limit: int | None = None) -> Iterator[Cycle]:
        """A model's cycles, newest first: ``limit`` of them, or all."""
        return self._all(Cycle, path_of("models", name, "cycles"), limit)

    def cycle(self, name: str, number: int) -> Cycle:
        """One cycle, with its progress while it runs."""
        return self._get(Cycle, path_of("models", name, "cycles", number))

    def wait_for_cycle(
        self,
        name: str,
        number: int,
        *,
        on_progress: Callable[[Cycle], None] | None = None,
        timeout: float | None = None,
    ) -> Cycle:
        """Stay until a cycle has ended.

        Args:
            name: the model.
            number: the cycle.
            on_progress: told the cycle at every look: after 0.1 s at first, then more seldom, every second in the end.
            timeout: longest wait in seconds; None waits as long as it takes.

        Returns:
            The cycle: ``published``, or ``withheld`` by a guardrail.

        Raises:
            CycleFailed: it failed, was superseded, or cannot start because the model is paused.
            CycleUnfinished: the time ran out; the cycle goes on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        wait, last = 0.1, None
        while True:
            cycle = self.cycle(name, number)
            if on_progress is not None:
                on_progress(cycle)
            if not cycle.open:
                return _ended(cycle)
            if cycle.state == "queued" and (paused := self.model(name)).state == "paused":
                raise _stuck(cycle, paused.paused_reason)
            if until is not None and time.monotonic() + wait > until:
                raise CycleUnfinished(name, number, cycle.state, timeout or 0.0)
            time.sleep(wait)
            seen = (cycle.state, cycle.progress)
            wait, last = (min(wait * 1.5, 1.0), seen) if seen == last else (min(wait * 1.2, 0.5), seen)

    # -- versions ------------------------------------------------------------------------------------------------------

    def version(self, version: Wanted, ref: int | str | None = None) -> Version:
        """One version.

        Args:
            version: ``"gas:7"``, ``"gas@champion"``, or ``"gas"`` for its champion.
            ref: a number or alias, where ``version`` is the model's name alone.
        """
        return self._get(Version, self._at(version, ref))

    def versions(self, name: str, limit: int | None = None) -> Iterator[Version]:
        """A model's versions, newest first: ``limit`` of them, or all."""
        return self._all(Version, path_of("models", name, "versions"), limit)

    def lineage(self, version: Wanted, ref: int | str | None = None) -> list[Version]:
        """A version and its ancestors, itself first."""
        return list(self._all(Version, self._at(version, ref, "lineage")))

    def manifest(self, version: Wanted, ref: int | str | None = None) -> dict[str, Any]:
        """The manifest that stands in a version's checkpoint."""
        return json_of(self._http.request("GET", self._at(version, ref, "manifest")))

    def download(
        self,
        version: Wanted,
        path: str | Path,
        *,
        format: Form = "sparse",
        verify: Evident | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Download a checkpoint: resumed where an earlier try broke off, hashed, compared, then renamed into its place.

        Args:
            version: a reference, or a version.
            path: the file; or a folder, for ``<model>-<number>.safetensors`` (``.zip``) in it.
            format: ``sparse`` (mask bits and kept values), ``dense`` (plain safetensors), or ``bundle`` (the sparse
                form with everything that shows where it comes from: ``espalier.formats.bundle``).
            verify: ``digest``: compare with what the service promises. ``log``: also prove, before the file gets its
                name, that the log's signed checkpoint covers the version's entry, which names the digest. By default
                ``log`` where the client was given the log's key, else ``digest``.
            progress: told the bytes that are there, and all of them.

        Returns:
            The file's path.

        Raises:
            DigestMismatch: the bytes are not what was promised; nothing is left of them.
            ProofRejected: the log does not vouch for them; nothing is left of them.
        """
        found = version if isinstance(version, Version) else self.version(version)
        target = Path(path)
        if target.is_dir():
            target /= f"{found.model}-{found.number}.{'zip' if format == 'bundle' else 'safetensors'}"
        return fetch(
            self._http,
            path_of("models", found.model, "versions", found.number, "checkpoint"),
            target,
            params={"format": format},
            expected=found.checkpoint.digest if format == "sparse" else None,
            progress=progress,
            check=self._vouched(found, format, verify or ("log" if self.log.given else "digest")),
        )

    def _vouched(self, version: Version, format: Form, verify: Evident) -> Callable[[Path], object] | None:
        """What a download must pass beside its digest; what the log must know of it is asked at once."""
        if verify == "digest":
            return None
        if format == "bundle":
            return lambda path: self.log.expect_continued(_of(version, verify_bundle(path, self.log.trusted())).log)
        if format == "dense":
            raise EspalierClientError(
                "the log names the sparse form alone: download that, or the bundle; or give verify='digest'"
            )
        self.log.expect_logged(version)
        return None

    def checkpoint(self, version: Wanted, ref: int | str | None = None) -> Checkpoint:
        """A checkpoint in memory, its digest compared."""
        return decode(self.checkpoint_bytes(version, ref))

    def checkpoint_bytes(self, version: Wanted, ref: int | str | None = None) -> bytes:
        """A sparse checkpoint's bytes, their digest compared."""
        found = version if isinstance(version, Version) else self.version(version, ref)
        answer = self._http.request(
            "GET",
            path_of("models", found.model, "versions", found.number, "checkpoint"),
            params={"format": "sparse"},
        )
        actual = sha256_digest(answer.content)
        for wanted in (found.checkpoint.digest, promised_digest(answer.headers, whole=True)):
            if wanted not in (None, actual):
                raise DigestMismatch(
                    f"{found.model}:{found.number}: the bytes that came hash to {actual}, but {wanted} was promised; "
                    "fetch it again, and if it repeats, run `espalier doctor` where the service runs"
                )
        return answer.content

    @overload
    def watch(
        self,
        version: Reference | str,
        on_change: Callable[[Version, Path | None], None],
        *,
        interval: float = ...,
        jitter: float = ...,
        stop: threading.Event | None = ...,
        directory: str | Path | None = ...,
        path: str | Path | None = ...,
    ) -> Version | None: ...

    @overload
    def watch(
        self,
        version: Reference | str,
        on_change: None = None,
        *,
        interval: float = ...,
        jitter: float = ...,
        stop: threading.Event | None = ...,
        directory: str | Path | None = ...,
        path: str | Path | None = ...,
    ) -> Watch: ...

    def watch(
        self,
        version: Reference | str,
        on_change: Callable[[Version, Path | None], None] | None = None,
        *,
        interval: float = 30.0,
        jitter: float = 0.2,
        stop: threading.Event | None = None,
        directory: str | Path | None = None,
        path: str | Path | None = None,
    ) -> Watch | Version | None:
        """Call ``on_change`` for the version that an alias names now, and again whenever it names another one.

        The service answers as soon as the alias moves (a long poll), and 304 without a body while it does not. When it
        cannot be reached, or a download fails, the version last handed over stays in force; where a file is wanted,
        that holds over a restart too: a watch that begins without a service hands over what is on disk.

        Args:
            version: what to watch, such as ``gas@champion``.
            on_change: gets the version, and the downloaded checkpoint's path where one is wanted. What it raises ends
                the watch. Without it, the ``Watch`` is returned, to iterate over.
            interval: seconds between two looks where the service does not wait by itself, and the longest wait after
                an error.
            jitter: share by which each wait is randomly longer or shorter, so that many clients spread out.
            stop: set it to end the watch.
            directory: folder to download each version to, as ``<model>-<number>.safetensors``, before ``on_change``.
            path: one file instead, which each version replaces.

        Returns:
            The version that was handed over last; without ``on_change``, the watch.
        """
        watch = Watch(self._http, version, interval=interval, jitter=jitter, stop=stop, directory=directory, path=path)
        return watch if on_change is None else follow(watch, on_change)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def promote(self, name: str, number: int, reason: str, *, override: bool = False) -> Moved | Proposal:
        """Make a version the champion.

        Args:
            name: the model.
            number: of the version.
            reason: stands in the audit log.
            override: promote a version that its guardrails withheld, too; the log says so.

        Returns:
            What was moved; or, where the champion is protected, the proposal that others must approve.

        Raises:
            ApiProblem: with status 412 when the alias was moved since its revision was read, 409 when the version was
                withheld and ``override`` is not given; nothing was changed.
        """
        path = path_of("models", name, "versions", number, "promote")
        return _moved(self._move(name, CHAMPION, "POST", path, {"reason": reason, "override": override}))

    def point(self, name: str, alias: str, number: int, reason: str, *, override: bool = False) -> Moved | Proposal:
        """Point an alias other than the champion at a version, and make it if need be; else as ``promote``."""
        body = {"version": number, "reason": reason, "override": override}
        return _moved(self._move(name, alias, "PUT", path_of("models", name, "aliases", alias), body))

    def protection(self, name: str, alias: str = CHAMPION) -> Protection:
        """What stands between an alias and a promotion."""
        return self._get(Protection, path_of("models", name, "aliases", alias, "protection"))

    def protect(
        self, name: str, alias: str = CHAMPION, *, approvals: int = 0, automatic: bool = True, reason: str
    ) -> Protection:
        """Decide how many other people must approve a promotion, and whether the service promotes by itself.

        Rollbacks stay one person's to do.
        """
        body = {"approvals": approvals, "automatic": automatic, "reason": reason}
        path = path_of("models", name, "aliases", alias, "protection")
        return Protection.from_json(json_of(self._http.request("PUT", path, json=body)))

    def rollback(
        self,
        name: str,
        to: int | str | None = None,
        *,
        reason: str,
        quarantine: Sequence[int] = (),
    ) -> RolledBack:
        """Move the champion back to an ancestor; weights, mask, stage and replay go back with it.

        Args:
            name: the model.
            to: number or alias; by default the nearest ancestor that was champion and holds no quarantined megabatch.
            reason: stands in the audit log.
            quarantine: megabatches never to train on again.

        Raises:
            ApiProblem: with status 412 when the alias was moved since its revision was read; nothing was changed.
        """
        body: dict[str, Any] = {"reason": reason, "quarantine": list(quarantine)}
        if to is not None:
            body["to"] = str(to)
        return RolledBack.from_json(
            json_of(self._move(name, CHAMPION, "POST", path_of("models", name, "rollback"), body))
        )

    def alias(self, name: str, alias: str = CHAMPION) -> Alias:
        """Which version an alias names now."""
        return self._get(Alias, path_of("models", name, "aliases", alias))

    def alias_at(self, name: str, at: datetime, alias: str = CHAMPION) -> int:
        """Which version an alias named at a time (aware)."""
        if at.tzinfo is None:
            raise EspalierClientError(f"{at.isoformat()} does not say in which time zone it is: give an aware time")
        answer = self._http.request("GET", path_of("models", name, "aliases", alias), params={"at": at.isoformat()})
        return int(json_of(answer)["version"])

    def alias_history(self, name: str, alias: str = CHAMPION) -> Iterator[AliasMove]:
        """Every move of an alias."""
        return self._all(AliasMove, path_of("models", name, "aliases", alias, "history"))

    # -- the audit log -------------------------------------------------------------------------------------------------

    def audit(self, model: str | None = None, *, kind: str | None = None) -> Iterator[AuditEntry]:
        """Audit entries, oldest first: of one model or of all, of one kind or of all."""
        return self._all(AuditEntry, path_of("audit"), model=model, kind=kind)

    def audit_entry(self, seq: int) -> AuditEntry:
        """One audit entry."""
        return self._get(AuditEntry, path_of("audit", seq))

    def version_audit(self, version: Wanted, ref: int | str | None = None) -> list[AuditEntry]:
        """The audit entries of the cycle that made a version."""
        return list(page(self._http, AuditEntry, self._at(version, ref, "audit")).items)

    def audit_head(self) -> LogHead:
        """How many entries the log has, and their Merkle root."""
        return self._get(LogHead, path_of("audit", "head"))

    def log_checkpoint(self) -> LogCheckpoint:
        """The log's size and root, signed, and consistent with what this machine saw of it before.

        Raises:
            ProofRejected: the log was forked, rewound, begun anew, or signed with another key.
        """
        return self.log.checkpoint()

    def export_log(self, path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> tuple[int, int]:
        """Copy the whole log to a folder or a ``.tar``, going on from what is there; see ``espalier.export``.

        Returns:
            How many entries were added, and how many there are.
        """
        return export_log(self._http, self.log, Path(path), progress=progress)

    def verify_log(
        self, on_entry: Callable[[AuditEntry, int], None] | None = None, *, head: LogHead | None = None
    ) -> int:
        """Check the whole audit log on this machine: every entry's hash, their order, and the root over all of them.

        Args:
            on_entry: told each entry as it is checked, and how many there are.
            head: the head to check against, by default the present one. With a head that was kept from an earlier day,
                this shows that the log still begins with what it was then: nothing of it was rewritten.

        Returns:
            How many entries were checked.

        Raises:
            ProofRejected: naming the first entry that is wrong.
        """
        end = head or self.audit_head()

        def documents() -> Iterator[Mapping[str, Any]]:
            # The log may have grown since its head was read: entries past the head are no part of this check.
            for entry in itertools.islice(self.audit(), end.size):
                if on_entry is not None:
                    on_entry(entry, end.size)
                yield entry.document

        return verify_log(documents(), end.size, end.root)

    def time_line(self, name: str) -> Iterator[TimePoint]:
        """A model's versions over time: density, accuracies, gap, bytes; oldest first."""
        return self._all(TimePoint, path_of("models", name, "metrics"))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _get(self, kind: type[R], path: str) -> R:
        return one(self._http, kind, path)

    def _make(self, kind: type[R], path: str, body: Mapping[str, Any]) -> R:
        return made(self._http, kind, path, body)

    def _all(self, record: type[R], path: str, limit: int | None = None, **params: Any) -> Iterator[R]:
        return every(self._http, record, path, limit, **params)

    def _at(self, version: Wanted, ref: int | str | None = None, *rest: str) -> str:
        if isinstance(version, Version):
            return path_of("models", version.model, "versions", version.number, *rest)
        found = version if isinstance(version, Reference) else Reference.parse(version, ref)
        return path_of("models", found.model, "versions", found.ref, *rest)

    def _move(self, name: str, alias: str, method: str, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Send a move of an alias with the revision of it that is seen now."""
        try:
            revision = self.alias(name, alias).revision
        except ApiProblem as problem:
            if problem.type != "urn:espalier:problem:unknown-alias":
                raise
            revision = 0  # it has never been moved
        return self._http.request(method, path, json=dict(body), headers={"If-Match": f'"{revision}"'})

    def _label_column(self, name: str, data: Data, labels: npt.ArrayLike | str | None) -> str:
        """What the model calls the column of the labels; asked only where columns come with labels beside them."""
        if labels is None or isinstance(data, str | os.PathLike | np.ndarray | list | tuple):
            return LABEL
        return str((self.model(name).document.get("input") or {}).get("label") or LABEL)

    def _open_cycle(self, name: str, megabatch: int) -> int | None:
        """The cycle that waits or runs and may train on this megabatch; the oldest of them."""
        recent = self.cycles(name, PAGE)
        return min((cycle.number for cycle in recent if cycle.open and cycle.through >= megabatch), default=None)


def _of(version: Version, found: VerifiedBundle) -> VerifiedBundle:
    """A bundle, if it is that of a version."""
    if (found.model, found.version, found.digest) != (version.model, version.number, version.checkpoint.digest):
        raise ProofRejected(f"the bundle is of {found.model}:{found.version}, not of {version.model}:{version.number}")
    return found


def _moved(answer: httpx.Response) -> Moved | Proposal:
    return (Proposal if answer.status_code == 202 else Moved).from_json(json_of(answer))


def _array(value: Any) -> npt.NDArray[Any]:
    """A numpy array of one, or of a torch tensor by the tensor's own methods."""
    plain = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    return np.ascontiguousarray(plain).reshape(plain.shape)


def _ended(cycle: Cycle) -> Cycle:
    if cycle.state == "failed":
        raise _told(
            cycle,
            f"its megabatches stay eligible, and the model is paused: mend what it names, then "
            f"`espalier model resume {cycle.model} --reason ...`",
        )
    if cycle.state == "superseded":
        raise _told(
            cycle,
            "its megabatches stay eligible: look for the cycle that took its place "
            f"with `espalier cycle list {cycle.model}`",
        )
    return cycle


def _stuck(cycle: Cycle, reason: str | None) -> CycleFailed:
    error = CycleFailed(cycle.model, cycle.number, cycle.state, reason)
    error.args = (
        f"cycle {cycle.number} of model {cycle.model!r} cannot start: the model is paused "
        f"({reason or 'no reason was recorded'})\n"
        f"resume it with `espalier model resume {cycle.model} --reason ...`",
    )
    return error


def _told(cycle: Cycle, remedy: str) -> CycleFailed:
    error = CycleFailed(cycle.model, cycle.number, cycle.state, cycle.reason)
    error.args = (f"{error}\n{remedy}",)
    return error
