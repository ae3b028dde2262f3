"""Named columns: which one holds the labels, and which ones the features, in which order.

Knows: names. Must never know: a format, or what any column holds.

Laws:
    * By name, never by position: a column more, less, or under another name is refused, and named.
    * Nothing is guessed where more than one answer is possible.

Reasons of refusal: column-name, duplicate-column, index-column, label-column, missing-column, unknown-column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.intake.arrays import Reading, refuse

USUAL_LABELS = ("label", "labels", "y", "target", "class")
"""Names that a label column may have where the model's input does not say which one it is."""

MOST_COLUMNS = 100_000
LONGEST_NAME = 200
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Columns:
    """The column of the labels, and those of the features in the order in which they become x."""

    label: str
    features: tuple[str, ...]

    @property
    def all(self) -> set[str]:
        """The names of all columns."""
        return {self.label, *self.features}


def choose(names: Sequence[str], reading: Reading) -> Columns:
    """Choose among the columns of an upload.

    Args:
        names: in the upload's order.
        reading: ``label`` and ``features``, where the model's input says them.

    Raises:
        InvalidMegabatch: with one of the reasons above.
    """
    _check_names(names)
    label = _label(names, reading)
    found = tuple(name for name in names if name != label)
    if not found:
        refuse("missing-column", f"beside the label column {label!r} there is no column: send the features, too")
    if reading.features is None:
        return Columns(label, found)
    check_features(found, reading.features)
    return Columns(label, reading.features)


def check_features(found: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that the columns are those that the model takes, whatever their order.

    Raises:
        InvalidMegabatch: ``missing-column`` or ``unknown-column``.
    """
    there, known = set(found), set(wanted)
    if missing := [name for name in wanted if name not in there]:
        refuse("missing-column", f"the upload lacks the model's {_listed(missing)}: send every feature in each upload")
    if extra := [name for name in found if name not in known]:
        refuse("unknown-column", f"the upload also has the {_listed(extra)}, which the model does not take: drop it")


def _label(names: Sequence[str], reading: Reading) -> str:
    declare = 'say which one in the model\'s input, as {"label": "<column>"}, when it is created'
    if reading.label is not None:
        if reading.label not in names:
            refuse("label-column", f"the label column {reading.label!r} is missing; there is the {_listed(names)}")
        return reading.label
    usual = [name for name in USUAL_LABELS if name in names and name not in (reading.features or ())]
    if not usual:
        refuse(
            "label-column",
            f"no column is called {', '.join(USUAL_LABELS[:-1])} or {USUAL_LABELS[-1]}; there is the {_listed(names)}: "
            f"rename the label column, or {declare}; the first line of a CSV file must hold the names",
        )
    if len(usual) > 1:
        refuse("label-column", f"each of the {_listed(usual)} may hold the labels: {declare}, or drop the others")
    return usual[0]


def _check_names(names: Sequence[str]) -> None:
    if len(names) > MOST_COLUMNS:
        refuse("too-large", f"there are {len(names)} columns, over {MOST_COLUMNS}: send one column of lists instead")
    seen: set[str] = set()
    for at, name in enumerate(names):
        if name == "" or name.startswith("__index_level_"):
            refuse("index-column", f"column {at} is an index without a name: write the file without it (index=False)")
        if len(name) > LONGEST_NAME or not name.isprintable():
            refuse("column-name", f"column {at} has no name of at most {LONGEST_NAME} printable characters: rename it")
        if name in seen:
            refuse("duplicate-column", f"there are two columns {name!r}: give each a name of its own")
        seen.add(name)


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:_NAMED]))
    more = "" if len(names) <= _NAMED else f" and {len(names) - _NAMED} more"
    return f"{'column' if len(names) == 1 else 'columns'} {listed}{more}"
