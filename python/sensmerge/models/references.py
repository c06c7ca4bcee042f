"""The folder or file that a model's name stands for: a path, or a place on the Hub."""

from __future__ import annotations

from pathlib import Path

from sensmerge.errors import InputError
from sensmerge.models.pickles import enabled, readable
from sensmerge.reading import mode_of
from sensmerge.recipe.places import Places, path_of


def resolve(
    model: str, places: Path | Places, *, adapter: bool = False, progress: bool = True
) -> Path:
    """Find the local folder (or single weight file) of a model or an adapter.

    Args:
        model: A path; or a Hub id such as ``org/name`` or ``org/name@revision``, read from the
            local cache or downloaded where ``huggingface_hub`` is installed; or a stage's name.
            Not a model with adapters: the parts of its name are resolved one by one.
        places: The folder that relative paths start from, or a recipe's places.
        adapter: Whether the name is an adapter's.
        progress: Show progress of a download.

    Returns:
        The folder or file. Within :func:`sensmerge.models.pickles.unpickling`, that of a copy in
        safetensors if the model is stored as pickles.

    Raises:
        InputError: There is no such folder here or on the Hub.
        OSError: The path cannot be examined.
    """
    path = path_of(model, places)
    if mode_of(path) is not None:
        return readable(path)
    # Not before it is needed: most models are here.
    from sensmerge.models.hub import Reference, download

    reference = Reference.of(model)
    if reference is not None:
        pickles = enabled() and not adapter
        path = download(reference, adapter=adapter, pickles=pickles, progress=progress)
        return readable(path)
    hint = ""
    if not adapter and "+" in model:
        hint = "; `sensmerge convert MODEL+ADAPTER OUT` writes a model with an adapter"
    raise InputError(f"model '{model}': no such folder: {path}{hint}")
