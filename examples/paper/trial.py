"""A small family with tasks of its own, to try the commands on: nothing is downloaded.

The demo's models (prose, math, code) stand for the paper's experts (Chat, Math, Code). Their tasks
are a choice among four continuations, an exact answer, and functions whose code is run.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sensmerge.demo import family
from sensmerge.demo.text import Corpus, Sample, corpora

EXPERTS = {"Chat": "prose", "Math": "math", "Code": "code"}
SEED = 0
CHOICES = 4

_PROSE = """\
task: prose_choice
dataset_path: json
dataset_kwargs: {data_files: {test: PROSE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
_MATH = """\
task: math_answer
dataset_path: json
dataset_kwargs: {data_files: {test: MATH}}
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{completion}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 16}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
_CODE = """\
task: code_runs
dataset_path: json
dataset_kwargs: {data_files: {test: CODE}}
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{test}}"
generation_kwargs: {until: ["\\ndef", "\\nclass"], do_sample: false, max_gen_toks: 32}
filter_list:
  - name: whole
    filter:
      - {function: custom, filter_fn: !function programs.whole}
metric_list:
  - {metric: !function programs.pass_at_1, aggregation: mean, higher_is_better: true}
"""
_PROGRAMS = '''\
"""What the task code_runs needs of Python; programs are run by the metric code_eval."""

import evaluate

metric = evaluate.load("code_eval")


def whole(responses, docs):
    """Signatures with what the model wrote below them."""
    return [[doc["prompt"] + each for each in texts] for texts, doc in zip(responses, docs)]


def pass_at_1(references, predictions):
    """The share of programs that pass."""
    found, _ = metric.compute(references=references, predictions=predictions, k=[1])
    return found["pass@1"]
'''


def make(folder: Path, *, quick: bool, say: Callable[[str], None]) -> Path:
    """Train the family, write samples, tasks and the file of models into a folder.

    Args:
        folder: The folder.
        quick: Train far too little, for a trial of the machinery.
        say: Told what is going on.

    Returns:
        The file of models.
    """
    size = family.QUICK if quick else family.FULL
    texts = corpora(size.amounts, SEED)
    family.build(folder, texts, size, SEED, say)
    for task, corpus in texts.items():
        _write(folder / f"{task}.jsonl", map(_row, corpus.calibration))
    _tasks(folder / "tasks", texts)
    listed = "".join(
        f"  {name}: {{model: {task}, calibration: {task}.jsonl}}\n"
        for name, task in EXPERTS.items()
    )
    models = folder / "models.yaml"
    models.write_text(
        f"base: base\nexperts:\n{listed}"
        "tasks: [prose_choice, math_answer, code_runs]\ntasks_dir: tasks\n"
    )
    return models


def _tasks(folder: Path, texts: dict[str, Corpus]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    held = {task: corpus.held_back for task, corpus in texts.items()}
    rows = {
        "PROSE": [_choice(draw, sample, held["prose"]) for sample in held["prose"]],
        "MATH": map(_row, held["math"]),
        "CODE": [row for sample in held["code"] if (row := _function(sample)) is not None],
    }
    for (key, data), text in zip(rows.items(), (_PROSE, _MATH, _CODE), strict=True):
        file = folder / f"{key.lower()}.jsonl"
        _write(file, data)
        (folder / f"{key.lower()}.yaml").write_text(text.replace(key, json.dumps(str(file))))
    (folder / "programs.py").write_text(_PROGRAMS)


def _row(sample: Sample) -> dict[str, Any]:
    return {"prompt": sample.prompt, "completion": sample.completion}


def _choice(draw: random.Random, sample: Sample, others: list[Sample]) -> dict[str, Any]:
    """A beginning, with its own continuation among those of others."""
    wrong = [other.completion for other in others if other is not sample]
    choices = [sample.completion, *draw.sample(wrong, CHOICES - 1)]
    draw.shuffle(choices)
    return {
        "prompt": sample.prompt,
        "choices": choices,
        "answer": choices.index(sample.completion),
    }


def _function(sample: Sample) -> dict[str, Any] | None:
    """A signature without decorators, and a test that it is a function."""
    tree = ast.parse(sample.text).body[0]
    assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)
    if tree.decorator_list or tree.returns or any(arg.annotation for arg in tree.args.args):
        return None
    return {"prompt": sample.prompt, "test": f"assert callable({tree.name})"}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
