"""Division by a constant without the divider: the very bits of a division."""

from __future__ import annotations

import numpy as np
import pytest

from mia_kernels.compile import kernel
from mia_kernels.vector import quotient


@kernel
def _quotients(x: np.ndarray, divisor: float, out: np.ndarray) -> None:
    inverse = 1.0 / divisor
    for i in range(x.size):
        out[i] = quotient(x[i], divisor, inverse)


@pytest.mark.parametrize("seed", range(3))
def test_quotients_are_divisions(seed: int) -> None:
    """Divisors 1 .. 2000 and some large ones, of all magnitudes, exact ones and special values."""
    generator = np.random.default_rng(seed)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e300, -1e300, 1e-290, np.pi])
    for divisor in [*range(1, 2001), 2**20, 2**20 - 1, 999_983, 10**9, 6 * 10**10, 2**40, 2**40 - 87]:
        spread = generator.normal(size=500) * 10.0 ** generator.uniform(-280, 300, 500)
        level = 4000.0 + 0.25 * generator.integers(-400, 400, 500)
        whole = level * divisor
        x = np.concatenate([special, spread, level, whole, np.nextafter(whole, np.inf), np.nextafter(whole, -np.inf)])
        out = np.empty_like(x)
        _quotients(x, float(divisor), out)
        expected = x / divisor
        np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
        known = ~np.isnan(expected)
        assert np.array_equal(out[known].view(np.int64), expected[known].view(np.int64)), divisor


def test_nanoseconds_become_seconds_and_minutes_as_by_division() -> None:
    generator = np.random.default_rng(5)
    for divisor, top in ((10**9, 2**62), (10**9, 2 * 10**18), (6 * 10**10, 86_400 * 10**9), (60, 2 * 10**9)):
        whole = divisor * generator.integers(0, top // divisor, 2000)
        x = np.concatenate([whole, whole + 1, whole - 1, generator.integers(0, top, 5000)]).astype(float)
        out = np.empty_like(x)
        _quotients(x, float(divisor), out)
        assert np.array_equal(out.view(np.int64), (x / divisor).view(np.int64)), divisor
