"""Calibrations, coefficients and comparisons as pages and pictures.

Needs matplotlib and jinja2, which come with ``sensmerge[report]``; neither is loaded before a
report is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.files import write_atomically

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.comparison.differences import Comparison
    from sensmerge.recipe import Leniency
    from sensmerge.scaling.sigma import Coefficients

__all__ = ["needs", "write", "write_comparison", "write_for"]


def write(
    calibration: Calibration,
    coefficients: Coefficients,
    output: str | Path,
    *,
    png: str | Path | None = None,
    title: str = "Sens-Merging report",
    notes: Sequence[str] = (),
    recipe: str | None = None,
    losses: str | Path | None = None,
) -> None:
    """Write one self-contained HTML file and, if asked, the figure as a PNG.

    Args:
        calibration: The measurements, experts in the coefficients' order.
        coefficients: The coefficients computed from them.
        output: The HTML file.
        png: The picture: sensitivity by layer, and K·σ below it.
        title: Heading of the page.
        notes: Notes of the merge; those of the calibration are its own.
        recipe: The recipe as YAML, which is shown; None leaves it out.
        losses: The ``.trials.json`` that ``sensmerge tune`` wrote, whose losses are shown.

    Raises:
        InputError: matplotlib or jinja2 is missing, a file cannot be written, or ``losses`` is no
            file of trials.
    """
    with needs():
        from sensmerge.report import figures, page
    from sensmerge.report.losses import read

    table = None if losses is None else read(Path(losses))
    text = page.render(calibration, coefficients, title, notes, recipe, table)
    write_atomically(Path(output), text)
    if png is not None:
        write_atomically(Path(png), figures.overview_png(coefficients))


def write_comparison(comparison: Comparison, output: str | Path) -> None:
    """Write one self-contained HTML file of two models compared.

    Raises:
        InputError: matplotlib or jinja2 is missing, or the file cannot be written.
    """
    with needs():
        from sensmerge.report import page
    write_atomically(Path(output), page.render_comparison(comparison))


@contextmanager
def needs() -> Iterator[None]:
    """Say what to install where an import for a report fails.

    Raises:
        InputError: matplotlib or jinja2 is missing.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"a report needs matplotlib and jinja2 ({error}); pip install 'sensmerge[report]'"
        ) from None


def write_for(
    source: Path,
    output: Path,
    *,
    png: Path | None = None,
    recipe: Path | None = None,
    losses: Path | None = None,
    leniency: Leniency = "mergekit",
) -> None:
    """Write the report of a calibration file, or of a merged model's folder.

    Args:
        source: A ``calibration.json``, or a folder that a merge wrote.
        output: The HTML file.
        png: The picture, if wanted.
        recipe: The recipe whose coefficients are shown; by default the folder's own, and for a
            calibration file the default options.
        losses: The ``.trials.json`` that ``sensmerge tune`` wrote, if its losses are to be shown.
        leniency: Which unknown keys of ``recipe`` are ignored.

    Raises:
        InputError: The source is neither, or cannot be read.
    """
    from sensmerge.calibration import Calibration
    from sensmerge.merging.sidecars import CALIBRATION_FILE, RECIPE_FILE, notes_of
    from sensmerge.recipe import Sensitivity, StagedRecipe, load
    from sensmerge.scaling.sigma import coefficients

    notes: list[str] = []
    if source.is_dir():
        measured = source / CALIBRATION_FILE
        if not measured.exists():
            raise InputError(
                f"{source}: has no {CALIBRATION_FILE}; a plain merge has nothing to report"
            )
        if recipe is None:
            # Whatever was noted then need not be noted again.
            recipe, leniency = source / RECIPE_FILE, "lenient"
        notes = notes_of(source)
        source = measured
    calibration = Calibration.load(source)
    if not calibration.experts:
        raise InputError(f"{source}: has the base's activations alone, of which there is no report")
    base = "expert" if calibration.has_base else "origin"
    options = Sensitivity.model_validate({"measure": calibration.measure, "base": base})
    written = None
    if recipe is not None:
        asked = load(recipe, leniency=leniency)
        asked = asked.result.recipe if isinstance(asked, StagedRecipe) else asked
        options, written = asked.sensitivity or options, asked.to_yaml()
    write(
        calibration,
        coefficients(calibration, options),
        output,
        png=png,
        notes=notes,
        recipe=written,
        losses=losses,
    )
