"""Low-rank adapters as trees of their own, parallel to the base's linear layers.

An adapter is `{"layers": {"attention": {"q": {"a": [L, R, in], "b": [L, R, out]}}, "mlp": {}}}`
for any subset of the linear layers. The decoder takes it as the `lora` collection.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params

Adapter = dict[str, Any]


def init_adapter(config: ModelConfig, lora: LoraConfig, rng: jax.Array) -> Adapter:
    """A fresh adapter in float32: A uniform in ±sqrt(1 / in) as in PEFT, B zero, so no effect."""
    shapes = {
        (group, name): leaf["kernel"].shape
        for group in ("attention", "mlp")
        for name, leaf in abstract_params(config)["layers"][group].items()
        if name in lora.targets
    }

    def split(rng: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        rng, key = jax.random.split(rng)
        return rng, key

    _, keys = jax.lax.scan(split, rng, length=len(shapes))
    layers: Adapter = {}
    for n_in in {n_in for _, n_in, _ in shapes.values()}:  # one draw for all of a size
        alike = [(i, *each) for i, each in enumerate(shapes.items()) if each[1][1] == n_in]
        size = config.n_layers, lora.rank, n_in
        draw = jax.vmap(lambda key, size=size: jax.random.uniform(key, size, jnp.float32, -1, 1))
        drawn = draw(keys[np.array([i for i, *_ in alike])]) * n_in**-0.5
        for a, (_, (group, name), (n_layers, _, n_out)) in zip(drawn, alike, strict=True):
            b = jnp.zeros((n_layers, lora.rank, n_out), jnp.float32)
            layers.setdefault(group, {})[name] = {"a": a, "b": b}
    return {"layers": layers}
