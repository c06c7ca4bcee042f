"""Search for coefficients: weights learned by gradient descent, or settings tuned by trials.

Candidates are merged in memory and evaluated in torch, by their loss on the tasks' samples. Needs
torch and transformers (``pip install 'sensmerge[calibrate]'``); ``tune`` needs Optuna and cmaes as
well (``sensmerge[tune]``). Importing this package imports none of them.
"""

from __future__ import annotations
