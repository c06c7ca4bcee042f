"""The models of a slice as the core sees them, with the names of their tensors in the output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.models.layers import Decoder, decoder_of, kinds
from sensmerge.models.modules import module_of
from sensmerge.models.vocabulary.names import INPUT_EMBEDDINGS, OUTPUT_HEADS
from sensmerge.recipe.modules import REST

if TYPE_CHECKING:
    from sensmerge import _core
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.slices import Slice


@dataclass(frozen=True)
class View:
    """A model as a slice of the output sees it.

    Attributes:
        model: The model.
        names: The stored tensor of every output tensor; None if all have their own names.
    """

    model: Model
    names: dict[str, str] | None = None

    @property
    def outputs(self) -> list[str]:
        """The names of its tensors in the output."""
        return self.model.tensors if self.names is None else list(self.names)

    def plain(
        self,
        checkpoints: list[_core.Checkpoint],
        rows: dict[str, Any] | None,
        orders: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The view as the core's request has it.

        Args:
            checkpoints: The checkpoints of the request; the core knows them by their place.
            rows: The rows of the tensors of the vocabulary; None for its own.
            orders: Tensors whose rows or columns are taken in another order.
        """
        return self.model.plain(checkpoints) | {
            "names": self.names,
            "aliases": _aliases(self.model),
            "rows": rows,
            "orders": orders or {},
        }


@dataclass(frozen=True)
class Views:
    """The models of a slice.

    Attributes:
        base: The base; None if there is none beside the merged models.
        experts: The merged models, in their order.
    """

    base: View | None
    experts: list[View]

    @property
    def all(self) -> list[View]:
        """The base, if there is one, and every merged model."""
        return [*([] if self.base is None else [self.base]), *self.experts]

    @property
    def template(self) -> View:
        """The model whose tensors the slice has."""
        return self.experts[0] if self.base is None else self.base


def views_of(recipe: Recipe, part: Slice, models: Models) -> Views:
    """The models of a slice, with the names that their tensors get.

    Raises:
        InputError: A model does not have the layers of the slice.
    """
    experts = recipe.experts_of(part)
    named = recipe.base_of(part)
    role = recipe.method.base
    # A base that is not merged tells whole models' tensors; a slice has those of its sources.
    beside = role != "merged" and (role != "unused" or recipe.slices is None)
    base = models.find(named) if beside and named is not None else None
    views = Views(
        None if base is None else View(base), [View(models.find(each.model)) for each in experts]
    )
    if recipe.slices is None:
        return views
    return Stack.of(recipe, models, part.module).views(part, views)


