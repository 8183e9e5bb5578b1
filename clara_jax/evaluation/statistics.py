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
            by question, each with probability 1/2 (Fisher's randomisation test).
    """

    difference: float
    low: float
    high: float
    p: float


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean.

    Args:
        values: one a question, at least one.
        seed: of the resampling.
    """
    means = _means(np.asarray(values, np.float64), seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Paired:
    """Whether two runs differ.

    Args:
        ours: one value a question.
        theirs: values of the same questions in the same order.
        seed: of the resampling.

    Raises:
        ValueError: the numbers of questions differ, or are 0.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} values cannot be paired")
    gaps = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    low, high = interval(gaps, seed)
    # Exchanging a question's values turns the sign of their gap.
    rng = np.random.default_rng(seed)
    exchanged = np.array(
        [rng.choice((-1.0, 1.0), len(gaps)) @ gaps / len(gaps) for _ in range(RESAMPLES)]
    )
    as_large = int((np.abs(exchanged) >= abs(gaps.mean()) - 1e-12).sum())
    # The runs as they are count as one more exchange, so that p is never 0.
    return Paired(float(gaps.mean()), low, high, (as_large + 1) / (RESAMPLES + 1))


def over_seeds(means: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over runs that differ in their seed; 0 for one run."""
    values = np.asarray(means, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of resamples, a few at a time so that memory stays small."""
    rng, n = np.random.default_rng(seed), len(values)
    block = max(1, 1_000_000 // n)
    return np.concatenate(
        [
            values[rng.integers(0, n, (min(block, RESAMPLES - start), n))].mean(1)
            for start in range(0, RESAMPLES, block)
        ]
    )
