"""The demo, far too little trained: its table, its files, and that its numbers are measured."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import sensmerge
from sensmerge import InputError
from sensmerge.demo import run
from sensmerge.demo.comparison import LONGEST
from sensmerge.demo.evaluate import Score, TaskScore, evaluate
from sensmerge.demo.family import QUICK, build
from sensmerge.demo.recipes import METHODS, PAPER_LAMBDAS, Variant
from sensmerge.demo.table import Outcome, ablation, render, verdict
from sensmerge.demo.text import TASKS, Corpus, Sample, corpora

TINY = replace(QUICK, base_steps=2, expert_steps=2)

ABLATION = [
    "Task Arithmetic",
    "+ task-specific",
    "+ cross-task",
    "+ Sens-Merging",
    "Ties-Merging",
    "+ Sens-Merging",
    "DARE",
    "+ Sens-Merging",
]
ROW = re.compile(
    r"^ *(?P<label>\S.*?)  +(?:(?P<scale>[\d.]+)  +)?"
    r"(?P<losses>(?:\d+\.\d{3}[* ] *){4})(?P<solved>\d+) %\*?$"
)


@dataclass(frozen=True)
class Demo:
    folder: Path
    printed: str
    progress: str

    def rows(self) -> list[tuple[str, float | None, list[float]]]:
        found = [ROW.match(line) for line in self.printed.splitlines()]
        return [
            (
                match["label"],
                float(match["scale"]) if match["scale"] else None,
                [float(loss) for loss in re.findall(r"[\d.]+", match["losses"])],
            )
            for match in found
            if match is not None
        ]


@pytest.fixture(scope="module")
def texts() -> dict[str, Corpus]:
    return corpora(QUICK.amounts, 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "new"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        run(folder, threads=1, quick=True)
    return Demo(folder, out.getvalue(), err.getvalue())


def test_the_table_has_the_rows_of_the_ablation_at_each_scale(demo: Demo) -> None:
    rows = demo.rows()
    labels = [label for label, _, _ in rows]
    assert labels[:20] == [
        "Base",
        *(f"Expert, {task}" for task in TASKS),
        *ABLATION,
        *ABLATION,
    ]
    assert labels[20:22] == ["Task Arithmetic", "+ Sens-Merging"]
    scales = [scale for _, scale, _ in rows]
    assert scales[:4] == [None] * 4
    assert scales[4:12] == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
    assert scales[12:20] == [0.333] * 8
    assert scales[20] == scales[21]
    for title in ("λ as in the paper", "λ = 1/3", "own best λ"):
        assert title in demo.printed


def test_the_last_column_of_losses_is_their_mean(demo: Demo) -> None:
    for label, _, (*tasks, mean) in demo.rows():
        assert mean == pytest.approx(sum(tasks) / len(tasks), abs=2e-3), label


def test_each_number_is_what_the_saved_model_gives(demo: Demo, texts: dict[str, Corpus]) -> None:
    rows = {(label, scale): losses for label, scale, losses in demo.rows()}
    for folder, row in (
        ("math", ("Expert, math", None)),
        ("merged/task_arithmetic-cross-lambda-1", ("+ cross-task", 1.0)),
    ):
        expected = [plain_loss(demo.folder / folder, texts[task].held_back) for task in TASKS]
        assert rows[row][:3] == pytest.approx(expected, abs=6e-4)


def plain_loss(folder: Path, samples: list[Sample]) -> float:
    """Mean token loss, one sample at a time, by transformers' own loss."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    for sample in samples:
        prompt = tokenizer(sample.prompt).input_ids
        completion = tokenizer(sample.completion, add_special_tokens=False).input_ids
        ids = torch.tensor([[*prompt, *completion, tokenizer.eos_token_id][:LONGEST]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        scored = int((labels != -100).sum())
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * scored
        count += scored
    return total / count


def test_every_model_loads_and_generates(demo: Demo) -> None:
    folders = [demo.folder / name for name in ("base", *TASKS)]
    folders += sorted((demo.folder / "merged").iterdir())
    assert len(folders) > 20
    for folder in folders:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True
        )
        model, info = loaded
        assert model.dtype == torch.bfloat16
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folders[-1])
    tokens = tokenizer("Question:", return_tensors="pt")
    assert tokens.input_ids[0, 0] == tokenizer.bos_token_id
    written = model.generate(**tokens, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > tokens.input_ids.shape[1]
    assert tokenizer.decode(written[0], skip_special_tokens=True).startswith("Question:")


def test_what_lies_in_the_folder(demo: Demo) -> None:
    assert len(list((demo.folder / "code").glob("*.safetensors"))) > 1
    assert (demo.folder / "code" / "model.safetensors.index.json").is_file()
    assert {path.name for path in (demo.folder / "base").glob("*.safetensors")} == {
        "model.safetensors"
    }
    assert "<html" in (demo.folder / "report.html").read_text(encoding="utf-8")
    assert (demo.folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    table = (demo.folder / "table.txt").read_text(encoding="utf-8")
    assert table.strip() in demo.printed
    assert str(demo.folder / "report.html") in demo.printed
    assert re.search(r"^\d+ s in all$", demo.printed, re.MULTILINE)
    assert "expert math" in demo.progress
    recipes = {path.stem for path in (demo.folder / "recipes").glob("*.yaml")}
    assert recipes == {path.name for path in (demo.folder / "merged").iterdir()}


def test_its_recipes_run_again_to_the_same_bytes(demo: Demo, tmp_path: Path) -> None:
    name = Variant("ties", "full", 1.0).name
    sensmerge.merge(
        sensmerge.Recipe.load(demo.folder / "recipes" / f"{name}.yaml"),
        tmp_path / "again",
        calibration=sensmerge.Calibration.load(demo.folder / "calibration.json"),
        progress=False,
    )
    first, again = (
        (path / "model.safetensors").read_bytes()
        for path in (demo.folder / "merged" / name, tmp_path / "again")
    )
    assert first == again


def test_the_seed_alone_decides_what_is_trained(tmp_path: Path, texts: dict[str, Corpus]) -> None:
    weights = []
    for place, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(place)
        build(folder, texts, TINY, seed, lambda text: None)
        weights.append(
            [
                path.read_bytes()
                for task in ("base", *TASKS)
                for path in sorted((folder / task).glob("*.safetensors"))
            ]
        )
    assert weights[0] == weights[1]
    assert all(one != other for one, other in zip(weights[0], weights[2], strict=True))


def test_no_text_is_used_twice(texts: dict[str, Corpus]) -> None:
    for corpus in texts.values():
        parts = [corpus.training, corpus.calibration, corpus.development, corpus.held_back]
        everything = [" ".join(sample.text.split()) for part in parts for sample in part]
        assert len(everything) == len(set(everything))
        assert [len(part) for part in parts[1:]] == [5, 4, 6]
        assert all(sample.prompt and sample.completion for part in parts for sample in part)


def test_another_seed_holds_back_other_text(texts: dict[str, Corpus]) -> None:
    other = corpora(QUICK.amounts, 1)
    for task in TASKS:
        assert texts[task].held_back != other[task].held_back


def test_the_problems_answers_are_right(texts: dict[str, Corpus]) -> None:
    operators = set()
    for sample in texts["math"].training:
        match = re.fullmatch(r" (\d+) ([-+*/]) (\d+) = (\d+)", sample.completion)
        assert match is not None
        first, operator, second, answer = match.groups()
        operators.add(operator)
        value = {
            "+": int(first) + int(second),
            "-": int(first) - int(second),
            "*": int(first) * int(second),
            "/": int(first) / int(second),
        }[operator]
        assert value == int(answer)
        assert {first, second} <= set(re.findall(r"\d+", sample.prompt))
    assert operators == set("+-*/")


def test_solved_means_that_greedy_decoding_writes_it(demo: Demo, tmp_path: Path) -> None:
    """A model that has memorised one answer solves that problem and no other."""
    right, wrong = Sample("Question: 3 and 4?\nAnswer:", " 3 + 4 = 7"), Sample("3?", " 4")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.folder / "math")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        demo.folder / "math", dtype=torch.float32
    )
    prompt = tokenizer(right.prompt, return_tensors="pt")
    answer = [*tokenizer(right.completion, add_special_tokens=False).input_ids]
    answer.append(tokenizer.eos_token_id)
    ids = torch.cat([prompt.input_ids, torch.tensor([answer])], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    written = model.generate(**prompt, max_new_tokens=len(answer), do_sample=False)
    assert written[0, prompt.input_ids.shape[1] :].tolist() == answer
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    score = evaluate(tmp_path, {"math": [wrong, right, wrong]})
    assert score.tasks["math"].exact.tolist() == [False, True, False]


def score_of(*means: float, spread: float = 0.0) -> Score:
    """A score with given task losses over four samples of ten tokens."""
    noise = np.array([1.0, -1.0, 1.0, -1.0]) * spread
    return Score(
        {
            task: TaskScore(10 * (mean + noise), np.full(4, 10.0), np.zeros(4, dtype=np.bool_))
            for task, mean in zip(TASKS, means, strict=True)
        }
    )


def outcome_of(plain: Score, full: Score) -> Outcome:
    merged = {
        variant: plain if variant.mode is None else full
        for variant in [*ablation(None), *ablation(1 / 3)]
    }
    singles = {name: score_of(2.0, 2.0, 2.0) for name in ("base", *TASKS)}
    best = {mode: Variant("task_arithmetic", mode, 1 / 3) for mode in (None, "full")}
    return Outcome(singles, merged, best[None], best["full"], 4)


@pytest.mark.parametrize(
    ("full", "headline", "counted"),
    [
        (score_of(1.0, 1.0, 0.7), "Sens-Merging helps here", "better for 3, worse for 0"),
        (score_of(1.0, 1.0, 1.3), "Sens-Merging does not help here", "better for 0, worse for 3"),
        (
            score_of(0.99, 1.0, 1.0, spread=0.5),
            "makes no difference beyond noise here",
            "noise for 3",
        ),
    ],
)
def test_the_verdict_follows_the_numbers(full: Score, headline: str, counted: str) -> None:
    said = verdict(outcome_of(score_of(1.0, 1.0, 1.0), full))
    assert headline in said[0]
    assert counted in said[1]
    assert counted in said[2]


def test_the_verdict_says_when_no_merge_beats_the_base() -> None:
    worse = outcome_of(score_of(3.0, 3.0, 3.0), score_of(3.0, 3.0, 2.9))
    assert "does not beat the base" in verdict(worse)[-1]
    better = outcome_of(score_of(1.0, 1.0, 1.0), score_of(1.0, 1.0, 1.1))
    assert "and beats the base" in verdict(better)[-1]


def test_the_best_of_each_section_is_marked() -> None:
    text = render(outcome_of(score_of(1.0, 2.0, 3.0), score_of(1.5, 1.5, 2.9)))
    rows = [line for line in text.splitlines() if line.startswith("Task Arithmetic")]
    assert all("1.000*" in row and "2.000 " in row and "3.000 " in row for row in rows)
    rows = [line for line in text.splitlines() if line.startswith("  + Sens-Merging")]
    assert all("1.500 " in row and "1.500*" in row and "1.967*" in row for row in rows)


def test_a_paired_difference_has_its_standard_error() -> None:
    one, other = score_of(1.0, 1.0, 1.0), score_of(1.2, 1.0, 1.0, spread=0.1)
    change, error = other.minus(one)
    assert change == pytest.approx(0.2 / 3)
    # Each task: four samples, deviations ±1 over 40 tokens: √4 / 40; then three tasks' mean.
    assert error == pytest.approx(np.sqrt(3 * (2 / 40) ** 2) / 3)
    assert one.minus(one) == (0.0, 0.0)


def test_the_paper_s_scales_are_those_of_every_method() -> None:
    assert PAPER_LAMBDAS.keys() == METHODS.keys()


def test_a_folder_that_is_not_a_demo_s_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "base" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds no earlier demo"):
        run(tmp_path, quick=True)
    assert mine.read_text(encoding="utf-8") == "mine"
    with pytest.raises(InputError, match="not a folder"):
        run(mine, quick=True)


def test_a_python_without_its_library_s_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensmerge.demo.text._library", lambda: tmp_path)
    with pytest.raises(InputError, match="too little text for 'code'"):
        corpora(QUICK.amounts, 0)


def test_what_is_missing_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensmerge.demo._NEEDED", ("torch", "no_such_package"))
    with pytest.raises(InputError, match="needs no_such_package; pip install"):
        run(tmp_path / "new", quick=True)
    assert not (tmp_path / "new").exists()


def test_importing_the_demo_does_not_load_torch() -> None:
    loaded = "import sys, sensmerge.demo; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
