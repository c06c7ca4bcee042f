"""Evaluation on small local tasks: scores against a plain oracle, kept results, and refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sensmerge
from families import Family, add_tokens, remove_tokenizer
from sensmerge import InputError, Recipe, calibrate, evaluate, merge
from sensmerge.evaluation import record, scores_of
from test_bad_input import run
from test_notebook import look

Said = pytest.CaptureFixture[str]

CHOICE = """\
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ANSWER = """\
task: answer
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/answer.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{completion}}"
generation_kwargs: {until: ["w96"], do_sample: false, max_gen_toks: 4}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CODE = """\
task: code
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/code.jsonl}}
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{test}}"
generation_kwargs: {until: ["w0"], do_sample: false, max_gen_toks: 1}
filter_list:
  - {name: written, filter: [{function: custom, filter_fn: !function own.written}]}
metric_list:
  - {metric: !function own.pass_at_1, aggregation: mean, higher_is_better: true}
"""
OWN = """\
import evaluate

metric = evaluate.load("code_eval")


def written(responses, docs):
    # What a model would have written is in the data: no model of these writes programs.
    return [[doc["program"]] for doc in docs]


def pass_at_1(references, predictions):
    found, _ = metric.compute(references=references, predictions=predictions, k=[1])
    return found["pass@1"]
"""
PROGRAMS = [
    ("def f():\n    return 1", "assert f() == 1", True),
    ("def f():\n    return 2", "assert f() == 1", False),
    ("import os\ndef f():\n    return os.getppid()", f"assert f() == {os.getpid()}", True),
    ("import os\ndef f():\n    return os.environ.get('HF_TOKEN')", "assert f() is None", True),
    ("def f(:", "f()", False),
]


@pytest.fixture(scope="module")
def tasks(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of choices and one of answers."""
    folder = tmp_path_factory.mktemp("tasks")
    write(folder, "choice", CHOICE, choices())
    write(folder, "answer", ANSWER, answers(family))
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with a task whose programs are run."""
    rows = [{"prompt": "w1", "program": one, "test": test} for one, test, _ in PROGRAMS]
    folder = tmp_path / "code"
    folder.mkdir()
    write(folder, "code", CODE, rows)
    (folder / "own.py").write_text(OWN)
    return folder


def write(folder: Path, name: str, text: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def choices() -> list[dict[str, Any]]:
    """Prompts with continuations of unlike lengths."""
    return [
        {
            "prompt": f"w{place} w{2 * place + 1}",
            "choices": [f"w{3 * place}", f"w{place + 40}", f"w{90 - place} w1"],
            "answer": place % 2,
        }
        for place in range(15)
    ]


def answers(family: Family) -> list[dict[str, Any]]:
    """Prompts with what e0 writes after them, but for two, whose answers are wrong."""
    model, tokenizer = opened(family.folder / "e0")
    rows = []
    for place in range(6):
        prompt = f"w{5 * place} w{place}"
        completion = greedy(model, tokenizer, prompt, 4)
        rows.append({"prompt": prompt, "completion": "w1 w1" if place < 2 else completion})
    return rows


def opened(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    """The likeliest words, one by one, until w96 or the end."""
    ids = tokenizer(prompt)["input_ids"]
    first = len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[first:], skip_special_tokens=True).split("w96")[0]).strip()


@torch.inference_mode()
def likeliest(model: Any, tokenizer: Any, row: dict[str, Any]) -> int:
    """The choice whose words are the likeliest together."""
    sums = []
    for choice in row["choices"]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = prompt + tokenizer(choice, add_special_tokens=False)["input_ids"]
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(logs[at - 1, ids[at]]) for at in range(len(prompt), len(ids))))
    return max(range(len(sums)), key=sums.__getitem__)


def accuracy(folder: Path) -> float:
    """The share of right choices, by the oracle."""
    model, tokenizer = opened(folder)
    right: list[bool] = [likeliest(model, tokenizer, row) == row["answer"] for row in choices()]
    return sum(right) / len(right)


def exactness(family: Family, folder: Path) -> float:
    """The share of right answers, by the oracle."""
    model, tokenizer = opened(folder)
    right: list[bool] = [
        greedy(model, tokenizer, row["prompt"], 4) == row["completion"] for row in answers(family)
    ]
    return sum(right) / len(right)


class Counted:
    """Counts what is scored; a stop may come in the place of a task's score."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: str | None = None) -> None:
        # Not with the module: the harness takes seconds to import, and each worker does that.
        from sensmerge.evaluation.suite import Suite

        self.tasks: list[str] = []
        score: Callable[..., record.Score] = Suite.score

        def counted(suite: Suite, name: str, *rest: Any) -> record.Score:
            if name == stop:
                raise KeyboardInterrupt
            self.tasks.append(name)
            return score(suite, name, *rest)

        monkeypatch.setattr(Suite, "score", counted)


