"""The model card of a version: a page for people, made of what the service knows (Mitchell et al. 2019).

Knows: which figure means what, in plain words. Must never know: where facts come from (``facts``), HTTP, torch.

Laws:
    * Every figure was measured or counted by the service; what is unknown is said to be unknown.
    * Text that came from users is shown as text: it can neither format the page nor break out of a table.
    * The same version with the same data gives the same page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.domain import MegabatchStatus
from app.service.facts import Facts

_ROWS = 100
"""Rows that a table shows at most; the bill of materials names every megabatch, the audit log every version."""

_ABSENT = "not measured"

_PRUNING = ("criterion", "schedule", "distribution", "pace")
"""What a recipe says about pruning."""

_FIGURES = {
    "validation_accuracy": "accuracy on validation examples of the megabatches, never trained on",
    "balanced_accuracy": "the same, mean over the classes",
    "validation_loss": "cross entropy there, in nats",
    "validation_calibration_error": "expected calibration error there",
    "train_accuracy": "accuracy on what it was trained on",
    "generalization_gap": "training accuracy minus validation accuracy",
    "prequential_accuracy": "accuracy of the champion before on the new megabatches, before any training on them",
    "input_drift": "distance of the new megabatches' inputs from the past's, of the most drifted feature, 0 to 1",
    "label_shift": "distance of their class histogram from the past's, 0 to 1",
    "prequential_drop": "how far that accuracy lies below the validation accuracy of the champion before",
    "gap_change": "how far the generalization gap has risen over the lineage, in standard deviations (CUSUM)",
    "alarms": "how many of these figures were more than chance and more than accepted",
    "evaluation_accuracy": "accuracy on the evaluation set",
    "evaluation_balanced_accuracy": "the same, mean over the classes",
    "evaluation_calibration_error": "expected calibration error there",
    "forgetting": "mean loss of accuracy on past megabatches, against the best of the lineage",
    "worst_forgetting": "the same, of the megabatch that lost most",
    "mask_agreement": "least agreement of the masks that two samples give",
}

_MORE = {
    "champion_validation_accuracy": "accuracy of the champion before, on the same validation examples",
    "prequential_loss": "cross entropy of the champion before on the new megabatches, in nats",
    "train_loss": "cross entropy on what it was trained on, in nats",
    "dense_flops": "multiplications and additions of one example, all weights counted",
    "sparse_flops": "the same, counting kept weights alone; what that saves is measured: `latency_ms`",
    "latency_ms": "milliseconds for one example on the worker that trained it, median",
    "dense_latency_ms": "the same network with no weight at zero, in turns with it",
    "epochs": "epochs that were trained",
    "best_epoch": "epoch whose weights were taken",
    "examples_seen": "examples that the optimizer saw, repetitions counted",
    "evaluation_loss": "cross entropy on the evaluation set, in nats",
    "anytime_accuracy": "accuracy on the evaluation set, mean over all versions of the lineage",
    "cumulative_evaluation_errors": "wrong answers on the evaluation set, of all versions of the lineage together",
    "unrounded_validation_accuracy": "validation accuracy before the weights were rounded to be stored",
}
"""Figures that are shown where they were measured; those above are always shown."""


def card(facts: Facts) -> str:
    """The page, in Markdown."""
    version = facts.version
    sections = [
        f"# {_plain(version.model)}, version {version.number}",
        _about(facts),
        "## What it is for\n\n" + _purpose(facts),
        "## How it was judged\n\n" + _verdict(facts),
        "## Figures\n\n" + _figures(version.metrics),
        *_by_class(facts),
        "## Data\n\n" + _data(facts),
        "## How it was pruned\n\n" + _pruning(facts),
        "## Layers\n\n" + _layers(facts),
        "## How it was made\n\n" + _making(facts),
        "## Limits\n\n" + _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _about(facts: Facts) -> str:
    version = facts.version
    return (
        "Made by Espalier from its records; nobody wrote or edited it. Its figures can be checked against the audit "
        "log in this bundle.\n\n"
        + _table(
            ("", ""),
            [
                ("checkpoint", f"`{version.checkpoint}`"),
                ("bytes", f"{version.checkpoint_bytes:,} (dense {version.dense_bytes:,})"),
                ("made", f"{version.created_at:%Y-%m-%d %H:%M:%S} UTC, in cycle {version.cycle}"),
                ("parent", "none" if version.parent is None else f"version {version.parent}"),
                ("lineage", f"{len(facts.line):,} versions, this one included"),
                ("density", f"{version.density:.6g} ({version.kept:,} of {version.total:,} prunable weights are kept)"),
            ],
        )
    )


def _purpose(facts: Facts) -> str:
    found = facts.manifest.get("input") or {}
    scaling = found.get("normalisation") or {}
    names = ", ".join(_plain(name) for name in facts.classes) or "unknown"
    rows = [
        ("task", f"classification into {len(facts.classes)} classes: {names}"),
        ("one example", f"{found.get('dtype') or 'unknown'}, shape {_shape(found.get('shape'))}"),
        ("normalisation", _plain(scaling.get("name") or "unknown")),
        ("features", ", ".join(_plain(name) for name in found.get("features") or ()) or "not named"),
        ("network", _options(facts.manifest.get("network"))),
    ]
    return _table(("", ""), rows) + (
        "\n\nWhich use is intended, and by whom, the service does not know: whoever deploys the model must say it."
    )


def _verdict(facts: Facts) -> str:
    verdict = facts.version.verdict
    rules = [f"- {_options(rule)}" for rule in facts.recipe.get("guardrails") or ()]
    answer = (
        "All guardrails passed." if verdict.passed else f"Guardrails did not pass ({verdict.action or 'withhold'})."
    )
    return "\n".join(
        [
            f"{answer} The version was {facts.version.status.value}.",
            "",
            *(f"- {_plain(reason)}" for reason in verdict.reasons),
            *([""] if verdict.reasons else []),
            "Guardrails of the recipe:" if rules else "The recipe has no guardrails: nothing was required of it.",
            *(["", *rules] if rules else []),
        ]
    )


def _figures(metrics: Mapping[str, float]) -> str:
    known = [(name, _figure(metrics.get(name)), meaning) for name, meaning in _FIGURES.items()]
    others = [
        (name, _figure(value), "time of this phase" if name.endswith("_seconds") else _MORE.get(name, ""))
        for name, value in sorted(metrics.items())
        if name not in _FIGURES
    ]
    return _table(("figure", "value", "meaning"), known + others)


def _by_class(facts: Facts) -> list[str]:
    found = []
    for name, title in (("evaluation", "the evaluation set"), ("validation", "validation examples")):
        answers = facts.version.report.get(f"{name}_by_class")
        if not answers:
            found.append(f"## By class, on {title}\n\nNot measured.")
            continue
        names = [*facts.classes, *(f"class {n}" for n in range(len(facts.classes), len(answers["examples"])))]
        rows = [
            (_plain(label), f"{count:,}", _figure(accuracy))
            for label, count, accuracy in zip(names, answers["examples"], answers["accuracy"], strict=False)
        ]
        of_all = f"{sum(answers['examples']):,} examples in all; an accuracy on few of them says little."
        found.append(f"## By class, on {title}\n\n{of_all}\n\n" + _table(("class", "examples", "accuracy"), rows))
    return found


def _data(facts: Facts) -> str:
    megabatches, held = facts.megabatches, facts.evaluation
    usable = sum(m.status is MegabatchStatus.ACCEPTED for m in megabatches)
    rows = [
        (m.number, m.status.value, f"{m.examples:,}", " / ".join(map(str, m.histogram)), f"`{m.digest}`")
        for m in megabatches[-_ROWS:]
    ]
    more = len(megabatches) - len(rows)
    evaluation = (
        "Evaluation set: none."
        if held is None
        else f"Evaluation set: revision {held.revision}, {held.examples:,} examples, never trained on, `{held.digest}`."
    )
    return "\n\n".join(
        [
            f"The lineage has taken in {len(megabatches):,} megabatches with "
            f"{sum(m.examples for m in megabatches):,} examples; {len(megabatches) - usable:,} of them were "
            "quarantined or erased since. A digest is that of the decoded arrays.",
            evaluation,
            _table(("megabatch", "now", "examples", "by class", "digest"), rows) if rows else "No megabatches.",
            *([f"{more:,} older ones are in `bom.cdx.json`."] if more else []),
        ]
    )


def _pruning(facts: Facts) -> str:
    recipe = facts.recipe
    parts = [
        (name, _options(recipe.get(name)))
        for name in ("criterion", "schedule", "distribution", "pace")
        if name in recipe
    ]
    rows = [
        (
            a.number,
            a.stage,
            f"{a.target_density:.6g}",
            f"{a.density:.6g}",
            _figure(a.validation_accuracy),
            a.status.value,
        )
        for a in facts.line[:_ROWS]
    ]
    more = len(facts.line) - len(rows)
    columns = ("version", "stage", "target density", "density", "validation accuracy", "status")
    return "\n\n".join(
        [
            "Weights were removed one by one (unstructured), in stages, and trained under the mask in between; a "
            "weight that was removed in an ancestor stays removed.",
            _table(("", ""), parts) if parts else "The recipe is unknown.",
            _table(columns, rows),
            *([f"{more:,} older versions are in `audit/entries.jsonl`."] if more else []),
        ]
    )


def _layers(facts: Facts) -> str:
    layers = facts.version.layers
    rows = [
        (_plain(y.name), _shape(y.shape), f"{y.kept:,}", f"{y.total:,}", f"{y.density:.6g}" if y.total else "-")
        for y in layers
    ]
    return _table(("layer", "shape", "kept", "of", "density"), rows) if rows else "Nothing in it is prunable."


def _making(facts: Facts) -> str:
    made, manifest = facts.manifest.get("environment") or {}, facts.manifest
    rows = [
        ("recipe", f"revision {facts.version.recipe_revision}, `{facts.version.recipe_digest}`"),
        ("seed", manifest.get("seed", "unknown")),
        ("training", _options(facts.recipe.get("training"))),
        ("replay", _options(facts.recipe.get("replay"))),
        ("weights are stored as", manifest.get("values", "float32")),
        *((name, _plain(value)) for name, value in sorted(made.items())),
    ]
    return _table(("", ""), rows)


def _limits(facts: Facts) -> str:
    version = facts.version
    absent = [
        ("the evaluation set", _because(facts), "evaluation_accuracy" in version.metrics),
        ("validation examples", "", "validation_accuracy" in version.metrics),
    ]
    return "\n".join(
        [
            "- It knows the classes above alone: whatever it is shown, it answers with one of them.",
            "- The figures hold for data like that of the megabatches. How it answers to other data was not measured.",
            "- Fairness between groups of people, robustness to attacks, and energy were not measured.",
            "- Sizes are measured in bytes; that a sparse network is faster is not claimed.",
            *(f"- Nothing was measured on {what}{why}." for what, why, measured in absent if not measured),
            *(["- Its guardrails did not pass."] if not version.verdict.passed else []),
            "- The labels are those that were uploaded; whether they are right, the service cannot know.",
        ]
    )


def _because(facts: Facts) -> str:
    return (
        ": there is none, so that every figure is of data that came with the megabatches"
        if not facts.evaluation
        else ""
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _options(chosen: Any) -> str:
    """An option of a recipe with its parameters: ``sgd (momentum 0.9)``."""
    if not isinstance(chosen, Mapping):
        return "unknown" if chosen is None else _plain(chosen)
    inner = [
        f"{name} {_options(value)}" for name, value in sorted(chosen.items()) if name != "name" and value is not None
    ]
    name = _plain(chosen.get("name", ""))
    return f"{name} ({', '.join(inner)})" if name and inner else name or ", ".join(inner)


def _figure(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.6g}"


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) if shape else "unknown"


def _plain(value: object) -> str:
    """Text without effect in Markdown: one line, its marks escaped."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", text)
