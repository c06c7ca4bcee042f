"""The commands that compare two models."""

from __future__ import annotations

from pathlib import Path

import click

from sensmerge.cli import printing
from sensmerge.cli.options import (
    FILE,
    FOLDER,
    check_writable,
    format_option,
    quiet_option,
    threads_option,
)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--base", help="The model that both were tuned from: compares task vectors.")
@click.option("--tensors", is_flag=True, help="List tensors rather than layers.")
@click.option("--json", "json_file", type=FILE, help="Write all numbers to this file.")
@click.option("-o", "--output", type=FILE, help="Write heat maps to this HTML file.")
@threads_option
@format_option()
@quiet_option
def diff(
    a: str,
    b: str,
    base: str | None,
    tensors: bool,
    json_file: Path | None,
    output: Path | None,
    threads: int | None,
    form: str,
    quiet: bool,
) -> None:
    """Say how model B differs from model A, by layer and by tensor.

    A and B are folders, weight files or Hub ids.
    """
    from sensmerge.comparison import differences
    from sensmerge.files import write_atomically

    wanted = [path for path in (json_file, output) if path is not None]
    for path in wanted:
        check_writable(path)
    found = differences.diff(a, b, base, threads=threads, progress=not quiet)
    if json_file is not None:
        write_atomically(json_file, found.to_json())
    if output is not None:
        from sensmerge.report import write_comparison

        write_comparison(found, output)
    text = "\n".join([found.table(tensors=tensors), *(f"wrote {path}" for path in wanted)])
    printing.give(form, found.as_dict() | {"written": wanted}, text, quiet=quiet)


@click.command(name="extract-lora")
@click.argument("expert")
@click.argument("base")
@click.option("-o", "--output", type=FOLDER, required=True, help="The folder to write.")
@click.option(
    "--rank",
    "--max-rank",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Largest rank of a matrix.",
)
@click.option(
    "--sv-epsilon",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Leave out singular values up to this one.",
)
@click.option(
    "-i", "--include-regex", multiple=True, help="Only modules in whose names this is found."
)
@click.option("-e", "--exclude-regex", multiple=True, help="No modules in whose names this is.")
@click.option(
    "--modules-to-save",
    "--save-module",
    multiple=True,
    help="Store this module whole; a name, or the last part of several.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the factors.",
)
@threads_option
@click.option("--force", is_flag=True, help="Replace what the folder holds of an adapter.")
@format_option()
@quiet_option
def extract_lora(
    expert: str,
    base: str,
    output: Path,
    rank: int,
    sv_epsilon: float,
    include_regex: tuple[str, ...],
    exclude_regex: tuple[str, ...],
    modules_to_save: tuple[str, ...],
    dtype: str,
    threads: int | None,
    force: bool,
    form: str,
    quiet: bool,
) -> None:
    """Write the difference of EXPERT from BASE as a LoRA adapter in PEFT's format."""
    from sensmerge.lora import extraction

    found = extraction.extract_lora(
        expert,
        base,
        output,
        rank,
        sv_epsilon=sv_epsilon,
        include=include_regex,
        exclude=exclude_regex,
        modules_to_save=modules_to_save,
        dtype=dtype,
        threads=threads,
        progress=not quiet,
        overwrite=force,
    )
    printing.give(form, found.as_dict(), found.describe(), quiet=quiet)
