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


def test_interval_where_all_is_right_or_wrong_is_not_certain():
    # Clopper and Pearson's: 0 of 10 is below 0.3085, as in their tables.
    assert statistics.interval([0.0] * 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert statistics.interval([1] * 10) == pytest.approx((0.6915, 1), abs=1e-4)
    assert statistics.interval([0.0] * 10, ["a"] * 5 + ["b"] * 5) == statistics.interval([0.0] * 2)
    # Neither in the middle, nor where 0 and 1 are no edges, as of counts and differences.
    assert statistics.interval([0.5] * 5) == (0.5, 0.5)
    assert statistics.interval([1.0] * 5, shares=False) == (1.0, 1.0)
    assert statistics.paired([1.0] * 5, [0.0] * 5).low == 1


def test_values_of_one_group_are_drawn_together():
    values = np.random.default_rng(0).random(40)
    groups = [str(i) for i in range(40)]
    low, high = statistics.interval(values)
    # Each document asked of ten times says no more than asked once.
    tenfold = statistics.interval(np.repeat(values, 10), np.repeat(groups, 10))
    np.testing.assert_allclose(tenfold, (low, high), atol=0.01)
    alone = statistics.interval(np.repeat(values, 10))
    assert alone[1] - alone[0] < 0.4 * (high - low)
    assert statistics.interval(values, groups) == (low, high)
    # Groups of unlike size: the mean is over values.
    low, high = statistics.interval([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert (low, high) == (0, 1)
    # Of the signs of two groups, half are as large.
    found = statistics.paired([1.0] * 6, [0.0] * 6, ["a"] * 3 + ["b"] * 3)
    assert found.p == pytest.approx(0.5, abs=0.03) and found.difference == 1


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
