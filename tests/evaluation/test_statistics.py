import numpy as np
import pytest

from clara_jax.evaluation import statistics


def test_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = statistics.interval(values)
    spread = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose((low, high), values.mean() + np.array((-spread, spread)), atol=0.02)
    assert statistics.interval(values) == (low, high) != statistics.interval(values, seed=1)


def test_interval_holds_the_true_mean_about_19_times_in_20():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        low, high = statistics.interval((rng.random(80) < 0.4).astype(float), seed=trial)
        held += low <= 0.4 <= high
    assert 88 <= held <= 99


def test_interval_without_spread_is_a_point():
    assert statistics.interval([1.0] * 5) == (1.0, 1.0) == statistics.interval([1.0])


def test_paired_runs_that_differ_and_that_do_not():
    rng = np.random.default_rng(2)
    theirs = rng.random(200)
    better = statistics.paired(theirs + 0.05 + 0.1 * rng.standard_normal(200), theirs)
    assert better.low < better.difference < better.high and better.low > 0 and better.p < 0.001
    equal = statistics.paired(theirs + 0.1 * rng.standard_normal(200), theirs)
    assert equal.low < 0 < equal.high and equal.p > 0.05
    same = statistics.paired(theirs, theirs)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_p_is_that_of_all_exchanges():
    # Of the 2^5 sign patterns of equal gaps two are as large: p = 1/16.
    assert statistics.paired([1.0] * 5, [0.0] * 5).p == pytest.approx(1 / 16, abs=0.01)
    with pytest.raises(ValueError, match="cannot be paired"):
        statistics.paired([1.0], [1.0, 2.0])


def test_over_seeds():
    assert statistics.over_seeds([0.5]) == (0.5, 0.0)
    assert statistics.over_seeds([0.4, 0.6]) == pytest.approx((0.5, np.sqrt(0.02)))
