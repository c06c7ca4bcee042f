"""``python -m sensmerge.cli``."""

from __future__ import annotations

from sensmerge.start import main

main()
