"""How two models differ, by tensor and by layer. The compiled core reads and sums."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sensmerge import _core, markup
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.models.dtypes import STORED
from sensmerge.models.layers import block_of, blocks, layer_of
from sensmerge.models.references import resolve
from sensmerge.progress import bytes_bar
from sensmerge.terminal import plain

# All but the largest difference.
_ADDED = (
    "entries",
    "changed",
    "signed",
    "agreeing",
    "squared_difference",
    "squared_a",
    "squared_b",
    "product",
)


@dataclass(frozen=True)
class Sums:
    """Counts and sums over the entries of a tensor, a layer or a model.

    ``a`` and ``b`` are the two models' entries or, where there is a base, their task vectors.

    Attributes:
        entries: Number of entries.
        changed: Number of entries that differ.
        signed: Number of entries that are zero in neither.
        agreeing: Number of those of one sign in both.
        largest: Largest absolute difference.
        squared_difference: Squared L2 norm of ``b - a``.
        squared_a: Squared L2 norm of ``a``.
        squared_b: Squared L2 norm of ``b``.
        product: Scalar product of ``a`` and ``b``.
    """

    entries: int
    changed: int
    signed: int
    agreeing: int
    largest: float
    squared_difference: float
    squared_a: float
    squared_b: float
    product: float

    @classmethod
    def of(cls, parts: Iterable[Any]) -> Sums:
        """The sums over several parts, in their order."""
        parts = list(parts)
        total = {name: sum(getattr(part, name) for part in parts) for name in _ADDED}
        return cls(**total, largest=max((part.largest for part in parts), default=0.0))

    @property
    def changed_share(self) -> float:
        """Share of the entries that differ; NaN of none."""
        return _ratio(self.changed, self.entries)

    @property
    def relative(self) -> float:
        """L2 norm of the difference by that of ``a``; NaN if both are 0."""
        return _ratio(math.sqrt(self.squared_difference), math.sqrt(self.squared_a))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between ``a`` and ``b``; NaN if one is 0."""
        return _ratio(self.product, math.sqrt(self.squared_a) * math.sqrt(self.squared_b))

    @property
    def agreement(self) -> float:
        """Share of one sign among the entries that are zero in neither; NaN if there are none."""
        return _ratio(self.agreeing, self.signed)

    def measures(self) -> dict[str, float]:
        """What is shown of them."""
        return {
            "changed_share": self.changed_share,
            "relative_l2": self.relative,
            "cosine": self.cosine,
            "largest": self.largest,
            "sign_agreement": self.agreement,
        }

    def shown(self) -> list[str]:
        """The same as text."""
        return [
            f"{100 * self.changed_share:.2f} %",
            f"{self.relative:.5f}",
            f"{self.cosine:.5f}",
            f"{self.largest:.3g}",
            f"{self.agreement:.4f}",
        ]


@dataclass(frozen=True)
class Comparison(Documented):
    """Two models, compared.

    Attributes:
        a: The name of the first model.
        b: The name of the second.
        base: The name of the model that both were tuned from; None if none was given.
        tensors: The sums of every tensor that was compared, by name.
        notes: What was not compared, and why.
    """

    a: str
    b: str
    base: str | None
    tensors: dict[str, Sums]
    notes: list[str]

    @property
    def layers(self) -> dict[str, Sums]:
        """The sums of every layer: blocks in their order, then what lies outside them."""
        parts: dict[str, list[Sums]] = {}
        for name, sums in self.tensors.items():
            parts.setdefault(layer_of(name), []).append(sums)
        inner = blocks(self.tensors)
        outer = sorted({layer_of(name) for name in self.tensors if block_of(name) is None})
        return {layer: Sums.of(parts[layer]) for layer in [*inner, *outer]}

    @property
    def whole(self) -> Sums:
        """The sums of all tensors."""
        return Sums.of(self.tensors.values())

    def __repr__(self) -> str:
        names = f"a={self.a!r}, b={self.b!r}, base={self.base!r}"
        return f"Comparison({names}, tensors={len(self.tensors)})"

    def _repr_html_(self) -> str:
        head = ["changed", "relative L2", "cosine", "largest", "same sign"]

        def rows(parts: dict[str, Sums]) -> list[list[str]]:
            whole = {"all tensors": self.whole}
            return [[name, *sums.shown()] for name, sums in (parts | whole).items()]

        of = "" if self.base is None else f", as task vectors of {self.base}"
        return markup.shown(
            f"{self.b} against {self.a}{of}",
            markup.table(["layer", *head], rows(self.layers)),
            markup.notes(self.notes),
            markup.folded("By tensor", markup.table(["tensor", *head], rows(self.tensors))),
        )

    def as_dict(self) -> dict[str, Any]:
        """Measures and sums as keys and values; NaN where a measure does not exist."""

        def numbers(sums: Sums) -> dict[str, Any]:
            return asdict(sums) | sums.measures()

        return {
            "a": self.a,
            "b": self.b,
            "base": self.base,
            "whole": numbers(self.whole),
            "layers": {name: numbers(sums) for name, sums in self.layers.items()},
            "tensors": {name: numbers(sums) for name, sums in self.tensors.items()},
            "notes": self.notes,
        }

    def table(self, *, tensors: bool = False) -> str:
        """The measures as text: a line for every layer or tensor, and one for the whole.

        Args:
            tensors: Whether to list tensors rather than layers.
        """
        rows = [
            (plain(name), sums) for name, sums in (self.tensors if tensors else self.layers).items()
        ]
        width = max([len("all tensors"), *(len(name) for name, _ in rows)])
        of = "" if self.base is None else f", as task vectors of {self.base}"
        lines = [plain(f"{self.b} against {self.a}{of}")]
        lines.append(
            f"{'tensor' if tensors else 'layer':<{width}}  {'changed':>9}  {'relative L2':>11}  "
            f"{'cosine':>8}  {'largest':>9}  {'same sign':>9}"
        )
        lines += [_line(name, sums, width) for name, sums in rows]
        lines.append(_line("all tensors", self.whole, width))
        return "\n".join(lines)


