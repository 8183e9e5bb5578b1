"""The pure train step of any stage, and the held-out loss."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clara_jax import sharding
from clara_jax.config import Config
from clara_jax.models.clara import Batch, Trees
from clara_jax.runs.setup import Model
from clara_jax.stages import PER, STAGES
from clara_jax.training import objectives
from clara_jax.training.objectives import OBJECTIVES, Draw, slot_gradients
from clara_jax.training.optim import schedule, temperature_schedule

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[tuple[Trees, Any], Metrics]]


def totals(model: Model, batch: Batch) -> dict[str, jax.Array]:
    """`objectives.counts` in float32, at least 1, so that a batch of none has loss 0."""
    counts = objectives.counts(model, batch)
    return {name: jnp.maximum(count, 1).astype(jnp.float32) for name, count in counts.items()}


def means(sums: Mapping[str, Any], counts: Mapping[str, Any]) -> dict[str, Any]:
    """Each sum over its count; those for which there is none in this stage are left out."""
    which = {name: PER.get(name, "questions") for name in sums}
    return {name: sums[name] / counts[which[name]] for name in sums if which[name] in counts}


def make_step(model: Model, optimizer: optax.GradientTransformation) -> Step:
    """The train step `(trained, opt_state), frozen, batch, step -> (trained, opt_state), metrics`.

    The loss is the weighted sum of the stage's means (training/objectives.py), each over the whole
    batch however many micro-batches it is computed in. Only `trained` is differentiated. The same
    step number draws the same dropout.
    """
    config, train = model.config, model.config.train
    rate, tau = schedule(config), temperature_schedule(config)
    objective, weights = OBJECTIVES[config.stage], objectives.weights(config)

    def loss_fn(
        trained: Trees, probe_BKN: Any, frozen: Trees, batch: Batch, count: Any, draw: Draw
    ) -> Any:
        draw = dataclasses.replace(draw, probe_BKN=probe_BKN)
        measured = objective(model, {**frozen, **trained}, batch, draw)
        mean = means(measured.sums, count)
        loss = sum(weight * mean[name] for name, weight in weights.items())
        return loss, measured

    def step_fn(state: Any, frozen: Trees, batch: Batch, step: jax.Array) -> Any:
        trained, opt_state = state
        count = totals(model, batch)
        rng = jax.random.fold_in(jax.random.key(config.seed), step)

        def micro(i: jax.Array, part: Batch) -> Any:
            draw = Draw(jax.random.fold_in(rng, i), jnp.asarray(tau(step)))
            grad_fn = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
            (loss, measured), (grads, g_BKN) = grad_fn(
                trained, _probe(config, part), frozen, part, count, draw
            )
            sums = measured.sums
            if g_BKN is not None:
                mask_BN = part["doc_valid"] > 0
                sums |= slot_gradients(config, measured.scores_BN, g_BKN, mask_BN, draw)
            return loss, sums, grads

        loss, sums, grads = _accumulate(micro, batch, train.accumulate)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, opt_state, trained)
            trained = optax.apply_updates(trained, updates)
        metrics = {
            "loss": loss,
            **_shares(means(sums, count)),
            "learning_rate": rate(step),
            **{f"grad_norm/{name}": optax.global_norm(g) for name, g in grads.items()},
        }
        if STAGES[config.stage].selects:
            metrics["temperature"] = tau(step)
        return (trained, opt_state), metrics

    return step_fn


def _probe(config: Config, batch: Batch) -> jax.Array | None:
    """Zeros in the shape of the selection's weights, where there is one."""
    if not STAGES[config.stage].selects:
        return None
    B, N = batch["doc_valid"].shape
    return jnp.zeros((B, config.select.k, N))


def _shares(mean: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The slots' gradients as shares of their sum."""
    slots = [name for name in mean if name.startswith("slot_gradient/")]
    total = jnp.maximum(sum(mean[name] for name in slots), 1e-30)
    return {name: x / total if name in slots else x for name, x in mean.items()}


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


def compile_step(model: Model, step_fn: Step, state: Any) -> Step:
    """Jits the step: the state is donated and keeps its shardings, metrics are replicated."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step_fn,
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(model.mesh)),
    )


def init_optimizer(model: Model, optimizer: optax.GradientTransformation, trained: Trees) -> Any:
    """Optimizer state whose moments are sharded like the arrays they belong to."""
    state = abstract_optimizer(model, optimizer, trained)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(optimizer.init, out_shardings=shardings)(trained)


def abstract_optimizer(
    model: Model, optimizer: optax.GradientTransformation, trained: Trees
) -> Any:
    """Shapes and shardings of `init_optimizer`'s state; `trained` may be shapes as well."""
    everywhere = sharding.replicated(model.mesh)

    def with_sharding(x: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return optax.tree_utils.tree_map_params(
        optimizer.init,
        lambda x, of: with_sharding(x, of.sharding),
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=lambda x: with_sharding(x, everywhere),
    )


def held_out_loss(model: Model, batches: list[Any]) -> Callable[[Trees], dict[str, float]]:
    """A function of all trees that gives the mean losses over the batches, without dropout.

    Where documents are compressed in the step, `eval/ce_loss_others` is the cross-entropy with
    memories of other documents.
    """
    objective, stage = OBJECTIVES[model.config.stage], STAGES[model.config.stage]

    @jax.jit
    def sums(trees: Trees, batch: Batch) -> Any:
        draw = Draw(others=stage.compresses)
        return objective(model, trees, batch, draw).sums, objectives.counts(model, batch)

    def evaluate(trees: Trees) -> dict[str, float]:
        rows = sharding.batch_sharding(model.mesh)
        per_batch = [sums(trees, sharding.put_whole(rows, batch)) for batch in batches]
        added = jax.tree.map(lambda *x: float(np.sum(x)), *jax.device_get(per_batch))
        counts = {name: max(count, 1.0) for name, count in added[1].items()}
        return {f"eval/{name}": value for name, value in means(added[0], counts).items()}

    return evaluate
