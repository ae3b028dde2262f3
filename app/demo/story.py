"""Story: upload, train and prune, download, check, roll back, go on.

Knows: in which order the demo does things, and what must be true after each. Must never know: how the service does it.

Law: a test accuracy is computed here, from downloaded bytes and data that never left this process; what the service
says of densities and of answers on arrival is compared with what the same bytes give here. What differs ends the demo
with status 1.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from app.demo.data import MEGABATCHES, Examples, Stream, UnusableData, digits, from_file
from app.demo.process import ServiceFailed, examine, service
from app.demo.screen import Row, Screen
from espalier import Checkpoint, Client, EspalierClientError, load_checkpoint
from espalier.records import Version

_BACK = 2  # versions that the rollback goes back
_TOO_CLOSE = 1e-4  # two logits nearer than this may change places between two ways of adding floats
_LONGEST_CYCLE = 3600.0


class CheckFailed(Exception):
    """Something that must be true is not."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``espalier demo`` was asked for."""

    data: Path | None = None
    megabatches: int | None = None
    density: float = 0.366
    epochs: int | None = None
    seed: int = 0
    hidden: tuple[int, ...] = (128, 128)
    data_dir: Path | None = None
    keep: bool = False


def run(options: Options, screen: Screen | None = None) -> int:
    """Play the demo. Returns the exit status: 0 when every check held."""
    show, began = screen or Screen(), time.monotonic()
    try:
        stream = _stream(options)
        with _folder(options) as folder:
            show.title("A service of its own")
            with service(folder) as url, Client(url) as client:
                show.say(f"  {url}, its API and its worker as processes, data in {folder}")
                story = Story(options, stream, client, show, folder)
                story.play()
            show.checked(f"the service stopped in order; espalier doctor: {examine(folder)}")
            _try_next(show, options, story.name, folder)
    except (CheckFailed, UnusableData, ServiceFailed, EspalierClientError) as error:
        show.failed(str(error))
        return 1
    except KeyboardInterrupt:
        show.failed("stopped by Ctrl-C")
        return 130
    show.say(f"\n{time.monotonic() - began:.0f} s in all")
    return 0


