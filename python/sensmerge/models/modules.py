"""The modules of models that have several, such as a vision tower, by names of tensors."""

from __future__ import annotations

from collections.abc import Iterable

from sensmerge.recipe.modules import REST

# How models store modules that recipes call by mergekit's names.
_STORED = {
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "multi_modal_projector": (
        "multi_modal_projector",
        "visual.merger",
        "visual.deepstack_merger_list",
    ),
}


def module_of(tensor: str, modules: Iterable[str]) -> str | None:
    """The module of a tensor.

    Of modules whose names are a part of the tensor's name, the one with the longest; otherwise the
    one that holds all the rest.

    Args:
        tensor: The tensor's name.
        modules: The names of a recipe's modules.

    Returns:
        One of ``modules``; None if the tensor is in none of them.
    """
    found, longest, rest = None, 0, None
    for module in modules:
        if module in REST:
            rest = module
            continue
        for path in _STORED.get(module, (module,)):
            if f".{path}." in f".{tensor}" and len(path) > longest:
                found, longest = module, len(path)
    return found or rest
