"""Published recipes, merged by both programs, run by hand.

``python tests/parity/recipes.py RECIPES [--work FOLDER] [--only NUMBER ...] [--table FILE]``

RECIPES is a folder of mergekit recipes, ``NUMBER.yml``, with ``make.py NUMBER FOLDER``, which makes
tiny models for one and puts it beside them as ``recipe.yml``. Every recipe is merged by sensmerge
as it is, and by mergekit 0.1.5 with its arithmetic in float32 (``dtype: float32``, and
``out_dtype`` what the recipe's dtype was), since mergekit otherwise computes in the output's dtype.
Outputs are compared:

- tensor by tensor, rows of the embedding and head by token: *equal* is within one unit in the last
  place of the output's dtype, or a millionth of the tensor's largest entry where terms cancel;
- for methods that draw at random: the mean and the spread of what the merge adds to the base;
- the config's depth and vocabulary, and the tokens of the tokenizer.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parents[1]))

from parity.interpolation import tensors
from parity.run import install

# Methods whose masks come from a random generator.
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")

# mergekit's own commands, for many recipes in one process, which its imports would slow down.
COMMAND = """
import os, sys
from mergekit.scripts.run_yaml import main
from mergekit.scripts.multimerge import main as several
for folder in sys.argv[1:]:
    os.chdir(folder)
    options = ["--no-cuda", "--quiet", "--lora-merge-cache", f"{folder}/lora"]
    run, recipe = main, f"{folder}/float32.yml"
    if "\\n---" in open(recipe).read():
        run, options = several, [*options, "--intermediate-dir", f"{folder}/stages"]
    try:
        run([recipe, f"{folder}/theirs", *options], standalone_mode=False)
        said = ""
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    open(f"{folder}/theirs.txt", "w").write(said)
"""


@dataclass
class Row:
    """What came of one recipe.

    Attributes:
        number: The recipe's number.
        method: Its methods.
        ours: What sensmerge says against it; empty if it merged.
        theirs: What mergekit says against it; empty if it merged.
        verdict: How the outputs compare.
        good: Whether that is parity.
    """

    number: str
    method: str
    ours: str
    theirs: str
    verdict: str
    good: bool

    def line(self) -> str:
        """The row of a Markdown table."""
        return f"| {self.number} | {self.method} | {self.verdict} |"


def main() -> None:
    """Compare all recipes; exit with 1 if one is not at parity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--table", type=Path, default=None)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="recipes-"))
    python = install(work / "environment")
    paths = sorted(options.recipes.glob("[0-9]*.yml"))
    folders = [work / path.stem for path in paths if not options.only or path.stem in options.only]
    for folder in folders:
        prepare(options.recipes, folder)
    missing = [str(folder) for folder in folders if not (folder / "theirs.txt").exists()]
    if missing:
        subprocess.run([str(python), "-c", COMMAND, *missing], check=True, capture_output=True)
    rows = []
    for folder in folders:
        rows.append(compared(folder))
        row = rows[-1]
        print(
            f"{'ok  ' if row.good else 'FAIL'} {row.number} {row.method}: {row.verdict}", flush=True
        )
    good = sum(row.good for row in rows)
    print(f"{good} of {len(rows)} at parity, {sum(not row.ours for row in rows)} merged")
    if options.table is not None:
        head = ["| recipe | method | against mergekit 0.1.5 |", "|---|---|---|"]
        options.table.write_text("\n".join([*head, *(row.line() for row in rows)]) + "\n")
    sys.exit(good < len(rows))


