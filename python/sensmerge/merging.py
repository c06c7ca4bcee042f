"""The merge verb: recipe, calibration and headers become the core's plan, and a model folder.

Nothing here computes with tensors; the compiled core does.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.plan import core_recipe, model_paths, parse_size, template, template_names
from sensmerge.progress import bytes_bar
from sensmerge.recipe import DEFAULT_TEMPERATURE, Recipe
from sensmerge.sidecars import sidecars
from sensmerge.sources import resolve

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.scaling import Coefficients

DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote.

    Attributes:
        output: The model's folder.
        tensors: Number of tensors.
        parameters: Number of parameters.
        bytes: Size of all tensors.
        shards: Names of the weight files.
        seconds: From the start of the merge proper to the last file, calibration not included.
        notes: What the user should know: rules that were applied, near-uniform coefficients.
        calibration: What was measured; None for a plain merge.
        coefficients: The coefficients used; None for a plain merge.
    """

    output: Path
    tensors: int
    parameters: int
    bytes: int
    shards: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)
    calibration: Calibration | None = None
    coefficients: Coefficients | None = None

    def describe(self) -> str:
        """One line for the terminal."""
        files = "file" if len(self.shards) == 1 else "files"
        return (
            f"wrote {self.output}: {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{self.bytes / 1e9:.2f} GB in {len(self.shards)} {files}, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class MergePlan:
    """What a merge would write: the core's plan and the coefficients in it."""

    core: dict[str, Any]
    coefficients: Coefficients | None
    notes: list[str]

    def describe(self) -> str:
        """The plan as text, one line a tensor."""
        lines = []
        for tensor in self.core["tensors"]:
            if tensor["content"] == "copy":
                made_of = "copied"
            else:
                weights = ", ".join(f"{weight:.4f}" for weight in tensor["weights"])
                made_of = f"{tensor['dtype']}  weights {weights}  lambda {tensor['lambda']:g}"
            lines.append(f"{tensor['file']}  {tensor['name']}  {made_of}")
        total = sum(tensor["bytes"] for tensor in self.core["tensors"])
        lines.append(
            f"{len(self.core['tensors'])} tensors, {total / 1e9:.2f} GB in "
            f"{len(self.core['files'])} files; nothing was written"
        )
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    calibration: Calibration | str | Path | None = None,
    threads: int | None = None,
    progress: bool = True,
    *,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    sync: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    chunk_bytes: int | None = None,
) -> MergeResult:
    """Merge the models of a recipe into a Hugging Face model folder.

    Calibrates first where the recipe has a ``sensitivity`` section, its mode is not ``off`` and no
    calibration is given.

    Args:
        recipe: The recipe, or its path.
        out: The folder to write. It must not exist, or be empty, unless ``overwrite`` is set.
        calibration: A calibration of these experts, or its path.
        threads: Threads to use; all cores by default. The output does not depend on it.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        max_shard_size: Largest weight file, in bytes or as text such as ``5GB``.
        sync: Flush the output to disk before returning.
        overwrite: Replace a model that is already in ``out``; never an input.
        allow_nan: Let NaN through instead of refusing it.
        chunk_bytes: Bytes a thread works on at a time. The output does not depend on it.

    Returns:
        What was written.

    Raises:
        InputError: Recipe, calibration, checkpoints or output folder cannot be used as they are.
        OSError: The disk failed.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    recipe = loaded(recipe)
    shard_bytes = parse_size(max_shard_size)
    if recipe.auto or (calibration is None and needs_calibration(recipe)):
        # What cannot be merged or written is refused before the long measurement, not after.
        _core.plan(json.dumps(core_recipe(_provisional(recipe), None)), shard_bytes)
        _core.check_output(str(out), [str(path) for path in model_paths(recipe)], overwrite)
    measured, notes = _measured(recipe, calibration, threads=threads, progress=progress)
    if recipe.auto:
        from sensmerge.search.auto import choose

        recipe, chosen = choose(recipe, measured, threads=threads, progress=progress)
        notes += chosen
    found = None if measured is None else _coefficients(measured, recipe)
    if found is not None:
        notes += found.notes()
    copies, texts, left_out = sidecars(recipe, found, measured)
    with bytes_bar("merging", enabled=progress) as report:
        written = json.loads(
            _core.merge(
                json.dumps(core_recipe(recipe, found)),
                str(out),
                shard_bytes,
                copies=copies,
                texts=texts,
                threads=threads,
                chunk_bytes=chunk_bytes,
                sync=sync,
                overwrite=overwrite,
                allow_nan=allow_nan,
                progress=report,
            )
        )
    return MergeResult(
        output=Path(out),
        tensors=written["tensors"],
        parameters=written["parameters"],
        bytes=written["bytes"],
        shards=written["shards"],
        seconds=written["seconds"],
        notes=[*notes, *left_out, *written["notes"]],
        calibration=measured,
        coefficients=found,
    )


def plan(
    recipe: Recipe | str | Path,
    *,
    calibration: Calibration | str | Path | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
) -> MergePlan:
    """Say what a merge would write, without calibrating, reading tensors or writing anything.

    Raises:
        InputError: Recipe, calibration or checkpoints cannot be used as they are.
    """
    recipe = loaded(recipe)
    found, notes = None, []
    if recipe.auto:
        keys = " and ".join(recipe.auto)
        recipe = _provisional(recipe)
        notes.append(
            f"{keys}: auto is searched for by a merge; shown with lambda "
            f"{1 / len(recipe.experts):.3g} and temperature {DEFAULT_TEMPERATURE:g}"
        )
    if calibration is not None and needs_calibration(recipe):
        found = _coefficients(matching(recipe, calibration), recipe)
        notes += found.notes()
    elif needs_calibration(recipe):
        notes.append("the recipe asks for sensitivity: weights are shown before calibration")
    core = _core.plan(json.dumps(core_recipe(recipe, found)), parse_size(max_shard_size))
    described = json.loads(core)
    return MergePlan(core=described, coefficients=found, notes=[*notes, *described["notes"]])


def _provisional(recipe: Recipe) -> Recipe:
    """The recipe with numbers where it says ``auto``, until they are found."""
    return recipe.chosen(1 / len(recipe.experts), DEFAULT_TEMPERATURE) if recipe.auto else recipe


def needs_calibration(recipe: Recipe) -> bool:
    """Whether a recipe asks for coefficients from data."""
    return recipe.sensitivity is not None and recipe.sensitivity.mode != "off"


def matching(recipe: Recipe, calibration: Calibration | str | Path) -> Calibration:
    """The part of a calibration that belongs to a recipe's experts, in the recipe's order.

    Raises:
        InputError: An expert is not in it, or it was measured with other options than the recipe
            names.
    """
    from sensmerge.calibration import Calibration

    if not isinstance(calibration, Calibration):
        calibration = Calibration.load(Path(calibration))
    asked = recipe.sensitivity
    for name in sorted(asked.model_fields_set) if asked is not None else []:
        if name in calibration.options and calibration.options[name] != getattr(asked, name):
            raise InputError(
                f"sensitivity.{name}: the recipe says {getattr(asked, name)} and the calibration "
                f"was measured with {calibration.options[name]}; calibrate again or change the key"
            )
    paths = [resolve(expert.model, recipe.folder) for expert in recipe.experts]
    with ThreadPoolExecutor() as pool:
        fingerprints = list(pool.map(lambda path: _core.Checkpoint(str(path)).fingerprint(), paths))
    selected = calibration.select(fingerprints)
    # The weights may have had other names when they were measured.
    experts = [
        replace(measured, model=expert.model)
        for measured, expert in zip(selected.experts, recipe.experts, strict=True)
    ]
    return replace(selected, experts=experts)


def as_mergekit(recipe: Recipe, found: Coefficients) -> str:
    """A plain mergekit recipe with one weight a layer, for the same merged blocks."""
    from sensmerge.mergekit import mergekit_recipe

    stored = {tensor.dtype for tensor in _core.Checkpoint(str(template(recipe))).tensors}
    return mergekit_recipe(recipe, found, template_names(recipe), stored)


def _measured(
    recipe: Recipe,
    calibration: Calibration | str | Path | None,
    *,
    threads: int | None,
    progress: bool,
) -> tuple[Calibration | None, list[str]]:
    if not needs_calibration(recipe):
        if calibration is None:
            return None, []
        return None, ["the recipe has no sensitivity section: the calibration was not used"]
    if calibration is not None:
        return matching(recipe, calibration), []
    from sensmerge.calibration import calibrate

    measured = calibrate(recipe, progress=progress, threads=threads)
    return measured, list(measured.notes)


def _coefficients(measured: Calibration, recipe: Recipe) -> Coefficients:
    # NumPy is loaded only where it is needed: it doubles the time a plain merge takes to start.
    from sensmerge.scaling import coefficients

    return coefficients(measured, recipe)


def coefficients_for(
    recipe: Recipe, calibration: Calibration | str | Path | None
) -> Coefficients | None:
    """The coefficients that a recipe asks for, from a calibration; None for a plain merge.

    Raises:
        InputError: The recipe asks for some and there is no calibration, or not of its experts.
    """
    if not needs_calibration(recipe):
        return None
    if calibration is None:
        raise InputError(
            "the recipe has a sensitivity section: give a calibration, or remove the section"
        )
    return _coefficients(matching(recipe, calibration), recipe)


def loaded(recipe: Recipe | str | Path) -> Recipe:
    """A recipe, read if it is a path."""
    return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
