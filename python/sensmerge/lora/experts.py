"""The experts of a merge of adapters: one base, and what each one's adapters add to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.lora.core_space import LowRank, Matrix
from sensmerge.lora.stored import mapped, same, widened
from sensmerge.models.adapters import Adapter, Change
from sensmerge.models.dtypes import STORED
from sensmerge.recipe.places import parts_of

if TYPE_CHECKING:
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe

_WHOLE = "merge such models as wholes with `sensmerge merge`"

# What becomes of a change that is no product of two factors, by its kind in the core's request.
_KINDS = {
    "whole": "is stored whole (modules_to_save, a bias, or a whole embedding)",
    "rows": "holds rows of trained tokens (trainable_token_indices)",
}


@dataclass(frozen=True)
class Module:
    """A module that adapters change.

    Attributes:
        tensor: The name of its weight in the model's files.
        name: Its own name in the first adapter that changes it.
        shape: The shape ``(rows, columns)`` of its weight.
        embedding: Whether it is an embedding.
        transposed: Whether its weight is stored as inputs × outputs.
    """

    tensor: str
    name: str
    shape: tuple[int, int]
    embedding: bool
    transposed: bool


@dataclass(frozen=True)
class Experts:
    """What is merged.

    Attributes:
        base: The model that all adapters are added to, with the adapters that belong to it.
        names: The experts' names.
        changes: The changes that each expert's own adapters make, by the weights' names.
        adapters: These adapters, each once.
    """

    base: Model
    names: list[str]
    changes: list[dict[str, list[Change]]]
    adapters: list[Adapter]

    @cached_property
    def modules(self) -> list[Module]:
        """Every module that an expert changes, in the order of the model's tensors."""
        first: dict[str, Change] = {}
        for expert in self.changes:
            for tensor, found in expert.items():
                first.setdefault(tensor, found[0])
        return [
            Module(
                tensor,
                change.module,
                (shape[0], shape[1]),
                change.embedding,
                bool(change.plain["transposed"]) and not change.embedding,
            )
            for tensor, shape in self.base.shapes.items()
            if (change := first.get(tensor)) is not None
        ]

    def ranks(self, tensor: str) -> int:
        """What the ranks of all changes of a weight add up to."""
        return sum(
            self._info(change, "a").shape[0]
            for expert in self.changes
            for change in expert.get(tensor, [])
        )

    def read(self, module: Module) -> list[LowRank]:
        """The change that each expert makes to a module's weight, of rank 0 where it makes none.

        Raises:
            InputError: A factor does not fit the weight, or holds NaN or infinite values.
        """
        return [self._read(module, expert.get(module.tensor, [])) for expert in self.changes]

    def _read(self, module: Module, changes: Sequence[Change]) -> LowRank:
        rows, columns = module.shape
        left, right = [np.empty((rows, 0))], [np.empty((columns, 0))]
        for change in changes:
            a, b = self._factor(change, "a"), self._factor(change, "b") * change.plain["scale"]
            one, other = (a.T, b) if change.plain["transposed"] else (b, a.T)
            if (len(one), len(other)) != module.shape or one.shape[1] != other.shape[1]:
                raise InputError(
                    f"{change.checkpoint.path}, tensor '{change.plain['a']}': has a change of "
                    f"[{len(one)}, {len(other)}], and '{module.tensor}' of {self.base.path} is "
                    f"{list(module.shape)}; the adapter was made for another model"
                )
            left.append(one)
            right.append(other)
        return LowRank(np.hstack(left), np.hstack(right))

    @cached_property
    def _infos(self) -> dict[int, dict[str, _core.TensorInfo]]:
        """The tensors of every adapter, by the identity of its checkpoint and by name."""
        files = [adapter.checkpoint for adapter in self.adapters]
        return {id(file): {tensor.name: tensor for tensor in file.tensors} for file in files}

    def _info(self, change: Change, factor: str) -> _core.TensorInfo:
        """The factor ``a`` or ``b`` of a change, as its file's header describes it."""
        return self._infos[id(change.checkpoint)][change.plain[factor]]

    def _factor(self, change: Change, factor: str) -> Matrix:
        """The factor itself."""
        found = self._info(change, factor)
        known = STORED.get(found.dtype)
        where = f"{change.checkpoint.path}, tensor '{found.name}'"
        if known is None or not known.merged:
            raise InputError(f"{where}: is {found.dtype}; the factors of an adapter are floats")
        stored = np.empty(found.nbytes, np.uint8)
        change.checkpoint.read_into({found.name: stored})
        values = widened(stored, known.torch).reshape(found.shape)
        if not np.isfinite(values).all():
            raise InputError(f"{where}: holds NaN or infinite values")
        return values

    @property
    def dtypes(self) -> set[str]:
        """The dtypes of all factors, by their names in torch."""
        found = {
            self._info(change, factor).dtype
            for expert in self.changes
            for each in expert.values()
            for change in each
            for factor in ("a", "b")
        }
        return {STORED[each].torch for each in found if each in STORED}