@dataclass(frozen=True)
class Stack:
    """The slices of one module of the output, one upon the other.

    Attributes:
        parts: The slices. The only one of a module may be whole: then it has no layers of its own,
            and tensors keep their names.
        models: The recipe's models.
        module: The module; None if the recipe has no modules.
        modules: The names of all modules of the recipe.
        starts: The first layer of every slice in the output, and at the end the number of layers;
            empty if the module is merged whole.
    """

    parts: list[Slice]
    models: Models
    module: str | None
    modules: list[str]
    starts: list[int]

    @classmethod
    def of(cls, recipe: Recipe, models: Models, module: str | None) -> Stack:
        """Place the slices of a module.

        Raises:
            InputError: A model does not have the layers of a slice, or no tensor of the module.
        """
        parts = [part for part in recipe.parts if part.module == module]
        modules = list(dict.fromkeys(part.module for part in recipe.parts if part.module))
        stack = cls(parts, models, module, modules, [])
        if module is not None and stack._is_whole():
            return stack
        stack.starts.append(0)
        for part in parts:
            lengths = {end - first for _, (first, end) in stack._ranges(part)}
            if len(lengths) > 1:
                said = " and ".join(map(str, sorted(lengths)))
                raise InputError(
                    f"{part.key}: its sources have {said} layers; all need the same number"
                )
            stack.starts.append(stack.starts[-1] + lengths.pop())
        return stack

    def _is_whole(self) -> bool:
        """Whether the module has all of its models' layers, each in its place.

        Raises:
            InputError: It has not, and the config's keys that count them are not known.
        """
        sources = [(part, source) for part in self.parts for source in part.sources]
        whole = len(self.parts) == 1 and not any(source.layer_range for _, source in sources)
        if whole or self.module in REST:
            return whole
        for part, source in sources:
            model = self.models.find(source.model)
            deepest = max((kind.count for kind in kinds(self.tensors(model))), default=0)
            if len(self.parts) > 1 or source.layer_range not in (None, (0, deepest)):
                raise InputError(
                    f"{part.key}: only the language model's layers can be restacked; list the "
                    "module's models without layer_range"
                )
        return True

    def views(self, part: Slice, whole: Views) -> Views:
        """The views of one slice, with the names of its tensors in the output."""
        base, experts = whole.base, whole.experts
        if not self.starts:
            named = [replace(view, names=self._own_names(view.model)) for view in whole.all]
            return Views(None if base is None else named.pop(0), named)
        ranges = self._ranges(part)
        return Views(
            None if base is None else self._view(part, base, self._base_range(part, base, ranges)),
            [self._view(part, view, self._range(view, ranges)) for view in experts],
        )

    def layers(self) -> list[tuple[Model, int]]:
        """The layers of the output: for each the first model that it comes from, and its number.

        There are none if the module is merged whole.
        """
        found = []
        for part in self.parts if self.starts else ():
            model, (first, end) = self._ranges(part)[0]
            found += [(model, layer) for layer in range(first, end)]
        return found

    def tensors(self, model: Model) -> list[str]:
        """The tensors of a model that are in the module.

        Raises:
            InputError: There are none, or some are in no module.
        """
        if self.module is None:
            return model.tensors
        homes = {name: module_of(name, self.modules) for name in model.tensors}
        homeless = [name for name, module in homes.items() if module is None]
        if homeless:
            raise InputError(
                f"modules: {len(homeless)} tensors of {model.path}, such as {homeless[0]}, are in "
                "none of the modules; add text_decoder, which has all that no other has"
            )
        found = [name for name, module in homes.items() if module == self.module]
        if not found:
            parts = sorted({name.rpartition(".")[0].split(".0.")[0] for name in model.tensors})
            raise InputError(
                f"modules.{self.module}: {model.path} has no tensor in a module of that name; its "
                f"tensors are in {', '.join(parts[:8])}{', ...' if len(parts) > 8 else ''}"
            )
        return found

    def _own_names(self, model: Model) -> dict[str, str]:
        return {name: name for name in self.tensors(model)}

    def _ranges(self, part: Slice) -> list[tuple[Model, tuple[int, int]]]:
        """The layers of every source: the first, and the one after the last."""
        found = []
        for at, source in enumerate(part.sources):
            model = self.models.find(source.model)
            count = self._decoder(model).count
            first, end = source.layer_range or (0, count)
            if end > count:
                raise InputError(
                    f"{part.key}.sources[{at}].layer_range: {model.name} has {count} layers, and "
                    f"[{first}, {end}] ends beyond them"
                )
            found.append((model, (first, end)))
        return found

    def _range(self, view: View, ranges: list[tuple[Model, tuple[int, int]]]) -> tuple[int, int]:
        return next(layers for model, layers in ranges if model is view.model)

    def _base_range(
        self, part: Slice, base: View, ranges: list[tuple[Model, tuple[int, int]]]
    ) -> tuple[int, int]:
        """The base's layers; those of all sources where the base is not among them."""
        if any(model is base.model for model, _ in ranges):
            return self._range(base, ranges)
        if len({layers for _, layers in ranges}) > 1:
            raise InputError(
                f"{part.key}: its sources are of different layers, so that it is unclear which "
                f"layers of {base.model.name} they were tuned from; list it among them, with its "
                "layer_range"
            )
        return ranges[0][1]

    def _view(self, part: Slice, view: View, layers: tuple[int, int]) -> View:
        decoder = self._decoder(view.model)
        place = next(place for place, each in enumerate(self.parts) if each is part)
        first, end = layers
        shift = self.starts[place] - first
        names = {}
        for name in self.tensors(view.model):
            layer = decoder.layer(name)
            if layer is None:
                outermost = 0 if _is_before(name) else len(self.parts) - 1
                if place == outermost:
                    names[name] = name
            elif first <= layer < end:
                names[decoder.renumbered(name, layer + shift)] = name
        return replace(view, names=names)

    def _decoder(self, model: Model) -> Decoder:
        found = decoder_of(self.tensors(model), model.config)
        if found is None:
            raise InputError(
                f"{model.path}: has no numbered layers, or several kinds of them, and its "
                "config.json does not say how many make up the model: it cannot be sliced"
            )
        return found


def _is_before(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, like an embedding."""
    if name.endswith(OUTPUT_HEADS):
        return False
    return any(part in name for part in ("embed", "wte", "wpe", "project_in"))


def _aliases(model: Model) -> dict[str, str]:
    """Output heads that a model may lack, each with the tensor to which it is tied."""
    if model.checkpoint.in_memory:
        return model.checkpoint.tied
    if not model.config.get("tie_word_embeddings", False):
        return {}
    embedding = next((name for name in model.tensors if name.endswith(INPUT_EMBEDDINGS)), None)
    return {} if embedding is None else dict.fromkeys(OUTPUT_HEADS, embedding)
