"""What a model's name stands for: a recipe's file, or a model."""

from __future__ import annotations

from pathlib import Path

from sensmerge.reading import is_folder, mode_of

# Files of these endings hold a model's weights, and no recipe.
_WEIGHTS = (".bin", ".gguf", ".pt", ".pth", ".safetensors")


def is_recipe(name: str | Path) -> bool:
    """Whether a model's name is that of a recipe: of a file that holds no weights.

    Raises:
        OSError: The file cannot be examined.
    """
    path = Path(name)
    return mode_of(path) is not None and not is_folder(path) and path.suffix not in _WEIGHTS
