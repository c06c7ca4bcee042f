"""Recipes of several stages: documents in one file, of which later ones merge earlier ones' models.

As in mergekit-multi: a document with a ``name`` is a stage, which other documents name as a model;
the document without a name is the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from sensmerge.errors import InputError
from sensmerge.recipe.leniency import DEFAULT_LENIENCY, Leniency
from sensmerge.recipe.places import exists, path_of
from sensmerge.recipe.recipe import Others, Recipe
from sensmerge.recipe.references import references
from sensmerge.recipe.yaml import read_yaml
from sensmerge.refusals import key_of, nearest


@dataclass(frozen=True)
class Stage:
    """One document.

    Attributes:
        name: Its name; None for a result without one.
        document: Its place in the file, from 1.
        recipe: The recipe, in which other stages' names stand for no folders yet.
        uses: The names of the stages that it merges.
        others: The documents that go with it, where it is written down.
    """

    name: str | None
    document: int
    recipe: Recipe
    uses: frozenset[str]
    others: Others

    def placed(self, stages: Mapping[str, Path]) -> Recipe:
        """The recipe, with the folders of the stages that it merges."""
        return self.recipe.staged({name: stages[name] for name in sorted(self.uses)}, self.others)


@dataclass(frozen=True)
class StagedRecipe:
    """A recipe of several documents.

    Attributes:
        stages: The stages in the order in which they are merged; the result is the last.
        notes: Notes for the user on the stages as a whole.
        path: The file it was read from; None if it was not read from a file.
    """

    stages: list[Stage]
    notes: list[str]
    path: Path | None = None

    @property
    def result(self) -> Stage:
        """The stage whose model is the result."""
        return self.stages[-1]

    def seeded(self, seed: int) -> StagedRecipe:
        """The recipe with another seed in every stage."""

        def also(documents: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
            return tuple(document | {"seed": seed} for document in documents)

        stages = [
            replace(
                stage,
                recipe=stage.recipe.seeded(seed),
                others=replace(
                    stage.others, before=also(stage.others.before), after=also(stage.others.after)
                ),
            )
            for stage in self.stages
        ]
        return replace(self, stages=stages)

    @classmethod
    def from_documents(
        cls,
        documents: list[Any],
        folder: str | Path = ".",
        *,
        leniency: Leniency = DEFAULT_LENIENCY,
    ) -> StagedRecipe:
        """Check documents that are already parsed.

        Args:
            documents: The documents, in the order of the file.
            folder: The folder that relative paths start from.
            leniency: Which unknown keys are noted and ignored; see :meth:`Recipe.load`.

        Raises:
            InputError: One of them is not a recipe, names are missing, given twice or unknown, or
                stages name each other in a circle; a line for each fault.
        """
        wrong: list[str] = []
        recipes: dict[int, Recipe] = {}
        for place, document in enumerate(documents):
            try:
                data = document
                if isinstance(document, dict):
                    data = {key: value for key, value in document.items() if key != "name"}
                recipes[place] = Recipe.from_dict(data, folder, leniency=leniency)
            except InputError as error:
                wrong += [f"document {place + 1}: {line}" for line in error.lines]
        named = [each if isinstance(each, dict) else {} for each in documents]
        wrong += _wrong_names(named) or _unknown(named, Path(folder))
        if wrong:
            raise InputError(wrong)
        return cls(*_ordered(named, recipes, Path(folder)))


def load(path: str | Path, *, leniency: Leniency = DEFAULT_LENIENCY) -> Recipe | StagedRecipe:
    """Read a recipe of one document or of several from a YAML file.

    Args:
        path: The file.
        leniency: Which unknown keys are noted and ignored; see :meth:`Recipe.load`.

    Raises:
        InputError: The file cannot be read, is not YAML, or is not a recipe; a line for each fault.
    """
    path = Path(path)
    read = read_yaml(path)
    if len(read.documents) < 2:
        return Recipe.from_documents(read, path, leniency=leniency)
    wrong = read.twice if leniency == "strict" else []
    try:
        staged = StagedRecipe.from_documents(read.documents, path.parent, leniency=leniency)
    except InputError as error:
        wrong = [*wrong, *error.lines]
    if wrong:
        raise InputError([f"{path}: {line}" for line in wrong])
    return replace(staged, notes=[*read.twice, *staged.notes], path=path)


def _wrong_names(documents: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the names of the stages."""
    wrong, first, unnamed = [], dict[str, int](), []
    for place, document in enumerate(documents, start=1):
        name = document.get("name")
        if name is None:
            unnamed.append(place)
        elif not isinstance(name, str) or not name.strip():
            wrong.append(f"document {place}: name: '{name}' is not text; write it in quotes")
        elif name in first:
            wrong.append(
                f"document {place}: name: '{name}' is also the name of document {first[name]}; "
                "give each a name of its own"
            )
        else:
            first[name] = place
    if len(unnamed) > 1:
        wrong.append(
            f"documents {', '.join(map(str, unnamed))} have no name; only the result has none, "
            "give the others a name each"
        )
    return wrong