def test_scores_are_those_of_a_plain_oracle(family: Family, tasks: Path) -> None:
    models = {name: family.folder / name for name in ("base", "e0", "e1")}
    found = evaluate(models, "choice,answer", tasks_dir=tasks, progress=False)
    assert found.tasks == ["choice", "answer"]
    scores = found.scores()
    for name, folder in models.items():
        assert scores[name]["choice"] == pytest.approx(accuracy(folder)), name
        assert scores[name]["answer"] == pytest.approx(exactness(family, folder)), name
    assert scores["e0"]["answer"] == pytest.approx(4 / 6)
    assert len({each["choice"] for each in scores.values()}) > 1
    one = found.models["e0"].scores["choice"]
    assert (one.metric, one.samples) == ("acc,none", 15)
    share = one.value
    assert one.error == pytest.approx((share * (1 - share) / 14) ** 0.5)


def test_a_rerun_and_other_batches_give_the_same_scores(family: Family, tasks: Path) -> None:
    again = [
        scores_of(
            family.folder / "e0", "choice,answer", tasks_dir=tasks, batch_size=size, progress=False
        )
        for size in (1, 1, 4)
    ]
    assert again[0] == again[1] == again[2]


def test_a_recipe_is_merged_in_memory(
    family: Family, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(
        family.recipe("ties", parameters={"density": 0.5, "lambda": 0.7}), family.folder
    )
    out = tmp_path / "merged"
    merge(recipe, out, sync=False, progress=False)
    before = sorted(path.name for path in family.folder.iterdir())
    options: dict[str, Any] = {"tasks_dir": tasks, "progress": False}
    in_memory = evaluate({"recipe": recipe}, "choice,answer", **options)
    on_disk = evaluate({"folder": out}, "choice,answer", **options)
    assert in_memory.scores()["recipe"] == on_disk.scores()["folder"]
    assert in_memory.scores()["recipe"]["choice"] == pytest.approx(accuracy(out))
    assert sorted(path.name for path in family.folder.iterdir()) == before
    # Both have the same weights and tokenizer, and so one set of scores.
    mine, its = in_memory.models["recipe"], on_disk.models["folder"]
    assert (mine.fingerprint, mine.tokenizer) == (its.fingerprint, its.tokenizer)
    kept = tmp_path / "results.json"
    evaluate({"recipe": recipe}, "choice", results=kept, **options)
    counted = Counted(monkeypatch)
    evaluate({"folder": out}, "choice", results=kept, **options)
    assert counted.tasks == []


FEW = {"samples": 3, "dtype": "float32"}
PAIR = [{"model": f"e{place}", "calibration": f"t{place}.jsonl"} for place in (0, 2)]


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("linear", {"tokenizer_source": "union"}),
        ("ties", {"out_dtype": "bfloat16"}),
        ("fisher", {"models": PAIR}),
        ("task_arithmetic", {"aim": {"omega": 0.4}, "sensitivity": FEW}),
        ("task_arithmetic", {"parameters": {"lambda": "auto"}, "sensitivity": FEW}),
        ("passthrough", {"slices": [{"sources": [{"model": "e0", "layer_range": [0, 2]}]},
                                    {"sources": [{"model": "e2", "layer_range": [1, 3]}]}]}),
    ],
    ids=["union", "bfloat16", "statistics", "aim", "auto", "slices"],
)  # fmt: skip
def test_every_recipe_is_the_model_that_merge_writes(
    family: Family, tasks: Path, tmp_path: Path, method: str, keys: dict[str, Any]
) -> None:
    copied = family.copy(tmp_path / "family")
    add_tokens(copied.folder / "e1", "new0", "new1")
    data = copied.recipe(method, **keys)
    if "slices" in keys:
        del data["models"], data["base_model"]
    recipe = Recipe.from_dict(data, copied.folder)
    merge(recipe, tmp_path / "out", sync=False, progress=False)
    models: dict[str, Any] = {"recipe": recipe, "folder": tmp_path / "out"}
    found = evaluate(models, "choice", tasks_dir=tasks, progress=False).models
    assert found["recipe"].fingerprint == found["folder"].fingerprint
    assert found["recipe"].tokenizer == found["folder"].tokenizer
    assert found["recipe"].scores["choice"].value == pytest.approx(accuracy(tmp_path / "out"))


