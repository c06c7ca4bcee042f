"""Settings of torch and transformers while models run, restored afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from sensmerge.errors import first_line


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use this many threads; None changes nothing."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing and drawing bars; its errors are still raised."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise what a library in Rust calls a panic as an error, and keep it from being printed.

    Tokenizers panic over some files and texts. A panic is no ``Exception`` in Python, and is
    printed, with its place in the library's source, before anybody can catch it.

    Raises:
        RuntimeError: There was a panic.
    """
    with _nothing_printed():
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise RuntimeError(f"the library that reads it gave up: {first_line(error)}") from None


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Throw away what is written to the process's standard error, past Python."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (AttributeError, OSError, ValueError):
        # There is none.
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
