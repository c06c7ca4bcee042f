"""A recipe in words: what a merge of it does, and what mergekit 0.1.5 would do otherwise.

No weights are read, and models that are not here are just named.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.merging.manifest import WEIGHT
from sensmerge.models.folders import read_config
from sensmerge.recipe import AUTO, Recipe, StagedRecipe
from sensmerge.recipe.places import exists, path_of, place_of
from sensmerge.recipe.tokenizer import AUTO_TEMPLATE, BASE, UNION
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.recipe import Model
    from sensmerge.recipe.methods import Parameter
    from sensmerge.recipe.slices import Slice

_BASE = {
    "needed": "task vectors are differences from it, and what is merged is added to it",
    "optional": "task vectors are differences from it",
    "merged": "merged with the others",
    "unused": "gives the tensors' names, the config and the tokenizer",
}


@dataclass(frozen=True)
class ExplainedStage:
    """One recipe in sentences.

    Attributes:
        name: The name of the stage; None for a result without one.
        method: The merge method.
        summary: What it computes.
        models: What is merged.
        parameters: The value of every parameter, and where it comes from.
        output: What is written.
        differences: What mergekit would do otherwise.
        notes: Notes for the user.
    """

    name: str | None
    method: str
    summary: str
    models: list[str]
    parameters: list[str]
    output: list[str]
    differences: list[str]
    notes: list[str]

    def lines(self) -> Iterator[str]:
        """The sentences, section by section."""
        yield self.summary
        for title, sentences in (
            ("models", self.models),
            ("parameters", self.parameters),
            ("output", self.output),
            ("different from mergekit 0.1.5", self.differences),
        ):
            yield ""
            yield title
            yield from (f"  {sentence}" for sentence in sentences)
        yield from (f"note: {note}" for note in self.notes)


@dataclass(frozen=True)
class Explanation(Documented):
    """A recipe in words.

    Attributes:
        stages: Its stages in the order of merging, the result last; one for a recipe without.
        whole: Notes on the stages as a whole; None for a recipe without stages.
    """

    stages: list[ExplainedStage]
    whole: list[str] | None = None

    @property
    def notes(self) -> list[str]:
        """All notes for the user."""
        if self.whole is None:
            return self.stages[0].notes
        said = [f"{self._title(stage)}: {note}" for stage in self.stages for note in stage.notes]
        return [*self.whole, *said]

    def describe(self) -> str:
        """The words, for the terminal."""
        if self.whole is None:
            return "\n".join(map(plain, self.stages[0].lines()))
        order = ", then ".join(stage.name or "the result" for stage in self.stages)
        lines = [f"{len(self.stages)} stages, merged in this order: {order}"]
        for stage in self.stages:
            lines += ["", f"# {self._title(stage)}", "", *stage.lines()]
        lines += ["", "mergekit merges such a recipe with mergekit-multi."]
        return "\n".join(map(plain, [*lines, *(f"note: {note}" for note in self.whole)]))

    def as_dict(self) -> dict[str, Any]:
        """The same sentences as keys and values; see docs/json.md."""
        stages = [asdict(stage) for stage in self.stages]
        return stages[0] if self.whole is None else {"stages": stages, "notes": self.notes}

    def _title(self, stage: ExplainedStage) -> str:
        return "the result" if stage is self.stages[-1] else f"stage {stage.name}"


def explain(recipe: Recipe | StagedRecipe) -> Explanation:
    """Say in words what a merge of a recipe does."""
    if isinstance(recipe, Recipe):
        return Explanation([_explained(recipe, None, set())])
    names = {str(stage.name) for stage in recipe.stages if stage.name is not None}
    stages = [_explained(stage.recipe, stage.name, names) for stage in recipe.stages]
    return Explanation(stages, recipe.notes)


def _explained(recipe: Recipe, name: str | None, stages: set[str]) -> ExplainedStage:
    method, parameters = recipe.method, list[str]()
    for part in recipe.parts:
        if recipe.slices is not None:
            parameters.append(f"{part.key}: {_layers(part)}")
        parameters += _parameters(recipe, part)
    return ExplainedStage(
        name=name,
        method=recipe.merge_method,
        summary=f"{method.title} ({method.source}), as {_by(recipe)}: {method.summary}",
        models=list(_models(recipe, stages)),
        parameters=parameters,
        output=list(_output(recipe)),
        differences=list(_differences(recipe)),
        notes=recipe.notes,
    )


def _by(recipe: Recipe) -> str:
    theirs = recipe.semantics == "mergekit" and recipe.method.in_mergekit
    return "mergekit computes it" if theirs else "published"


def _models(recipe: Recipe, stages: set[str]) -> Iterator[str]:
    if recipe.base_model is not None:
        said = _BASE[recipe.method.base]
        yield f"base    {recipe.base_model}: {_found(recipe, recipe.base_model, stages)}; {said}"
    for model in recipe.experts:
        own = "" if model.calibration is None else f"; samples in {model.calibration.path}"
        yield f"merged  {model.model}: {_found(recipe, model.model, stages)}{own}"


def _found(recipe: Recipe, name: str, stages: set[str]) -> str:
    """What is known of a model without reading its weights."""
    if name in stages:
        return "an earlier stage"
    path = path_of(name, recipe.places)
    if not exists(path):
        return "not here; looked for on the Hub" if "/" in name else "not here"
    with suppress(InputError, OSError):
        kinds = read_config(path).get("architectures")
        if isinstance(kinds, list) and kinds:
            return f"{kinds[0]}, in a folder" if path.is_dir() else str(kinds[0])
    return "a folder" if path.is_dir() else "a file"


def _layers(part: Slice) -> str:
    said = []
    for source in part.sources:
        ends = getattr(source, "layer_range", None)
        layers = "all layers" if ends is None else f"layers {ends[0]} to {ends[1] - 1}"
        said.append(f"{layers} of {source.model}")
    return ", ".join(said)


def _parameters(recipe: Recipe, part: Slice) -> Iterator[str]:
    for parameter in recipe.method.parameters:
        if parameter.owner == "merge":
            settings = [(part.parameters, "the slice's parameters")] if _sliced(recipe) else []
            settings.append((recipe.parameters, "parameters"))
            yield f"{parameter.name}: {_value(parameter, settings)}"
            continue
        said = {}
        for model in recipe.experts_of(part):
            settings = [(model.parameters, f"the parameters of {model.model}")]
            settings += [(part.parameters, "the slice's parameters")] if _sliced(recipe) else []
            settings.append((recipe.parameters, "parameters"))
            said[model.model] = _value(parameter, settings)
        if len(set(said.values())) == 1:
            yield f"{parameter.name}: {next(iter(said.values()))}, for every model"
        else:
            yield from (f"{parameter.name} of {name}: {value}" for name, value in said.items())
    if not recipe.method.parameters:
        yield "none"


def _sliced(recipe: Recipe) -> bool:
    return recipe.slices is not None


def _value(parameter: Parameter, settings: list[tuple[Any, str]]) -> str:
    """A parameter's value, and where it comes from; settings come in order of precedence."""
    said = []
    for section, home in settings:
        setting = section.get(parameter.name)
        if setting is not None:
            said.append(f"{_written(setting)} (from {home})")
            if not _is_partial(setting):
                return "; elsewhere ".join(said)
    default = parameter.default
    said.append("not given" if default is None else f"{_written(default)} (the default)")
    return "; elsewhere ".join(said)


