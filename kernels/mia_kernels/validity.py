"""Arrow validity bitmaps from NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import kernel


@kernel
def validity_bitmap(values: NDArray[np.float64], bitmap: NDArray[np.uint8]) -> int:
    """Set bit i of ``bitmap`` (least significant first, as Arrow has it) where ``values[i]`` is not NaN.

    ``values`` (n,), ``bitmap`` (ceil(n / 8),) zeroed. Returns the number of missing values.
    """
    n = values.size
    missing = 0
    for byte in range(bitmap.size):
        bits = 0
        for k in range(min(8, n - 8 * byte)):
            x = values[8 * byte + k]
            present = 1 if x == x else 0  # noqa: PLR0124 - not NaN
            bits |= present << k
            missing += 1 - present
        bitmap[byte] = bits
    return missing