def experts_of(recipe: Recipe, models: Models) -> Experts:
    """The experts of a recipe, with nothing but low-rank changes of one base.

    Args:
        recipe: The recipe.
        models: Its models.

    Raises:
        InputError: An expert has no adapter of its own or another base, or an adapter changes more
            than products of two factors do.
    """
    base = models.base or _plain(models.experts[0], recipe)
    names = [expert.model for expert in recipe.experts]
    changes, adapters = [], dict[int, Adapter]()
    for name, model in zip(names, models.experts, strict=True):
        _check_base(name, model, base)
        found: dict[str, list[Change]] = {}
        for change in model.changes[len(base.changes) :]:
            if _is_of_base(change, base):
                continue
            _check_change(name, change, base)
            found.setdefault(change.tensor, []).append(change)
        changes.append(found)
        own = model.adapters[len(base.adapters) :]
        adapters |= {id(adapter): adapter for adapter in own}
    return Experts(base, names, changes, list(adapters.values()))


def _plain(model: Model, recipe: Recipe) -> Model:
    """A model without its adapters."""
    name, _ = parts_of(model.name, recipe.places)
    return replace(model, name=name, adapters=(), changes=(), adapter_notes=())


def _check_base(name: str, model: Model, base: Model) -> None:
    """Refuse an expert that is not the base with adapters of its own."""
    if not model.adapters:
        raise InputError(
            f"model '{name}': has no adapter; write {base.name}+ADAPTER, or {_WHOLE}; "
            "`sensmerge extract-lora` makes an adapter of a tuned model"
        )
    if model.checkpoint is not base.checkpoint:
        raise InputError(
            f"model '{name}': its adapter is added to {model.path}, and the others to "
            f"{base.path}; adapters of one base are merged: name the same model before every '+', "
            "and as base_model"
        )
    count = len(base.adapters)
    same = len(model.adapters) > count and all(
        one is other for one, other in zip(model.adapters, base.adapters, strict=False)
    )
    if not same:
        raise InputError(
            f"model '{name}': is not the base {base.name} with a further adapter; write "
            f"{base.name}+ADAPTER"
        )


def _is_of_base(change: Change, base: Model) -> bool:
    """Whether a change puts the base's own tensor in its place.

    PEFT stores an embedding whole beside its factors.
    """
    changed = {each.tensor for each in base.changes}
    if change.plain["kind"] != "whole" or change.tensor in changed:
        return False
    files = ((change.checkpoint, change.plain["tensor"]), (base.checkpoint, change.tensor))
    tensors = [
        (file, next(tensor for tensor in file.tensors if tensor.name == name))
        for file, name in files
    ]
    if tensors[0][1].dtype != tensors[1][1].dtype or tensors[1][1].code is not None:
        return False
    return same(*(mapped(*each) for each in tensors))


def _check_change(name: str, change: Change, base: Model) -> None:
    """Refuse a change that is no product of two factors."""
    plain, path = change.plain, change.checkpoint.path
    kind = plain["kind"]
    if kind in _KINDS:
        raise InputError(
            f"{path}, tensor '{plain['tensor']}': {_KINDS[kind]}, and only the factors of LoRA are "
            f"merged into an adapter; train without that, or {_WHOLE}: '{name}'"
        )
    if plain["magnitude"] is not None:
        raise InputError(
            f"{path}, tensor '{plain['magnitude']}': is of a DoRA adapter, whose change depends on "
            f"the model's weights and has not a low rank; {_WHOLE}: '{name}'"
        )
    shape = base.shapes[change.tensor]
    if len(shape) != 2:
        raise InputError(
            f"{path}, tensor '{plain['a']}': changes '{change.tensor}' of {base.path}, which has "
            f"shape {shape}; only adapters of matrices are merged"
        )
