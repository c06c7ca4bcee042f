"""Calibrations as notebooks show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sensmerge import markup

if TYPE_CHECKING:
    from sensmerge.calibration.record import Calibration

TOP = 5


def html_of(calibration: Calibration) -> str:
    """A calibration: its experts with their most sensitive layers, and their distances."""
    rows = [
        [
            expert.model,
            expert.task.path,
            ", ".join(calibration.layers[place] for place in np.argsort(-row, kind="stable")[:TOP]),
            f"{expert.loss:.4f}",
            expert.task.used,
            expert.task.left_out,
            expert.task.scored_tokens,
        ]
        for expert, row in zip(calibration.experts, calibration.sensitivity, strict=True)
    ]
    names = [expert.model for expert in calibration.experts]
    distances = [
        [name, *(f"{value:.4g}" for value in row)]
        for name, row in zip(names, calibration.alignment, strict=True)
    ]
    head = [
        "model",
        "samples",
        "most sensitive layers",
        "loss",
        "used",
        "left out",
        "scored tokens",
    ]
    said = f"{len(rows)} experts, {len(calibration.layers)} blocks, measure {calibration.measure}"
    base = f", base {calibration.base}" if calibration.base is not None else ""
    return markup.shown(
        f"Calibration: {said}{base}",
        markup.table(head, rows, words=3),
        markup.paragraphs(["Distance between the logits of a model (row) and an expert (column):"]),
        markup.table(["", *names], distances),
        markup.notes(calibration.notes),
        markup.folded(
            "Options",
            markup.facts(
                calibration.options
                | {f"{name} took": f"{value:.1f} s" for name, value in calibration.seconds.items()}
                | calibration.versions
            ),
        ),
    )
