"""The demo: a small family of models, trained on the spot, merged in every way and compared."""

from __future__ import annotations
