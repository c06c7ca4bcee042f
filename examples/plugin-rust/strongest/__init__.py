"""A merge method whose function is in a library that was written in Rust."""

import ctypes
from pathlib import Path

import sensmerge

_LIBRARY = next(Path(__file__).parent.glob("*strongest.*[!y]"))

strongest = sensmerge.method(
    base="needed",
    parameters=[sensmerge.Parameter("strength", 1.0, "factor of what is kept", above=0.0)],
    summary="for every entry the task vector that changes it most",
)(ctypes.CDLL(str(_LIBRARY)).strongest)
