"""The picture of T: the loss over temperatures, both forms of Eq. 5."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from results import Results
from sensmerge.report.figures import STYLE, png
from sensmerge.search.pictures import COLOURS
from ways import SAMPLES, Way, temperatures


def temperature_png(results: Results, grid: tuple[float, ...], path: Path) -> None:
    """Held-back loss over T: the mean of the draws and each of them."""
    scale = results.scales["task_arithmetic"]
    levels = [
        (f"plain task arithmetic, λ = {scale:.3g}", results.rows[Way(scale=scale).name].mean),
        ("learned, by block", results.rows["learned, block, fresh"].mean),
    ]
    with mpl.rc_context(STYLE | {"text.color": "#33373d", "axes.labelcolor": "#33373d"}):
        figure = Figure(figsize=(7.0, 3.6), layout="constrained")
        axes = figure.subplots()
        for (form, ways), colour, marker in zip(
            temperatures(results.scales, grid).items(), COLOURS, "os", strict=False
        ):
            rows = [results.rows[way.name] for way in ways]
            for draw in range(len(rows[0].means)):
                axes.plot(grid, [row.means[draw] for row in rows], color=colour, lw=0.6, alpha=0.5)
            axes.plot(
                grid, [row.mean for row in rows], color=colour, marker=marker, ms=4,
                label=f"Sens-Merging, {form} form",
            )  # fmt: skip
        for (label, level), style, colour in zip(levels, ("--", ":"), COLOURS[2:], strict=False):
            axes.axhline(level, color=colour, ls=style, lw=1.4, label=label)
        axes.set_xscale("log")
        axes.set_xticks(grid, [f"{temperature:g}" for temperature in grid])
        axes.minorticks_off()
        axes.set_xlabel("temperature T")
        axes.set_ylabel("mean held-back loss, nats a token")
        axes.set_title(
            f"{SAMPLES} samples a task; thin lines: single draws", fontsize=9, loc="left"
        )
        axes.legend(frameon=False, fontsize=8)
        path.write_bytes(png(figure))