def prepare(recipes: Path, folder: Path) -> None:
    """Make the models of a recipe, and the recipe that mergekit gets."""
    if (folder / "float32.yml").exists():
        return
    command = [sys.executable, str(recipes / "make.py"), folder.name, str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    changed = []
    for data in documents(folder):
        dtype = data.get("out_dtype") or data.get("dtype")
        changed.append(data | {"dtype": "float32"} | ({"out_dtype": dtype} if dtype else {}))
    text = io.StringIO()
    _yaml().dump_all(changed, text)
    # Whole paths: in one process mergekit takes models of the same relative path for the same.
    placed = re.sub(r"(?:\./)?\bmodels/+", f"{folder.resolve()}/models/", text.getvalue())
    (folder / "float32.yml").write_text(placed)


def documents(folder: Path) -> list[dict[str, Any]]:
    """The documents of a recipe."""
    return [each for each in _yaml().load_all((folder / "recipe.yml").read_text()) if each]


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    return yaml


def compared(folder: Path) -> Row:
    """Merge a recipe and compare the outcome with mergekit's."""
    methods = [str(data.get("merge_method")) for data in documents(folder)]
    ours, theirs = merged(folder), (folder / "theirs.txt").read_text()
    row = Row(folder.name, ", ".join(methods), ours, theirs, "", True)
    if ours and theirs:
        row.verdict = f"refused by both: {ours}"
    elif ours:
        row.verdict, row.good = f"refused here alone: {ours}", False
    elif theirs:
        row.verdict = f"merged here; mergekit refuses it: {theirs.splitlines()[0][:120]}"
    else:
        row.verdict, row.good = outputs(folder, any(method in RANDOM for method in methods))
    return row


def merged(folder: Path) -> str:
    """Merge with sensmerge; what it says against the recipe, or nothing."""
    out = folder / "ours"
    program = Path(sys.executable).with_name("sensmerge")
    command = [str(program), "merge", str(folder / "recipe.yml"), str(out), "--no-sync", "--force"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return done.stderr.strip().replace(f"{folder}/", "").removeprefix("error: ")


def outputs(folder: Path, random: bool) -> tuple[str, bool]:
    """Compare the two merged models."""
    ours, theirs = folder / "ours", folder / "theirs"
    faults = [*configs(ours, theirs), *tokenizers(ours, theirs)]
    one, other = tensors(ours), tensors(theirs)
    faults += [f"only in {where}: {name}" for name, where in differing(one, other)]
    by_token = rows_by_token(ours, theirs)
    worst, beyond, entries = 0.0, 0, 0
    spreads = []
    for name in sorted(set(one) & set(other)):
        a, b = one[name], other[name]
        if by_token is not None and name.endswith(_EMBEDDINGS):
            a, b = a[by_token[0]], b[by_token[1]]
        if a.shape != b.shape or a.dtype != b.dtype:
            faults.append(f"{name}: {a.dtype} {list(a.shape)}, {b.dtype} {list(b.shape)}")
            continue
        if random:
            spreads.append((name, a.double(), b.double()))
            continue
        units = in_units(a, b)
        worst, beyond = max(worst, float(units.max(initial=0))), beyond + int((units > 1).sum())
        entries += a.numel()
    if faults:
        return f"differs: {'; '.join(faults[:3])}", False
    if random:
        return distribution(folder, spreads)
    if beyond:
        return f"{beyond} of {entries} entries differ by up to {worst:.3g} units", False
    return "equal to mergekit", True


def in_units(a: torch.Tensor, b: torch.Tensor) -> Any:
    """The distance of two tensors in units in the last place of their dtype, less a millionth of
    the largest entry."""
    x, y = a.double(), b.double()
    largest = torch.maximum(x.abs(), y.abs())
    exponent = torch.floor(torch.log2(largest.clamp(min=torch.finfo(a.dtype).tiny)))
    unit = torch.finfo(a.dtype).eps * torch.exp2(exponent)
    slack = 1e-6 * float(largest.max()) if largest.numel() else 0.0
    return ((((x - y).abs() - slack).clamp(min=0)) / unit).numpy()


def distribution(
    folder: Path, merged: list[tuple[str, torch.Tensor, torch.Tensor]]
) -> tuple[str, bool]:
    """Compare what two random merges add to the base: its mean and its spread."""
    data = documents(folder)[-1]
    base = tensors(folder / str(data.get("base_model", "models/base")).partition("+")[0])
    moved = []
    for place in range(2):
        flat = [
            (pair[place] - base[name].double()).flatten()
            for name, *pair in merged
            if name in base and pair[place].shape == base[name].shape
        ]
        moved.append(torch.cat(flat))
    (a, b), n = moved, len(moved[0])
    spread = float(a.std() / b.std())
    error = math.sqrt(float(a.var() + b.var()) / n)
    shift = abs(float(a.mean() - b.mean())) / max(error, 1e-12)
    said = f"equal in distribution (spread {spread:.3f} of mergekit's)"
    return said, abs(spread - 1) < 0.03 and shift < 5


def configs(ours: Path, theirs: Path) -> list[str]:
    """What the two configs say differently of depth and vocabulary."""
    one, other = (json.loads((path / "config.json").read_text()) for path in (ours, theirs))
    keys = ("num_hidden_layers", "vocab_size", "model_type", "architectures", "layer_types")
    return [
        f"config.json: {key} {one.get(key)} and {other.get(key)}"
        for key in keys
        if one.get(key) is not None and one.get(key) != other.get(key)
    ]


def tokenizers(ours: Path, theirs: Path) -> list[str]:
    """Tokens that only one of the tokenizers has, and templates that differ."""
    one, other = vocabulary(ours), vocabulary(theirs)
    faults = []
    if one is not None and other is not None and set(one) != set(other):
        here, there = len(set(one) - set(other)), len(set(other) - set(one))
        faults.append(f"tokens: {here} only here, {there} only there")
    if other is not None and template(ours) != template(theirs):
        faults.append("chat templates differ")
    return faults


def vocabulary(folder: Path) -> dict[str, int] | None:
    """The ids of a tokenizer's tokens."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    added = {token["content"]: token["id"] for token in data.get("added_tokens", [])}
    return dict(data["model"]["vocab"]) | added


def template(folder: Path) -> str | None:
    """The chat template of a model."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text()
    config = folder / "tokenizer_config.json"
    said = json.loads(config.read_text()).get("chat_template") if config.exists() else None
    return None if said is None else str(said)


def rows_by_token(ours: Path, theirs: Path) -> tuple[list[int], list[int]] | None:
    """Indices of the rows of every token in two models; None where the ids are the same."""
    one, other = vocabulary(ours), vocabulary(theirs)
    if one is None or other is None or one == other:
        return None
    shared = sorted(set(one) & set(other))
    return [one[token] for token in shared], [other[token] for token in shared]


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str]]:
    """Names that only one of two models has."""
    here = [(name, "sensmerge's") for name in sorted(set(one) - set(other))]
    return here + [(name, "mergekit's") for name in sorted(set(other) - set(one))]


if __name__ == "__main__":
    main()
