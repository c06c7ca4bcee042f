"""A task vector as a LoRA adapter: ``B · A`` in place of every matrix of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sensmerge import _core
from sensmerge.comparison.differences import Comparison, compare
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.lora.adapter_file import AdapterFile, adapter_file
from sensmerge.lora.lowrank import Factors, Matrix, decompose
from sensmerge.lora.peft import DTYPES, WEIGHT, add_factors, named, names_of, targets, write_config
from sensmerge.lora.stored import mapped
from sensmerge.models.adapters import WEIGHTS_FILE, WRAPPER
from sensmerge.models.folders import read_config
from sensmerge.models.inspection import human_size
from sensmerge.models.layers import TRANSPOSED_MODELS, block_of, blocks, layer_of
from sensmerge.models.references import resolve
from sensmerge.models.vocabulary.names import INPUT_EMBEDDINGS
from sensmerge.progress import bar
from sensmerge.refusals import unknown_value
from sensmerge.terminal import plain

# Names of embeddings, which PEFT adapts in a form of their own.
_EMBEDDINGS = (
    *INPUT_EMBEDDINGS,
    "wpe.weight",
    "embed_positions.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
)


@dataclass(frozen=True)
class Options:
    """What is extracted.

    Attributes:
        rank: Largest rank of a matrix.
        sv_epsilon: Singular values up to this one are left out.
        include: Patterns, one of which must be found in a module's name; none includes all.
        exclude: Patterns, none of which may be found in it.
        modules_to_save: Names of modules, whole or their last parts, that are stored whole.
        dtype: Dtype of the factors.
    """

    rank: int
    sv_epsilon: float
    include: Sequence[re.Pattern[str]]
    exclude: Sequence[re.Pattern[str]]
    modules_to_save: Sequence[str]
    dtype: str

    def includes(self, module: str) -> bool:
        """Whether a module's matrix is made an adapter of."""
        wanted = not self.include or any(pattern.search(module) for pattern in self.include)
        return wanted and not any(pattern.search(module) for pattern in self.exclude)

    def saves(self, module: str) -> bool:
        """Whether a module is stored whole."""
        return any(module == name or module.endswith(f".{name}") for name in self.modules_to_save)


