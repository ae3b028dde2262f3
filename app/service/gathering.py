"""Gathering: what a claimed cycle is given, chosen, written down and brought into memory.

Knows: which megabatches a lineage has seen, what becomes of each of them, where bytes lie. Must never know: HTTP, when
cycles are due, how the method works, or what becomes of the result.

Law: a cycle is given what its ``Inputs`` say and nothing else, so whoever has those can give it the same once more.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load as load_safetensors

from app import __version__
from app.config import Settings
from app.domain import CHAMPION, HOLDING, Claim, CycleState, CycleTrigger, Digest, Megabatch
from app.errors import InvalidRecipe, InvalidWeights
from app.learning.cycle import CycleInput, Examples, NormalisationState, Parent
from app.learning.guardrails import diverged, hold_since
from app.learning.history import History, Hold
from app.learning.plan import Arrays
from app.learning.recipe import Custom, NoReplay, Recipe
from app.service.guardrail_actions import scale_of
from app.service.inputs import Asked, Chosen, Fed, Inputs, Origin, Role
from app.service.state import State, present_rows, spread, state_of
from app.store.array_files import Column, side_by_side
from app.store.blobs import disk_errors
from app.store.database import Store, Transaction
from espalier.formats import checkpoint
from espalier.formats.writer import ZSTD

Masks = Mapping[int, npt.NDArray[np.bool_]]

MOST_ASKED = 64
"""Past megabatches outside the replay buffer whose validation examples are asked, to measure forgetting."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a claimed cycle needs in memory.

    Attributes:
        inputs: what it was given, by digest.
        given: the same as arrays.
        before: what its parent hands on.
    """

    inputs: Inputs
    given: CycleInput
    before: State

    @property
    def held(self) -> bool:
        """Whether guardrails hold the density in this cycle."""
        return bool(self.given.history.holds)


@disk_errors()
def gather(store: Store, settings: Settings, claim: Claim, device: torch.device) -> Work | None:
    """The cycle's pinned inputs: recipe, parent, evaluation set, megabatches up to the pinned last one.

    Returns:
        None when nothing is left to train on.
    """
    recipe = Recipe.resolve(claim.recipe.document)
    pins = frozenset[int]() if isinstance(recipe.replay, NoReplay) else claim.pinned
    before = state_of(store.blobs, claim.parent)
    with store.reading() as tx:
        eligible = tx.buffer.eligible(claim.model, seen=before.seen, through=claim.cycle.through)
        past = _Past.of(before, pins, frozenset(tx.buffer.accepted(claim.model)))
        old = tx.buffer.training_set(claim.model, past.numbers)
        holds = _holds(store, tx, claim, recipe)
        anew = claim.parent is None and CHAMPION in tx.ledger.pointed(claim.model)
    first = claim.cycle.trigger is CycleTrigger.INITIAL_WEIGHTS
    if not eligible and not first:
        return None
    if recipe.initial_weights is not None and claim.parent is None and not (first or anew):
        raise InvalidWeights("version 0 is not there to start from: resume the model, which makes it anew")
    rows = replayed_rows(before, [megabatch for megabatch in old if megabatch.number in past.replayed])
    fed = [Fed.of(m, past.role(m.number), pinned=m.number in pins, rows=_chosen(rows, m.number, past)) for m in old]
    fed += [Fed.of(m, Role.NEW, pinned=m.number in pins, rows=None) for m in eligible]
    inputs = Inputs(
        model=claim.model.name,
        version=claim.next_version,
        cycle=claim.cycle.number,
        attempt=claim.cycle.attempt,
        recipe_revision=claim.recipe.revision,
        recipe_digest=claim.recipe.digest,
        seed=recipe.seed,
        input=claim.model.input,
        parent=_origin(claim),
        initial_weights=recipe.initial_weights if first or anew else None,
        megabatches=tuple(sorted(fed, key=lambda each: each.number)),
        evaluation=Asked.of(claim.evaluation) if claim.evaluation else None,
        holds=tuple(asdict(hold) for hold in holds),
        scale=scale_of(claim.cycle.attempt),
        architecture=_place(settings, recipe),
        environment=environment(device),
    )
    return Work(inputs, given_of(store, inputs, recipe, before, rows), before)


def given_of(store: Store, inputs: Inputs, recipe: Recipe, before: State, rows: Masks) -> CycleInput:
    """Bring inputs into memory.

    Args:
        recipe: of their digest.
        before: what the parent hands on.
        rows: of the megabatches that are replayed in part, by number: (n,) bool.

    Raises:
        InvalidRecipe: this worker cannot build the recipe's network.
        MissingBlob, CorruptBlob: bytes are gone, or changed.
    """
    fed = inputs.megabatches
    released = {each.number: np.ones(each.examples, np.bool_) for each in fed if each.role is Role.RELEASED}
    return CycleInput(
        recipe=recipe,
        input=inputs.input,
        parent=_parent(store, inputs.parent, before),
        attempt=inputs.attempt,
        megabatches=_examples(store, {each.number: each for each in fed}),
        new=inputs.new,
        untested=frozenset(each.number for each in fed if each.untested),
        replay={number: mask for number, mask in rows.items() if mask.any()} | released,
        pinned=inputs.pinned,
        evaluation=_examples(store, {0: inputs.evaluation})[0] if inputs.evaluation else None,
        holds=tuple(Hold(**hold) for hold in inputs.holds),
        scale=inputs.scale,
        initial=_initial_weights(store, inputs.initial_weights),
        architecture=_architecture(recipe, inputs.architecture),
    )


def replayed_rows(before: State, megabatches: Sequence[Megabatch]) -> dict[int, npt.NDArray[np.bool_]]:
    """The rows of the parent's replay buffer that are there still, of megabatches that are in it, by number."""
    return {m.number: present_rows(before.replay[m.number], m) for m in megabatches}


