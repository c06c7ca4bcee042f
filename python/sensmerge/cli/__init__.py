"""The command line: reads arguments, calls one function per command, maps errors to exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import click

from sensmerge import InputError, WaitingError
from sensmerge.cli import printing, signals
from sensmerge.cli.table import Table, stand_ins

EXIT_BAD_INPUT = 2
# That of sysexits.h for what may succeed later.
EXIT_TRY_AGAIN = 75
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# Hints at the option that would have avoided an error, by the keyword that the error names.
_HINTS = {
    "allow_nan": "--allow-nan writes such values instead of refusing them",
    "overwrite": "--force replaces what an earlier merge wrote",
    "run_code": "--run-code runs such programs; docs/evaluation.md says how they are confined, and "
    "what that does not protect from",
    "trust_tasks": "--trust-tasks runs what task files name, if they are your own",
    "unpickle": "merge, merge-lora, calibrate, convert and eval read pickles with --unpickle; "
    "torch opens them in a process of their own and takes tensors alone",
}


@click.group(
    cls=Table, commands=stand_ins(), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="sensmerge", prog_name="sensmerge")
def commands() -> None:
    """Merge fine-tuned LLM checkpoints, each layer weighted by its importance."""


def main() -> None:
    """Run the command line.

    Exits with 0 when done, 2 for bad input, 75 where other processes have to do their part first,
    130 interrupted, 143 terminated, 1 for anything else.
    """
    # By default, torch's idle threads spin; on a busy machine that starves the threads at work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Recipes use no pydantic plugins, and searching for them takes a tenth of a merge's start-up.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        commands(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(EXIT_BAD_INPUT)
    except InputError as error:
        _fail(error.lines, EXIT_BAD_INPUT, _HINTS.get(error.option or ""))
    except WaitingError as error:
        _fail(
            [str(error)], EXIT_TRY_AGAIN, "try again once the others are done, or --wait for them"
        )
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        _fail(error.format_message().splitlines(), EXIT_BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        _fail(["interrupted"], EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output is gone, and so is the terminal for a message.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        from sensmerge.reading import is_no_name

        if isinstance(error, OSError) and is_no_name(error):
            _fail([f"{error.filename}: {error.strerror}"], EXIT_BAD_INPUT)
        _fail([f"{type(error).__name__}: {error}"], 1)


def _fail(faults: Sequence[str], code: int, hint: str | None = None) -> None:
    """Say what is wrong and exit; after a signal, that this was it."""
    if signals.raised() is not None:
        stopped = signals.raised() == signal.SIGTERM
        faults, hint = ["terminated" if stopped else "interrupted"], None
        code = EXIT_TERMINATED if stopped else EXIT_INTERRUPTED
    printing.complain(faults or [""], hint)
    sys.exit(code)