@dataclass
class Story:
    """The demo against one running service."""

    options: Options
    stream: Stream
    client: Client
    show: Screen
    folder: Path
    name: str = ""
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)

    def play(self) -> None:
        """All of it, in order."""
        self._create()
        self._upload_all()
        champion = self._check_champion()
        self._check_arrivals()
        self._roll_back(champion)

    # -- upload, train and prune --------------------------------------------------------------------------------------

    def _create(self) -> None:
        stream, options = self.stream, self.options
        taken = {model.name for model in self.client.models()}
        self.name = next(n for n in (stream.name, *(f"{stream.name}-{i}" for i in range(2, 1000))) if n not in taken)
        stages = len(stream.megabatches)
        recipe = self._recipe(stages)
        self.client.create_model(self.name, recipe, preset="espalier", input={"classes": _classes(stream)})
        sizes = ", ".join(f"{len(part):,}" for part in stream.megabatches)
        self.show.title(f"The stream: {stream.origin}")
        self.show.say(f"  {stream.split}")
        self.show.say(
            f"  {stages} megabatches of {sizes} examples, uploaded one after the other; {len(stream.later):,} for later"
        )
        widths = "-".join(str(width) for width in options.hidden)
        self.show.title(f"The model {self.name}: preset espalier, mlp {widths}")
        first, last = self._density(1), self._density(stages)
        self.show.say(
            "  pruned step by step while it is retrained at each megabatch, the same factor every time:\n"
            f"  density {first:.3f} to {last:.3f} in {stages} stages\n"
            f"  test: the {len(stream.held_out):,} held-out examples, by numpy from the downloaded checkpoint\n"
            "  on arrival: the new megabatch, answered by the champion before it was trained on\n"
            "  gap: train minus validation accuracy, in points"
        )

    def _recipe(self, stages: int) -> dict[str, object]:
        recipe: dict[str, object] = {
            "seed": self.options.seed,
            "network": {"name": "mlp", "hidden": list(self.options.hidden)},
            "schedule": {"name": "factor", "target": self.options.density, "stages": stages},
        }
        if self.options.epochs is not None:
            recipe["training"] = {"epochs": self.options.epochs, "least_steps": 0}
        return recipe

    def _density(self, stage: int) -> float:
        """The plan, written down a second time: the same factor at every stage, until the target."""
        stages = len(self.stream.megabatches)
        return planned_density(self.options.density, stage, stages)

    def _upload_all(self) -> None:
        self.show.title("Versions as they appear")
        self.show.head()
        for number, examples in enumerate(self.stream.megabatches, 1):
            self._upload(number, examples)

    def _upload(self, number: int, examples: Examples) -> Version:
        """Upload one megabatch, wait for its version, look at it from all sides, and show it."""
        megabatch = self.client.upload(self.name, examples.x, examples.y)
        _check(
            megabatch.number == number, f"the upload was counted as megabatch {megabatch.number} instead of {number}"
        )
        cycle = megabatch.cycle
        if cycle is None:
            raise CheckFailed(f"megabatch {number} was accepted, but no cycle was queued for it")
        with self.show.cycle(f"megabatch {number}, cycle {cycle}") as look:
            done = self.client.wait_for_cycle(self.name, cycle, on_progress=look, timeout=_LONGEST_CYCLE)
        version = self.client.version(self.name, done.version)
        checkpoint = self._fetch(version)
        self._check_pruning(version, checkpoint)
        prequential = self.client.megabatch(self.name, number).prequential
        row = Row(version, _accuracy(checkpoint, self.stream.held_out), prequential.accuracy if prequential else None)
        self.rows[version.number] = row
        self.show.row(row, champion=self.client.alias(self.name).version == version.number)
        return version

    def _fetch(self, version: Version) -> Checkpoint:
        path = self.client.download(version, self.folder / "downloads" / f"{self.name}-{version.number}.safetensors")
        self.checkpoints[version.number] = load_checkpoint(path)
        return self.checkpoints[version.number]

    def _check_pruning(self, version: Version, checkpoint: Checkpoint) -> None:
        """The masks' bits, counted: as many as planned, and none that the parent had pruned."""
        total = sum(mask.size for mask in checkpoint.masks.values())
        kept = sum(int(mask.sum()) for mask in checkpoint.masks.values())
        planned = math.floor(self._density(version.stage) * total + 0.5)
        _check(kept == planned, f"version {version.number} keeps {kept} of {total} weights; its stage plans {planned}")
        _check(
            kept == version.kept,
            f"version {version.number} keeps {kept} weights, but the service reports {version.kept}",
        )
        for name, mask in checkpoint.masks.items():
            _check(
                not np.any(checkpoint.arrays[name][~mask]),
                f"version {version.number}: a pruned weight of {name} is not zero",
            )
            if version.parent is not None:
                before = self.checkpoints[version.parent].masks[name]
                _check(not np.any(mask & ~before), f"version {version.number}: a weight of {name} came back to life")

    # -- download and check -------------------------------------------------------------------------------------------

    def _check_champion(self) -> Version:
        self.show.title("The champion, downloaded and checked")
        champion = self.client.version(f"{self.name}@champion")
        path = self.client.download(champion, self.folder / "downloads")
        self.show.checked(f"{path.name}: {path.stat().st_size:,} bytes hash to {champion.checkpoint.digest[:23]}...")
        count = self.client.verify_log()
        self.show.checked(f"audit log: {count} entries hash to the head's Merkle root, computed here")
        again, shown = _accuracy(load_checkpoint(path), self.stream.held_out), self.rows[champion.number].test
        _check(
            again == shown, f"the champion's file answers {again:.4f} of the test set right, but {shown:.4f} was shown"
        )
        self.show.checked(
            f"version {champion.number} from that file: {100 * again:.1f} % of the test set, as shown above"
        )
        counts = " > ".join(f"{self.rows[number].version.kept:,}" for number in sorted(self.rows))
        self.show.checked(f"weights kept, counted in the masks: {counts}; as planned to the weight, none came back")
        return champion

    def _check_arrivals(self) -> None:
        """The service's own figures on arrival, from the parents' checkpoints and the rows that were uploaded."""
        compared = []
        for number, examples in enumerate(self.stream.megabatches, 1):
            reported = self.client.megabatch(self.name, number).prequential
            if reported is None:
                continue
            right, doubtful = _right(self.checkpoints[reported.version], examples)
            said = round(reported.accuracy * len(examples))
            _check(
                reported.examples == len(examples) and abs(right - said) <= doubtful,
                f"megabatch {number}: on arrival, the service says, version {reported.version} answered {said} of "
                f"{reported.examples} right; its checkpoint gives {right} of {len(examples)} here",
            )
            compared.append(f"{right}/{len(examples)}")
        if compared:
            self.show.checked(
                f"on arrival, from the parents' files and the uploaded rows: {', '.join(compared)}, as reported"
            )

    # -- roll back, go on ---------------------------------------------------------------------------------------------

    def _roll_back(self, champion: Version) -> None:
        lineage = self.client.lineage(champion)
        target = lineage[min(_BACK, len(lineage) - 1)]
        if target.number == champion.number:
            self.show.title("No rollback: the champion has no ancestor")
            return
        last = len(self.stream.megabatches)
        suspect = list(range(self._through(target) + 1, last + 1))
        reason = f"as if megabatches {', '.join(map(str, suspect))} had been mislabelled"
        self.show.title(f"Roll back from version {champion.number} to {target.number}: {reason}")
        done = self.client.rollback(self.name, target.number, reason=reason, quarantine=suspect)
        now = self.client.version(f"{self.name}@champion")
        _check(now.number == target.number, f"the champion is version {now.number} instead of {target.number}")
        _check(list(done.quarantined) == suspect, f"quarantined {list(done.quarantined)} instead of {suspect}")
        _check(
            done.queued_cycle is None,
            "a cycle was queued, though every megabatch past the restored version is quarantined",
        )
        _check(now.checkpoint.digest == target.checkpoint.digest, "the restored version has other bytes than before")
        self.show.checked(
            f"champion {champion.number} -> {now.number}, the same bytes as before; "
            f"density {done.density_before:.3f} -> {done.density_after:.3f}; megabatches {suspect} quarantined"
        )
        self._go_on(target, last + 1)

    def _go_on(self, restored: Version, number: int) -> None:
        self.show.head()
        version = self._upload(number, self.stream.later)
        planned = self._density(restored.stage + 1)
        _check(
            version.parent == restored.number,
            f"version {version.number} started from {version.parent}, not {restored.number}",
        )
        _check(
            version.stage == restored.stage + 1,
            f"version {version.number} is at stage {version.stage} instead of {restored.stage + 1}",
        )
        _check(version.number == max(self.rows), f"version {version.number} was numbered twice")
        self.show.checked(
            f"version {version.number} goes on from {restored.number}: stage {restored.stage} -> {version.stage}, "
            f"density {restored.density:.3f} -> {version.density:.3f}, where the plan has {planned:.3f}"
        )
        entries = self.client.verify_log()
        self.show.checked(f"audit log: {entries} entries now, the rollback and its reason among them")

    def _through(self, version: Version) -> int:
        """The last megabatch that a version was trained on."""
        if version.cycle is None:
            raise CheckFailed(f"version {version.number} does not say which cycle made it")
        return self.client.cycle(self.name, version.cycle).through