@dataclass
class Extraction(Documented):
    """An adapter that was written.

    Attributes:
        output: Its folder.
        ranks: The rank of every module with factors.
        saved: Modules that are stored whole.
        bytes: Size of the weights.
        lost: For every tensor that differs, the squared norms of its task vector and of what the
            adapter lacks of it.
        notes: Notes for the user.
    """

    output: Path
    ranks: dict[str, int] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    bytes: int = 0
    lost: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def error(self) -> float:
        """Norm of what the adapter lacks, by that of the task vector; 0 if the models are equal."""
        return _share(self.lost.values())

    @property
    def layers(self) -> dict[str, float]:
        """The same for every layer that differs."""
        parts: dict[str, list[tuple[float, float]]] = {}
        for name, squares in self.lost.items():
            parts.setdefault(layer_of(name), []).append(squares)
        outer = sorted({layer_of(name) for name in self.lost if block_of(name) is None})
        return {layer: _share(parts[layer]) for layer in [*blocks(self.lost), *outer]}

    def describe(self) -> str:
        """The error of every layer, and what was written, as text."""
        layers = [(plain(layer), error) for layer, error in self.layers.items()]
        width = max([len("all tensors"), *(len(layer) for layer, _ in layers)])
        lines = [f"{'layer':<{width}}  relative error"]
        lines += [f"{layer:<{width}}  {error:>14.4f}" for layer, error in layers]
        lines.append(f"{'all tensors':<{width}}  {self.error:>14.4f}")
        lines.append(
            f"wrote {self.output}: {len(self.ranks)} modules of rank up to "
            f"{max(self.ranks.values(), default=0)}, {len(self.saved)} stored whole, "
            f"{human_size(self.bytes)}"
        )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same as keys and values, with the rank of every module; see docs/json.md."""
        return {
            "output": self.output,
            "bytes": self.bytes,
            "relative_error": self.error,
            "layers": {name: {"relative_error": error} for name, error in self.layers.items()},
            "ranks": self.ranks,
            "saved": self.saved,
            "notes": self.notes,
        }


def extract_lora(
    expert: str | Path,
    base: str | Path,
    out: str | Path,
    rank: int,
    *,
    sv_epsilon: float = 0.0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
    dtype: str = "float32",
    threads: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Extraction:
    """Write the difference of a model from its base as a LoRA adapter in PEFT's format.

    Every matrix of the task vector is replaced by the product of two factors of at most ``rank``,
    its truncated singular value decomposition. Norms, biases and other tensors that are no
    matrices are left out, unless their modules are stored whole; a note says how much that is.

    Args:
        expert: The tuned model's folder, weight file or Hub id.
        base: The model that it was tuned from.
        out: The folder to write.
        rank: Largest rank of a matrix.
        sv_epsilon: Singular values up to this one are left out, so that ranks may be smaller.
        include: Regular expressions; only modules in whose names one is found get factors.
        exclude: Regular expressions; modules in whose names one is found get none.
        modules_to_save: Modules to store whole, by their names or the last parts of them.
        dtype: Dtype of the factors: float32, bfloat16 or float16.
        threads: Threads for reading; all cores by default.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        overwrite: Replace an earlier adapter in ``out``.

    Raises:
        InputError: A model, an argument or the folder cannot be used as it is, or the models do
            not differ where factors are asked for.
        OSError: A file cannot be read or written.
    """
    options = _options(rank, sv_epsilon, include, exclude, modules_to_save, dtype)
    out = Path(out)
    paths = [resolve(str(name), Path(), progress=progress) for name in (expert, base)]
    _core.check_output(str(out), [str(path) for path in paths], overwrite)
    models = [_core.Checkpoint(str(path)) for path in paths]
    names = [str(expert), str(base)]
    compared = compare(names[::-1], models[::-1], threads=threads, progress=progress)
    config = read_config(paths[1])
    task = _Task(models[0], models[1], options, config, threads)
    found = Extraction(out, notes=[note for each in models for note in each.notes])
    found.notes += compared.notes
    with adapter_file(out / WEIGHTS_FILE, names_of(compared.tensors)) as file:
        left = task.write(compared, file, found, progress)
        if not found.ranks:
            raise InputError(
                f"{names[0]}: differs from {names[1]} in no matrix that factors are asked for"
            )
    found.notes += _told(left, found, config)
    write_config(out, found.ranks, _described(names[1], models[1], config, found))
    found.bytes = (out / WEIGHTS_FILE).stat().st_size
    return found


def _options(
    rank: int,
    sv_epsilon: float,
    include: Sequence[str],
    exclude: Sequence[str],
    modules_to_save: Sequence[str],
    dtype: str,
) -> Options:
    if rank < 1:
        raise InputError(f"rank: {rank} is no rank; give 1 or more")
    if dtype not in DTYPES:
        raise InputError(f"dtype: {unknown_value(dtype, list(DTYPES))}")
    patterns: list[list[re.Pattern[str]]] = []
    for argument, texts in (("include", include), ("exclude", exclude)):
        try:
            patterns.append([re.compile(text) for text in texts])
        except re.error as error:
            raise InputError(f"{argument}: is not a regular expression: {error}") from None
    return Options(rank, sv_epsilon, patterns[0], patterns[1], modules_to_save, dtype)


@dataclass(frozen=True)
class _Task:
    """Two models and what is wanted of their difference."""

    expert: _core.Checkpoint
    base: _core.Checkpoint
    options: Options
    config: dict[str, Any]
    threads: int | None

    def write(
        self, compared: Comparison, file: AdapterFile, found: Extraction, progress: bool
    ) -> dict[str, float]:
        """Write all factors and the modules stored whole.

        Returns:
            The squared norm of the task vector of every tensor that is left out.
        """
        shapes = {tensor.name: tuple(tensor.shape) for tensor in self.expert.tensors}
        left: dict[str, float] = {}
        with bar(len(compared.tensors), "extracting", "tensors", enabled=progress) as advance:
            for name, sums in compared.tensors.items():
                module, _, part = name.rpartition(".")
                squared = sums.squared_difference
                if not math.isfinite(squared):
                    raise InputError(f"tensor '{name}': holds NaN or infinite values")
                if self.options.saves(module):
                    self._save(name, shapes[name], file)
                    found.saved += [] if module in found.saved else [module]
                    found.lost[name] = (squared, 0.0)
                elif squared > 0:
                    factors = None
                    if f".{part}" == WEIGHT and len(shapes[name]) == 2:
                        factors = self._factors(name, module, shapes[name])
                    if factors is None:
                        left[name] = squared
                    else:
                        self._add(module, factors, file)
                        found.ranks[module] = len(factors.s)
                    kept = 0.0 if factors is None else factors.squared
                    found.lost[name] = (squared, max(squared - kept, 0.0))
                advance(1)
        return left

    def _factors(self, name: str, module: str, shape: tuple[int, ...]) -> Factors | None:
        """The factors of a matrix; None if none are asked for."""
        if not self.options.includes(module):
            return None
        height, width = shape

        def rows(first: int, last: int) -> Matrix:
            values = np.empty((last - first, width), np.float32)
            output = values.reshape(-1).view(np.uint8)
            _core.task_vector(
                self.expert, self.base, name, first * width, output, threads=self.threads
            )
            return values

        factors = decompose(rows, (height, width), self.options.rank, name)
        # A value of 0 adds nothing.
        rank = int(np.sum(factors.s > max(self.options.sv_epsilon, 0.0)))
        return factors.of_rank(rank) if rank > 0 else None

    def _add(self, module: str, factors: Factors, file: AdapterFile) -> None:
        """Write A and B."""
        add_factors(
            file,
            module,
            factors,
            self.options.dtype,
            embedding=f"{module}{WEIGHT}".endswith(_EMBEDDINGS),
            transposed=self.config.get("model_type") in TRANSPOSED_MODELS,
        )

    def _save(self, name: str, shape: tuple[int, ...], file: AdapterFile) -> None:
        """Write the expert's tensor as it is stored."""
        found = next(tensor for tensor in self.expert.tensors if tensor.name == name)
        file.add(WRAPPER + name, found.dtype, mapped(self.expert, found), shape)


