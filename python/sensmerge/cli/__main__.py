"""``python -m sensmerge.cli``."""

from __future__ import annotations

from sensmerge.cli import main

main()
