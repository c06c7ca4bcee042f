"""Two models of one architecture, and how they differ."""

from __future__ import annotations
