"""Published recipes, merged by both programs, run by hand.

``python tests/parity/recipes.py RECIPES ... [--work FOLDER] [--only NUMBER ...] [--table FILE]``

Every RECIPES is a folder of mergekit recipes, ``NUMBER.yml``, with ``make.py NUMBER FOLDER``, which
makes tiny models for one and puts it beside them as ``recipe.yml``. Every recipe is merged by
sensmerge as it is, and by mergekit 0.1.5 with its arithmetic in float32 (``dtype: float32``, and
``out_dtype`` what the recipe's dtype was), since mergekit otherwise computes in the output's dtype.
Outputs are compared:

- tensor by tensor, rows of the embedding and head by token: *equal* is within one unit in the last
  place of the output's dtype, or a millionth of the tensor's largest entry where terms cancel;
- for methods that draw at random: the mean and the spread of what the merge adds to the base;
- the config's depth and vocabulary, and the tokens of the tokenizer;
- chat templates by what they make of conversations.

Methods that keep the largest entries may keep either of two that are equally large, and in bfloat16
many are. Where entries differ, the recipe is merged once more by both, in float64, with models
whose entries are moved by a thousandth of their spread, so that no two are equal and rounding
decides nothing.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from parity.interpolation import tensors
from parity.outputs import added_by_mergekit, outputs
from parity.run import install

# Methods whose masks come from a random generator.
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")

# mergekit's own commands, for many recipes in one process, which its imports would slow down.
COMMAND = """
import os, sys
from mergekit.scripts.run_yaml import main
from mergekit.scripts.multimerge import main as several
for folder in sys.argv[1:]:
    os.chdir(folder)
    recipe, out = f"{folder}/theirs.yml", f"{folder}/theirs"
    options = ["--no-cuda", "--quiet", "--lora-merge-cache", f"{folder}/lora"]
    run, where = main, [out]
    if "\\n---" in open(recipe).read():
        run, where = several, ["--out-path", out, "--intermediate-dir", f"{folder}/stages"]
    try:
        run([recipe, *where, *options], standalone_mode=False)
        said = ""
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    open(f"{folder}/theirs.txt", "w").write(said)
"""


# The docs' page, before the rows of its table.
PAGE = """# Published recipes, here and in mergekit

{count} mergekit recipes as people published them, with other names of models, and those that
mergekit ships. Each was merged by both programs from tiny random models of the architecture,
embeddings and adapters that it asks for: {merged} merge here, {good} with mergekit 0.1.5's result
or where it has none. mergekit's sums were made in float32.

*Equal* is within one unit in the last place of the output's dtype, or a millionth of the tensor's
largest entry where terms cancel; rows of tokens are compared by token. *Equal in float64*:
methods that keep the largest entries may keep either of two that are alike, and in bfloat16 many
are; such recipes were merged again with models in float64 in which none are. *Equal in
distribution*: the masks of a random method are others by design; the mean and the spread of what
the merge adds to the base are the same. Recipes that both refuse are wrong, and the message says
how.

Made by `python tests/parity/recipes.py RECIPES ... --table docs/parity.md`, {today}.

| recipe | method | asks for | outcome |
|---|---|---|---|
"""


@dataclass
class Row:
    """What came of one recipe.

    Attributes:
        number: The recipe's number.
        method: Its methods.
        verdict: How the outputs compare.
        good: Whether that is parity.
        merged: Whether sensmerge merged it.
        differ: How many entries differ.
        entries: How many were compared.
    """

    number: str
    method: str
    verdict: str
    good: bool = True
    merged: bool = True
    differ: int = 0
    entries: int = 0

    def line(self, needs: str) -> str:
        """The row of a Markdown table."""
        verdict = " ".join(self.verdict.replace("|", "\\|").split())
        return f"| {self.number} | {self.method} | {needs} | {verdict} |"


def main() -> None:
    """Compare all recipes; exit with 1 if one is not at parity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--table", type=Path, default=None)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="recipes-"))
    python = install(work / "environment")
    folders: list[Path] = []
    needs: dict[str, str] = {}
    for recipes in options.recipes:
        needs |= needed(recipes)
        for path in sorted(recipes.glob("[0-9]*.yml")):
            if not options.only or path.stem in options.only:
                folders.append(work / path.stem)
                prepare(recipes, folders[-1])
    run_mergekit(python, folders)
    rows = []
    for folder in folders:
        row = compared(folder)
        if row.differ:
            row = without_ties(python, folder, row)
        rows.append(row)
        print(
            f"{'ok  ' if row.good else 'FAIL'} {row.number} {row.method}: {row.verdict}", flush=True
        )
    good = sum(row.good for row in rows)
    print(f"{good} of {len(rows)} at parity, {sum(row.merged for row in rows)} merged")
    if options.table is not None:
        head = PAGE.format(
            count=len(rows), good=good, merged=sum(row.merged for row in rows), today=date.today()
        )
        lines = (row.line(needs.get(row.number, "")) for row in rows)
        options.table.write_text(head + "\n".join(lines) + "\n")
    sys.exit(good < len(rows))


def needed(recipes: Path) -> dict[str, str]:
    """What every recipe of a folder asks for, by ``index.tsv`` beside them."""
    path = recipes / "index.tsv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["number"]: row.get("what it needs") or "" for row in rows}


