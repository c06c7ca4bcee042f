"""The page: tables, and what they say in words; every number and verdict comes from the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import temperature_png
from results import Results, Row
from sensmerge.demo.pages import filled, item
from sensmerge.demo.recipes import METHODS, MODES
from sensmerge.demo.table import SOLVED
from sensmerge.demo.text import TASKS
from tables import FROM_TRAINING, from_either
from ways import SAMPLES, Way, ablation, sample_counts, temperatures, three_experts, two_experts

Sections = Iterable[tuple[str, list[Way]]]

_CHOICES = {
    "auto": "λ and T `auto`",
    "tuned": "tuned: T, λ, form and mode, 40 trials",
    "learned, global": "learned, one weight an expert",
    "learned, block": "learned, by block",
    "learned, tensor": "learned, by tensor",
    "learned, distill": "learned, by block, experts' logits",
    "learned, 30 samples": "learned, by block, 30 samples a task",
}

# Written by hand: the first of the results that are committed, the second of the paper.
_READING = Path(__file__).with_name("reading.md")
_PAPER = Path(__file__).with_name("paper.md")


def write(results: Results, folder: Path) -> list[Path]:
    """Write ``miniature.md`` and ``temperature.png`` to a folder."""
    page, picture = folder / "miniature.md", folder / "miniature-temperature.png"
    page.write_text(_Page(results).text(), encoding="utf-8")
    temperature_png(results, tuple(_made(results)["temperatures"]), picture)
    return [page, picture]


def _made(results: Results) -> dict[str, Any]:
    assert results.made is not None
    return results.made


class _Page:
    def __init__(self, results: Results) -> None:
        self._results = results
        self._made = _made(results)
        self._grid = tuple(self._made["temperatures"])
        self._scale = results.scales["task_arithmetic"]

    def text(self) -> str:
        """The page as Markdown."""
        parts = [
            self._head(),
            self._short(),
            _READING.read_text(encoding="utf-8").rstrip(),
            self._three(),
            self._ablation(),
            self._two(),
            self._counts(),
            self._temperature(),
            self._chosen(),
            self._training(),
            self._layers(),
            _PAPER.read_text(encoding="utf-8").rstrip(),
        ]
        return "\n\n".join(parts) + "\n"

    def _row(self, way: Way | str) -> Row:
        return self._results.rows[way if isinstance(way, str) else way.name]

    def _head(self) -> str:
        made = self._made
        draws = self._draws
        return "\n\n".join(
            [
                "# The paper in miniature",
                filled(
                    "A base and three experts (prose, math, code), "
                    f"{made['parameters'] / 1e6:.1f} M parameters in {made['blocks']} blocks, "
                    "trained on the spot and merged as in the paper's tables. "
                    "`python examples/miniature run FOLDER` does it all again: "
                    f"{made['minutes']:.0f} minutes on {made['machine']} ({made['versions']}); "
                    "every number and verdict below is written by it."
                ),
                filled(
                    f"Losses are mean token losses in nats on {made['held_back']} held-back "
                    "samples a task, lower is better; *mean* is over the tasks. ± is the standard "
                    f"deviation over {draws} draws of {SAMPLES} samples a task (and of DARE's "
                    "masks); rows "
                    "without it depend on no draw. *Solved* is the share of math problems answered "
                    "exactly; of the other tasks no completion is likely to match word for word. "
                    f"λ of plain methods is chosen on {made['development']} other samples a task, "
                    "more than any other choice sees. TIES keeps 0.3 of the entries and DARE 0.5, "
                    "as in the paper; T is 0.05 where nothing else is said."
                ),
            ]
        )

    @property
    def _draws(self) -> int:
        return len(self._row("learned, block, fresh").means)

    @property
    def _best_plain(self) -> Way:
        plain = [Way(method, scale) for method, scale in self._results.scales.items()]
        return min(plain, key=lambda way: self._row(way).mean)

    def _short(self) -> str:
        said = []
        for title, ways in three_experts(self._results.scales):
            effects = [
                f"{METHODS[plain.method]} {self._effect(full, plain)}"
                for plain, full in zip(ways[::2], ways[1::2], strict=True)
            ]
            said.append(f"Sens-Merging against the plain method, {title}: {'; '.join(effects)}.")
        best = self._best_plain
        name = f"{METHODS[best.method]} at λ = {best.scale:.3g}"
        said.append(
            f"Against the best plain merge ({name}, {self._row(best).mean:.3f}): tuned "
            f"{self._effect('tuned, fresh', best)}; learned by block "
            f"{self._effect('learned, block, fresh', best)}. Learned against tuned: "
            f"{self._effect('learned, block, fresh', 'tuned, fresh')}."
        )
        said.append(self._order())
        return "\n".join(["## In short", "", *(item(one) for one in said)])

    def _order(self) -> str:
        gaps: dict[str, tuple[str, Way | str]] = {
            "learned below tuned": ("learned, block, fresh", "tuned, fresh"),
            "tuned below the best plain merge": ("tuned, fresh", self._best_plain),
        }
        verdicts = []
        for what, (ours, theirs) in gaps.items():
            found = self._row(ours).minus(self._row(theirs))
            lower = sum(gap < 0 for gap in found)
            word = (
                "holds"
                if lower == len(found)
                else "fails"
                if lower == 0
                else "does not always hold"
            )
            verdicts.append(f"{what} {word} ({lower} of {len(found)} draws)")
        return f"The order that one would hope for: {'; '.join(verdicts)}."

    def _three(self) -> str:
        singles = [("base", "base"), *((f"expert {task}", task) for task in TASKS)]
        lines = [
            "## Three experts (Table 1)",
            "",
            *self._table([("", [(label, "", self._row(name)) for label, name in singles])]),
            "",
            *self._table(self._labelled(three_experts(self._results.scales))),
        ]
        return "\n".join(lines)

    def _ablation(self) -> str:
        sections = ablation()
        words = []
        for title, ways in sections:
            plain = ways[0]
            words.append(
                f"At {title}: α alone {self._effect(ways[1], plain)}; τ alone "
                + ", ".join(
                    f"{way.form} form {self._effect(way, plain)}"
                    for way in ways
                    if way.mode == "cross"
                )
                + "; both "
                + ", ".join(
                    f"{way.form} form {self._effect(way, plain)}"
                    for way in ways
                    if way.mode == "full"
                )
                + "."
            )
        return "\n".join(
            [
                "## Which part does it, and which Eq. 5 (Table 4)",
                "",
                *(item(one) for one in words),
                "",
                *self._table(self._labelled(sections, forms=True)),
            ]
        )

    def _two(self) -> str:
        return "\n".join(
            [
                "## Two experts (Table 5)",
                "",
                *self._table(self._labelled(two_experts())),
            ]
        )

    def _counts(self) -> str:
        sections = sample_counts()
        words = [
            f"At {title}: twenty against ten {self._effect(ways[1], ways[0])}; the gain over the "
            f"plain merge is {self._effect(ways[0], replace(ways[0], mode=None))} with ten."
            for title, ways in sections
        ]
        rows = [
            (
                title,
                [
                    (f"{way.count} samples a task", f"{way.scale:.3g}", self._row(way))
                    for way in ways
                ],
            )
            for title, ways in sections
        ]
        return "\n".join(
            ["## Ten samples or twenty (Table 8)", "", *map(item, words), "", *self._table(rows)]
        )

    def _temperature(self) -> str:
        found = temperatures(self._results.scales, self._grid)
        plain = self._row(Way(scale=self._scale)).mean
        head = ["| T |", *(f" {T:g} |" for T in self._grid)]
        lines = ["".join(head), "|---|" + "---:|" * len(self._grid)]
        for form, ways in found.items():
            cells = "".join(f" {self._row(way).mean:.3f} |" for way in ways)
            lines.append(f"| {form} form |{cells}")
        words = []
        for form, ways in found.items():
            best = min(ways, key=lambda way: self._row(way).mean)
            words.append(
                f"the {form} form is best at T = {best.temperature:g} "
                f"({self._effect(best, Way(scale=self._scale))})"
            )
        last = {form: self._row(ways[-1]).mean - plain for form, ways in found.items()}
        return "\n".join(
            [
                f"## The temperature (λ = {self._scale:.3g})",
                "",
                filled(
                    f"The paper never says its T. Against plain task arithmetic ({plain:.3f}) "
                    f"{' and '.join(words)}. At T = {self._grid[-1]:g} the difference is "
                    f"{' and '.join(f'{gap:+.4f}' for gap in last.values())}: "
                    f"{_nearly(max(abs(gap) for gap in last.values()))}."
                ),
                "",
                *lines,
                "",
                "![Loss over T](miniature-temperature.png)",
            ]
        )

    def _chosen(self) -> str:
        best = self._best_plain
        fixed = from_either(self._results.scales)[0]
        rows = [
            (f"best plain merge: {METHODS[best.method]}", f"{best.scale:.3g}", self._row(best)),
            ("Sens-Merging at task arithmetic's own λ", f"{fixed.scale:.3g}", self._row(fixed)),
            *((label, "", self._row(f"{name}, fresh")) for name, label in _CHOICES.items()),
        ]
        ways = {label: row for label, _, row in rows[1:]}
        words = [f"{label}: {self._effect(row, best)}" for label, row in ways.items()]
        return "\n".join(
            [
                "## Coefficients that are chosen",
                "",
                filled(
                    f"From {SAMPLES} samples a task that no expert was trained on, of which three "
                    "are kept to validate with. Against the best plain merge:"
                ),
                "",
                *map(item, words),
                "",
                *self._table([("", rows)]),
            ]
        )

    def _training(self) -> str:
        fresh, training = from_either(self._results.scales)
        pairs = [("Sens-Merging", fresh.name, training.name)]
        pairs += [
            (_CHOICES[choice], f"{choice}, fresh", f"{choice}, training")
            for choice in FROM_TRAINING
        ]
        rows = [
            ("", [
                (f"{label}; {kind}", "", self._row(name))
                for label, *names in pairs
                for kind, name in zip(("fresh", "training"), names, strict=True)
            ])
        ]  # fmt: skip
        words = [
            f"{label}: samples from training against fresh ones {self._effect(theirs, ours)}"
            for label, ours, theirs in pairs
        ]
        warned = [
            sum("memorised" in note for note in said)
            for said in self._results.notes["learned, block, training"]
        ]
        alarms = sum(
            "memorised" in note
            for said in self._results.notes["learned, block, fresh"]
            for note in said
        )
        words.append(
            f"`learn` called {sum(warned)} of {len(TASKS) * len(warned)} tasks memorised with "
            f"training samples, {alarms} with fresh ones"
        )
        return "\n".join(
            [
                "## Samples from the experts' own training data",
                "",
                *map(item, words),
                "",
                *self._table(rows),
            ]
        )

    def _layers(self) -> str:
        return "\n".join(
            [
                "## Sensitivity by layer (Figure 3)",
                "",
                "The first draw; the five most sensitive layers of each expert are red.",
                "",
                "![Sensitivity by layer, coefficients and alignment](miniature-layers.png)",
            ]
        )

    def _labelled(
        self, sections: Sections, *, forms: bool = False
    ) -> list[tuple[str, list[tuple[str, str, Row]]]]:
        return [
            (
                title,
                [
                    (
                        METHODS[way.method]
                        if way.mode is None
                        else MODES[way.mode]
                        + (f", {way.form}" if forms and way.mode != "task" else ""),
                        f"{way.scale:.3g}",
                        self._row(way),
                    )
                    for way in ways
                ],
            )
            for title, ways in sections
        ]

    def _table(self, sections: Sequence[tuple[str, list[tuple[str, str, Row]]]]) -> list[str]:
        lines = [
            f"| | λ | {' | '.join(TASKS)} | mean | {SOLVED} solved |",
            "|---|---:|" + "---:|" * (len(TASKS) + 2),
        ]
        for title, rows in sections:
            if title:
                lines.append(f"| *{title}* |" + " |" * (len(TASKS) + 3))
            best = min(row.mean for _, _, row in rows)
            for label, scale, row in rows:
                mean = f"{row.mean:.3f}"
                mean = f"**{mean}**" if row.mean == best and len(rows) > 1 else mean
                spread = f" ± {row.spread:.3f}" if len(row.means) > 1 else ""
                losses = " | ".join(f"{row.task(task):.3f}" for task in TASKS)
                solved = sum(row.solved) / len(row.solved)
                lines.append(
                    f"| {label} | {scale} | {losses} | {mean}{spread} | {100 * solved:.0f} % |"
                )
        return lines

    def _effect(self, ours: Way | Row | str, theirs: Way | str) -> str:
        row = ours if isinstance(ours, Row) else self._row(ours)
        gaps = row.minus(self._row(theirs))
        mean = sum(gaps) / len(gaps)
        lower = sum(gap < 0 for gap in gaps)
        if len(gaps) == 1:
            return f"{mean:+.3f}"
        return f"{mean:+.3f} (lower in {lower} of {len(gaps)})"


def _nearly(gap: float) -> str:
    return "the merge is all but the plain one" if gap < 0.005 else "it still counts"
