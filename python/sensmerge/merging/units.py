"""The units of all models in one order: ``align: permutation``.

Before a merge, the neurons and attention heads of every model are brought into the order in which
their weights are nearest to the base's (without a base, the first model's): the weight matching of
Git Re-Basin (Ainsworth et al. 2023), with a residual stream that stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.inspection import human_size
from sensmerge.models.layers import block_of
from sensmerge.models.symmetries import KNOWN, Symmetries, Symmetry, symmetries
from sensmerge.progress import bytes_bar

if TYPE_CHECKING:
    from sensmerge.merging.views import View, Views
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.slices import Slice

FORMAT_VERSION = 1

# Bytes of the product of two units.
_PRODUCT = 4


@dataclass(frozen=True)
class Matched:
    """The order of one module's units in one model.

    Attributes:
        symmetry: The units.
        units: For every place the unit of the model that takes it.
        members: The same for their members, numbered over all units.
    """

    symmetry: Symmetry
    units: list[int]
    members: list[int]

    @property
    def order(self) -> list[int]:
        """The order of what is counted: neurons, or heads."""
        return self.members if self.symmetry.members else self.units

    @property
    def moved(self) -> int:
        """How many neurons or heads are in another place."""
        return sum(place != unit for place, unit in enumerate(self.order))

    def plain(self) -> dict[str, Any]:
        """What the record says of it: with the order, where it is another one."""
        said = {"module": self.symmetry.module, "moved": self.moved, "count": len(self.order)}
        return said | ({"order": self.order} if self.moved else {})


@dataclass(frozen=True)
class Units:
    """The orders of all models of a merge.

    Attributes:
        template: The name of the model whose order all have.
        matched: The modules of every model that was matched, by its name.
        others: Matrices of blocks whose units are not known.
    """

    template: str
    matched: dict[str, list[Matched]]
    others: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Notes for the user."""
        found = [f"align: {name}: {said}" for name, said in self._sentences()]
        if self.others:
            found.append(
                f"align: {len(self.others)} matrices of the blocks, such as '{self.others[0]}', "
                "keep their order: their units are not known"
            )
        return found

    def _sentences(self) -> Iterator[tuple[str, str]]:
        for name, modules in self.matched.items():
            moved = []
            for kind in ("neurons", "heads"):
                of_kind = [each for each in modules if each.symmetry.kind == kind]
                count = sum(each.moved for each in of_kind)
                total = sum(len(each.order) for each in of_kind)
                moved += [f"{count:,} of {total:,} {kind}"] if count else []
            homes = dict.fromkeys(
                block_of(f"{each.symmetry.module}.") for each in modules if each.moved
            )
            if moved:
                layers = "1 layer" if len(homes) == 1 else f"{len(homes)} layers"
                yield name, f"{' and '.join(moved)} moved, in {layers}"
            else:
                yield name, f"all units are in the order of {self.template} already"

    def memory(self) -> str | None:
        """What matching may take, for plans; None if that is not worth a word."""
        sizes = [(each.symmetry.units, each) for of in self.matched.values() for each in of]
        count = max((size for size, _ in sizes), default=0)
        need = _PRODUCT * count**2
        if need < 1_000_000:
            return None
        return (
            f"align: takes up to {human_size(need)} of memory for {count:,} units, where a part of "
            "their entries does not tell them apart"
        )

    def record(self) -> str:
        """The orders as JSON, to be written beside the weights."""
        models = [
            {"model": name, "modules": [each.plain() for each in modules]}
            for name, modules in self.matched.items()
        ]
        data = {"version": FORMAT_VERSION, "align": "permutation", "template": self.template}
        return json.dumps(data | {"models": models}, ensure_ascii=False) + "\n"


