"""How sure a mean over questions is, and whether two runs differ on the same questions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two runs on the same questions.

    Attributes:
        difference: mean of the first run less that of the second.
        low: of the 95 % interval of the difference, by the bootstrap over questions.
        high: of it.
        p: two-sided, how often as large a difference comes of exchanging the runs' values question
            by question, or group by group, each with probability 1/2 (Fisher's randomisation test).
    """

    difference: float
    low: float
    high: float
    p: float


def interval(
    values: Sequence[float],
    groups: Sequence[str] | None = None,
    seed: int = 0,
    shares: bool = True,
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; at the edges that of `edge`.

    Args:
        values: one a question, at least one.
        groups: of each value; those of one group, as questions about one document, are drawn
            together, for they are not independent. None: each is its own.
        seed: of the resampling.
        shares: values lie between 0 and 1; without it there are no edges.
    """
    sums, counts = _clusters(np.asarray(values, np.float64), groups)
    if shares and (not sums.any() or (sums == counts).all()):
        return edge(bool(sums.any()), len(sums))
    low, high = np.quantile(_means(sums, counts, seed), (0.025, 0.975))
    return float(low), float(high)


def edge(all_right: bool, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of which nothing, or all, was seen: Clopper and Pearson's.

    Resamples of equal values are equal, so that the bootstrap would be certain of 0 after three
    questions. Groups count as one trial each, which is on the safe side.

    Args:
        all_right: every value is 1; else 0.
        count: of values, or of groups.
    """
    low = 0.025 ** (1 / count)
    return (low, 1.0) if all_right else (0.0, 1.0 - low)


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
    # Exchanging a group's values turns the sign of their gaps.
    rng, (sums, _) = np.random.default_rng(seed), _clusters(gaps, groups)
    exchanged = np.array(
        [rng.choice((-1.0, 1.0), len(sums)) @ sums / len(gaps) for _ in range(RESAMPLES)]
    )
    as_large = int((np.abs(exchanged) >= abs(gaps.mean()) - 1e-12).sum())
    # The runs as they are count as one more exchange, so that p is never 0.
    return Paired(float(gaps.mean()), low, high, (as_large + 1) / (RESAMPLES + 1))


def over_seeds(means: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over runs that differ in their seed; 0 for one run."""
    values = np.asarray(means, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _clusters(values: np.ndarray, groups: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the values of each group, and how many these are."""
    if groups is None or len(set(groups)) == len(values):
        return values, np.ones(len(values))
    _, at = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(at, values), np.bincount(at).astype(np.float64)


def _means(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Means of resamples, a few at a time so that memory stays small."""
    rng, n = np.random.default_rng(seed), len(sums)
    block = max(1, 1_000_000 // n)
    means = []
    for start in range(0, RESAMPLES, block):
        drawn = rng.integers(0, n, (min(block, RESAMPLES - start), n))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)
