"""The statistics of the harness against NumPy and SciPy."""

import numpy as np
import pytest
from scipy.stats import binom

from compressor import native


@pytest.mark.parametrize("count", [1, 2, 3, 459, 1000])
@pytest.mark.parametrize("kind", ["lognormal", "bimodal", "constant"])
def test_quantiles_are_those_of_numpy(count, kind):
    generator = np.random.default_rng(count)
    samples = {
        "lognormal": generator.lognormal(0.0, 1.0, count),
        "bimodal": np.where(generator.random(count) < 0.1, 50.0, 2.0) + generator.random(count),
        "constant": np.full(count, 7.5),
    }[kind]
    shares = [0.0, 0.5, 0.9, 0.99, 1.0]
    np.testing.assert_allclose(native.load().quantiles(samples, shares), np.quantile(samples, shares), rtol=1e-14)


def test_quantiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="count >= 1"):
        native.load().quantiles([], [0.5])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        native.load().quantiles([1.0], [1.5])


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 8, 25, 30, 100, 1001, 5000])
def test_median_rank_is_the_sign_tests(count, confidence):
    tail = (1 - confidence) / 2
    # The largest k with P(X < k) <= tail.
    want = max(k for k in range(count // 2 + 1) if binom.cdf(k - 1, count, 0.5) <= tail)
    assert native.load().median_rank(count, confidence) == want
