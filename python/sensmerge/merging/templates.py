"""The output's chat template.

It is the tokenizer's own, the most common one of the models, a known one, or the recipe's.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.reading import content, is_folder, json_of, own_file
from sensmerge.recipe.tokenizer import AUTO_TEMPLATE, known_template

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sensmerge.models import Models
    from sensmerge.recipe import Recipe

TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
TEMPLATE_KEY = "chat_template"

# How tokens that stand for no text are written.
_MARKER = re.compile(r"<\|\w+\|>")


def chosen_template(recipe: Recipe, models: Models, folder: Path) -> str | None:
    """The template that takes the place of the tokenizer's own; None if that stays.

    Args:
        recipe: The recipe.
        models: Its models.
        folder: The folder that the tokenizer is taken from.

    Raises:
        InputError: A template's file is a link that leads outside its folder, or not a regular
            file.
        OSError: A file cannot be examined.
    """
    asked = recipe.chat_template
    if asked is None:
        return None
    if asked == AUTO_TEMPLATE:
        template = most_common(model.path for model in models.places.values())
        own = template_of(folder)
        same = own is not None and template is not None and own.strip() == template
        return None if same else template
    return asked if "{" in asked else known_template(asked)


def most_common(folders: Iterable[Path]) -> str | None:
    """The template that most of the models have, without the space around it; None if none has one.

    Of templates that as many have, the first model's.
    """
    found = [template_of(folder) for folder in folders]
    counts = Counter(template.strip() for template in found if template is not None)
    return max(counts, key=lambda template: counts[template], default=None)


def template_of(folder: Path) -> str | None:
    """A model's own chat template; None if it has none."""
    if not is_folder(folder):
        return None
    path = own_file(folder, TEMPLATE_FILE)
    if path is not None:
        return content(path).decode("utf-8", "replace") or None
    for name in ("tokenizer_config.json", OLD_TEMPLATE_FILE):
        path = own_file(folder, name)
        template = None if path is None else _in_config(path)
        if template:
            return template
    return None


def _in_config(path: Path) -> str | None:
    try:
        data = json_of(path)
    except (OSError, InputError):
        return None
    said = data.get(TEMPLATE_KEY) if isinstance(data, dict) else None
    if isinstance(said, list):
        # Several, each with a name.
        named = {each.get("name"): each.get("template") for each in said if isinstance(each, dict)}
        said = named.get("default")
    return said if isinstance(said, str) else None


def template_notes(template: str, ids: Mapping[str, int] | None) -> list[str]:
    """A note on markers of a template that are no tokens of the output's tokenizer."""
    markers = dict.fromkeys(_MARKER.findall(template))
    missing = [marker for marker in markers if ids is not None and marker not in ids]
    if not missing:
        return []
    return [
        f"the chat template writes {', '.join(missing)}, which the output's tokenizer does not "
        "have as one token: it is split like other text"
    ]
