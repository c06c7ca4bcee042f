"""The alignment of every two experts: which models have to run on which samples, and the distances.

An expert whose sensitivity was measured in the same run has run on its own samples then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sensmerge.calibration import alignment
from sensmerge.calibration.vocabularies import Columns, Vocabulary, common_columns
from sensmerge.progress import bar

if TYPE_CHECKING:
    from sensmerge.calibration.entering import States
    from sensmerge.calibration.kept import Kept
    from sensmerge.calibration.loading import Source
    from sensmerge.calibration.record import Expert
    from sensmerge.calibration.runner import Runner
    from sensmerge.calibration.samples import Sample
    from sensmerge.recipe import Sensitivity


@dataclass(frozen=True)
class Pairs:
    """The experts to be compared.

    Attributes:
        sources: Their files.
        experts: What was measured of each of them.
        known: Their vocabularies.
        read: The samples of every task, by reader and by task, with the reader's ids.
    """

    sources: list[Source]
    experts: list[Expert]
    known: list[Vocabulary]
    read: list[list[list[Sample]]]

    def __len__(self) -> int:
        return len(self.sources)

    def common(self) -> dict[tuple[int, int], list[Columns] | None]:
        """The logits in common of every two experts; None for their first ones."""
        sizes = [expert.vocabulary for expert in self.experts]
        return {
            (i, j): common_columns(one, other, (sizes[i], sizes[j]))
            for i, one in enumerate(self.known)
            for j, other in enumerate(self.known)
            if i != j
        }


def distances(
    pairs: Pairs,
    options: Sensitivity,
    runner: Runner,
    kept: Kept,
    own: dict[int, States],
    progress: bool,
    threads: int | None,
) -> NDArray[np.float64]:
    """The distances g: row i, column j compares model i with expert j on the samples of task j.

    Args:
        pairs: The experts.
        options: The options of the calibration.
        runner: Runs models as asked.
        kept: Earlier measurements.
        own: What entered the heads of experts that have run on their own samples already.
        progress: Show progress.
        threads: Threads for the reductions; all cores by default.

    Raises:
        InputError: A model cannot be loaded or run, or logits are not finite.
    """
    common = pairs.common()
    g, missing = _known(pairs, kept)
    # For every model: the tasks that it has to have run on, to measure the missing pairs it is in.
    wanted = [sorted({j for pair in missing if i in pair for j in pair[1:]}) for i in range(len(g))]
    states = {(place, place): found for place, found in own.items()}
    left = [[j for j in row if (i, j) not in states] for i, row in enumerate(wanted)]
    heads: dict[int, alignment.Head] = {}
    total = sum(len(pairs.read[j][j]) for row in left for j in row)
    with bar(total, "alignment", "samples", enabled=progress) as advance:
        for i, row in enumerate(left):
            if not wanted[i]:
                continue
            opened = runner.open(pairs.sources[i])
            if row:
                joined = [sample for j in row for sample in pairs.read[i][j]]
                found = iter(runner.states(opened, joined, options.positions, advance))
                for j in row:
                    states[i, j] = [next(found) for _ in pairs.read[i][j]]
            heads[i] = alignment.Head(opened.model, opened.stream)
            del opened
    for i, j in missing:
        names = pairs.sources[i].name, pairs.sources[j].name
        g[i, j] = alignment.distance(
            heads[i],
            heads[j],
            states[i, j],
            states[j, j],
            pairs.read[j][j],
            pair=f"experts '{names[0]}' and '{names[1]}'",
            form=options.distance,
            threads=threads,
            columns=common[i, j],
        )
    return g


def _known(pairs: Pairs, kept: Kept) -> tuple[NDArray[np.float64], list[tuple[int, int]]]:
    """The distances that an earlier run measured, and the pairs that are missing."""
    count = len(pairs)
    g = np.zeros((count, count))
    missing = []
    for i in range(count):
        for j in range(count):
            known = 0.0 if i == j else kept.distance(pairs.experts[i], pairs.experts[j])
            if known is None:
                missing.append((i, j))
            else:
                g[i, j] = known
    return g, missing
