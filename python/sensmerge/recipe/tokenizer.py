"""What a recipe says of the output's tokenizer and chat template, in mergekit's keys."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sensmerge.recipe.fields import ModelName, Strict, model_name
from sensmerge.recipe.places import Places, exists, path_of, place_of
from sensmerge.refusals import unknown_value

BASE, UNION = "base", "union"

# An older mergekit wrote the name of a model behind this.
_PREFIX = "model:"

# The chat template that most models have.
AUTO_TEMPLATE = "auto"

_KNOWN = files("sensmerge.recipe") / "chat_templates"
_ENDING = ".jinja"


class Zero(Strict):
    """A row of zeros."""

    kind: Literal["zero"]


class ModelToken(Strict):
    """The row of a token in one model.

    Attributes:
        model: The model.
        token: The token; None if its id is given.
        token_id: Its row in that model; None if the token is given.
    """

    kind: Literal["model_token"]
    model: ModelName
    token: str | None = None
    token_id: Annotated[int | None, Field(ge=0)] = None


def _row(value: Any) -> Any:
    """The origin of a token's row, from mergekit's spellings of it."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "zero":
        if set(value) != {"kind"}:
            raise ValueError("a row of zeros takes no more keys than kind")
        return Zero(kind="zero")
    if kind == "model_token":
        given = {key: value.get(key) for key in ("token", "token_id")}
        if len([each for each in given.values() if each is not None]) != 1:
            raise ValueError("a model_token takes one of token and token_id")
        if not set(value) <= {"kind", "model", *given}:
            raise ValueError("a model_token takes model and one of token and token_id")
        return ModelToken(kind="model_token", model=model_name(value.get("model")), **given)
    if kind is not None:
        raise ValueError(f"unknown kind '{kind}'; known: zero, model_token")
    return None if value is None else model_name(value)


class Token(Strict):
    """The row of one token of the output.

    Attributes:
        source: The origin of the row where a model lacks the token: zeros, a token of a model, or a
            model that has it; None takes what any other token would get.
        force: Whether it is taken in place of the row that a model has, too.
    """

    source: Annotated[ModelToken | Zero | str | None, BeforeValidator(_row)] = None
    force: bool = False


def _source(value: Any) -> str:
    name = model_name(value)
    return name.removeprefix(_PREFIX) or name


TokenizerName = Annotated[str, BeforeValidator(_source), Field(min_length=1)]


class Tokenizer(Strict):
    """The output's tokenizer.

    Attributes:
        source: ``base``; ``union``, which has the tokens of all models; or a model, of the recipe
            or another, whose tokenizer the output has.
        tokens: Rows of single tokens. A token that the tokenizer lacks is added.
        pad_to_multiple_of: The number of rows is rounded up to a multiple of this.
    """

    source: TokenizerName = UNION
    tokens: dict[str, Token] = Field(default_factory=dict)
    pad_to_multiple_of: Annotated[int | None, Field(ge=1)] = None

    def names(self) -> list[str]:
        """The models that are named for single tokens."""
        sources = [token.source for token in self.tokens.values()]
        named = [each.model if isinstance(each, ModelToken) else each for each in sources]
        return [name for name in named if isinstance(name, str)]


def unknown_source(source: str, models: set[str], places: Places) -> str | None:
    """Why a tokenizer cannot be found under a name; None where it may be.

    Args:
        source: The name.
        models: The places of the recipe's models.
        places: The recipe's places.
    """
    known = source in (BASE, UNION) or place_of(source, places) in models
    if known or exists(path_of(source, places)) or "/" in source:
        return None
    return (
        f"'{source}' is neither a model of the recipe nor a folder; write 'base', 'union' or the "
        "name of a model"
    )


def with_other_names(data: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """What a recipe says of its tokenizer, with models called otherwise.

    Args:
        data: The recipe's keys and values, as they were accepted.
        rename: The other name of a model.

    Returns:
        The keys that say it, with their new values.
    """

    def source(value: Any) -> str:
        name = _source(value)
        return name if name in (BASE, UNION) else rename(name)

    found: dict[str, Any] = {}
    if data.get("tokenizer_source") is not None:
        found["tokenizer_source"] = source(data["tokenizer_source"])
    section = copy.deepcopy(data.get("tokenizer"))
    if isinstance(section, dict):
        if "source" in section:
            section["source"] = source(section["source"])
        for token in (section.get("tokens") or {}).values():
            said = token.get("source")
            if isinstance(said, dict) and "kind" in said:
                said |= {"model": rename(model_name(said["model"]))} if "model" in said else {}
            elif said is not None:
                token["source"] = rename(model_name(said))
        found["tokenizer"] = section
    return found


def known_templates() -> list[str]:
    """The names of the chat templates that come with the package."""
    return sorted(each.name.removesuffix(_ENDING) for each in _KNOWN.iterdir())


def known_template(name: str) -> str:
    """One of them, in Jinja."""
    return (_KNOWN / f"{name}{_ENDING}").read_text(encoding="utf-8")


def template(value: Any) -> Any:
    """A chat template: ``auto``, the name of a known one, or Jinja.

    Raises:
        ValueError: It is none of these.
    """
    # Jinja has braces, and names have none.
    if value is None or (isinstance(value, str) and "{" in value):
        return value
    known = [AUTO_TEMPLATE, *known_templates()]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{unknown_value(value, known)}; or a Jinja template")
    return value
