"""The part of ``tx.ledger`` about models: names, recipes, inputs, states, clock ticks.

Knows: that a model's row is the lock under which everything of that model changes. Must never know: cycles, versions.

Laws:
    * Everything that changes a model's cycles, versions or aliases locks the model's row first.
    * A recipe revision is immutable; so is a clock tick: one is taken up once, whoever sees it first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.domain import Actor, Digest, InputSpec, Model, ModelState, Page, RecipeRevision
from app.errors import InvalidName, ModelExists, UnknownModel, UnknownRevision
from app.store.rows import input_document, model_of, recipe_of
from app.store.tables import LARGEST, NAME_PATTERN, models, recipes, ticks

NAME = re.compile(NAME_PATTERN)


class Registry:
    """The models, as one transaction sees them."""

    def __init__(self, connection: sa.Connection, actor: Actor, now: datetime) -> None:
        self._connection = connection
        self._actor = actor
        self._now = now

    def create_model(
        self, name: str, recipe_document: Mapping[str, Any], recipe_digest: Digest, input: InputSpec
    ) -> Model:
        """Register a model with the first revision of its recipe.

        Raises:
            InvalidName, ModelExists: nothing was changed.
        """
        if not NAME.fullmatch(name):
            raise InvalidName(f"{name!r} cannot name a model: use 1 to 63 lower-case letters, digits and hyphens")
        new = sa.insert(models).values(
            name=name,
            state=ModelState.ACTIVE.value,
            recipe_revision=1,
            recipe_digest=recipe_digest,
            input=input_document(input),
            generation=1,
            created_at=self._now,
        )
        try:
            self._connection.execute(new)
        except sa.exc.IntegrityError as error:
            raise ModelExists(f"a model named {name!r} exists already: choose another name") from error
        model = self.model(name)
        self._add_recipe(model, 1, recipe_document, recipe_digest)
        return model

    def revise_recipe(self, model: Model, recipe_document: Mapping[str, Any], recipe_digest: Digest) -> Model:
        """Give a model the next revision of its recipe. Cycles that run now can no longer publish."""
        revision = self._locked(model).recipe_revision + 1
        self._add_recipe(model, revision, recipe_document, recipe_digest)
        generation = models.c.generation + 1
        return self._change(model, recipe_revision=revision, recipe_digest=recipe_digest, generation=generation)

    def model(self, name: str) -> Model:
        """A model by name.

        Raises:
            UnknownModel: no model has this name.
        """
        return self._model(name, lock=False)

    def models(self, after: str | None, limit: int, only: Collection[str] | None = None) -> Page[Model]:
        """Models by name.

        Args:
            after: go on after this name.
            limit: at most this many.
            only: of these names; None: all.
        """
        wanted = sa.select(models).order_by(models.c.name).limit(limit + 1)
        if after is not None:
            wanted = wanted.where(models.c.name > after)
        if only is not None:
            wanted = wanted.where(models.c.name.in_(only))
        items = tuple(map(model_of, self._connection.execute(wanted)))
        return Page(items[:limit], items[limit - 1].name if len(items) > limit else None)

    def lock_model(self, name: str) -> Model:
        """A model by name; nobody else changes anything of it until this transaction ends.

        Raises:
            UnknownModel: no model has this name.
            StoreBusy: another transaction holds it for too long.
        """
        return self._model(name, lock=True)

    def set_input(self, model: Model, input: InputSpec) -> Model:
        """Complete a model's input spec."""
        return self._change(model, input=input_document(input))

    def set_state(self, model: Model, state: ModelState, reason: str | None) -> Model:
        """Pause or resume a model; the reason is kept while it is paused."""
        return self._change(model, state=state.value, paused_reason=reason if state is ModelState.PAUSED else None)

    def bump_generation(self, model: Model) -> Model:
        """Invalidate every cycle of the model that runs now: none of them can publish."""
        return self._change(model, generation=models.c.generation + 1)

    def recipe(self, model_name: str, revision: int | None = None) -> RecipeRevision:
        """A revision of a model's recipe; None is the present one.

        Raises:
            UnknownModel: no model has this name.
            UnknownRevision: the model's recipe has no such revision.
        """
        model = self.model(model_name)
        return self._recipe(model, model.recipe_revision if revision is None else revision)

    def recipes(self, model: Model, after: int | None, limit: int) -> Page[RecipeRevision]:
        """Revisions of a model's recipe, newest first; ``after`` goes on below that revision."""
        wanted = sa.select(recipes).where(recipes.c.model_id == model.id).order_by(recipes.c.revision.desc())
        if after is not None:
            wanted = wanted.where(recipes.c.revision < after)
        rows = self._connection.execute(wanted.limit(limit + 1)).all()
        items = tuple(recipe_of(row, model.name) for row in rows[:limit])
        return Page(items, str(items[-1].revision) if len(rows) > limit else None)

    def tick(self, model: Model, due_at: datetime) -> bool:
        """Take up a clock's tick. False when it was taken before, by whomever."""
        self._locked(model)
        taken = sa.select(ticks.c.due_at).where(ticks.c.model_id == model.id, ticks.c.due_at == due_at)
        if self._connection.execute(taken).one_or_none() is not None:
            return False
        self._connection.execute(sa.insert(ticks).values(model_id=model.id, due_at=due_at, taken_at=self._now))
        return True

    def last_tick(self, model: Model) -> datetime | None:
        """The newest tick that was taken up."""
        newest = sa.select(sa.func.max(ticks.c.due_at)).where(ticks.c.model_id == model.id)
        found: datetime | None = self._connection.execute(newest).scalar_one()
        return found

    # -- inside --------------------------------------------------------------------------------------------------------

    def _model(self, name: str, *, lock: bool) -> Model:
        row = None
        if NAME.fullmatch(name):
            wanted = sa.select(models).where(models.c.name == name)
            row = self._connection.execute(wanted.with_for_update() if lock else wanted).one_or_none()
        if row is None:
            raise UnknownModel(f"no model is named {name!r}: list the models to see their names")
        return model_of(row)

    def _locked(self, model: Model) -> Model:
        """The model as it is now, locked."""
        return model_of(self._connection.execute(_by_id(model).with_for_update()).one())

    def _change(self, model: Model, **values: object) -> Model:
        self._locked(model)
        self._connection.execute(sa.update(models).where(models.c.id == model.id).values(**values))
        return model_of(self._connection.execute(_by_id(model)).one())

    def _add_recipe(self, model: Model, revision: int, document: Mapping[str, Any], digest: Digest) -> None:
        row = sa.insert(recipes).values(model_id=model.id, revision=revision, digest=digest, document=dict(document))
        weights = document.get("initial_weights")
        self._connection.execute(row.values(initial_weights=weights, created_at=self._now))

    def _recipe(self, model: Model, revision: int) -> RecipeRevision:
        wanted = sa.select(recipes).where(recipes.c.model_id == model.id, recipes.c.revision == min(revision, LARGEST))
        row = self._connection.execute(wanted).one_or_none()
        if row is None:
            raise UnknownRevision(f"model {model.name!r} has no recipe revision {revision}: list its revisions")
        return recipe_of(row, model.name)


def _by_id(model: Model) -> sa.Select[Any]:
    return sa.select(models).where(models.c.id == model.id)
