"""The files beside the weights: config, tokenizer, model card, recipe, and what was measured."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sensmerge import __version__
from sensmerge.errors import InputError
from sensmerge.merging import quantised
from sensmerge.merging.config import generation_text, merged_config
from sensmerge.merging.tokenizer import TokenizerFiles, merged_tokenizer
from sensmerge.models.folders import read_config
from sensmerge.reading import is_folder, object_of, own_file
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from pathlib import Path

    from sensmerge import _core
    from sensmerge.calibration import Calibration
    from sensmerge.merging.units import Units
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients

GENERATION_FILE = "generation_config.json"
RECIPE_FILE = "sensmerge_recipe.yaml"
CALIBRATION_FILE = "sensmerge_calibration.json"
UNITS_FILE = "sensmerge_units.json"
# The core writes it: what the folder holds, and the notes of the merge.
OUTPUT_FILE = "sensmerge_output.json"
# The core writes it where a merge is under way, and removes it at the end.
UNFINISHED_MARKER = ".sensmerge-unfinished"


@dataclass(frozen=True)
class Sidecars:
    """The files beside the weights.

    Attributes:
        copies: Files to copy byte for byte: name and path.
        texts: Texts to write: name and content.
        cards: Texts to write with the notes of the merge at the end: name and content.
        notes: Notes for the user on missing files on the chat template, and on what is left out.
    """

    copies: list[tuple[str, str]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    cards: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sidecars(
    recipe: Recipe,
    models: Models,
    found: Coefficients | None,
    calibration: Calibration | None,
    manifest: _core.Manifest,
    *,
    units: Units | None = None,
    tokenizer: bool = True,
    card: bool = True,
) -> Sidecars:
    """The files that go beside the weights of a merged model.

    Args:
        recipe: The recipe.
        models: Its models.
        found: The coefficients; None for a plain merge.
        calibration: The calibration; None for a plain merge.
        manifest: Every output tensor, and how it is quantised.
        units: The orders of the models' units; None if they were not aligned.
        tokenizer: Whether the tokenizer's files are among them.
        card: Whether the model card is among them.

    Raises:
        InputError: A file of the base's folder is a link that leads outside it, or not a regular
            file; or there is no such tokenizer or chat template.
        OSError: A file cannot be examined or read.
    """
    home = models.template.path
    copies, texts, notes = [], [], []
    if is_folder(home):
        written = merged_tokenizer(recipe, models) if tokenizer else TokenizerFiles()
        texts, notes = list(written.texts), list(written.notes)
        copies = [(path.name, str(path)) for path in written.copies]
        generation = own_file(home, GENERATION_FILE)
        changed = None if generation is None else generation_text(recipe, models, generation)
        if generation is not None and changed is None:
            copies.append((generation.name, str(generation)))
        elif changed is not None:
            texts.append((GENERATION_FILE, changed))
        quantised.check_config(home, models.template.config, manifest)
        config, text = own_file(home, "config.json"), config_text(recipe, models, manifest)
        if config is None:
            notes.append(f"{home}: has no config.json, so transformers cannot load the result")
        elif text is None:
            copies.append((config.name, str(config)))
        else:
            texts.append((config.name, text))
    for model in models.places.values():
        notes += quantised.notes(model.name, model.config)
    texts.append((RECIPE_FILE, recipe.to_yaml()))
    if calibration is not None:
        texts.append((CALIBRATION_FILE, calibration.to_json()))
    if units is not None:
        texts.append((UNITS_FILE, units.record()))
    cards = [("README.md", model_card(recipe, models, found))] if card else []
    return Sidecars(copies, texts, cards, notes)


def notes_of(folder: Path) -> list[str]:
    """The notes of the merge that wrote a folder; none where it does not list what it holds.

    Raises:
        InputError: The list cannot be read.
    """
    path = own_file(folder, OUTPUT_FILE)
    if path is None:
        return []
    try:
        notes = object_of(path).get("notes", [])
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: cannot be read as what a merge wrote: {reason}") from None
    return [str(note) for note in notes] if isinstance(notes, list) else []


def config_text(recipe: Recipe, models: Models, manifest: _core.Manifest) -> str | None:
    """The config of the merged model; None if it is the base's.

    Raises:
        InputError: A model does not have the layers of a slice.
    """
    config = merged_config(recipe, models, manifest)
    same = config == read_config(models.template.path)
    return None if same else json.dumps(config, indent=2) + "\n"


def model_card(recipe: Recipe, models: Models, found: Coefficients | None) -> str:
    """The README.md of the merged model, with the front matter that the Hub reads."""
    method = recipe.merge_method + (" with Sens-Merging" if found is not None else "")
    lines = ["---", "library_name: transformers", "tags:", "- merge", "- sensmerge"]
    origins = [checkpoint.origin for model in models.all for checkpoint in model.checkpoints]
    repositories = dict.fromkeys(origin[0] for origin in origins if origin is not None)
    if repositories:
        lines += ["base_model:", *(f"- {json.dumps(name)}" for name in repositories)]
    lines += [
        "---",
        "",
        "# Merged model",
        "",
        f"Merged by sensmerge {__version__}: {_text(method)}.",
    ]
    lines += ["", f"Semantics: {recipe.semantics}. Seed: {recipe.seed}.", ""]
    lines += ["| model | role | commit |", "|---|---|---|"] if repositories else []
    lines += [] if repositories else ["| model | role |", "|---|---|"]
    base = models.base
    lines += [] if base is None else [_row(base, "base", bool(repositories))]
    experts = [model for model in models.experts if model is not base]
    lines += [_row(model, "expert", bool(repositories)) for model in experts]
    if found is not None:
        lines += [
            "",
            "## Coefficients",
            "",
            *(f"{_text(sentence)}." for sentence in found.sentences()),
        ]
        lines += ["", f"What was measured is in `{CALIBRATION_FILE}`."]
    written = recipe.to_yaml().rstrip("\n")
    # Longer than any in the recipe, so that none of its lines ends the block.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", written)), default=0))
    lines += ["", "## Recipe", "", f"The same text is in `{RECIPE_FILE}`.", "", f"{fence}yaml"]
    lines += [written, fence, ""]
    return "\n".join(lines)


def _row(model: Model, role: str, with_commit: bool) -> str:
    origins = [checkpoint.origin for checkpoint in model.checkpoints]
    commits = "+".join(f"`{origin[1]}`" for origin in origins if origin is not None)
    return f"| {' | '.join([_cell(model.name), role, *([commits] if with_commit else [])])} |"


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Text for Markdown, in which it is neither HTML nor markup."""
    return re.sub(r"([\\`*\[\]])", r"\\\1", html.escape(plain(text), quote=False))
