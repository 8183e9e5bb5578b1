"""AdamW with a warm-up, clipping and a schedule, over the trained trees only."""

from typing import Any

import jax
import optax

from clara_jax.config import Config


def schedule(config: Config) -> optax.Schedule:
    """Learning rate by optimizer step: linear warm-up, then cosine or constant."""
    o, steps = config.optim, config.train.steps
    warmup = max(1, round(o.warmup * steps))
    if o.schedule == "constant":
        after = optax.constant_schedule(o.learning_rate)
    else:
        after = optax.cosine_decay_schedule(
            o.learning_rate, max(1, steps - warmup), alpha=o.final_fraction
        )
    # The first step already moves: step s of the warm-up uses (s + 1) / warmup of the peak.
    first = o.learning_rate / warmup
    ramp = optax.linear_schedule(first, o.learning_rate, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def temperature_schedule(config: Config) -> optax.Schedule:
    """Tau of the relaxed top-k by optimizer step: constant, or geometric to the final one."""
    first, last = config.select.temperature, config.select.final_temperature
    if not last:
        return optax.constant_schedule(first)
    return optax.exponential_decay(first, config.train.steps, last / first)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """The transformation of gradients of the trained trees `{"compressor": …, "memory": …}`."""
    o = config.optim

    def scale_memory(updates: Any, params: Any) -> Any:
        if "memory" not in updates:
            return updates
        scaled = jax.tree.map(lambda u: u * o.memory_lr_scale, updates["memory"])
        return {**updates, "memory": scaled}

    return optax.chain(
        optax.clip_by_global_norm(o.clip),
        optax.adamw(schedule(config), b1=o.b1, b2=o.b2, weight_decay=o.weight_decay),
        optax.stateless(scale_memory),
    )
