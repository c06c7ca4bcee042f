"""The steps from a recipe to a merged model: calibrate, search for ``auto`` values, merge.

The rooms that do the work do not depend on the order of the steps; it is set here.
"""

from __future__ import annotations

from sensmerge.workflow.merges import merge
from sensmerge.workflow.plans import as_mergekit, plan, plan_merge
from sensmerge.workflow.steps import Settled, settle, sketched

__all__ = [
    "Settled",
    "as_mergekit",
    "merge",
    "plan",
    "plan_merge",
    "settle",
    "sketched",
]