def environment(device: torch.device) -> dict[str, Any]:
    """Where a cycle runs: what may move its last bits, and what wrote its files."""
    return {
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "espalier": __version__,
        "zstd": ZSTD,
        "kernels": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
    }


def _processor() -> str:
    """Which of its kernels torch chose for this processor: others may round otherwise."""
    return str(torch.backends.cpu.get_cpu_capability())


# -- choosing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Past:
    """Accepted megabatches that a lineage has seen, by what becomes of them: no number is in two of the sets.

    Attributes:
        pinned: replayed whole.
        replayed: in the parent's replay buffer, some of their rows at least.
        released: pinned no longer; the replay policy may choose among all of their rows again.
        asked: in no buffer; their validation examples alone are asked, to measure forgetting.
    """

    pinned: frozenset[int]
    replayed: frozenset[int]
    released: frozenset[int]
    asked: frozenset[int]

    @classmethod
    def of(cls, before: State, pins: frozenset[int], accepted: frozenset[int]) -> _Past:
        """What a parent's state, the pins of today and the quarantine say."""
        seen = frozenset(before.seen) & accepted
        pinned = seen & pins
        replayed = (seen - pinned).intersection(before.replay)
        released = seen & before.pinned - pinned - replayed
        asked = spread(seen - pinned - replayed - released, MOST_ASKED)
        return cls(pinned, replayed, released, frozenset(asked))

    @property
    def numbers(self) -> list[int]:
        """All of them."""
        return [*self.replayed, *self.pinned, *self.released, *self.asked]

    def role(self, number: int) -> Role:
        """What becomes of one."""
        return next(role for role in Role if role is not Role.NEW and number in getattr(self, role.value))


def _chosen(rows: Masks, number: int, past: _Past) -> Chosen | None:
    return Chosen.of(rows[number]) if number in past.replayed else None


def _origin(claim: Claim) -> Origin | None:
    if (found := claim.parent) is None:
        return None
    return Origin(found.number, found.checkpoint, found.state, found.stage, found.depth, found.verdict.passed)


def _holds(store: Store, tx: Transaction, claim: Claim, recipe: Recipe) -> tuple[Hold, ...]:
    """What holds pruning beside the parent's history: guardrails that tripped on an attempt that is in no lineage."""
    withheld = tx.ledger.held_since(claim.model, claim.cycle.parent)
    if withheld is not None:
        return _history(state_of(store.blobs, withheld)).holds
    before = tx.ledger.attempt_before(claim.cycle)
    if before is None or before.state is not CycleState.FAILED:
        return ()
    trip = diverged(recipe.guardrails, before.reason or "")
    return (hold_since(trip),) if trip and trip.action in HOLDING else ()


def _place(settings: Settings, recipe: Recipe) -> str | None:
    """Where the user's own network comes from, if the recipe asks for one."""
    if not isinstance(recipe.network, Custom):
        return None
    return settings.architectures.get(recipe.network.architecture, "")


# -- fetching ----------------------------------------------------------------------------------------------------------


def _parent(store: Store, origin: Origin | None, state: State) -> Parent | None:
    if origin is None:
        return None
    saved = checkpoint.decode(store.blobs.read(origin.checkpoint))
    history = _history(state) if origin.passed else _history(state).pardoned()  # promoted by hand
    classes = len(saved.manifest["input"]["classes"])
    return Parent(saved.arrays, saved.masks, origin.stage, origin.depth, _statistics(saved), history, classes)


def _history(state: State) -> History:
    return History.from_document(state.history) if state.history else History()


def _statistics(saved: checkpoint.Checkpoint) -> NormalisationState | None:
    if not saved.normalisation:
        return None
    return NormalisationState(saved.normalisation["mean"], saved.normalisation["std"])


def _examples(store: Store, found: Mapping[int, Fed | Asked]) -> list[Examples]:
    """By number, verified and mapped side by side; labels and ids are mapped while they are looked at."""
    mapped = side_by_side([partial(store.blobs.verified, each.x) for each in found.values()])
    return [
        Examples(number, x, *(_column(store, digest, each.examples) for digest in (each.y, each.ids)))
        for (number, each), x in zip(found.items(), mapped, strict=True)
    ]


def _column(store: Store, digest: Digest, length: int) -> Column:
    return Column(partial(store.blobs.verified, digest), length)


def _initial_weights(store: Store, digest: Digest | None) -> Arrays | None:
    return None if digest is None else load_safetensors(store.blobs.read(digest))


def _architecture(recipe: Recipe, place: str | None) -> Callable[..., torch.nn.Module] | None:
    """The user's own network factory, by the name that the recipe gives it.

    Raises:
        InvalidRecipe: this worker does not know it, or cannot import it.
    """
    if not isinstance(recipe.network, Custom):
        return None
    module, _, factory = (place or "").partition(":")
    try:
        found: Callable[..., torch.nn.Module] = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRecipe(
            f"this worker cannot load architecture {recipe.network.architecture!r} from {place or 'nowhere'!r} "
            f"({error}): set ESPALIER_ARCHITECTURES alike on the server and its workers"
        ) from error
    return found