def _stream(options: Options) -> Stream:
    if options.data is None:
        return digits(options.megabatches or MEGABATCHES, options.seed)
    return from_file(options.data, options.megabatches, options.seed)


@contextmanager
def _folder(options: Options) -> Iterator[Path]:
    if options.data_dir is not None:
        yield options.data_dir.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="espalier-demo-"))
    try:
        yield folder
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _classes(stream: Stream) -> list[str] | int:
    return stream.classes if isinstance(stream.classes, int) else list(stream.classes)


def planned_density(target: float, stage: int, stages: int) -> float:
    """Density after ``stage`` of ``stages`` pruning cycles that end at ``target``, each by the same factor."""
    return float(target ** (min(stage, stages) / stages))


def _accuracy(checkpoint: Checkpoint, examples: Examples) -> float:
    return float(np.mean(checkpoint.predict(examples.x) == examples.y))


def _right(checkpoint: Checkpoint, examples: Examples) -> tuple[int, int]:
    """How many answers are right, and how many are too close to call in float32."""
    logits = checkpoint.logits(examples.x)
    best = np.partition(logits, -2, axis=1)[:, -2:]
    right = int(np.sum(np.argmax(logits, axis=1) == examples.y))
    return right, int(np.sum(best[:, 1] - best[:, 0] < _TOO_CLOSE))


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckFailed(otherwise)


def _try_next(show: Screen, options: Options, name: str, folder: Path) -> None:
    show.title("What to try next")
    if options.keep or options.data_dir is not None:
        show.say(f"  espalier serve --data-dir {folder}        # this very service again; then, in another terminal:")
        show.say(f"  espalier version list {name}")
        show.say(f"  espalier version pull {name}@champion")
        show.say("  espalier audit verify")
    else:
        show.say("  espalier demo --keep                       # the same, and keep the folder to look into")
        show.say("  espalier serve                             # a service of your own on http://127.0.0.1:8000")
    if options.data is None:
        show.say("  espalier demo --data yours.npz             # your own data: x, y and, if you like, batch")
