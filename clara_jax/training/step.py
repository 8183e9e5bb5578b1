"""The pure train step of SCP, and the held-out loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clara_jax import sharding
from clara_jax.models import clara
from clara_jax.models.clara import Batch, Trees
from clara_jax.training.losses import IGNORE, alignment_sum, cross_entropy_sum
from clara_jax.training.optim import schedule
from clara_jax.training.setup import Setup

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[tuple[Trees, Any], Metrics]]


def loss_sums(
    setup: Setup, trees: Trees, batch: Batch, rng: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """SCP's losses over a batch, as sums: cross-entropy over labels, alignment over documents."""
    config, model = setup.config, setup.model
    rng_enc, rng_dec = (None, None) if rng is None else jax.random.split(rng)
    hidden_BTD = clara.encode(
        setup.decoder, trees, batch["enc_tokens"], batch["enc_positions"], batch["enc_segments"],
        rng=rng_enc, spread=config.memory.positions == "spread",
    )  # fmt: skip
    answer_BTD = clara.generate_hidden(setup.decoder, trees, batch, hidden_BTD, rng_dec)
    ce = cross_entropy_sum(model, trees, answer_BTD, batch["dec_targets"], config.train.loss_chunks)
    memory_ids = setup.extra.memory
    tokens = batch["enc_tokens"]
    is_memory_BT = (tokens >= memory_ids[0]) & (tokens <= memory_ids[-1])
    mse = alignment_sum(
        hidden_BTD, batch["enc_segments"], is_memory_BT, config.data.row_examples,
        into=config.train.mse_into,
    )  # fmt: skip
    return ce, mse


def counts(setup: Setup, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Labelled tokens and compressed documents; at least 1, so that a batch of none has loss 0."""
    labels, documents = _counts(setup, batch)
    return jnp.maximum(labels, 1), jnp.maximum(documents, 1)


def _counts(setup: Setup, batch: Batch) -> tuple[jax.Array, jax.Array]:
    labels = (batch["dec_targets"] != IGNORE).sum()
    documents = (batch["enc_tokens"] == setup.extra.memory[0]).sum()
    return labels, documents


def make_step(setup: Setup, optimizer: optax.GradientTransformation) -> Step:
    """The train step `(trained, opt_state), frozen, batch, step -> (trained, opt_state), metrics`.

    The loss is the token mean of the cross-entropy plus lambda times the document mean of the
    alignment, both over the whole batch however many micro-batches it is computed in. Only
    `trained` is differentiated. The same step number draws the same dropout.
    """
    train, seed = setup.config.train, setup.config.seed
    rate = schedule(setup.config)

    def loss_fn(trained: Trees, frozen: Trees, batch: Batch, totals: Any, rng: jax.Array) -> Any:
        labels, documents = totals
        ce, mse = loss_sums(setup, {**frozen, **trained}, batch, rng)
        ce, mse = ce / labels, mse / documents
        return ce + train.mse_weight * mse, (ce, mse)

    def step_fn(state: Any, frozen: Trees, batch: Batch, step: jax.Array) -> Any:
        trained, opt_state = state
        totals = counts(setup, batch)
        rng = jax.random.fold_in(jax.random.key(seed), step)

        def micro(i: jax.Array, part: Batch) -> Any:
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            return grad_fn(trained, frozen, part, totals, jax.random.fold_in(rng, i))

        (loss, (ce, mse)), grads = _accumulate(micro, batch, train.accumulate)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        metrics = {
            "loss": loss,
            "ce_loss": ce,
            "mse_loss": mse,
            "learning_rate": rate(step),
            **{f"grad_norm/{name}": optax.global_norm(g) for name, g in grads.items()},
        }
        return (optax.apply_updates(trained, updates), opt_state), metrics

    return step_fn


def _accumulate(micro: Callable[[Any, Batch], Any], batch: Batch, parts: int) -> Any:
    """Sum of micro(i, part) over `parts` interleaved parts of the batch, in one scan."""
    if parts == 1:
        return micro(0, batch)

    def split(x: jax.Array) -> jax.Array:
        # Interleaved, so that each part keeps its rows on the devices where they are.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def body(total: Any, part: Any) -> Any:
        return jax.tree.map(jnp.add, total, micro(*part)), None

    split_batch = {k: split(v) for k, v in batch.items()}
    first = jax.eval_shape(lambda: micro(0, {k: v[0] for k, v in split_batch.items()}))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    return jax.lax.scan(body, zero, (jnp.arange(parts), split_batch))[0]


def compile_step(setup: Setup, step_fn: Step, state: Any) -> Step:
    """Jits the step: the state is donated and keeps its shardings, metrics are replicated."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step_fn,
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(setup.mesh)),
    )


def init_optimizer(setup: Setup, optimizer: optax.GradientTransformation, trained: Trees) -> Any:
    """Optimizer state whose moments lie like the arrays they belong to."""
    everywhere = sharding.replicated(setup.mesh)
    shardings = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, x: x.sharding,
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=lambda _: everywhere,
    )
    return jax.jit(optimizer.init, out_shardings=shardings)(trained)


def held_out_loss(setup: Setup, batches: list[Any]) -> Callable[[Trees], dict[str, float]]:
    """A function of all trees that gives the mean losses over the batches, without dropout."""

    @jax.jit
    def sums(trees: Trees, batch: Batch) -> Any:
        ce, mse = loss_sums(setup, trees, batch, None)
        return ce, mse, *_counts(setup, batch)

    def evaluate(trees: Trees) -> dict[str, float]:
        total = [sums(trees, sharding.put_batch(setup.mesh, batch)) for batch in batches]
        ce, mse, labels, documents = np.sum(jax.device_get(total), axis=0)
        return {"eval/ce_loss": float(ce / labels), "eval/mse_loss": float(mse / max(documents, 1))}

    return evaluate
