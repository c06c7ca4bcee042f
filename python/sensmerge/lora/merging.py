"""LoRA adapters merged into one, in the low-rank space that they share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.lora.adapter_file import adapter_file
from sensmerge.lora.core_space import factors, space_of
from sensmerge.lora.cores import CoreMerge
from sensmerge.lora.experts import Experts, Module, experts_of
from sensmerge.lora.peft import DTYPES, add_factors, named, names_of, targets, write_config
from sensmerge.lora.shelf import Place, Shelf, shelf_beside
from sensmerge.models import open_models
from sensmerge.models.adapters import WEIGHTS_FILE
from sensmerge.models.inspection import human_size
from sensmerge.models.pickles import unpickled, unpickling
from sensmerge.progress import bar
from sensmerge.recipe import Recipe
from sensmerge.scaling.matching import needs_calibration
from sensmerge.scaling.required import with_measurements

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration

# Keys of a recipe about what an adapter does not have.
_WITHOUT_EFFECT = ("tokenizer_source", "tokenizer", "chat_template")


@dataclass
class MergedAdapter(Documented):
    """An adapter that was written.

    Attributes:
        output: Its folder.
        ranks: The rank of every module.
        bytes: Size of the weights.
        squares: For every module the squared norms of its merged change, and of what the adapter
            keeps of it.
        notes: Notes for the user.
    """

    output: Path
    ranks: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    squares: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """The share of the merged change's squared norm that the adapter keeps."""
        whole = math.fsum(whole for whole, _ in self.squares.values())
        return math.fsum(kept for _, kept in self.squares.values()) / whole if whole > 0 else 1.0

    def describe(self) -> str:
        """One line for the terminal."""
        return (
            f"wrote {self.output}: {len(self.ranks)} modules of rank up to "
            f"{max(self.ranks.values(), default=0)}, {human_size(self.bytes)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The adapter as keys and values, with the rank of every module; see docs/json.md."""
        return {
            "output": self.output,
            "bytes": self.bytes,
            "kept": self.kept,
            "ranks": self.ranks,
            "notes": self.notes,
        }


def merge_lora(
    recipe: Recipe | str | Path,
    out: str | Path,
    rank: int | None = None,
    *,
    calibration: Calibration | str | Path | None = None,
    threads: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    unpickle: bool = False,
) -> MergedAdapter:
    """Merge LoRA adapters of one base into one, in PEFT's format, without reading the base.

    The change that each expert makes to a weight is held as a small matrix in a space that all
    experts share (:mod:`sensmerge.lora.core_space`); these are merged as the recipe says. The
    adapter has α = r, so that ``B · A`` is the merged change.

    Args:
        recipe: The recipe, or its path; its experts are the base with adapters.
        out: The folder to write.
        rank: Largest rank of a module; what is beyond is left out, the smallest singular values.
            By default as many as the merged change has.
        calibration: A calibration of the experts, or its path; needed if the recipe has a
            ``sensitivity`` section.
        threads: Threads to use; all cores by default.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        overwrite: Replace an earlier adapter in ``out``.
        unpickle: Read adapters that are stored as pickles (``adapter_model.bin``), in a process of
            their own. Needs torch.

    Raises:
        InputError: The recipe, a model, an adapter or the folder cannot be used as it is; or the
            method does not merge changes alone.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    recipe, out = Recipe.of(recipe), Path(out)
    if rank is not None and rank < 1:
        raise InputError(f"rank: {rank} is no rank; give 1 or more")
    _check(recipe)
    with unpickling(out, enabled=unpickle, progress=progress):
        return _Merge(recipe, out, rank, threads, progress).run(calibration, overwrite=overwrite)


def _check(recipe: Recipe) -> None:
    """Refuse a recipe that asks for what cannot be done with adapters alone."""
    recipe.require_numbers()
    method, wrong = recipe.method, []
    instead = "merge the models with `sensmerge merge`"
    if method.statistic is not None:
        wrong.append(
            f"merge_method: {method.name} needs statistics of whole weights, which small matrices "
            f"do not have; take a method for task vectors, or {instead}"
        )
    if method.base == "merged":
        wrong.append(
            f"merge_method: {method.name} merges the base itself with the others, and adapters are "
            f"no models; take a method for task vectors, or {instead}"
        )
    if recipe.slices is not None or "models" not in recipe.source:
        wrong.append(f"slices, modules: an adapter is of a whole model; list models, or {instead}")
    if recipe.align is not None:
        wrong.append("align: experts over one base have its order of units; remove the key")
    if recipe.aim is not None:
        wrong.append(f"aim: damps inputs of weights, which are not merged here; {instead}")
    dtype = recipe.out_dtype or recipe.dtype
    if dtype is not None and dtype not in DTYPES:
        key = "dtype" if recipe.out_dtype is None else "out_dtype"
        wrong.append(f"{key}: an adapter is written in {', '.join(DTYPES)}, not in {dtype}")
    if wrong:
        raise InputError(wrong)


@dataclass(frozen=True)
class _Merge:
    recipe: Recipe
    out: Path
    rank: int | None
    threads: int | None
    progress: bool

    def run(
        self, calibration: Calibration | str | Path | None, *, overwrite: bool
    ) -> MergedAdapter:
        """Merge, and write the adapter."""
        recipe, out = self.recipe, self.out
        models = open_models(recipe, progress=self.progress)
        experts, pickled = experts_of(recipe, models), unpickled()
        inputs = {str(path) for model in models.all for path in model.paths}
        _core.check_output(str(out), sorted({*inputs, *map(str, pickled.copies)}), overwrite)
        models, coefficients = with_measurements(recipe, calibration, models)
        names = list(experts.base.shapes)
        merge = CoreMerge(recipe, names, coefficients, self.threads)
        merge.check([module.tensor for module in experts.modules])
        _core.check_space(str(out), _space(experts))
        found = MergedAdapter(out, notes=[*recipe.notes, *models.notes, *pickled.notes])
        found.notes += [] if coefficients is None else coefficients.notes()
        found.notes += _notes(recipe, experts)
        if calibration is not None and not needs_calibration(recipe):
            found.notes.append("the recipe has no sensitivity section: the calibration is not used")
        with shelf_beside(out) as shelf:
            spaces, cores = self._cores(experts, shelf)
            shapes = {tensor: place.shape for tensor, place in next(iter(cores)).items()}
            results = {tensor: shelf.room(shape) for tensor, shape in shapes.items()}
            views = [_views(shelf, each) for each in [results, *cores]]
            found.notes += merge.run(views[1:], views[0])
            self._write(experts, shelf, spaces, results, found)
        write_config(out, found.ranks, _described(experts, found))
        found.bytes = (out / WEIGHTS_FILE).stat().st_size
        return found

    def _cores(
        self, experts: Experts, shelf: Shelf
    ) -> tuple[dict[str, tuple[Place, Place]], list[dict[str, Place]]]:
        """The space of every weight, and each expert's changes in it.

        Weights that no expert changes are left out.

        Raises:
            InputError: An expert changes nothing, or a factor cannot be used.
        """
        spaces: dict[str, tuple[Place, Place]] = {}
        cores: list[dict[str, Place]] = [{} for _ in experts.names]
        empty = set(experts.names)
        modules = experts.modules
        with bar(len(modules), "reading", "modules", enabled=self.progress) as advance:
            for module in modules:
                changes = experts.read(module)
                space = space_of(changes)
                if 0 not in space.shape:
                    spaces[module.tensor] = shelf.put(space.u), shelf.put(space.v)
                    for name, change, of_expert in zip(experts.names, changes, cores, strict=True):
                        core = space.core(change)
                        of_expert[module.tensor] = shelf.put(core)
                        if core.any():
                            empty.discard(name)
                advance(1)
        if empty:
            raise InputError(
                f"model '{min(empty)}': its adapters change nothing, every B · A is 0; was it "
                "saved before it was trained? Remove it from the recipe"
            )
        return spaces, cores

    def _write(
        self,
        experts: Experts,
        shelf: Shelf,
        spaces: dict[str, tuple[Place, Place]],
        results: dict[str, Place],
        found: MergedAdapter,
    ) -> None:
        """Write the factors of all merged changes.

        Raises:
            InputError: Nothing is left of any change.
        """
        dtype = _dtype(self.recipe, experts)
        modules = [module for module in experts.modules if module.tensor in spaces]
        names = names_of(module.name for module in modules)
        with (
            adapter_file(self.out / WEIGHTS_FILE, names) as file,
            bar(len(modules), "writing", "modules", enabled=self.progress) as advance,
        ):
            for module in modules:
                u, v = map(shelf.at, spaces[module.tensor])
                whole = factors(u, shelf.at(results[module.tensor]), v)
                part = whole if self.rank is None else whole.of_rank(self.rank)
                if len(part.s) > 0:
                    add_factors(
                        file,
                        module.name,
                        part,
                        dtype,
                        embedding=module.embedding,
                        transposed=module.transposed,
                    )
                    found.ranks[module.name] = len(part.s)
                    found.squares[module.name] = whole.squared, part.squared
                advance(1)
            if not found.ranks:
                raise InputError(
                    f"{self.recipe.merge_method} leaves nothing of any change: every entry of the "
                    "merged adapter would be 0; give larger weights or densities"
                )
        if found.kept < 1:
            found.notes.append(_told(found))


def _views(shelf: Shelf, places: dict[str, Place]) -> dict[str, Any]:
    return {tensor: shelf.at(place) for tensor, place in places.items()}


def _space(experts: Experts) -> int:
    """The most bytes that are written while adapters are merged, what is put aside included."""
    total = 0
    for module in experts.modules:
        rank = min(*module.shape, experts.ranks(module.tensor))
        aside = rank * sum(module.shape) + (len(experts.names) + 1) * rank * rank
        total += 8 * aside + 4 * rank * sum(module.shape)
    return total


def _dtype(recipe: Recipe, experts: Experts) -> str:
    """The dtype of the factors: the recipe's, or that of all adapters, or float32."""
    asked = recipe.out_dtype or recipe.dtype
    stored = experts.dtypes
    return asked or (stored.pop() if len(stored) == 1 and stored <= set(DTYPES) else "float32")


def _notes(recipe: Recipe, experts: Experts) -> list[str]:
    """What the user should know before the merge."""
    notes = []
    idle = [key for key in _WITHOUT_EFFECT if key in recipe.source]
    if idle:
        notes.append(f"{', '.join(idle)}: without effect; an adapter has none")
    if experts.base.adapters:
        notes.append(
            f"the merged adapter is for {experts.base.name}, whose own adapters are not in it: add "
            "it after them"
        )
    return notes


def _told(found: MergedAdapter) -> str:
    """How much the largest rank leaves out."""
    shares = {name: kept / whole for name, (whole, kept) in found.squares.items()}
    least = min(shares, key=lambda name: shares[name])
    return (
        f"rank: {max(found.ranks.values())} keeps {100 * found.kept:.4g} % of the merged change's "
        f"squared norm, least in '{least}' ({100 * shares[least]:.4g} %)"
    )


def _described(experts: Experts, found: MergedAdapter) -> dict[str, Any]:
    """What the adapter's config says of this one: what all the adapters say, where they agree."""
    said = [adapter.config.data for adapter in experts.adapters]

    def agreed(key: str) -> Any:
        first = said[0].get(key)
        return first if all(each.get(key) == first for each in said) else None

    modules = [module for module in experts.modules if module.name in found.ranks]
    given = {key: agreed(key) for key in ("base_model_name_or_path", "revision")}
    if not given["base_model_name_or_path"]:
        given = named(str(experts.base.path), experts.base.checkpoint)
    return {
        "task_type": agreed("task_type"),
        **given,
        "target_modules": targets(
            {_module(module): module.name for module in modules}, experts.base.shapes
        ),
        "modules_to_save": None,
        "fan_in_fan_out": any(module.transposed for module in modules),
    }


def _module(module: Module) -> str:
    return module.tensor.rpartition(".")[0]
