"""Cross-entropy in one piece and in blocks, and the alignment of memories with documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from clara_jax.models.config import ModelConfig
from clara_jax.training.losses import IGNORE, alignment_sum, cross_entropy_sum, token_losses

D, V, T, B = 16, 40, 10, 3
MODEL = ModelConfig(
    vocab_size=V, d_model=D, d_ff=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4
)


def make(labels_per_row, seed=0, length=T, added=0):
    rng = np.random.default_rng(seed)
    rows = len(labels_per_row)
    targets = np.full((rows, length), IGNORE)
    for row, n in enumerate(labels_per_row):
        where = rng.choice(length, n, replace=False)
        targets[row, where] = rng.integers(0, V + added, n)
    trees = {
        "base": {"head": {"kernel": jnp.asarray(rng.standard_normal((D, V)), jnp.float32)}},
        "added": {"head": jnp.asarray(rng.standard_normal((D, added)), jnp.float32)}
        if added
        else {},
    }
    hidden = jnp.asarray(rng.standard_normal((rows, length, D)), jnp.float32)
    return trees, hidden, jnp.asarray(targets, jnp.int32)


@functools.partial(jax.jit, static_argnums=3)
def value_and_grads(trees, hidden, targets, chunks):
    loss = lambda trees, hidden: cross_entropy_sum(MODEL, trees, hidden, targets, chunks)  # noqa: E731
    return jax.value_and_grad(loss, (0, 1))(trees, hidden)


@pytest.mark.parametrize("added", [0, 4])
def test_cross_entropy_by_hand(added):
    trees, hidden, targets = make([4, 0, 10], added=added)
    kernel = np.concatenate(
        [trees["base"]["head"]["kernel"], trees["added"].get("head", np.zeros((D, 0)))], axis=1
    ).astype(np.float64)
    total = 0.0
    each = token_losses(MODEL, trees, hidden, targets)
    for row in range(B):
        for t in range(T):
            expected = 0.0
            if targets[row, t] != IGNORE:
                logits = np.asarray(hidden[row, t], np.float64) @ kernel
                expected = np.log(np.exp(logits).sum()) - logits[targets[row, t]]
            assert each[row, t] == pytest.approx(expected, rel=1e-5, abs=1e-5)
            total += expected
    assert cross_entropy_sum(MODEL, trees, hidden, targets) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("labels", [[4, 0, 10], [0, 0, 0], [1, 1, 1], [10, 10, 10]])
@pytest.mark.parametrize("chunks", [2, 3, 10, 16])
def test_blocks_equal_one_piece(labels, chunks):
    """Whether or not blocks divide the row, hold labels, or are fewer than its tokens."""
    trees, hidden, targets = make(labels, added=4)
    value, grads = value_and_grads(trees, hidden, targets, chunks)
    expected, expected_grads = value_and_grads(trees, hidden, targets, 1)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for grad, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5)
    unlabelled = np.asarray(targets == IGNORE)
    assert (np.asarray(grads[1])[unlabelled] == 0).all()
    assert (np.abs(np.asarray(grads[1])[~unlabelled]).max(-1, initial=0) > 0).all()


def test_large_logits_do_not_overflow():
    trees, hidden, targets = make([10, 10, 10])
    value, grads = value_and_grads(trees, hidden * 1e4, targets, 2)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from shapes(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from shapes(value)


def test_blocks_never_hold_all_logits():
    trees, hidden, targets = make([256] * 4, length=512)

    def largest(chunks):
        jaxpr = jax.make_jaxpr(lambda *args: value_and_grads(*args, chunks))(trees, hidden, targets)
        return max(int(np.prod(s)) for s in shapes(jaxpr.jaxpr) if s and s[-1] == V)

    def memory(chunks):
        compiled = value_and_grads.lower(trees, hidden, targets, chunks).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert largest(1) == 4 * 512 * V and largest(8) == 4 * 512 * V // 8
    assert memory(8) < 0.5 * memory(1)


# --- Alignment -----------------------------------------------------------------------------------


def packed_rows(seed=0):
    """Rows with documents of several lengths, memory tokens at their ends, padding behind."""
    rng = np.random.default_rng(seed)
    segments, is_memory = np.zeros((3, 24), np.int32), np.zeros((3, 24), bool)
    for row, lengths in enumerate([(5, 9, 3), (20,), ()]):
        start = 0
        for i, length in enumerate(lengths):
            segments[row, start : start + length] = i + 1
            is_memory[row, start + length - 2 : start + length] = True
            start += length
    return rng.standard_normal((3, 24, D)).astype(np.float32), segments, is_memory


def alignment_loop(hidden, segments, is_memory):
    hidden, total = hidden.astype(np.float64), 0.0
    for row in range(len(hidden)):
        for document in range(1, segments[row].max() + 1):
            here = segments[row] == document
            memory = hidden[row, here & is_memory[row]].mean(0)
            text = hidden[row, here & ~is_memory[row]].mean(0)
            total += ((memory - text) ** 2).mean()
    return total


@pytest.mark.parametrize("most", [3, 7])
def test_alignment_equals_a_loop_over_documents(most):
    hidden, segments, is_memory = packed_rows()
    actual = alignment_sum(jnp.asarray(hidden), segments, is_memory, most)
    assert actual == pytest.approx(alignment_loop(hidden, segments, is_memory), rel=1e-5)


def test_alignment_gradient_reaches_both_sides_and_no_padding():
    hidden, segments, is_memory = packed_rows()
    gradient = jax.grad(lambda h: alignment_sum(h, segments, is_memory, 3))(jnp.asarray(hidden))
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, segments > 0)
    step = 1e-3 * np.random.default_rng(1).standard_normal(hidden.shape)
    up, down = (alignment_loop(hidden + s * step, segments, is_memory) for s in (1, -1))
    assert (gradient * step).sum() == pytest.approx((up - down) / 2, rel=1e-3)


def test_alignment_may_move_memories_alone():
    hidden, segments, is_memory = packed_rows()

    def loss_and_gradient(into):
        return jax.value_and_grad(lambda h: alignment_sum(h, segments, is_memory, 3, into))(
            jnp.asarray(hidden)
        )

    (both, full), (memory, gradient) = loss_and_gradient("both"), loss_and_gradient("memory")
    assert both == memory
    np.testing.assert_array_equal(gradient, np.where(is_memory[..., None], full, 0))


def test_alignment_is_computed_in_float32():
    hidden, segments, is_memory = packed_rows()
    half = jnp.asarray(hidden, jnp.bfloat16)
    actual = alignment_sum(half, segments, is_memory, 3)
    assert actual.dtype == jnp.float32
    exact = alignment_loop(np.asarray(half, np.float64), segments, is_memory)
    assert actual == pytest.approx(exact, rel=1e-5)
