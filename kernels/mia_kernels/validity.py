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
    first = 0
    while first < n and values[first] != values[first]:
        first += 1
    missing = 0
    for k in range(first, n):  # neither branch nor store: as fast as memory is read
        missing += values[k] != values[k]
    if missing == 0:  # nearly every feature
        for byte in range(first >> 3, bitmap.size):
            bitmap[byte] = 255
        if first & 7:
            bitmap[first >> 3] = (255 << (first & 7)) & 255
        if n & 7:
            bitmap[n >> 3] &= (1 << (n & 7)) - 1
        return first
    for byte in range(first >> 3, bitmap.size):
        bits = 0
        for k in range(min(8, n - 8 * byte)):
            x = values[8 * byte + k]
            bits |= (1 if x == x else 0) << k  # noqa: PLR0124
        bitmap[byte] = bits
    return first + missing