def align(
    recipe: Recipe,
    parts: Sequence[tuple[Slice, Views]],
    models: Models,
    checkpoints: list[_core.Checkpoint],
    *,
    threads: int | None = None,
    progress: bool = False,
) -> tuple[Units, list[list[dict[str, Any]]]]:
    """Match the units of all models.

    Reads the blocks' weights. What was found is kept with the models, for later merges of them.

    Args:
        recipe: The recipe; its ``align`` is set.
        parts: Its slices, each with its models.
        models: The recipe's models.
        checkpoints: The checkpoints of the request.
        threads: Threads to use; all cores by default.
        progress: Show progress.

    Returns:
        The orders, and for the models of every slice, the base first, what their views say of the
        tensors that are reordered.

    Raises:
        InputError: No symmetry of a model is known, or no config says how many heads it has.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    found: dict[str, list[Matched]] = {}
    seen: set[object] = set()
    others: dict[str, None] = {}
    orders: list[list[dict[str, Any]]] = []
    for _, views in parts:
        template, known = views.template, _known(views, models)
        others |= dict.fromkeys(known.others)
        said: list[dict[str, Any]] = []
        for view in views.all:
            if view is template or (view.model is template.model and view.names == template.names):
                said.append({})
                continue
            key = (recipe.align, *_identity(template), *_identity(view))
            if key not in models.aligned:
                models.aligned[key] = _matched(
                    template, view, known.known, checkpoints, threads, progress=progress
                )
            matched: list[Matched] = models.aligned[key]
            said.append(_orders(matched))
            if key not in seen:
                seen.add(key)
                found.setdefault(view.model.name, []).extend(matched)
        orders.append(said)
    templates = dict.fromkeys(views.template.model.name for _, views in parts)
    return Units(" and ".join(templates), found, list(others)), orders


def _known(views: Views, models: Models) -> Symmetries:
    """The symmetries of a slice, by the model that its tensors are named after."""
    template = views.template
    configs = [template.model.config, *(model.config for model in models.all)]
    config = next((config for config in configs if config), {})
    names = template.names or {name: name for name in template.model.tensors}
    shapes = {output: template.model.shapes[stored] for output, stored in names.items()}
    found = symmetries(shapes, config)
    path = template.model.path
    if found.unread:
        raise InputError(
            f"align: {path}: '{found.unread[0]}' has attention heads, and no config.json says how "
            "many: num_attention_heads and num_key_value_heads are needed"
        )
    if not found.known and any(block_of(name) for name in shapes):
        such = f", but tensors such as '{found.others[0]}'" if found.others else ""
        raise InputError(
            f"align: {path}: has no units that are known{such}; known are {KNOWN}; remove align"
        )
    return found


def _identity(view: View) -> tuple[object, ...]:
    """What tells a model as a slice sees it from others of the same models."""
    return view.model.name, None if view.names is None else frozenset(view.names.items())


def _matched(
    template: View,
    view: View,
    known: list[Symmetry],
    checkpoints: list[_core.Checkpoint],
    threads: int | None,
    *,
    progress: bool,
) -> list[Matched]:
    ours, theirs = (json.dumps(each.plain(checkpoints, None)) for each in (template, view))
    asked = json.dumps([symmetry.plain() for symmetry in known])
    with bytes_bar(f"aligning {view.model.name}", enabled=progress) as report:
        found = _core.match_units(
            ours, theirs, checkpoints, asked, threads=threads, progress=report
        )
    return [
        Matched(symmetry, units, members)
        for symmetry, (units, members) in zip(known, found, strict=True)
    ]


def _orders(matched: Iterable[Matched]) -> dict[str, Any]:
    """The tensors that are reordered, each with runs of its rows and columns."""
    moved: dict[tuple[str, int], list[tuple[int, list[int]]]] = {}
    for each in matched:
        if each.moved:
            for portion in each.symmetry.portions:
                order = each.units if portion.level == "units" else each.members
                width = portion.count // len(order)
                starts = [portion.first + unit * width for unit in order]
                places = [start + place for start in starts for place in range(width)]
                home = moved.setdefault((portion.tensor, portion.axis), [])
                home.append((portion.first, places))
    orders: dict[str, Any] = {}
    for (tensor, axis), portions in moved.items():
        # The portions of a tensor are all of its rows or columns.
        places = [place for _, part in sorted(portions) for place in part]
        orders.setdefault(tensor, {})[("rows", "columns")[axis]] = _runs(places)
    return orders


def _runs(places: list[int]) -> list[list[int]]:
    """Places as runs: the first of each, and their number."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([place, 1])
    return runs
