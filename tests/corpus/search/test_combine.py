"""Two scores as one, by hand."""

import numpy as np
import pytest

from clara_jax.corpus.search.combine import ALPHAS, combined
from clara_jax.corpus.search.retrieval import order


def test_by_hand():
    trained, words = np.float32([0.6, -0.2, -1]), np.float32([1, 4, 0])
    expected = [0.5 * 1 + 0.5 * 0.25, 0.5 * 0.5 + 0.5 * 1, 0]
    assert combined(trained, words, 0.5) == pytest.approx(expected)
    assert order(combined(trained, words, 0.5)).tolist() == [1, 0, 2]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_where_one_score_tells_nothing_the_other_decides(alpha):
    trained, words = np.float32([0.1, 0.3, 0.2]), np.float32([1, 0, 2])
    if alpha > 0:  # the question shares no word
        assert order(combined(trained, 0 * words, alpha)).tolist() == [1, 2, 0]
    if alpha < 1:  # all are the same, or the least
        for same in (np.full(3, 0.5), np.full(3, -1)):
            assert order(combined(same, words, alpha)).tolist() == [2, 0, 1]
    assert order(combined(trained, None, alpha)).tolist() == [1, 2, 0]
    assert not len(combined(trained[:0], words[:0], alpha))
