"""Low-rank adapters as trees of their own, parallel to the base's linear layers.

An adapter is `{"layers": {"attention": {"q": {"a": [L, R, in], "b": [L, R, out]}}, "mlp": {}}}`
for any subset of the linear layers. The decoder takes it as the `lora` collection.
"""

from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params

Adapter = dict[str, Any]


def init_adapter(config: ModelConfig, lora: LoraConfig, rng: jax.Array) -> Adapter:
    """A fresh adapter in float32: A uniform in ±sqrt(1 / in) as in PEFT, B zero, so no effect."""
    layers: Adapter = {}
    for group in ("attention", "mlp"):
        for name, leaf in abstract_params(config)["layers"][group].items():
            if name not in lora.targets:
                continue
            rng, key = jax.random.split(rng)
            n_layers, n_in, n_out = leaf["kernel"].shape
            a = jax.random.uniform(key, (n_layers, lora.rank, n_in), jnp.float32, -1, 1)
            b = jnp.zeros((n_layers, lora.rank, n_out), jnp.float32)
            layers.setdefault(group, {})[name] = {"a": a * n_in**-0.5, "b": b}
    return {"layers": layers}
