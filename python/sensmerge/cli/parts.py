"""A planned merge on the command line: carried out in parts by several processes, or by Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sensmerge.cli import printing, signals
from sensmerge.cli.options import FILE

if TYPE_CHECKING:
    from sensmerge.distributed.plan import PlannedMerge

LOCAL, RAY = "local", "ray"

_OPTIONS = (
    click.option("--plan", "plan_file", type=FILE, help="Carry out a plan.json; no RECIPE then."),
    click.option("--shards", help="Merge these weight files of the plan alone, such as 3-7,9."),
    click.option(
        "--shard-from-env",
        is_flag=True,
        help="Merge the weight files of this task of a job array (Slurm, Kubernetes and the like).",
    ),
    click.option("--commit", is_flag=True, help="Put in place what --shards merged."),
    click.option(
        "--wait",
        type=click.FloatRange(min=0),
        default=0.0,
        help="Seconds to wait for other processes, if a method looks at the whole model.",
    ),
    click.option(
        "--engine",
        type=click.Choice([LOCAL, RAY]),
        default=LOCAL,
        show_default=True,
        help="What merges: this process, or a Ray cluster (sensmerge[ray]).",
    ),
    click.option("--address", help="The Ray cluster; by default RAY_ADDRESS, or a local one."),
)

# What is said where a merge is planned, or of this process alone.
_SAID_BY_THE_PLAN = (
    "out_path",
    "calibration",
    "device",
    "max_shard_size",
    "out_shard_size",
    "dry_run",
    "force",
    "allow_nan",
    "unpickle",
    "stages",
    "leniency",
    "random_seed",
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them as keywords, those of :class:`Part`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Part:
    """What was asked for of a planned merge; the options of the command line."""

    plan_file: Path | None
    shards: str | None
    shard_from_env: bool
    commit: bool
    wait: float
    engine: str
    address: str | None

    def check(self, recipe: Path | None) -> None:
        """Refuse options that do not go together."""
        context = click.get_current_context()
        if self.plan_file is None:
            for name in ("shards", "shard_from_env", "commit", "wait"):
                if self._is_given(context, name):
                    option = f"--{name.replace('_', '-')}"
                    raise click.UsageError(
                        f"{option} is about a part of a merge: it needs --plan PLAN.json"
                    )
        else:
            if recipe is not None:
                raise click.UsageError("RECIPE and --plan exclude each other.")
            for name in _SAID_BY_THE_PLAN:
                if self._is_given(context, name):
                    raise click.UsageError(
                        f"'{name}' has no effect with --plan; say it to `sensmerge plan`"
                    )
        parts = [self.shards is not None, self.shard_from_env, self.commit, self.engine == RAY]
        if sum(parts) > 1:
            raise click.UsageError(
                "--shards, --shard-from-env, --commit and --engine ray exclude each other."
            )
        if self.address is not None and self.engine != RAY:
            raise click.UsageError("--address needs --engine ray.")

    @staticmethod
    def _is_given(context: click.Context, name: str) -> bool:
        default = click.core.ParameterSource.DEFAULT
        return context.get_parameter_source(name) not in (None, default)


def carry_out(
    plan: PlannedMerge,
    part: Part,
    form: str,
    *,
    threads: int | None,
    sync: bool,
    quiet: bool,
) -> None:
    """Do what was asked for of a plan, and say what was done."""
    how: dict[str, Any] = {"threads": threads, "sync": sync, "progress": not quiet}
    if part.engine == RAY:
        from sensmerge.distributed.ray import merge_on_ray

        found = merge_on_ray(plan, part.address, committed=signals.drop, **how)
    elif part.shards is not None or part.shard_from_env:
        from sensmerge.distributed import shards

        if part.shards is None:
            chosen = shards.from_environment(len(plan.shards))
        else:
            chosen = shards.numbers(part.shards)
        merged = plan.merge(chosen, wait=part.wait, **how)
        printing.give(form, merged.as_dict(), merged.describe(), quiet=quiet)
        return
    else:
        found = plan.commit(only=part.commit, committed=signals.drop, **how)
    signals.ignore()
    printing.give(form, found.as_dict(), found.describe(), quiet=quiet)
