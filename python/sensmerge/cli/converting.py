"""The command that writes a model in another form."""

from __future__ import annotations

from pathlib import Path

import click

from sensmerge.cli import printing, signals
from sensmerge.cli.options import (
    FOLDER,
    force_option,
    format_option,
    quiet_option,
    shard_option,
    threads_option,
    unpickle_option,
)


@click.command()
@click.argument("model")
@click.argument("out", type=FOLDER)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "int4"]),
    help="Dtype of all tensors of floats; each one's own by default.",
)
@shard_option
@threads_option
@click.option("--no-sync", is_flag=True, help="Do not flush the output to disk.")
@force_option
@click.option("--allow-nan", is_flag=True, help="Write NaN and infinity instead of refusing them.")
@unpickle_option
@format_option()
@quiet_option
def convert(
    model: str,
    out: Path,
    dtype: str | None,
    max_shard_size: str,
    threads: int | None,
    no_sync: bool,
    force: bool,
    allow_nan: bool,
    unpickle: bool,
    form: str,
    quiet: bool,
) -> None:
    """Write MODEL as safetensors into the folder OUT, with the files beside its weights.

    MODEL is a folder, a weight file or a Hub id; MODEL+ADAPTER merges a LoRA adapter into it.
    """
    from sensmerge.merging import conversion

    result = conversion.convert(
        model,
        out,
        dtype=dtype,
        max_shard_size=max_shard_size,
        threads=threads,
        progress=not quiet,
        sync=not no_sync,
        overwrite=force,
        allow_nan=allow_nan,
        unpickle=unpickle,
        committed=signals.drop,
    )
    signals.ignore()
    printing.give(form, result.as_dict(), result.describe(), quiet=quiet)
