"""The commands that compare two models."""

from __future__ import annotations

from pathlib import Path

import click

from sensmerge.cli.options import FILE, check_writable, quiet_option, threads_option


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--base", help="The model that both were tuned from: compares task vectors.")
@click.option("--tensors", is_flag=True, help="List tensors rather than layers.")
@click.option("--json", "json_file", type=FILE, help="Write all numbers to this file.")
@click.option("-o", "--output", type=FILE, help="Write heat maps to this HTML file.")
@threads_option
@quiet_option
def diff(
    a: str,
    b: str,
    base: str | None,
    tensors: bool,
    json_file: Path | None,
    output: Path | None,
    threads: int | None,
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
    if quiet:
        return
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(found.table(tensors=tensors))
    for path in wanted:
        click.echo(f"wrote {path}")
