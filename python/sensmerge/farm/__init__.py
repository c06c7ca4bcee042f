"""The merge farm: many candidates of one recipe, each merged, scored, and kept or deleted.

A farm file names a recipe, the places in it that vary, and what scores a candidate. Everything that
is known of candidates lies in one SQLite file in the farm's folder, from which a farm goes on after
a stop, and of which the board is made. Importing this package imports neither torch nor Optuna.
"""

from __future__ import annotations
