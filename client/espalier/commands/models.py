"""``espalier model``: register, look at, pause and resume models; ``espalier metrics``: their time line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.console import NONE, count, plural, share, size, when
from espalier.records import Model
from espalier.session import Limit, ModelName, Reason, Session, command, group

Preset = Annotated[
    str | None, typer.Option(help="Recipe to start from: espalier, app-paper, dense, one-shot.", show_default=False)
]
TargetDensity = Annotated[
    str | None,
    typer.Option(
        help="Share of the weights kept at the end, or safe (0.366), balanced (0.2), small (0.1), tiny (0.05).",
        show_default=False,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="One choice of the recipe, repeatable: --set schedule.stages=12 --set network.hidden=[128,64].",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="Recipe file, JSON or TOML; --set and the like win over it.", exists=True, dir_okay=False
    ),
]


class UnseenClasses(StrEnum):
    """What becomes of a label beyond a model's classes."""

    REJECT = "reject"
    EXTEND = "extend"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    model = group(app, "model", "Models: create, list, show, pause, resume.")
    command(model, "create")(create)
    command(model, "list")(list_models)
    command(model, "show")(show)
    command(model, "pause")(pause)
    command(model, "resume")(resume)
    command(app, "metrics")(metrics)


def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and hyphens.")],
    preset: Preset = None,
    network: Annotated[str | None, typer.Option(help="Network, such as mlp or cnn.", show_default=False)] = None,
    target_density: TargetDensity = None,
    assignments: Assignments = None,
    recipe: RecipeFile = None,
    input: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='What is known of the input: \'{"classes": ["ethanol", "ethylene"]}\', or @FILE.',
            show_default=False,
        ),
    ] = None,
    unseen_classes: Annotated[
        UnseenClasses | None,
        typer.Option(
            help="What becomes of a megabatch with a label beyond the classes: it is refused, or adds the class.",
            show_default="reject",
        ),
    ] = None,
    initial_weights: Annotated[
        Path | None,
        typer.Option(help="Trained weights to start from (safetensors).", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Register a model. The same again changes nothing."""
    named_network = [] if network is None else [f"network.name={json.dumps(network)}"]
    document = recipe_of(recipe, preset, target_density, [*named_network, *(assignments or [])])
    described = None if input is None else read_input(input)
    if unseen_classes is not None:
        described = {**(described or {}), "unseen_classes": unseen_classes.value}
    made = session.client.create_model(name, document, input=described, initial_weights=initial_weights)
    named = f"{document['preset']} recipe" if "preset" in document else "recipe"
    session.result(
        made,
        f"{'unchanged:' if made.replayed else 'created'} {made.name}: {named} (revision {made.recipe_revision}), "
        f"{describe(made.recipe)}",
    )


def list_models(session: Session, limit: Limit = 100) -> None:
    """List models."""
    models = [model for model, _ in zip(session.client.models(), range(limit), strict=False)]
    rows = [
        (
            model.name,
            model.state,
            NONE if model.champion is None else model.champion.number,
            share(None if model.champion is None else model.champion.density),
            share(None if model.champion is None else model.champion.metrics.get("validation_accuracy")),
            count(model.megabatches),
            _queue(model),
        )
        for model in models
    ]
    columns = ("model", "state", "champion", "density", "validation", "megabatches", "cycles")
    session.table(models, columns, rows, "no models yet: `espalier model create NAME` registers one")


def show(session: Session, name: ModelName) -> None:
    """Show one model: champion, queue, recipe."""
    model = session.client.model(name)
    champion = model.champion
    rows: dict[str, object] = {
        "model": model.name,
        "state": model.state if model.paused_reason is None else f"{model.state}: {model.paused_reason}",
        "champion": "none yet"
        if champion is None
        else f"version {champion.number}   density {share(champion.density)}   "
        f"validation {share(champion.metrics.get('validation_accuracy'))}",
        "megabatches": count(model.megabatches),
        "cycles": _queue(model),
        "last failure": model.last_failure or NONE,
        "recipe": f"revision {model.recipe_revision}: {describe(model.recipe)}",
        "digest": model.recipe_digest,
        "input": _input(model),
        "created": when(model.created_at),
    }
    rows |= {f"  {path}": json.dumps(value, ensure_ascii=False) for path, value in flat(model.recipe)}
    session.pairs(model, rows)


def pause(session: Session, name: ModelName, reason: Reason) -> None:
    """Stop starting cycles; uploads are still taken in."""
    model = session.client.pause(name, reason)
    session.result(model, f"{model.name} is {model.state}: {model.paused_reason or reason}")


def resume(session: Session, name: ModelName, reason: Reason) -> None:
    """Start cycles again."""
    model = session.client.resume(name, reason)
    session.result(model, f"{model.name} is {model.state}; {_queue(model)}")


def metrics(session: Session, name: ModelName) -> None:
    """Show a model's time line: density, accuracies, gap, drift and bytes of each version, oldest first."""
    points = list(session.client.time_line(name))
    rows = [
        (
            point.version,
            point.status + (", champion" if point.champion_now else ""),
            point.stage,
            share(point.density),
            share(point.metrics.get("validation_accuracy")),
            share(point.metrics.get("prequential_accuracy")),
            share(point.metrics.get("generalization_gap")),
            share(point.metrics.get("input_drift")),
            share(point.metrics.get("label_shift")),
            NONE if (alarms := point.metrics.get("alarms")) is None else count(int(alarms)),
            size(point.checkpoint_bytes),
            size(point.dense_bytes),
            count(point.megabatches),
            when(point.created_at),
        )
        for point in points
    ]
    columns = (
        "version", "status", "stage", "density", "validation", "on arrival", "gap", "input drift", "label shift",
        "alarms", "size", "dense", "megabatches", "created",
    )  # fmt: skip
    session.table(points, columns, rows, f"{name} has no versions yet: `espalier batch push {name} FILE --wait`")


def recipe_of(
    file: Path | None, preset: str | None, target_density: str | None, assignments: Sequence[str] | None
) -> dict[str, Any]:
    """What the options of a command say of a recipe: a file, and over it what else was given."""
    document = read_recipe(file) if file else {}
    if preset is not None:
        document["preset"] = preset
    if target_density is not None:
        assign(document, f"schedule.target={target_density}")
    for assignment in assignments or []:
        assign(document, assignment)
    return document


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe file: TOML by its ending, else JSON."""
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, OSError) as error:  # both parsers' errors are ValueErrors
        raise typer.BadParameter(f"{path} is neither JSON nor TOML that can be read: {error}") from error
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{path} holds no object: a recipe looks like {{'preset': 'espalier'}}")
    return document


def read_input(text: str) -> dict[str, Any]:
    """A declared input: JSON, or a file of it after ``@``."""
    try:
        document = json.loads(Path(text[1:]).read_text("utf-8") if text.startswith("@") else text)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"--input cannot be read ({error}); write it like '{{\"shape\": [128]}}'") from error
    if not isinstance(document, dict):
        raise typer.BadParameter("--input must be an object, such as '{\"shape\": [128]}'")
    return document


def assign(document: dict[str, Any], assignment: str) -> None:
    """Carry out ``path=value`` on a recipe: keys between dots, value as JSON, or else as text."""
    path, sign, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise typer.BadParameter(f"--set {assignment}: write path=value, such as schedule.stages=12")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    place: Any = document
    for key in keys[:-1]:
        place = _inside(place, key, assignment)
    if isinstance(place, list) and keys[-1].isdecimal() and int(keys[-1]) < len(place):
        place[int(keys[-1])] = value
    elif isinstance(place, dict):
        place[keys[-1]] = value
    else:
        raise _misplaced(assignment, keys[-1])


def describe(recipe: Mapping[str, Any]) -> str:
    """A resolved recipe in one line: how far it prunes, in how many stages, and when."""
    schedule, trigger = recipe.get("schedule") or {}, recipe.get("trigger") or {}
    match schedule.get("name"):
        case "app":
            end = 0.8 ** float(schedule["tau"])
            pruning = f"100 % -> {100 * end:.0f} % in {plural(int(schedule['stages']), 'stage')}"
        case "factor" | "linear" | "cubic":
            stages = plural(int(schedule["stages"]), "stage")
            pruning = f"100 % -> {100 * float(schedule['target']):.0f} % in {stages}"
        case "one-shot":
            pruning = f"100 % -> {100 * float(schedule['target']):.0f} % in 1 stage"
        case "examples":
            pruning = f"100 % -> {100 * float(schedule['target']):.0f} % at {int(schedule['until']):,} examples"
        case "auto":
            pruning = f"100 % -> {100 * float(schedule['target']):.0f} % at the least, while accuracy holds"
        case "constant":
            pruning = "no pruning"
        case other:
            pruning = f"schedule {other}"
    match trigger.get("name"):
        case "megabatches" if trigger.get("every") == 1:
            start = "one per megabatch"
        case "megabatches":
            start = f"one per {trigger.get('every')} megabatches"
        case "cron":
            start = f"at '{trigger.get('expression')}' UTC"
        case "manual":
            start = "on request"
        case other:
            start = f"trigger {other}"
    return f"{pruning}, {start}"


def flat(value: object, path: str = "") -> list[tuple[str, object]]:
    """A tree as dotted paths and leaves, as ``--set`` takes them."""
    if isinstance(value, Mapping) and value:
        return [leaf for key, item in value.items() for leaf in flat(item, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [leaf for index, item in enumerate(value) for leaf in flat(item, f"{path}.{index}")]
    return [(path, value)]


def _inside(place: Any, key: str, assignment: str) -> Any:
    if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
        return place[int(key)]
    if isinstance(place, dict):
        return place.setdefault(key, {})
    raise _misplaced(assignment, key)


def _misplaced(assignment: str, key: str) -> typer.BadParameter:
    return typer.BadParameter(
        f"--set {assignment}: there is nothing to put {key!r} into; whole lists are set at once, "
        'such as --set guardrails=[{"name": "accuracy-drop"}]'
    )


def _queue(model: Model) -> str:
    running = [] if model.running_cycle is None else [f"{model.running_cycle} running"]
    queued = [f"{model.queued_cycles} queued"] if model.queued_cycles else []
    return ", ".join(running + queued) or "none waiting"


def _input(model: Model) -> str:
    spec = model.input
    if spec.shape is None or spec.classes is None:
        return "inferred from the first megabatch"
    shape = " x ".join(map(str, spec.shape))
    more = " (more may come)" if spec.unseen_classes == "extend" else ""
    return f"{shape} {spec.dtype}, {plural(len(spec.classes), 'class', 'classes')}: {', '.join(spec.classes)}{more}"