def run_mergekit(python: Path, folders: list[Path]) -> None:
    """Merge all recipes with mergekit that no earlier run has merged."""
    missing = [str(folder) for folder in folders if not (folder / "theirs.txt").exists()]
    if missing:
        subprocess.run([str(python), "-c", COMMAND, *missing], check=True, capture_output=True)


def without_ties(python: Path, folder: Path, row: Row) -> Row:
    """Compare again with models in which no two entries are equal."""
    other = untied(folder)
    run_mergekit(python, [other])
    again = compared(other)
    if not again.good:
        row.verdict += f"; without entries that are equally large: {again.verdict}"
        return row
    row.good = True
    row.verdict = (
        "equal to mergekit in float64, where no two entries are alike; with the recipe's own "
        f"models {row.differ} of {row.entries} entries differ, at a threshold or where terms cancel"
    )
    return row


def prepare(recipes: Path, folder: Path) -> None:
    """Make the models of a recipe, and the recipe that mergekit gets."""
    if (folder / "theirs.yml").exists():
        return
    command = [sys.executable, str(recipes / "make.py"), folder.name, str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    write_for_mergekit(folder, "float32", stored(folder))


def write_for_mergekit(folder: Path, dtype: str, default: str) -> None:
    """Write a recipe as mergekit gets it: its sums in ``dtype``, its output as it was.

    Args:
        folder: The recipe's folder.
        dtype: The dtype that mergekit computes in.
        default: The output's dtype where the recipe names none.
    """
    changed = []
    for data in documents(folder):
        out = data.get("out_dtype") or data.get("dtype") or default
        changed.append(data | {"dtype": dtype, "out_dtype": out})
    text = io.StringIO()
    _yaml().dump_all(changed, text)
    # Whole paths: in one process mergekit takes models of the same relative path for the same.
    placed = re.sub(r"(?:\./)?\bmodels/+", f"{folder.resolve()}/models/", text.getvalue())
    (folder / "theirs.yml").write_text(placed)


def stored(folder: Path) -> str:
    """The dtype of a recipe's models."""
    path = next(
        path for path in sorted((folder / "models").iterdir()) if any(path.glob("*.safetensors"))
    )
    return str(next(iter(tensors(path).values())).dtype).removeprefix("torch.")


def untied(folder: Path) -> Path:
    """The same recipe with models in float64 in which no two entries are equal."""
    other = folder.with_name(f"{folder.name}-untied")
    if not (other / "theirs.yml").exists():
        shutil.copytree(folder / "models", other / "models")
        shutil.copy(folder / "recipe.yml", other)
        for number, path in enumerate(sorted(other.rglob("*.safetensors"))):
            generator = torch.Generator().manual_seed(number)
            moved = {name: stirred(tensor, generator) for name, tensor in load_file(path).items()}
            save_file(moved, path, {"format": "pt"})
        for path in other.glob("models/*/tokenizer.json"):
            add_tokens(path, added_by_mergekit(folder))
        write_for_mergekit(other, "float64", stored(folder))
    return other


def stirred(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tensor in float64, every entry moved by about a thousandth of their spread."""
    wide = tensor.double()
    noise = torch.randn(wide.shape, generator=generator, dtype=wide.dtype)
    return wide + 1e-3 * wide.std() * noise


def add_tokens(path: Path, tokens: list[str]) -> None:
    """Give a tokenizer the special tokens that mergekit's output would have beyond it."""
    data = json.loads(path.read_text())
    for token in tokens:
        known = [*data["model"]["vocab"].values(), *(each["id"] for each in data["added_tokens"])]
        plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        added = {"id": max(known) + 1, "content": token, "special": True}
        data["added_tokens"].append(added | plain)
    path.write_text(json.dumps(data))


def documents(folder: Path) -> list[dict[str, Any]]:
    """The documents of a recipe."""
    return [each for each in _yaml().load_all((folder / "recipe.yml").read_text()) if each]


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    return yaml


def compared(folder: Path) -> Row:
    """Merge a recipe and compare the outcome with mergekit's."""
    stages = documents(folder)
    methods = [str(data.get("merge_method")) for data in stages]
    ours, theirs = merged(folder), (folder / "theirs.txt").read_text()
    row = Row(folder.name, ", ".join(methods), "", merged=not ours)
    if ours and theirs:
        row.verdict = f"refused by both: {ours}"
    elif ours:
        row.verdict, row.good = f"refused here alone: {ours}", False
    elif theirs:
        row.verdict = f"merged here; mergekit refuses it: {_shortened(theirs, folder)}"
    else:
        base = str(stages[-1].get("base_model", "models/base")).partition("+")[0]
        found = outputs(folder, folder / base if set(methods) & set(RANDOM) else None)
        row.verdict, row.good = found.said, found.good
        row.differ, row.entries = found.differ, found.entries
    return row


def _shortened(said: str, folder: Path) -> str:
    """What mergekit says, without the place of this folder."""
    return said.replace(f"{folder.resolve()}/", "").splitlines()[0][:160].strip()


def merged(folder: Path) -> str:
    """Merge with sensmerge; what it says against the recipe, or nothing."""
    out = folder / "ours"
    program = Path(sys.executable).with_name("sensmerge")
    command = [str(program), "merge", str(folder / "recipe.yml"), str(out), "--no-sync", "--force"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return done.stderr.strip().replace(f"{folder}/", "").removeprefix("error: ")


if __name__ == "__main__":
    main()
