"""How sure a mean over questions is, and whether two runs differ on the same questions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray

RESAMPLES = 10_000
_DECIMALS = 12  # sums of the same numbers in another order are equal to these
_MOST_DRAWN = 1_000_000  # numbers drawn at a time, so that memory stays small


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two runs on the same questions."""

    difference: float  # mean of the first run less that of the second
    low: float  # of the 95 % interval of the difference, by the bootstrap over questions
    high: float  # of it
    # two-sided, how often as large a difference comes of exchanging the runs' values question by
    # question, or group by group, each with probability 1/2 (Fisher's randomisation test). Over all
    # exchanges where they are RESAMPLES at most, else over as many random ones.
    p: float


def interval(
    values: Values,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    shares: bool = True,
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean.

    Where a share of 0 or 1 was seen it is Clopper and Pearson's: resamples of equal values are
    equal, so that the bootstrap would be certain of 0 after three questions. Groups count as one
    trial each there, which is on the safe side.

    Args:
        values: one a question, at least one.
        groups: of each value; those of one group, as questions about one document, are drawn
            together, for they are not independent. None: each is its own.
        seed: of the resampling.
        shares: values are between 0 and 1; without it there are no edges.
    """
    sums, counts = _clusters(np.asarray(values, np.float64), groups)
    if shares and (not sums.any() or (sums == counts).all()):
        ends = stats.binomtest(len(sums) * bool(sums.any()), len(sums)).proportion_ci()
    elif len(sums) == 1:  # which scipy refuses to resample
        ends = (sums[0] / counts[0],) * 2
    else:
        options = _resampling(sums, seed) | {"paired": True, "method": "percentile"}
        ends = stats.bootstrap((sums, counts), _ratio, **options).confidence_interval
    return float(ends[0]), float(ends[1])


def paired(
    ours: Sequence[float],
    theirs: Sequence[float],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Paired:
    """Whether two runs differ.

    Args:
        ours: one value a question.
        theirs: values of the same questions in the same order.
        groups: of each question, as for `interval`; exchanged together.
        seed: of the resampling.

    Raises:
        ValueError: the numbers of questions differ, or are 0.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} values cannot be paired")
    gaps = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    low, high = interval(gaps, groups, seed, shares=False)
    sums, _ = _clusters(gaps, groups)  # exchanging a group's values turns the sign of its sum
    p = 1.0  # of one group, with either sign
    if len(sums) > 1:
        options = _resampling(sums, seed) | {"permutation_type": "samples"}
        p = stats.permutation_test((sums,), _size, alternative="greater", **options).pvalue
    return Paired(float(gaps.mean()), low, high, float(p))


def over_seeds(means: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over runs that differ in their seed; 0 for one run."""
    values = np.asarray(means, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _clusters(values: np.ndarray, groups: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the values of each group, and their numbers."""
    if groups is None or len(set(groups)) == len(values):
        return values, np.ones(len(values))
    _, at = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(at, values), np.bincount(at).astype(np.float64)


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    return sums.sum(axis) / counts.sum(axis)


def _size(sums: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(sums.sum(axis)).round(_DECIMALS)


def _resampling(sums: np.ndarray, seed: int) -> dict[str, object]:
    return {
        "vectorized": True,
        "n_resamples": RESAMPLES,
        "batch": max(1, _MOST_DRAWN // len(sums)),
        "rng": np.random.default_rng(seed),
    }
