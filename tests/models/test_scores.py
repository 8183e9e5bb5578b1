"""Scores against the PyTorch release's and against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.models.scores import KINDS, score


def cosine(x, y):
    x, y = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


LOOPS = {
    "cosine": cosine,
    "maxsim": lambda q, m: np.mean([max(cosine(x, y) for y in m) for x in q]),
    "mean": lambda q, m: cosine(q.mean(0), m.mean(0)),
}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    query, memories = rng.standard_normal((3, 4, 8)), rng.standard_normal((3, 5, 4, 8)) + 0.3
    return query.astype(np.float32), memories.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_a_loop(arrays, kind):
    query, memories = arrays
    found = score(query, memories, kind)
    expected = [[LOOPS[kind](q, m) for m in row] for q, row in zip(query, memories, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_float32_whatever_comes_in_and_zero_memories_give_zero(arrays, kind):
    query, memories = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    found = score(query, memories.at[0].set(0), kind)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[0], np.zeros(5))
    exact = score(query.astype(jnp.float32), memories.astype(jnp.float32), kind)
    np.testing.assert_allclose(found[1:], exact[1:], atol=1e-2)


def test_release(shared):
    golden = np.load(shared / "golden" / "golden_mistral.npz")
    query = golden["stage2/query_reps"].reshape(4, 4, 64)
    memories = golden["stage2/memory"].reshape(4, 5, 4, 64)
    np.testing.assert_allclose(score(query, memories), golden["stage2/scores"], atol=1e-5)


def test_mistakes(arrays):
    with pytest.raises(ValueError, match="known: cosine"):
        score(*arrays, "dot")
