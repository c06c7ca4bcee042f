"""Searching for coefficients: learned by gradient descent, or tuned by trials.

Candidates are merged in memory and judged in torch, by their loss on the tasks' samples. Needs
torch and transformers (``pip install 'sensmerge[calibrate]'``), ``tune`` Optuna too
(``sensmerge[tune]``). Loaded lazily; importing this package costs nothing.
"""

from __future__ import annotations
