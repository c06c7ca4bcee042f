"""One self-contained HTML page: no script, no reference to any other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sensmerge.report import figures, heatmaps
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.comparison.differences import Comparison
    from sensmerge.report.losses import Losses
    from sensmerge.scaling.sigma import Coefficients

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_COMPARISON = Path(__file__).with_name("comparison.html.j2")
_STYLE = Path(__file__).with_name("style.css")


def render(
    calibration: Calibration,
    coefficients: Coefficients,
    title: str,
    notes: Sequence[str] = (),
    recipe: str | None = None,
    losses: Losses | None = None,
) -> str:
    """The page's text; everything that comes from files is escaped."""
    sentences = coefficients.sentences()
    return rendered(
        _TEMPLATE,
        title=title,
        sentences=sentences,
        # A merge that calibrated has the calibration's notes too, and what the sentences say.
        notes=[
            note for note in dict.fromkeys([*calibration.notes, *notes]) if note not in sentences
        ],
        experts=_experts(calibration, coefficients),
        options=_options(calibration, coefficients),
        with_base=coefficients.base,
        versions=calibration.versions,
        seconds={name: f"{value:.1f} s" for name, value in calibration.seconds.items()},
        layers=_layers(coefficients),
        # Drawn by matplotlib, which escapes the texts it is given.
        sensitivity=Markup(figures.sensitivity_svg(coefficients)),
        scale=Markup(figures.scale_svg(coefficients)),
        alignment=Markup(figures.alignment_svg(calibration.alignment, coefficients.experts)),
        recipe=None if recipe is None else lines(recipe),
        losses=losses,
    )


def render_comparison(comparison: Comparison) -> str:
    """The page's text for two models compared; everything that comes from files is escaped."""
    of = "" if comparison.base is None else f", as task vectors of {comparison.base}"
    maps = heatmaps.heat_maps(comparison)
    return rendered(
        _COMPARISON,
        title=f"{comparison.b} against {comparison.a}{of}",
        notes=comparison.notes,
        maps=[(title, said, Markup(svg)) for title, said, svg in maps],
        with_base=comparison.base is not None,
        whole=comparison.whole.shown(),
        layers=[(name, sums.shown()) for name, sums in comparison.layers.items()],
        tensors=[(name, sums.shown()) for name, sums in comparison.tensors.items()],
    )


def rendered(template: Path, **values: Any) -> str:
    """A page from a template, which gets the style beside the values; all text is escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        style=style, **values
    )


def lines(text: str) -> Markup:
    """A text of several lines, each of them made plain."""
    return Markup("\n").join(map(plain, text.rstrip("\n").split("\n")))


def _shown(value: Any) -> Any:
    """What stands in a page for a value; what was drawn here is as it is."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _experts(calibration: Calibration, coefficients: Coefficients) -> list[dict[str, Any]]:
    rows = zip(
        coefficients.experts, calibration.experts, coefficients.alpha, coefficients.tau, strict=True
    )
    return [
        {
            "name": name,
            "tau": f"{tau:.4f}",
            "loss": f"{expert.loss:.3f}",
            "used": expert.task.used,
            "left_out": expert.task.left_out,
            "scored": expert.task.scored_tokens,
            "samples": expert.task.path,
            "fingerprint": expert.fingerprint.rpartition(":")[2][:16],
            "top": ", ".join(coefficients.layers[layer] for layer in figures.top_layers(alpha)),
        }
        for name, expert, alpha, tau in rows
    ]


def _options(calibration: Calibration, coefficients: Coefficients) -> dict[str, Any]:
    used = {
        "mode": coefficients.mode,
        "temperature": f"{coefficients.temperature:g}",
        "cross_task": coefficients.cross_task,
        "outside_blocks": coefficients.outside_blocks,
    }
    return used | calibration.options


def _layers(coefficients: Coefficients) -> list[tuple[str, list[str]]]:
    return [
        (layer, [f"{value:.4f}" for value in coefficients.scale[:, place]])
        for place, layer in enumerate(coefficients.layers)
    ]