def _unknown(documents: list[dict[str, Any]], folder: Path) -> list[str]:
    """What is probably a slip of a stage's name. Whatever else is no model is refused later."""
    stages = {str(document["name"]) for document in documents if document.get("name") is not None}
    wrong = []
    for place, document in enumerate(documents, start=1):
        for location, name in references(document):
            near = None if name in stages else nearest(name, stages)
            if near is not None and not exists(path_of(name, folder)):
                wrong.append(
                    f"document {place}: {key_of(location)}: '{name}' is neither a stage nor a "
                    f"folder; did you mean '{near}'?"
                )
    return wrong


def _ordered(
    documents: list[dict[str, Any]], recipes: Mapping[int, Recipe], folder: Path
) -> tuple[list[Stage], list[str]]:
    """The stages that the result needs, in an order in which they can be merged, and notes."""
    names: dict[str | None, int] = {each.get("name"): at for at, each in enumerate(documents)}
    uses = [
        frozenset(name for _, name in references(document) if name in names)
        for document in documents
    ]
    graph = {at: {names[name] for name in used} for at, used in enumerate(uses)}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " → ".join(_label(documents, at) for at in reversed(error.args[1]))
        raise InputError(f"stages merge each other in a circle: {circle}") from None
    result = _result(documents, names, uses)
    needed = _ancestors(result, graph)
    stages = []
    for at in [*(place for place in order if place in needed and place != result), result]:
        with_it = range(len(documents)) if at == result else sorted(_ancestors(at, graph))
        others = Others(
            documents[at].get("name"),
            tuple(documents[place] for place in with_it if place < at),
            tuple(documents[place] for place in with_it if place > at),
        )
        stages.append(Stage(documents[at].get("name"), at + 1, recipes[at], uses[at], others))
    notes = [
        f"{_label(documents, at)}: the result does not use it, so that it is not merged"
        for at in range(len(documents))
        if at not in needed
    ]
    notes += [
        f"'{name}': a folder has this name too; the stage counts"
        for name in names
        if name is not None and exists(path_of(name, folder))
    ]
    return stages, notes


def _result(
    documents: list[dict[str, Any]],
    names: Mapping[str | None, int],
    uses: list[frozenset[str]],
) -> int:
    """The document without a name or, if all have one, the only one that no other merges."""
    if None in names:
        return names[None]
    last = [
        at for at, each in enumerate(documents) if not any(each["name"] in used for used in uses)
    ]
    if len(last) > 1:
        ends = " and ".join(_label(documents, at) for at in last)
        raise InputError(f"no stage merges {ends}; take the name from the one that is the result")
    return last[0]


def _ancestors(of: int, graph: Mapping[int, set[int]]) -> set[int]:
    """A document, and all that it needs."""
    found, left = set[int](), [of]
    while left:
        at = left.pop()
        if at not in found:
            found.add(at)
            left += graph[at]
    return found


def _label(documents: list[dict[str, Any]], at: int) -> str:
    name = documents[at].get("name")
    return f"document {at + 1}" if name is None else f"'{name}'"
