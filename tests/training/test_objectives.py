"""Losses and statistics of the stages that rank, against plain computations."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import Config, Select, Train
from clara_jax.models import topk
from clara_jax.models.config import ExtraTokens
from clara_jax.training.losses import IGNORE, info_nce_sum, kl_sum
from clara_jax.training.objectives import Draw, slot_gradients, spread, temperature
from clara_jax.training.optim import temperature_schedule
from clara_jax.training.step import means, totals

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 6)).astype(np.float32)
MASK = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5, [0] * 6], bool)


def test_info_nce_is_minus_log_of_the_mass_on_gold():
    gold = np.zeros((4, 6), bool)
    gold[0, [1, 4]] = gold[1, 0] = gold[2, 0] = True
    expected = 0.0
    for logits, is_gold, keep in zip(LOGITS[:3], gold, MASK, strict=False):
        odds = np.exp(logits) * keep
        expected -= np.log(odds[is_gold].sum() / odds.sum())
    assert float(info_nce_sum(LOGITS, gold, MASK)) == pytest.approx(expected, rel=1e-5)


def test_questions_without_gold_or_candidates_have_no_loss_and_no_gradient():
    nothing = np.zeros((4, 6), bool)
    loss, gradient = jax.value_and_grad(info_nce_sum)(LOGITS * 1e3, nothing, MASK)
    assert loss == 0 and not gradient.any()
    gradient = jax.grad(info_nce_sum)(LOGITS, MASK, MASK)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)  # all gold: nothing to learn


def test_divergence_from_a_teacher():
    teacher = np.exp(RNG.normal(size=(4, 6))) * MASK
    teacher = (teacher / np.maximum(teacher.sum(1, keepdims=True), 1e-9)).astype(np.float32)
    expected = 0.0
    for logits, p, keep in zip(LOGITS, teacher, MASK, strict=True):
        q = np.exp(logits) * keep / max((np.exp(logits) * keep).sum(), 1e-9)
        expected += sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert float(kl_sum(LOGITS, teacher, MASK)) == pytest.approx(expected, rel=1e-4)
    equal = np.log(np.where(teacher > 0, teacher, 1))
    assert float(kl_sum(equal, teacher, MASK)) == pytest.approx(0, abs=1e-5)
    gradient = jax.grad(kl_sum)(LOGITS, teacher, MASK)
    assert np.isfinite(gradient).all() and not gradient[~MASK].any()


def test_a_batch_without_any_label_has_loss_zero_and_not_nan():
    """Where the release's loss is NaN: a mean of nothing."""
    model = types.SimpleNamespace(extra=ExtraTokens(20, 2))
    batch = {"dec_targets": np.full((2, 5), IGNORE), "doc_valid": np.zeros((2, 3), int)}
    sums = {"ce_loss": jnp.zeros(()), "mse_loss": jnp.zeros(())}
    assert means(sums, totals(model, batch)) == {"ce_loss": 0, "mse_loss": 0}


def test_spread_and_relative_temperature():
    expected = [LOGITS[0].std(), LOGITS[1, :4].std(), 0, 0]
    np.testing.assert_allclose(spread(LOGITS, MASK), expected, atol=1e-6)
    absolute, relative = (Config(select=Select(relative=r)) for r in (False, True))
    assert float(temperature(absolute, 0.3, LOGITS, MASK)) == pytest.approx(0.3)
    # Single candidates have no spread, and do not count.
    of_two = 0.3 * np.mean(expected[:2])
    assert float(temperature(relative, 0.3, LOGITS, MASK)) == pytest.approx(of_two, rel=1e-5)
    assert float(temperature(relative, 0.3, LOGITS[2:], MASK[2:])) > 0
    gradient = jax.grad(lambda s: temperature(relative, 0.3, s, MASK))(LOGITS)
    assert not gradient.any()


def test_temperature_schedule():
    config = Config(select=Select(temperature=0.5, final_temperature=0.02), train=Train(steps=100))
    tau = temperature_schedule(config)
    assert [float(tau(s)) for s in (0, 50, 100)] == pytest.approx([0.5, 0.1, 0.02], rel=1e-5)
    constant = temperature_schedule(dataclasses.replace(config, select=Select(temperature=0.3)))
    assert float(constant(0)) == float(constant(99)) == pytest.approx(0.3)


@pytest.mark.parametrize("method", ["straight_through", "gumbel", "lapsum"])
def test_slots_gradients_are_the_parts_of_the_whole(method):
    config = Config(select=Select(k=3, method=method))
    g_BKN = RNG.normal(size=(4, 3, 6)).astype(np.float32)
    draw = Draw(rng=jax.random.key(1), tau=0.7)
    arrays = (jnp.asarray(x) for x in (LOGITS, g_BKN, MASK))
    found = jax.jit(lambda *arrays: slot_gradients(config, *arrays, draw))(*arrays)
    noise = jax.random.split(draw.rng, 3)[1]  # as the objective draws it

    def through(scores, slot):
        weights, _ = topk.select(scores, 3, method, 0.7, mask_BN=jnp.asarray(MASK), rng=noise)
        return (weights * g_BKN)[:, slot].sum()

    part = jax.jit(jax.grad(through))
    for j in range(3):
        gradient = part(jnp.asarray(LOGITS), j)
        assert float(found[f"slot_gradient/{j + 1}"]) == pytest.approx(
            float(jnp.abs(gradient).sum()), rel=1e-4
        )
    p = np.exp(LOGITS[:3] / 0.7) * MASK[:3]
    p /= p.sum(1, keepdims=True)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum()
    assert float(found["entropy"]) == pytest.approx(entropy, rel=1e-4)
