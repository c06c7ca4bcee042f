"""What the reference's modules compute with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Arrays by tensor name.
Model = Mapping[str, Array]
