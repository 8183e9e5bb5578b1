"""Selections against the PyTorch release's, and what must hold for every relaxation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.models import topk
from clara_jax.models.scores import score
from clara_jax.models.topk import METHODS, select

RELAXED = [name for name, relaxation in METHODS.items() if relaxation is not None]


def soft(scores, k, method, temperature=1.0, mask=None):
    """The relaxation itself, which `select` hides behind its hard value."""
    valid = np.ones(np.shape(scores), bool) if mask is None else mask
    return np.asarray(_soft(np.float32(scores), valid, temperature, k, method))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _soft(scores, valid, temperature, k, method):
    logits = scores / temperature
    return METHODS[method](logits, topk._ranks(logits, valid), valid, k)


def gradient(scores, k, method, weights, temperature=0.02, mask=None, compat=False):
    valid = np.ones(np.shape(scores), bool) if mask is None else mask
    weights = np.broadcast_to(np.float32(weights), (len(scores), k, np.shape(scores)[1]))
    return np.asarray(_gradient(np.float32(scores), weights, temperature, valid, k, method, compat))


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _gradient(scores, weights, temperature, valid, k, method, compat):
    def objective(scores):
        chosen, _ = select(scores, k, method, temperature, mask_BN=valid, compat=compat)
        return (chosen * weights).sum()

    return jax.grad(objective)(scores)


chosen = jax.jit(select, static_argnums=(1, 2))


N = 8  # one width and few k, so that little is compiled; masks make rows shorter
SLOTS = st.sampled_from([1, 3, 9])


@st.composite
def rows(draw):
    """Scores [2, N] of very different spread, some tied, with a mask that leaves one or more."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    scores = rng.standard_normal((2, N)) * 10 ** draw(st.floats(-4, 4))
    if draw(st.booleans()):
        scores = np.round(scores / np.abs(scores).max(), 1)
    mask = rng.random((2, N)) < 0.7
    mask[:, rng.integers(N)] = True
    return scores.astype(np.float32), mask


# --- The release ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "golden_topk.npz")


def exact(logits, k, temperature, weights, taken):
    """Soft weights and gradient in float64; `taken` is what earlier slots' choices keep."""
    logits = logits.astype(np.float64) / temperature
    ranks = np.argsort(np.argsort(-logits, axis=1, kind="stable"), axis=1)
    total = np.zeros_like(logits)
    for slot in range(k):
        with np.errstate(divide="ignore"):
            x = logits + np.log(np.where(ranks < slot, taken, 1.0))
        e = np.exp(x - x.max(1, keepdims=True))
        p, w = e / e.sum(1, keepdims=True), weights[:, slot]
        total += p * (w - (p * w).sum(1, keepdims=True)) / temperature
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.02])
@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("name", ["normal", "cosine"])
def test_release(golden, name, k, temperature):
    arrays = golden
    logits, key = arrays[f"{name}/logits"], f"{name}/k{k}_t{temperature}"
    weights = (
        arrays[f"weights_k{k}"] if f"weights_k{k}" in arrays else arrays[f"{name}/weights_k{k}"]
    )
    z, indices = select(logits, k, temperature=temperature, compat=True)
    np.testing.assert_array_equal(indices, arrays[f"{key}/idx"])
    np.testing.assert_array_equal(z, arrays[f"{key}/z"])
    for compat, expected in (
        (True, arrays[f"{key}/grad"]),
        (False, exact(logits, k, temperature, weights, 0.0)),
    ):
        found = gradient(
            logits, k, "straight_through", weights, temperature=temperature, compat=compat
        )
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_a_taken_leader_keeps_no_mass_but_under_compat():
    """Golden finding 12: with a lead above 18.4 tau the release's later slots point at it."""
    scores = np.array([[0.9, 0.3, 0.29]], np.float32)
    weights = np.array([[[0.0, 0, 0], [0, 1, -1]]], np.float32)
    right = gradient(scores, 2, "straight_through", weights, temperature=0.02)
    release = gradient(scores, 2, "straight_through", weights, temperature=0.02, compat=True)
    assert abs(right[0, 1]) > 10 and right[0, 0] == 0
    assert abs(release[0, 1]) < 0.05


# --- Properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(rows(), SLOTS)
def test_forward_is_the_hard_selection(method, row, k):
    scores, mask = row
    weights, indices = map(np.asarray, chosen(scores, k, method, 0.1, mask_BN=mask))
    for b in range(2):
        order = [n for n in np.argsort(-scores[b], kind="stable") if mask[b, n]]
        expected = order[:k] + [-1] * (k - len(order))
        assert indices[b].tolist() == expected
        for slot, n in enumerate(expected):
            assert weights[b, slot].tolist() == [float(m == n) for m in range(len(mask[b]))]


@pytest.mark.parametrize("method", RELAXED)
@settings(max_examples=15, deadline=None)
@given(rows(), SLOTS)
def test_soft_rows_are_distributions_over_candidates(method, row, k):
    scores, mask = row
    rows = soft(scores, k, method, 0.1, mask)
    has_candidate = np.arange(k)[None] < mask.sum(1, keepdims=True)
    np.testing.assert_allclose(rows.sum(-1)[has_candidate], 1, atol=1e-4)
    assert rows.min() > -1e-5 and not rows[np.broadcast_to(~mask[:, None], rows.shape)].any()


@pytest.mark.parametrize("method", RELAXED)
def test_low_temperature_is_the_hard_selection(method):
    scores = np.array([[0.3, -1.0, 2.0, 0.9, 0.1], [5.0, 4.0, 3.0, 2.0, 1.0]])
    hard = np.asarray(select(scores, 3, "hard")[0])
    np.testing.assert_allclose(soft(scores, 3, method, 1e-3), hard, atol=1e-3)