def _is_partial(setting: Any) -> bool:
    """Whether a setting has conditions of which none matches every tensor."""
    if not (isinstance(setting, list) and isinstance(setting[0], dict)):
        return False
    return all(condition.get("filter") not in (None, "*") for condition in setting)


def _written(setting: Any) -> str:
    if setting == AUTO:
        return "searched for on the samples"
    if isinstance(setting, bool):
        return "true" if setting else "false"
    if isinstance(setting, int | float):
        return f"{setting:g}"
    if isinstance(setting[0], dict):
        return ", ".join(map(_condition, setting))
    if len(setting) == 1:
        return f"{setting[0]:g}"
    return f"{', '.join(f'{number:g}' for number in setting)} from the first layer to the last"


def _condition(condition: dict[str, Any]) -> str:
    name, value = condition.get("filter"), _written(condition["value"])
    return f"{value} otherwise" if name in (None, "*") else f"{value} where a name has '{name}'"


def _output(recipe: Recipe) -> Iterator[str]:
    asked = recipe.out_dtype or recipe.dtype
    key = "out_dtype" if recipe.out_dtype else "dtype"
    first = "the base" if recipe.base_model is not None else "the first model"
    stored = f"as {first} stores each tensor" if asked is None else f"{asked} (from {key})"
    yield f"dtype: {stored}; computed in float32, or float64 where an input is"
    if recipe.align is not None:
        yield (
            f"align: {recipe.align}; before the merge, neurons and attention heads of every model "
            f"are brought into the order of {first}'s, by their weights"
        )
    yield f"tokenizer: {_tokenizer(recipe, first)}"
    if recipe.chat_template is not None:
        yield f"chat template: {_template(recipe.chat_template)}"
    yield f"seed: {recipe.seed}"
    options = recipe.sensitivity
    if options is not None and options.mode != "off":
        temperature = _written(options.temperature)
        yield (
            f"sensitivity: {options.samples} samples of each expert are run, and its {WEIGHT} in "
            f"each layer is multiplied by a coefficient (mode {options.mode}, temperature "
            f"{temperature})"
        )
    if recipe.aim is not None:
        ours = recipe.aim.calibration
        said = "all experts' samples" if ours is None else f"the samples in {ours.path}"
        yield (
            f"aim: {recipe.base_model} is run on {said}; where its activations are strong, less of "
            f"the merged task vector is added: {recipe.aim.omega:g} of it at the strongest channel"
        )


