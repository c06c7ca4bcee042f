"""Whether scores are those of a test set, which is to be looked at once, when all is chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from sensmerge.reading import mode_of
from sensmerge.recipe.places import at_home

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe

# Words that name a test set: test.jsonl, gsm8k-test, test-00000-of-00001.parquet, --split=test.
_TEST = re.compile(r"(?<![A-Za-z])(?:test|tests|testset|heldout|held[-_]out)(?![A-Za-z])", re.I)

# Keys of a row that say which part of a data set it is from.
_SPLITS = ("split", "subset")
# Rows that are looked at.
_MOST_ROWS = 1000

# What follows from it.
SO = (
    "candidates are chosen by it, so that the best score says little of other data; choose by "
    "validation samples, and use the test set once, at the end"
)


def is_test(text: str) -> bool:
    """Whether a name says that it is that of a test set."""
    return _TEST.search(text) is not None


def of_samples(recipe: Recipe) -> list[str]:
    """A note for each file of samples that is a test set, by its name or by what its rows say."""
    found: dict[str, str] = {}
    for expert in recipe.experts:
        for file in [] if expert.calibration is None else expert.calibration.files:
            # A folder above may be called anything.
            name = "/".join(PurePath(file).parts[-2:])
            if is_test(name):
                found[file] = f"{file}: is a test set by its name: {SO}"
            elif _rows_say_so(recipe, file):
                found[file] = f"{file}: is a test set, as its rows say: {SO}"
    return list(found.values())


def _rows_say_so(recipe: Recipe, file: str) -> bool:
    from sensmerge.calibration.rows import rows

    path = recipe.folder / at_home(file)
    if mode_of(path) is None:
        return False
    for place, (_, data) in enumerate(rows(path)):
        if isinstance(data, dict) and any(is_test(str(data.get(key, ""))) for key in _SPLITS):
            return True
        if place >= _MOST_ROWS:
            break
    return False


def of_words(words: Iterable[str], what: str) -> list[str]:
    """A note if a word of a command, or the name of a task, says that scores are of a test set.

    Args:
        words: The words.
        what: What they are, such as ``evaluate.command``.
    """
    named = [word for word in words if is_test("/".join(PurePath(word).parts[-2:]))]
    return [f"{what}: '{named[0]}' names a test set: {SO}"] if named else []


def distinct(names: Sequence[str]) -> list[str]:
    """The names, those that stand more than once with a number."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
