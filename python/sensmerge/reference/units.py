"""The best order of a model's units, by trying all orders: for a handful of units.

Source: the weight matching of Git Re-Basin (Ainsworth et al. 2023, eq. 3), of one block, with a
residual stream that stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]


def best_order(template: Vectors, model: Vectors) -> tuple[float, list[int]]:
    """The order of a model's units in which they are nearest to those of a template.

    Args:
        template: A unit in each row, all of its entries one after the other, ``[units, entries]``.
        model: The same of the model.

    Returns:
        The sum of the scalar products of matched units, and for every place the unit that takes it.
    """
    values = template @ model.T
    return max(_valued(values, order) for order in permutations(range(len(values))))


def best_nested_order(
    units: tuple[Vectors, Vectors], members: tuple[Vectors, Vectors], each: int
) -> tuple[float, list[int], list[int]]:
    """The same for units with members, which can change places within their unit.

    Args:
        units: The units' own entries in the template and in the model, ``[units, entries]``.
        members: Those of their members, ``[units · each, entries]``, the first unit's first.
        each: Number of members of a unit.

    Returns:
        The sum of all scalar products, the order of the units, and that of the members, numbered
        over all units.
    """
    count = len(units[0])
    of_units, of_members = units[0] @ units[1].T, members[0] @ members[1].T
    found = []
    for order, within in product(permutations(range(count)), _within(count, each)):
        places = [
            unit * each + member
            for unit, inner in zip(order, within, strict=True)
            for member in inner
        ]
        value = _valued(of_units, order)[0] + _valued(of_members, places)[0]
        found.append((value, list(order), places))
    return max(found)


def _within(count: int, each: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All orders of the members of all units."""
    return product(permutations(range(each)), repeat=count)


def _valued(values: Vectors, order: Sequence[int]) -> tuple[float, list[int]]:
    return float(sum(values[place, unit] for place, unit in enumerate(order))), list(order)