def diff(
    a: str | Path,
    b: str | Path,
    base: str | Path | None = None,
    *,
    threads: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare two models, tensor by tensor.

    Entries are compared in float64 whatever they are stored in.

    Args:
        a: A model's folder, weight file or Hub id.
        b: The other.
        base: The model that both were tuned from. With it, cosines, signs and norms are those of
            the task vectors.
        threads: Threads to use; all cores by default. The result does not depend on it.
        progress: Show a progress bar on a terminal and plain lines elsewhere.

    Raises:
        InputError: A model cannot be read as it is, or no tensor is in all of them.
        OSError: A file cannot be read.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    names = [str(a), str(b), *([] if base is None else [str(base)])]
    opened = [_core.Checkpoint(str(resolve(name, Path(), progress=progress))) for name in names]
    found = compare(names, opened, threads=threads, progress=progress)
    said = [note for each in opened for note in each.notes]
    return replace(found, notes=[*said, *found.notes])


def compare(
    names: list[str], opened: list[_core.Checkpoint], *, threads: int | None, progress: bool
) -> Comparison:
    """Compare two models that are open; see :func:`diff`.

    Args:
        names: The names of both, and of the base, if there is one.
        opened: Their checkpoints.
        threads: Threads to use.
        progress: Show progress.
    """
    common, notes = _matched(names, opened)
    if not common:
        raise InputError(f"{names[0]} and {names[1]}: have no tensor in common: {notes[0]}")
    with bytes_bar("comparing", enabled=progress) as report:
        found = _core.differences(
            opened[0],
            opened[1],
            opened[2] if len(opened) > 2 else None,
            common,
            threads=threads,
            progress=report,
        )
    tensors = {name: Sums.of([each]) for name, each in zip(common, found, strict=True)}
    base = names[2] if len(names) > 2 else None
    return Comparison(names[0], names[1], base, tensors, notes)


def _matched(names: list[str], opened: list[_core.Checkpoint]) -> tuple[list[str], list[str]]:
    """Tensors of floats that all models have in one shape, and notes on the others."""
    held = [{tensor.name: tensor for tensor in each.tensors} for each in opened]
    common, notes = [], []
    for tensor in sorted(set().union(*held)):
        there = [each.get(tensor) for each in held]
        without = [name for name, found in zip(names, there, strict=True) if found is None]
        shapes = [found.shape for found in there if found is not None]
        if without:
            notes.append(f"'{tensor}' is not in {' and '.join(without)}: not compared")
        elif any(shape != shapes[0] for shape in shapes):
            said = ", ".join(
                f"{shape} in {name}" for name, shape in zip(names, shapes, strict=True)
            )
            notes.append(f"'{tensor}' has other shapes ({said}): not compared")
        elif not all(found is not None and _merged(found.dtype) for found in there):
            notes.append(f"'{tensor}' is not of floats in all of them: not compared")
        else:
            common.append(tensor)
    return common, notes


def _merged(dtype: str) -> bool:
    return dtype in STORED and STORED[dtype].merged


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan


def _line(name: str, sums: Sums, width: int) -> str:
    changed, relative, cosine, largest, agreement = sums.shown()
    return (
        f"{name:<{width}}  {changed:>9}  {relative:>11}  {cosine:>8}  {largest:>9}  {agreement:>9}"
    )
