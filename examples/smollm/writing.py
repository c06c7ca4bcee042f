"""The page: tables, and what they say in words; every number and verdict comes from the outcome."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import merges
from base_model import QUESTION
from merges import BASE, GUIDED, PAIR, SCALED, Way
from outcome import Outcome
from sensmerge.demo.evaluate import Score
from sensmerge.demo.pages import filled, item
from sensmerge.demo.table import NOISE, judge
from splits import TASKS

_TITLES = {
    "base": "the base to safetensors",
    "expert": "three experts, trained",
    "calibration": "calibration",
    "lambda": "choices of λ",
    "merge": "merges, scored on held-back samples",
    "learned": "`learn`",
}
# Written by hand, of the results that are committed.
_READING = Path(__file__).with_name("reading.md")


def write(outcome: Outcome, folder: Path) -> Path:
    """Write ``smollm.md`` to a folder."""
    page = folder / "smollm.md"
    page.write_text(_Page(outcome).text(), encoding="utf-8")
    return page


class _Page:
    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._made = outcome.made
        self._scores = {name: outcome.score(name) for name in outcome.rows}
        self._scales = {name: found["scale"] for name, found in outcome.scales.items()}
        # What everything is compared with: chosen by the calibration samples, not by the table.
        self._plain = merges.plain("task_arithmetic").at(self._scales["task_arithmetic"])

    def text(self) -> str:
        """The page as Markdown."""
        parts = [
            self._head(),
            self._short(),
            _READING.read_text(encoding="utf-8").rstrip(),
            self._singles(),
            self._defaults(),
            self._chosen(),
            self._choices(),
            self._guided(),
            self._pairs(),
            self._costs(),
        ]
        return "\n\n".join(parts) + "\n"

    def _head(self) -> str:
        made, amounts, how = self._made, self._made["amounts"], self._made["training"]
        base, experts = made["base"], made["experts"]
        counts = ", ".join(f"{task} {experts[task]['samples']}" for task in TASKS)
        seconds = sum(wall for _, wall, _ in self._outcome.stages)
        processor = sum(used for _, _, used in self._outcome.stages)
        return "\n\n".join(
            [
                "# A real model: SmolLM2 with three adapters",
                filled(
                    f"`{made['source']}`, {base['parameters'] / 1e6:.0f} M parameters in "
                    f"{base['blocks']} blocks, is read from its GGUF file and stored as "
                    "safetensors in bfloat16. Three LoRA adapters for all linear layers "
                    f"(rank {how['rank']}, {how['steps']} steps of {how['rows']} samples) are "
                    f"trained on it, with as many samples: {counts}. They are merged as "
                    "`base+adapter`, without merged copies. "
                    "`python examples/smollm run FOLDER --data DATA` does it all again: "
                    f"{seconds / 60:.0f} minutes ({processor / 60:.0f} of processors) on "
                    f"{made['machine']} ({made['versions']}); every number and verdict below is "
                    "written by it."
                ),
                filled(
                    "Losses are mean token losses in nats of the assistant's turn, on "
                    f"{amounts['held_back']} held-back samples a task, with matrix products in "
                    "bfloat16; lower is better, *mean* is over the tasks. λ and everything else is "
                    f"chosen on {amounts['calibration']} other samples a task, the same for all; "
                    "no expert was trained on either. Samples of over "
                    f"{amounts['longest']} tokens are left out, which leaves the shorter math "
                    "problems. ± is the standard error, over samples, of the difference to the "
                    "named row; both models saw the same samples. It says nothing of other "
                    "trainings or other draws of calibration samples: there is one of each."
                ),
                filled(
                    f'The stored base answers "{QUESTION}" in transformers, word by word: '
                    f'"{base["answer"]}"'
                ),
            ]
        )

    def _short(self) -> str:
        ours = {
            method: self._best_guided(method, self._scales[f"{method} + sens"]) for method in GUIDED
        }
        said = [
            f"Every expert on its own task against the base: {self._own()}.",
            f"Task arithmetic at its chosen λ = {self._plain.parameters['lambda']:g} against the "
            f"base: {self._judged(self._plain.name, BASE)}.",
            self._against_experts(),
            *(
                f"Sens-Merging on {method}, λ chosen for each: "
                f"{self._judged(way.name, self._at(method).name)}."
                for method, way in ours.items()
            ),
            *(
                f"The same at the plain method's λ: "
                f"{self._judged(self._at(method).guided().name, self._at(method).name)} "
                f"({method})."
                for method in GUIDED
            ),
            self._best_of_all(),
            self._useless(),
        ]
        return "\n".join(["## In short", "", *(item(one) for one in said)])

    def _at(self, method: str) -> Way:
        return merges.plain(method).at(self._scales[method])

    @staticmethod
    def _best_guided(method: str, scale: float) -> Way:
        return merges.plain(method).at(scale).guided()

    def _own(self) -> str:
        return ", ".join(
            f"{task} {_losses(self._scores[task])[task] - _losses(self._scores[BASE])[task]:+.3f}"
            for task in TASKS
        )

    def _against_experts(self) -> str:
        best = min(TASKS, key=lambda task: self._scores[task].mean)
        return (
            f"Against the best expert alone ({best}, mean {self._scores[best].mean:.3f}): "
            f"{self._judged(self._plain.name, best)}."
        )

    def _best_of_all(self) -> str:
        """The best row of the tables, which is the luckiest too."""
        merged = [name for name in self._scores if name not in merges.singles()]
        best = min(merged, key=lambda name: self._scores[name].mean)
        return (
            f"The lowest of {len(merged)} merges is {_shown(best)}: "
            f"{self._judged(best, self._plain.name)} than task arithmetic at its chosen λ. It is "
            "picked by the very samples that it is scored on, and so looks better than it is."
        )

    def _useless(self) -> str:
        """What did not help, by the same rule as everything else."""
        ways = [way for way in self._all_ways() if way != self._plain]
        names = dict.fromkeys(way.name for way in ways)
        found = {
            verdict: [name for name in names if self._verdict(name, self._plain.name) == verdict]
            for verdict in ("worse", "within noise", "better")
        }
        return (
            f"Of {len(names)} other merges of all three experts, {len(found['better'])} are better "
            f"than task arithmetic at its chosen λ by more than {NOISE:g} standard errors, "
            f"{len(found['within noise'])} make no difference beyond that, "
            f"{len(found['worse'])} are worse."
        )

    def _all_ways(self) -> list[Way]:
        found = [*merges.defaults(), *merges.chosen(self._scales)]
        for method in GUIDED:
            found += self._guided_ways(method)
        scale = self._scales["task_arithmetic"]
        return [*found, *merges.ablation(scale), merges.automatic()]

    def _guided_ways(self, method: str) -> list[Way]:
        return merges.guided(method, self._scales[method], self._scales[f"{method} + sens"])

    def _singles(self) -> str:
        rows = [(name if name == BASE else f"expert {name}", "", name) for name in (BASE, *TASKS)]
        return "\n".join(
            [
                "## One model",
                "",
                *self._table(rows, lambda name: None if name == BASE else BASE, BASE),
            ]
        )

    def _defaults(self) -> str:
        ways = merges.defaults()
        notes = dict.fromkeys(
            note for way in ways for note in self._outcome.rows[way.name].notes if "LoRA" in note
        )
        return "\n".join(
            [
                "## Every method at its defaults",
                "",
                filled(
                    "λ, where there is one, at its default. Density is 0.3 for ties, 0.5 for dare "
                    "and della, 0.9 for breadcrumbs, since their default of 1 keeps everything. "
                    "What sensmerge says before such a merge:"
                ),
                "",
                *(item(f"*{note}*") for note in notes),
                "",
                *self._table([self._labelled(way) for way in ways], self._to_plain, "chosen λ"),
            ]
        )

    def _chosen(self) -> str:
        ways = merges.chosen(self._scales)
        tried = ", ".join(f"{scale:g}" for scale in self._made["lambdas"])
        edges = [
            method
            for method in SCALED
            if self._scales[method] in (min(self._made["lambdas"]), max(self._made["lambdas"]))
        ]
        at = f" At an end of these: {', '.join(edges)}." if edges else ""
        return "\n".join(
            [
                "## Every method at the λ that is chosen for it",
                "",
                filled(f"Chosen on the calibration samples, of {tried}.{at}"),
                "",
                *self._table([self._labelled(way) for way in ways], self._to_plain, "chosen λ"),
            ]
        )

    def _choices(self) -> str:
        lambdas = [str(scale) for scale in self._made["lambdas"]]
        lines = [
            f"| mean loss on the calibration samples at λ = | {' | '.join(lambdas)} |",
            "|---|" + "---:|" * len(lambdas),
        ]
        for name, found in self._outcome.scales.items():
            cells = []
            for scale in lambdas:
                loss = f"{found['losses'][scale]:.3f}"
                cells.append(f"**{loss}**" if float(scale) == found["scale"] else loss)
            lines.append(f"| {name.replace('+ sens', '+ Sens-Merging')} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _guided(self) -> str:
        scale = self._scales["task_arithmetic"]
        sections = [
            (f"{method}", [self._at(method), *self._guided_ways(method)]) for method in GUIDED
        ]
        lines = [
            "## Sens-Merging",
            "",
            filled(
                "From the same calibration samples, at T = 0.05; each against the plain method "
                "at its chosen λ."
            ),
        ]
        for method, ways in sections:
            reference = self._at(method).name
            rows = list(dict.fromkeys(map(self._labelled, ways)))
            lines += ["", *self._table(rows, _to(reference), f"plain {method}, chosen λ")]
        rows = [self._labelled(way) for way in [*merges.ablation(scale), merges.automatic()]]
        if "learned" in self._scores:
            steps = self._made["learning_steps"]
            rows.append((f"`learn`: a weight by expert and block, {steps} steps", "", "learned"))
        lines += [
            "",
            filled(
                "Its parts alone, the other form of Eq. 5, and what sensmerge chooses itself, on "
                "task arithmetic:"
            ),
            "",
            *self._table(rows, self._to_plain, "plain task_arithmetic, chosen λ"),
        ]
        lines += ["", *map(item, self._said_of_choices())]
        return "\n".join(lines)

    def _said_of_choices(self) -> list[str]:
        """What sensmerge said of the values that it chose, and of coefficients."""
        names = [merges.automatic().name, *(["learned"] if "learned" in self._scores else [])]
        return [
            f"{_shown(name)}: {note}" for name in names for note in self._outcome.rows[name].notes
        ]

    def _pairs(self) -> str:
        ways = merges.pairs()
        return "\n".join(
            [
                "## Two experts",
                "",
                filled(
                    f"Methods for two models, on {' and '.join(PAIR)}, beside task arithmetic of "
                    "the two at λ = 1/2."
                ),
                "",
                *self._table(
                    [self._labelled(replace(way)) for way in ways], _to(ways[0].name), "the first"
                ),
            ]
        )

    def _costs(self) -> str:
        groups: dict[str, list[tuple[float, float]]] = {}
        for name, wall, processor in self._outcome.stages:
            groups.setdefault(name.split("-")[0], []).append((wall, processor))
        lines = ["| stage | how many | seconds | seconds of processors |", "|---|---:|---:|---:|"]
        for name, found in groups.items():
            wall, processor = (sum(one) for one in zip(*found, strict=True))
            lines.append(f"| {_TITLES[name]} | {len(found)} | {wall:.0f} | {processor:.0f} |")
        three = [way for way in self._all_ways() if way.method != "tsv"]
        seconds = [self._outcome.rows[name].seconds for name in {way.name for way in three}]
        slow = self._outcome.rows[merges.plain("tsv").at(1.0).name].seconds
        return "\n".join(
            [
                "## What it took",
                "",
                *lines,
                "",
                filled(
                    "A merge of three adapters itself, of these: "
                    f"{statistics.median(seconds):.1f} s in the median, {max(seconds):.1f} s at "
                    f"most, and {slow:.0f} s with `tsv`, which decomposes every matrix. "
                    "Each stage is in [results.json](../examples/smollm/results.json)."
                ),
            ]
        )

    def _to_plain(self, name: str) -> str | None:
        return None if name == self._plain.name else self._plain.name

    @staticmethod
    def _labelled(way: Way) -> tuple[str, str, str]:
        """A row's label, λ and name."""
        words = [way.method]
        words += [
            f"{key} {value}"
            for key, value in way.parameters.items()
            if key not in ("lambda", "matrices")
        ]
        label = ", ".join(words)
        if way.sensitivity is not None:
            asked = [f"{key} {value}" for key, value in way.sensitivity.items()]
            label += " + Sens-Merging" + (f" ({', '.join(asked)})" if asked else "")
        scale = way.parameters.get("lambda", "")
        return label, f"{scale:g}" if isinstance(scale, float) else str(scale), way.name

    def _table(
        self,
        rows: Sequence[tuple[str, str, str]],
        reference: Callable[[str], str | None],
        against: str,
    ) -> list[str]:
        lines = [
            f"| | λ | {' | '.join(TASKS)} | mean | mean against {against} |",
            "|---|---:|" + "---:|" * (len(TASKS) + 2),
        ]
        best = min(self._scores[name].mean for _, _, name in rows)
        for label, scale, name in rows:
            score = self._scores[name]
            mean = f"**{score.mean:.3f}**" if score.mean == best else f"{score.mean:.3f}"
            losses = " | ".join(f"{_losses(score)[task]:.3f}" for task in TASKS)
            other = reference(name)
            gap = "" if other is None else self._gap(name, other)
            lines.append(f"| {label} | {scale} | {losses} | {mean} | {gap} |")
        return lines

    def _gap(self, ours: str, theirs: str) -> str:
        change, error = self._scores[ours].minus(self._scores[theirs])
        return f"{change:+.4f} ± {error:.4f}"

    def _verdict(self, ours: str, theirs: str) -> str:
        return judge(*self._scores[ours].minus(self._scores[theirs]))

    def _judged(self, ours: str, theirs: str) -> str:
        if ours == theirs:
            return "the same merge"
        return f"{self._gap(ours, theirs)}, {self._verdict(ours, theirs)}"


def _losses(score: Score) -> dict[str, float]:
    return {name: task.loss for name, task in score.tasks.items()}


def _to(reference: str) -> Callable[[str], str | None]:
    return lambda name: None if name == reference else reference


def _shown(name: str) -> str:
    """A name of the results in a sentence, without the experts where they are all."""
    everybody = "&".join(TASKS) + ", "
    return re.sub(r"\blambda\b", "λ", name.removeprefix(everybody)).replace("sens", "Sens-Merging")
