"""Resolve the versions that development and CI use into ``constraints/``.

The files hold names, versions, markers and hashes for every platform, but no address of an index.
Torch and the packages that only torch needs are in a file of their own, so that another torch can
take their place; so is uv, which installs the rest. The model of examples/smollm is in another one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "constraints"
# What the tests need: all but `hub`, since no test reaches the network, and `report`, a part of
# `calibrate`.
NAMES = ("calibrate", "eval", "farm", "parquet", "ray", "tune")
EXTRAS = [f"--extra={name}" for name in NAMES]
TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")


def resolve(*what: str) -> list[str]:
    """The requirements that uv resolves ``what`` to: each a line, and its hashes below it."""
    options = "--quiet --universal --upgrade --generate-hashes --no-header --no-annotate"
    command = ["uv", "pip", "compile", *options.split(), "--python-version=3.11", *what]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit("error: uv could not resolve the versions")
    return requirements(run.stdout)


def requirements(compiled: str) -> list[str]:
    """The requirements in ``compiled``, each with its lines of hashes.

    Lines that are neither, such as the address of an index, are left out.
    """
    return re.findall(r"^\w.*\n(?:[ \t]+--hash=.*\n)*", compiled, flags=re.MULTILINE)


def write(name: str, pins: list[str], wanted: Callable[[str], bool]) -> None:
    """Write those of ``pins`` that are ``wanted`` to ``constraints/name``."""
    (FOLDER / name).write_text("".join(pin for pin in pins if wanted(pin)))


def main() -> None:
    """Write the files of constraints."""
    FOLDER.mkdir(exist_ok=True)
    write("uv.txt", resolve("--group=setup"), lambda pin: True)
    # Without what they ask for: llama.cpp, which would be compiled, and a command line around it.
    write("smollm.txt", resolve("--group=smollm", "--no-deps"), lambda pin: True)
    # Each apart from the others, since nobody needs them together.
    write("docs.txt", resolve("--group=docs"), lambda pin: True)
    write("release.txt", resolve("--group=release"), lambda pin: True)
    pins = resolve("pyproject.toml", *EXTRAS, "--group=dev")
    write("torch.txt", pins, lambda pin: TORCH.match(pin) is not None)
    write("tools.txt", pins, lambda pin: TORCH.match(pin) is None)


if __name__ == "__main__":
    main()
