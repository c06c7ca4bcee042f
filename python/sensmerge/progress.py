"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sensmerge.terminal import plain

# Plain lines are for logs: rare enough to be read, frequent enough to show that work goes on.
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def bar(
    total: int, description: str, unit: str, *, enabled: bool
) -> Iterator[Callable[[int], None]]:
    """Show progress in steps.

    Args:
        total: Total number of steps.
        description: Name of the work.
        unit: Name of a step, in the plural.
        enabled: Whether to show anything.

    Yields:
        A function to call with the number of steps just done.
    """
    done = 0
    with _shown(description, unit, scaled=False, enabled=enabled) as show:

        def advance(steps: int = 1) -> None:
            nonlocal done
            done += steps
            show(done, total)

        yield advance


@contextmanager
def bytes_bar(description: str, *, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Show progress in bytes; yields a function to call with bytes done and bytes in total."""
    with _shown(description, "B", scaled=True, enabled=enabled) as show:
        yield show


@contextmanager
def _shown(
    description: str, unit: str, *, scaled: bool, enabled: bool
) -> Iterator[Callable[[int, int], None]]:
    description = plain(description)
    if not enabled:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=description, unit=unit, unit_scale=scaled, leave=False) as shown:

            def draw(done: int, total: int) -> None:
                shown.total = total
                shown.update(min(done, total) - shown.n)

            yield draw
    else:
        yield _lines(description, unit)


def _lines(description: str, unit: str) -> Callable[[int, int], None]:
    last = time.monotonic()
    started = False

    def line(done: int, total: int) -> None:
        nonlocal last, started
        if done > 0 and not started:
            # Not before the first step, so that work that is refused at once prints nothing.
            started = True
            print(f"{description} ...", file=sys.stderr, flush=True)
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES and total > 0:
            last = time.monotonic()
            share = 100 * min(done, total) // total
            amount = f"{done} of {total} {unit}" if unit != "B" else f"{done / 1e9:.1f} GB"
            print(f"{description}: {share} % ({amount})", file=sys.stderr, flush=True)

    return line
