"""A lineage as the audit log tells it: which version came from which, and how its masks followed from one another.

Knows: what entries say of versions and pruning steps. Must never know: where entries come from, or whether they are in
any log (``proof`` shows that).

Laws:
    * A version is followed up to the first of its line, or it is refused: a parent without an entry is a gap.
    * A version's mask is its parent's, or what the pruning steps of its own cycle made of that, one after another.
    * Nothing of an attempt that failed counts for the version that a later attempt made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import ProofRejected

MADE = ("version.published", "version.withheld")


@dataclass(frozen=True, slots=True)
class Step:
    """One pruning step: digests of all masks before and after it."""

    seq: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Made:
    """What the log says of a version.

    Attributes:
        seq: of the entry.
        parent: None for the first of a line.
        mask: digest of all its masks.
        total: its prunable weights.
        outputs: digests of what its cycle left, the checkpoint among them.
        steps: of its cycle, in order.
    """

    seq: int
    version: int
    parent: int | None
    cycle: int
    mask: str
    total: int
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass
class Lineage:
    """Reads entries of one model, the oldest first, and then follows a version."""

    model: str
    _made: dict[int, Made] = field(default_factory=dict)
    _steps: dict[int, list[Step]] = field(default_factory=dict)

    def read(self, entry: Mapping[str, Any]) -> None:
        """Take in an entry.

        Raises:
            ProofRejected: it is of another model, does not say what its kind must, or tells a version a second time.
        """
        seq, kind, parameters = _typed(entry, "seq", int), _typed(entry, "kind", str), entry.get("parameters")
        if entry.get("model") != self.model or not isinstance(parameters, Mapping):
            raise ProofRejected(f"entry {seq} is about the model {entry.get('model')!r}, not {self.model!r}", seq)
        if kind == "mask.pruned":
            step = Step(seq, *(_said(parameters, f"mask_digest_{when}", str, seq) for when in ("before", "after")))
            self._steps.setdefault(_said(parameters, "cycle", int, seq), []).append(step)
        elif kind == "cycle.failed":
            self._steps.pop(_said(parameters, "cycle", int, seq), None)
        elif kind in MADE:
            self._take(seq, parameters, entry.get("outputs"))

    def _take(self, seq: int, parameters: Mapping[str, Any], outputs: Any) -> None:
        version, cycle = (_said(parameters, name, int, seq) for name in ("version", "cycle"))
        parent = None if parameters.get("parent") is None else _said(parameters, "parent", int, seq)
        if version in self._made:
            raise ProofRejected(f"entries {self._made[version].seq} and {seq} both tell version {version}", seq)
        if not isinstance(outputs, list) or not all(isinstance(item, str) for item in outputs):
            raise ProofRejected(f"entry {seq} does not say what came of version {version}", seq)
        mask, total = _said(parameters, "mask_digest", str, seq), _said(parameters, "total", int, seq)
        steps = tuple(self._steps.pop(cycle, ()))
        self._made[version] = Made(seq, version, parent, cycle, mask, total, tuple(outputs), steps)

    def followed(self, version: int) -> list[Made]:
        """A version and its ancestors up to the first, each checked against its parent.

        Raises:
            ProofRejected: an ancestor has no entry, or a mask does not follow from the one before.
        """
        line: list[Made] = []
        number: int | None = version
        while number is not None:
            made = self._made.get(number)
            if made is None:
                whose = f", which version {line[-1].version} came from" if line else ""
                raise ProofRejected(f"no entry tells version {number}{whose}: the lineage has a gap")
            if line and made.version >= line[-1].version:
                raise ProofRejected(f"version {line[-1].version} cannot come from version {number}", line[-1].seq)
            line.append(made)
            number = made.parent
        for place, child in enumerate(line):
            _expect_masks(child, line[place + 1] if place + 1 < len(line) else None)
        return line


def grown(child: Made, parent: Made | None) -> bool:
    """Whether the network has other weights than its parent's: a class was added, so that masks cannot be compared."""
    return parent is not None and child.total != parent.total


def _expect_masks(child: Made, parent: Made | None) -> None:
    known = None if parent is None or grown(child, parent) else parent.mask
    for step in child.steps:
        if known is not None and step.before != known:
            raise ProofRejected(
                f"version {child.version}: the pruning step of entry {step.seq} began with the masks {step.before}, "
                f"but those before it were {known}",
                step.seq,
            )
        known = step.after
    if known is not None and child.mask != known:
        raise ProofRejected(
            f"version {child.version} has the masks {child.mask}, but its parent and pruning steps end with {known}",
            child.seq,
        )


def _typed(entry: Mapping[str, Any], name: str, kind: type) -> Any:
    if type(value := entry.get(name)) is not kind:
        raise ProofRejected(f"an entry's {name} is {value!r}")
    return value


def _said(parameters: Mapping[str, Any], name: str, kind: type, seq: int) -> Any:
    if type(value := parameters.get(name)) is not kind:
        raise ProofRejected(f"entry {seq} does not say {name}, or not as it must: {value!r}", seq)
    return value