@pytest.mark.parametrize("method", RELAXED)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), SLOTS)
def test_order_of_candidates_does_not_matter(method, seed, k):
    rng = np.random.default_rng(seed)
    scores, order = rng.standard_normal((2, N)), rng.permutation(N)
    one, other = soft(scores, k, method), soft(scores[:, order], k, method)
    np.testing.assert_allclose(one[..., order], other, atol=1e-5)


@pytest.mark.parametrize("method", RELAXED)
@settings(max_examples=15, deadline=None)
@given(rows(), SLOTS, st.sampled_from([0.02, 1.0]))
def test_gradients_are_finite_and_zero_at_padding(method, row, k, temperature):
    scores, mask = row
    weights = np.arange(k * mask.shape[1], dtype=np.float32).reshape(k, -1)
    found = gradient(scores, k, method, weights, temperature=temperature, mask=mask)
    assert np.isfinite(found).all() and not found[~mask].any()


@pytest.mark.parametrize("method", RELAXED)
def test_gradient_is_that_of_the_relaxation(method):
    rng = np.random.default_rng(1)
    scores, weights = rng.standard_normal((1, 6)), rng.standard_normal((3, 6))
    found, step = gradient(scores, 3, method, weights, temperature=0.7), 1e-2
    for n in range(6):
        moved = [scores + sign * step * (np.arange(6) == n) for sign in (1, -1)]
        up, down = ((soft(s, 3, method, 0.7) * weights).sum() for s in moved)
        assert found[0, n] == pytest.approx((up - down) / (2 * step), abs=5e-3), n


@pytest.mark.parametrize("method", RELAXED)
def test_gradient_survives_optimisation(method):
    """Moving all scores alike changes nothing: with XLA's fusions, which conftest.py turns off."""
    rng = np.random.default_rng(0)
    scores = (0.05 * rng.standard_normal((4, 20))).astype(np.float32)
    weights = rng.standard_normal((4, 5, 20)).astype(np.float32)
    arguments = scores, weights, 0.02, np.ones((4, 20), bool)
    lowered = _gradient.lower(*arguments, 5, method, False)
    compiled = lowered.compile({"xla_backend_optimization_level": 3})
    found = np.asarray(compiled(*arguments))
    assert np.abs(found.sum(1)).max() < 1e-4 * np.abs(found).max()


def test_hard_gives_no_gradient_and_the_others_some():
    weights = np.random.default_rng(0).standard_normal((2, 5))
    scores = np.array([[0.5, 0.4, 0.3, 0.2, 0.1]])
    for method in METHODS:
        found = gradient(scores, 2, method, weights, temperature=0.1)
        assert np.any(found) == (method != "hard"), method


def test_noise_perturbs_the_selection_only_with_a_generator():
    scores = np.tile(np.linspace(0, 0.5, 6), (200, 1))
    plain = select(scores, 2, "gumbel", 1.0)[1]
    np.testing.assert_array_equal(plain, select(scores, 2, temperature=1.0)[1])
    noisy = np.asarray(select(scores, 2, "gumbel", 1.0, rng=jax.random.key(0))[1])
    assert len({tuple(pair) for pair in noisy.tolist()}) > 10
    # At a low temperature the noise no longer matters.
    cold = select(scores, 2, "gumbel", 1e-3, rng=jax.random.key(0))[1]
    np.testing.assert_array_equal(cold, plain)


# --- Mixing --------------------------------------------------------------------------------------


def test_mixing_equals_the_dense_sum_and_its_gradients():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2, N)).astype(np.float32)
    memories = rng.standard_normal((2, N, 3, 4)).astype(np.float32)
    aim = rng.standard_normal((2, 5, 3, 4)).astype(np.float32)
    mask = np.arange(N)[None] < np.array([[N], [3]])  # fewer candidates than slots in row 1

    def dense(weights, _, memories):
        return jnp.einsum("bkn,bnmd->bkmd", weights, memories)

    def loss(mixed):
        def run(scores, memories):
            weights, indices = select(scores, 5, temperature=0.5, mask_BN=mask)
            return jnp.square(mixed(weights, indices, memories) - aim).sum()

        return jax.value_and_grad(run, argnums=(0, 1))(scores, memories)

    ours, expected = loss(topk.mix), loss(dense)
    assert np.abs(expected[1][0]).max() > 0.1
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), ours, expected
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mixing_gives_the_memories_themselves(dtype):
    memories = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 3, 8)), dtype)
    indices = jnp.array([[3, 0, -1], [1, 2, 0]])
    mixed = topk.mix(jnp.zeros((2, 3, 4)), indices, memories)
    assert mixed.dtype == dtype
    for b, slot in np.ndindex(2, 3):
        n = indices[b, slot]
        np.testing.assert_array_equal(mixed[b, slot], memories[b, n] if n >= 0 else 0)


def test_many_candidates_are_not_copied():
    """B = 32, N = 2,000, M D = 9,216 in bfloat16: 1.2 GB of candidates, 200 MB beside them."""
    shapes = [(32, 16, 576), (32, 2000, 16, 576), (32, 5, 16, 576)]

    def loss(query, memories, aim):
        scores = score(query, memories)
        weights, indices = select(scores, 5)
        mixed = topk.mix(weights, indices, memories)
        return (mixed * aim).astype(jnp.float32).sum() + jax.nn.logsumexp(scores)

    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200e6


def test_mistakes():
    with pytest.raises(ValueError, match="known: straight_through"):
        select(np.zeros((1, 3)), 1, "best")
    with pytest.raises(ValueError, match="at least 1"):
        select(np.zeros((1, 3)), 0)
