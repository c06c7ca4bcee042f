"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Plain lines are for logs: few enough to read, often enough to see that it runs.
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def bar(
    total: int, description: str, unit: str, *, enabled: bool
) -> Iterator[Callable[[int], None]]:
    """Count steps.

    Args:
        total: Steps in all.
        description: What is being done.
        unit: What a step is.
        enabled: Whether to show anything.

    Yields:
        A function that is told how many steps were just done.
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
    """Show progress that is told as bytes done and bytes in all."""
    with _shown(description, "B", scaled=True, enabled=enabled) as show:
        yield show


@contextmanager
def _shown(
    description: str, unit: str, *, scaled: bool, enabled: bool
) -> Iterator[Callable[[int, int], None]]:
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
            # Only now: work that is refused at once prints nothing.
            started = True
            print(f"{description} ...", file=sys.stderr, flush=True)
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES and total > 0:
            last = time.monotonic()
            share = 100 * min(done, total) // total
            amount = f"{done} of {total} {unit}" if unit != "B" else f"{done / 1e9:.1f} GB"
            print(f"{description}: {share} % ({amount})", file=sys.stderr, flush=True)

    return line
