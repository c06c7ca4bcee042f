"""The rows that every model of a merge gets for the tokens of the output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.models.vocabulary.names import has_rows
from sensmerge.models.vocabulary.notes import notes, without_rows
from sensmerge.models.vocabulary.output import (
    OutputVocabulary,
    output_vocabulary,
)
from sensmerge.models.vocabulary.rows import Chosen, Known, Wanted, selections
from sensmerge.recipe.tokenizer import ModelToken, Zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sensmerge.merging.views import View, Views
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.slices import Slice
    from sensmerge.recipe.tokenizer import Token


class Alignment:
    """The rows of all models of a recipe, by the tokens of the output."""

    def __init__(self, recipe: Recipe, models: Models) -> None:
        """Find the vocabulary of the output.

        Raises:
            InputError: There is no such tokenizer, or it is not known which tokens it has.
            OSError: A file cannot be examined.
        """
        self._recipe, self._models = recipe, models
        self.output: OutputVocabulary = output_vocabulary(recipe, models)
        self._aligned: list[Model] = []

    def rows(self, part: Slice, views: Views) -> list[dict[str, Any] | None]:
        """The rows of the models of one part: for each its own (None), or those to take instead.

        Raises:
            InputError: A row is asked for that a model does not have.
        """
        seen = views.all
        names = sorted({name for view in seen for name in view.outputs if has_rows(name)})
        known = [self._known(view.model) for view in seen]
        if not names or self.output.rows is None or any(each is None for each in known):
            return [None] * len(seen)
        home = next((at for at, view in enumerate(seen) if view.model is self.output.home), 0)
        wanted = Wanted(
            ids=self.output.ids or {},
            rows=self.output.rows,
            home=home,
            renamed=not self.output.named,
            chosen=self._chosen(seen),
        )
        merged = self._recipe.method.base == "merged" and self._recipe.base_of(part) is not None
        base = 0 if merged or views.base is not None else None
        found = selections(wanted, [each for each in known if each is not None], base)
        self._aligned += [view.model for view, rows in zip(seen, found, strict=True) if rows]
        return [None if rows is None else {"names": names, "selection": rows} for rows in found]

    def notes(self) -> list[str]:
        """What was done to the vocabularies of the models, for the user."""
        found = notes(self._models, self.output, self._aligned)
        return found + without_rows(self._models, self.output)

    def _known(self, model: Model) -> Known | None:
        """What a model knows; None if no tensor has a known name of an embedding."""
        rows = model.token_rows
        if rows is None:
            return None
        known = self._models.tokens(model)
        if known is None or self.output.ids is None:
            # As mergekit does, a model without a tokenizer is taken to have the base's.
            known = self._models.tokens(self._models.template)
        if known is None or self.output.ids is None:
            return Known({}, rows)
        return Known(known.ids, rows)

    def _chosen(self, views: Sequence[View]) -> dict[str, Chosen]:
        tokens = self._recipe.wanted_tokenizer.tokens
        return {token: self._choice(token, said, views) for token, said in tokens.items()}

    def _choice(self, token: str, said: Token, views: Sequence[View]) -> Chosen:
        if said.source is None:
            return Chosen(default=True, force=said.force)
        if isinstance(said.source, Zero):
            return Chosen(force=said.force)
        named = said.source.model if isinstance(said.source, ModelToken) else said.source
        at = f"tokenizer.tokens.{token}"
        model = self._models.named(named)
        number = next((at for at, view in enumerate(views) if view.model is model), None)
        if model is None or number is None:
            raise InputError(f"{at}: '{named}' is not merged there, so it has no row to take")
        rows = model.token_rows or 0
        known = self._known(model)
        if isinstance(said.source, ModelToken) and said.source.token_id is not None:
            row: int | None = said.source.token_id
            what = f"row {row}"
        else:
            wanted = token if isinstance(said.source, str) else said.source.token
            row = None if known is None else known.ids.get(str(wanted))
            what = f"token '{wanted}'"
        if row is None or row >= rows:
            raise InputError(f"{at}: {named} has no {what}")
        return Chosen(model=number, row=row, force=said.force)
