"""Scores against the PyTorch release's and against loops."""

import jax
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


def cosines(query, memories):
    """Float32 all through, for automatic differentiation."""
    query, memories = (x.astype(jnp.float32) for x in (query[:, None], memories))
    norms = [jnp.sqrt((x * x).sum((2, 3))) for x in (query, memories)]
    return (query * memories).sum((2, 3)) / jnp.maximum(norms[0] * norms[1], 1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("query_dtype", ["float32", "bfloat16"])
def test_gradients_of_cosines_are_as_in_float32(arrays, query_dtype, dtype):
    query, memories = (jnp.asarray(x, d) for x, d in zip(arrays, (query_dtype, dtype), strict=True))
    memories = memories.at[1, 2].set(0)
    aim = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5)), jnp.float32)

    def run(scores):
        return jax.value_and_grad(lambda q, m: (scores(q, m) * aim).sum(), (0, 1))(query, memories)

    (value, found), (exact, expected) = run(score), run(cosines)
    np.testing.assert_allclose(value, exact, atol=1e-5)
    for ours, theirs, given in zip(found, expected, (query, memories), strict=True):
        assert ours.dtype == given.dtype
        atol = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}[str(given.dtype)]
        keep = np.isfinite(theirs)  # the root's derivative at 0 is none
        assert np.abs(theirs[keep]).max() > 0.1
        np.testing.assert_allclose(
            np.float32(ours)[keep], np.float32(theirs)[keep], atol=atol, rtol=atol
        )


def test_release(shared):
    golden = np.load(shared / "golden" / "golden_mistral.npz")
    query = golden["stage2/query_reps"].reshape(4, 4, 64)
    memories = golden["stage2/memory"].reshape(4, 5, 4, 64)
    np.testing.assert_allclose(score(query, memories), golden["stage2/scores"], atol=1e-5)


def test_mistakes(arrays):
    with pytest.raises(ValueError, match="known: cosine"):
        score(*arrays, "dot")