def test_a_recipe_is_calibrated_first(family: Family, tasks: Path, tmp_path: Path) -> None:
    sensitive = {"samples": 3, "dtype": "float32"}
    recipe = Recipe.from_dict(family.recipe(sensitivity=sensitive), family.folder)
    out = tmp_path / "merged"
    merge(recipe, out, sync=False, progress=False)
    path = tmp_path / "calibration.json"
    calibrate(recipe, progress=False).save(path)
    options: dict[str, Any] = {"tasks_dir": tasks, "progress": False}
    measured_now = evaluate({"m": recipe}, "choice", **options)
    given = evaluate({"m": recipe}, "choice", calibration=path, **options)
    written = evaluate({"m": out}, "choice", **options)
    assert len({each.models["m"].fingerprint for each in (measured_now, given, written)}) == 1
    assert measured_now.scores() == given.scores() == written.scores()


def test_a_model_in_memory_is_scored_and_left_as_it_was(family: Family, tasks: Path) -> None:
    model, tokenizer = opened(family.folder / "e1")
    model.train()
    found = scores_of((model, tokenizer), "choice", tasks_dir=tasks, progress=False)
    assert found == {"choice": pytest.approx(accuracy(family.folder / "e1"))}
    assert model.training


def test_results_are_kept_and_added_to(
    family: Family, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "results.json"
    counted = Counted(monkeypatch)
    options: dict[str, Any] = {"tasks_dir": tasks, "results": kept, "progress": False}
    base, e0 = family.folder / "base", family.folder / "e0"
    evaluate({"base": base}, "choice", **options)
    evaluate({"base": base, "e0": e0}, "choice", **options)
    assert counted.tasks == ["choice", "choice"]
    found = evaluate({"base": base}, "choice,answer", **options)
    assert counted.tasks == ["choice", "choice", "answer"]
    # All that the file has is in the result, and the file has all of it.
    assert list(found.models) == ["base", "e0"]
    assert found.tasks == ["choice", "answer"]
    again = record.Evaluation.load(kept)
    assert (again.tasks, again.models) == (found.tasks, found.models)
    # An average needs every score of its columns.
    data = found.as_dict()["models"]
    values = [data["base"]["scores"][task]["value"] for task in found.tasks]
    assert data["base"]["average"] == pytest.approx(sum(values) / 2)
    assert data["e0"]["average"] is None
    # Scores of other samples would take the place of those, which may have taken hours.
    with pytest.raises(InputError, match="has this model's score on all samples, dtype stored"):
        evaluate({"base": base}, "choice", limit=4, **options)
    fewer = evaluate({"e1": family.folder / "e1"}, "choice", limit=4, **options)
    assert counted.tasks[3:] == ["choice"]
    assert fewer.models["e1"].scores["choice"].samples == 4
    assert any("choice: scores are not of the same samples" in each for each in fewer.differences())


def test_what_the_task_asks_decides_whether_a_score_is_kept(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kept = tmp_path / "tasks", tmp_path / "results.json"
    folder.mkdir()
    write(folder, "choice", CHOICE, choices())
    counted = Counted(monkeypatch)
    for rows in (choices(), choices(), choices()[1:]):
        write(folder, "choice", CHOICE, rows)
        evaluate(
            str(family.folder / "base"), "choice", tasks_dir=folder, results=kept, progress=False
        )
    assert counted.tasks == ["choice", "choice"]


def test_a_stop_loses_no_finished_score(
    family: Family, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "results.json"
    Counted(monkeypatch, stop="answer")
    e0 = str(family.folder / "e0")
    with pytest.raises(KeyboardInterrupt):
        evaluate(e0, "choice,answer", tasks_dir=tasks, results=kept, progress=False)
    (model,) = record.Evaluation.load(kept).models.values()
    assert list(model.scores) == ["choice"]


def test_programs_are_run_apart(
    family: Family, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    counted = Counted(monkeypatch)
    options: dict[str, Any] = {"tasks_dir": code, "run_code": True, "trust_tasks": True}
    options |= {"results": tmp_path / "results.json", "progress": False}
    right = sum(passes for *_, passes in PROGRAMS) / len(PROGRAMS)
    for _ in range(2):
        assert scores_of(family.folder / "base", "code", **options) == {
            "code": pytest.approx(right)
        }
    assert counted.tasks == ["code"]
    # Another program in the task is another task.
    own = code / "own.py"
    own.write_text(own.read_text().replace('return found["pass@1"]', "return 1.0"))
    assert scores_of(family.folder / "base", "code", **options) == {"code": 1.0}


def test_code_needs_leave_before_anything_is_opened(code: Path, capsys: Said) -> None:
    # The model does not exist: tasks come first.
    arguments = ("eval", "nothing", "--tasks", "code", "--tasks-dir", str(code))
    assert run(*arguments, "--trust-tasks") == 2
    said = capsys.readouterr().err
    assert "error: tasks: code: programs that the model writes are run" in said
    assert "hint: --run-code" in said
    assert run(*arguments, "--run-code") == 2
    said = capsys.readouterr().err
    assert "code.yaml: !function own." in said
    assert "hint: --trust-tasks" in said


def test_a_metric_that_runs_code_unsaid_needs_leave_too(family: Family, code: Path) -> None:
    path = code / "code.yaml"
    path.write_text(path.read_text().replace("unsafe_code: true\n", ""))
    with pytest.raises(InputError, match="asks for the metric code_eval"):
        evaluate(
            str(family.folder / "base"), "code", tasks_dir=code, trust_tasks=True, progress=False
        )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("doc_to_target: answer", "doc_to_target: !function own.f", "!function own.f: is Python"),
        ("dataset_path: json", "dataset_path: pandas", "dataset_path: 'pandas' is none of"),
        ("metric: acc", "metric: ../evil", "metric: '../evil' is none of the harness's own"),
        ("metric: acc", "metric: acc, hf_evaluate: true", "metric: 'acc' is none of"),
        ("test_split: test", "test_split: test\nuse_prompt: 'x.yaml:a'", "use_prompt: would read"),
        ("task: choice", "task: choice\nclass: own.Task", "class: would read or run"),
        ("task: choice", "task: choice\ninclude: ../other.yaml", "include: '../other.yaml' lies"),
        (
            "test_split: test",
            "test_split: test\ngeneration_kwargs: {custom_generate: a/b}",
            "generation_kwargs.custom_generate: is no plain option",
        ),
    ],
)
def test_task_files_run_no_code_unless_trusted(
    family: Family, tmp_path: Path, old: str, new: str, said: str
) -> None:
    write(tmp_path, "choice", CHOICE.replace(old, new), choices())
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nf = len\n")
    with pytest.raises(InputError) as caught:
        evaluate(str(family.folder / "base"), "choice", tasks_dir=tmp_path, progress=False)
    assert any(
        line.startswith(f"{tmp_path / 'choice.yaml'}: {said}") for line in caught.value.lines
    )
    assert caught.value.option == "trust_tasks"
    assert not (tmp_path / "ran").exists()


def test_templates_of_task_files_reach_no_python(family: Family, tmp_path: Path) -> None:
    evil = "{{ cycler.__init__.__globals__.os.system('touch ' + prompt) }}"
    rows = [row | {"prompt": str(tmp_path / "ran")} for row in choices()]
    write(tmp_path, "choice", CHOICE.replace("{{prompt}}", evil), rows)
    with pytest.raises(InputError, match=r"task 'choice': .*unsafe"):
        evaluate(str(family.folder / "base"), "choice", tasks_dir=tmp_path, progress=False)
    assert not (tmp_path / "ran").exists()


def test_the_harnesss_tasks_are_known_by_name(capsys: Said) -> None:
    # One of them runs code: nothing is opened, downloaded or imported before that is refused.
    assert run("eval", "nothing", "--tasks", "paper") == 2
    said = capsys.readouterr().err
    assert "tasks: mbpp, humaneval: programs that the model writes" in said
    assert run("eval", "nothing", "--tasks", "hellaswagg,own") == 2
    said = capsys.readouterr().err
    assert "there is no 'hellaswagg' in lm-evaluation-harness; did you mean 'hellaswag'?" in said
    assert "there is no 'own' in lm-evaluation-harness" in said
    assert run("eval", "nothing", "--tasks", "ai2_arc") == 2
    assert "'ai2_arc' stands for several tasks" in capsys.readouterr().err


def test_data_that_are_not_there_are_named(family: Family, tmp_path: Path, capsys: Said) -> None:
    write(tmp_path, "choice", CHOICE, choices())
    (tmp_path / "choice.jsonl").unlink()
    arguments = ("eval", "nothing", "--tasks-dir", str(tmp_path), "--tasks")
    assert run(*arguments, "choice") == 2
    said = capsys.readouterr().err
    assert f"task 'choice': its data is not there: {tmp_path / 'choice.jsonl'}" in said
    write(tmp_path, "choice", CHOICE.replace("dataset_path: json", "dataset_path: org/none"), [])
    base = str(family.folder / "base")
    assert run("eval", base, "--tasks-dir", str(tmp_path), "--tasks", "choice", "--quiet") == 2
    said = capsys.readouterr().err
    assert "task 'choice': it or its data (org/none) cannot be loaded" in said
    assert "write a task file with data of your own" in said


def test_models_that_cannot_be_run_are_refused(
    family: Family, tasks: Path, tmp_path: Path, capsys: Said
) -> None:
    copied = family.copy(tmp_path / "copied")
    remove_tokenizer(copied.folder / "e0")
    (copied.folder / "e1" / "config.json").unlink()
    base, out = copied.folder / "base", copied.folder / "e0" / "model.safetensors"
    stages = copied.folder / "stages.yaml"
    first = copied.recipe("linear", name="first")
    last = copied.recipe("linear", models=[{"model": "first"}, {"model": "e2"}])
    stages.write_text(f"{json.dumps(first)}\n---\n{json.dumps(last)}\n")
    quantised = copied.write_recipe(copied.recipe("linear", out_dtype="int4"))
    for model, said in (
        (copied.folder / "e0", "has no tokenizer files, so the model cannot be evaluated"),
        (copied.folder / "e1", "has no config.json, so the model cannot be run"),
        (copied.folder / "nothing", "no such folder"),
        (out, "evaluation needs the model's folder, not a weight file"),
        (stages, "several"),
        (quantised, "out_dtype: int4"),
    ):
        arguments = ("--tasks", "choice", "--tasks-dir", str(tasks), "--quiet")
        assert run("eval", str(base), str(model), *arguments) == 2
        found = capsys.readouterr()
        assert said in found.err, found.err
        assert found.out == ""


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"dtype": "int8"}, "dtype: 'int8' is none of stored, float32"),
        ({"limit": 0}, "limit: 0 is too small"),
        ({"device": "nowhere"}, "device: 'nowhere' cannot be used"),
        ({"tasks_dir": tmp_path / "none"}, "there is no such folder of task files"),
        ({"tasks": []}, "tasks: none is named"),
    )
    for options, said in cases:
        asked: dict[str, Any] = {"tasks": "choice", "progress": False} | options
        with pytest.raises(InputError, match=said):
            evaluate("nothing", **asked)


