"""Split pinned requirements: torch and what only its wheels need, and everything else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")


def main() -> None:
    """Read the requirements file named first, write two into the folder named second."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    # A requirement is a line that starts at the margin, and the indented lines of its hashes.
    requirements = re.findall(r"^\S.*\n(?:[ \t]+.*\n)*", source.read_text(), flags=re.MULTILINE)
    for name, wanted in (("torch.txt", True), ("tools.txt", False)):
        chosen = [text for text in requirements if bool(_TORCH.match(text)) is wanted]
        (folder / name).write_text("".join(chosen))


if __name__ == "__main__":
    main()