def _tokenizer(recipe: Recipe, first: str) -> str:
    wanted = recipe.wanted_tokenizer
    said = {
        BASE: f"that of {first}",
        UNION: f"that of {first}, with the tokens of all models",
    }.get(wanted.source, f"that of {wanted.source}")
    if wanted.tokens:
        said += f"; rows of {len(wanted.tokens)} tokens are chosen"
    if wanted.pad_to_multiple_of is not None:
        said += f"; rows up to a multiple of {wanted.pad_to_multiple_of}"
    return f"{said}; every model's rows are matched to its tokens"


def _template(template: str) -> str:
    if template == AUTO_TEMPLATE:
        return "the one that most models have"
    return "the recipe's own" if "{" in template else template


def _differences(recipe: Recipe) -> Iterator[str]:
    method = recipe.method
    if not method.in_mergekit:
        yield f"there is no {method.name}, so that such a recipe is refused"
        return
    if recipe.dtype != "float32":
        theirs = recipe.dtype or "the dtype of the inputs"
        yield f"sums are made in float32 and rounded once; most methods there compute in {theirs}"
    # The description of a method says whether it draws anything.
    if "random" in method.summary:
        yield (
            "what is drawn at random depends on seed, model, tensor and entry alone; there, on one "
            "generator and the order of the work, so that other entries are drawn"
        )
    if recipe.semantics == "original":
        yield f"semantics: original: there, {method.name} is always mergekit's"
    options = recipe.sensitivity
    if options is not None and options.mode != "off":
        yield (
            "sensitivity: weights from data are not known there; `sensmerge coefficients --format "
            "mergekit` writes them as a plain recipe"
        )
    if recipe.auto:
        yield f"{' and '.join(recipe.auto)}: there, numbers are needed"
    if recipe.align is not None:
        yield "align: there, units are merged in the order in which models have them"
    if recipe.aim is not None:
        yield "aim: there, task vectors are added as they are"
    missing = _without_weight(recipe)
    if missing:
        yield f"{WEIGHT} of {', '.join(missing)} is the default; there, it has to be given"
    if recipe.tokenizer is None and recipe.tokenizer_source is None:
        yield "rows are matched by token; there, by id unless a tokenizer is named"
    listed = [place_of(model.model, recipe.places) for model in recipe.models]
    if len(set(listed)) < len(listed):
        yield "a model is listed twice, which is refused there"
    base = recipe.base_model
    ignored = base is not None and recipe.slices is None and method.base == "unused"
    if ignored and place_of(str(base), recipe.places) not in listed:
        yield "base_model is not merged, since it is not listed; there, it is"


def _without_weight(recipe: Recipe) -> list[str]:
    """Models without a weight of their own, or one for all, where the method has such."""
    if recipe.method.parameter(WEIGHT) is None or recipe.parameters.get(WEIGHT) is not None:
        return []

    def given(model: Model, part: Slice) -> bool:
        return any(setting is not None for setting in recipe.settings(model, WEIGHT, part))

    return list(
        dict.fromkeys(
            model.model
            for part in recipe.parts
            for model in recipe.experts_of(part)
            if not given(model, part)
        )
    )
