"""The commands, by the module they are in; one is imported when it is run, not when listed."""

from __future__ import annotations

from importlib import import_module

import click

# Each command's line in the help: the first paragraph of its function, which has its name.
COMMANDS = {
    "comparing": {
        "diff": "Say how model B differs from model A, by layer and by tensor.",
        "extract-lora": "Write the difference of EXPERT from BASE as a LoRA adapter in PEFT's "
        "format.",
    },
    "converting": {
        "convert": "Write MODEL as safetensors into the folder OUT, with the files beside its "
        "weights.",
    },
    "describing": {
        "demo": "Train a small family of models, merge it in every way, and compare.",
        "explain": "Say in words what a merge of RECIPE does, and what mergekit would do "
        "otherwise.",
        "inspect": "List the tensors, dtypes, sizes and layers of MODEL.",
        "methods": "List the merge methods and their parameters, or describe the method NAME in "
        "full.",
        "schema": "Print a JSON Schema of recipes or of farm files, for editors.",
    },
    "farming": {
        "board": "Show what the farm in FOLDER has found so far: on a terminal live, while it "
        "runs.",
        "farm": "Merge and score many candidates of one recipe, as FARM says, and keep the best in "
        "FOLDER.",
    },
    "evaluating": {
        "eval": "Score models on benchmarks, zero-shot: folders, models on the Hub, or recipes.",
    },
    "measuring": {
        "calibrate": "Measure sensitivity and alignment of the experts of RECIPE.",
        "coefficients": "Print the coefficients of every expert and layer.",
        "report": "Write a report of a calibration file or of a merged model's folder.",
    },
    "merging": {
        "merge": "Merge the models of RECIPE into the folder OUT.",
        "merge-lora": "Merge the LoRA adapters of RECIPE into one adapter in PEFT's format, in the "
        "folder OUT.",
        "plan": "Write the plan of the merge of RECIPE: every output tensor, its inputs and its "
        "numbers.",
    },
    "searching": {
        "learn": "Learn the weights of RECIPE from its samples, by gradient descent.",
        "soup": "Choose the models of RECIPE greedily: those that lower the loss of the merge on "
        "its samples.",
        "tune": "Search temperature, lambda and the rest of RECIPE for the lowest loss on its "
        "samples.",
    },
    "verifying": {
        "verify": "Hash the files of OUT and compare with what its merge listed.",
    },
}


class Table(click.Group):
    """A group of the commands of the table.

    The group itself holds stand-ins, which have a name and a line and do nothing: enough for help,
    for completion, and for saying what a misspelt name may have meant.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with, imported, and the arguments after it."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, None if found is None else command(str(found.name)), rest


def stand_ins() -> list[click.Command]:
    """Every command as it is listed."""
    return [
        click.Command(name, help=line)
        for commands in COMMANDS.values()
        for name, line in commands.items()
    ]


def command(name: str) -> click.Command:
    """Import a command."""
    module = next(module for module, commands in COMMANDS.items() if name in commands)
    members = vars(import_module(f"sensmerge.cli.{module}"))
    function = name.replace("-", "_")
    # A name that the language has a function of is written with a line at its end.
    found = members.get(function, members.get(f"{function}_"))
    assert isinstance(found, click.Command)
    return found