def test_the_command_prints_and_keeps_a_table(
    family: Family, tasks: Path, tmp_path: Path, capsys: Said
) -> None:
    kept, base = tmp_path / "results.json", str(family.folder / "base")
    recipe = str(family.write_recipe(family.recipe("linear"), "evaluated.yaml"))
    tasks_of = ("--tasks", "choice", "--tasks-dir", str(tasks))
    assert run("eval", base, recipe, *tasks_of, "-o", str(kept), "--quiet", "--format", "json") == 0
    data = json.loads(capsys.readouterr().out)
    assert list(data["models"]) == [base, recipe]
    assert data["written"] == [str(kept)]
    assert data["models"][base]["scores"]["choice"]["value"] == pytest.approx(
        accuracy(family.folder / "base")
    )
    # Without models, what was kept.
    assert run("eval", "-o", str(kept)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Model", "choice"]
    value = 100 * data["models"][base]["scores"]["choice"]["value"]
    assert lines[1].split() == [base, f"{value:.2f}"]
    assert run("eval") == 2
    assert "Missing argument" in capsys.readouterr().err
    kept.write_text('{"tasks": []}')
    assert run("eval", "-o", str(kept)) == 2
    assert "is no file of results: models: is missing" in capsys.readouterr().err


def score(value: float, **other: Any) -> record.Score:
    said = {
        "value": value, "metric": "acc,none", "error": 0.01, "samples": 100, "metrics": {},
        "digest": "d", "seconds": 1.0, "conditions": record.Conditions(),
    }  # fmt: skip
    return record.Score(**said | other)


def paper_table() -> record.Evaluation:
    """The first row of the paper's first table, and a model that lacks a score."""
    chat = [46.38, 57.79, 45.17, 23.43, 4.86, 0.3, 0.6]
    names = [
        "humaneval", "mmlu", "hellaswag", "truthfulqa_mc2", "gsm8k", "hendrycks_math", "mbpp",
    ]  # fmt: skip
    shown = dict(zip([*names[1:], names[0]], chat, strict=True))
    whole = {task: score(share / 100) for task, share in shown.items()}
    part = {task: each for task, each in whole.items() if task != "mbpp"}
    models = {
        "chat": record.Evaluated(fingerprint="a", tokenizer="t", scores=whole),
        "a\x1b[31m|b": record.Evaluated(fingerprint="b", tokenizer="t", scores=part),
    }
    return record.Evaluation([*names, "own"][:7], models)


def test_the_table_is_the_papers() -> None:
    found = paper_table()
    over, head, first, second = found.table().splitlines()
    assert [each.strip() for each in over.split("  ") if each.strip()] == [
        "General Knowledge", "Mathematical Reasoning", "Code Generation",
    ]  # fmt: skip
    assert head.split() == [
        "Model", "MMLU", "HellaSwag", "TruthfulQA", "GSM8K", "MATH", "MBPP", "HumanEval", "Average",
    ]  # fmt: skip
    # The mean of the seven, as the paper has it.
    assert first.split() == [
        "chat", "46.38", "57.79", "45.17", "23.43", "4.86", "0.30", "0.60", "25.50",
    ]  # fmt: skip
    assert second.split()[-3:] == ["-", "0.60", "-"]
    assert r"a\x1b[31m|b" in second
    areas = found.as_dict()["models"]["chat"]["areas"]
    assert areas["General Knowledge"] == pytest.approx((0.4638 + 0.5779 + 0.4517) / 3)
    assert found.as_dict()["models"]["a\x1b[31m|b"]["areas"]["Code Generation"] is None


def test_the_table_in_a_notebook() -> None:
    said = look(paper_table())
    assert "Evaluation: 2 models, 7 tasks, percent" in said
    for shown in ("MMLU", "46.38", "25.50", "Mathematical Reasoning", "acc,none", r"a\x1b[31m|b"):
        assert shown in said, shown


def test_the_paper_is_a_preset() -> None:
    from sensmerge.evaluation.benchmarks import PAPER, named

    assert named("paper") == [each.task for each in PAPER]
    assert named("own, paper,mmlu") == ["own", *named("paper")]
    assert sensmerge.evaluate is evaluate