def _told(left: dict[str, float], found: Extraction, config: dict[str, Any]) -> list[str]:
    """Notes on what the adapter lacks, and on where it changes less than the expert."""
    notes = []
    total = sum(whole for whole, _ in found.lost.values())
    if left:
        names = sorted(left, key=lambda name: -left[name])
        more = f" and {len(names) - 3} others" if len(names) > 3 else ""
        share = math.sqrt(sum(left.values()) / total)
        notes.append(
            f"left out, with {share:.2g} of the task vector's norm: {', '.join(names[:3])}{more}; "
            "they are no matrices, or were not asked for; --modules-to-save stores modules whole"
        )
    embedded = [name for name in found.ranks if f"{name}{WEIGHT}".endswith(INPUT_EMBEDDINGS)]
    if embedded and config.get("tie_word_embeddings") is True:
        notes.append(
            f"{embedded[0]}: the output head is tied to it and changes only once the adapter is "
            "merged (merge_and_unload)"
        )
    return notes


def _described(
    base: str,
    checkpoint: _core.Checkpoint,
    config: dict[str, Any],
    found: Extraction,
) -> dict[str, Any]:
    """What the adapter's config says of this one."""
    names = [tensor.name for tensor in checkpoint.tensors]
    return {
        "task_type": "CAUSAL_LM",
        **named(base, checkpoint),
        "target_modules": targets({name: name for name in found.ranks}, names),
        "modules_to_save": sorted(found.saved) or None,
        "fan_in_fan_out": config.get("model_type") in TRANSPOSED_MODELS,
    }


def _share(squares: Any) -> float:
    total, lacking = 0.0, 0.0
    for whole, lost in squares:
        total, lacking = total + whole, lacking + lost
    return math.sqrt(lacking / total) if total > 0 else 0.0
