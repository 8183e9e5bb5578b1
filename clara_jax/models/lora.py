"""Low-rank adapters as trees of their own, parallel to the base's linear layers.

An adapter is `{"layers": {"attention": {"q": {"a": [L, R, in], "b": [L, R, out]}}, "mlp": {}}}`
for any subset of the linear layers. The decoder takes it as the `lora` collection.
"""

from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params
from clara_jax.models.quantize import dequantize, quantize

Adapter = dict[str, Any]


def init_adapter(config: ModelConfig, lora: LoraConfig, rng: jax.Array) -> Adapter:
    """A fresh adapter in float32: A uniform in ±sqrt(1 / in) as in PEFT, B zero, so no effect."""
    tree: Adapter = {"layers": {}}
    layers = abstract_params(config)["layers"]
    for group in ("attention", "mlp"):
        targets = [name for name in layers[group] if name in lora.targets]
        if not targets:
            continue
        tree["layers"][group] = {}
        for name in targets:
            rng, key = jax.random.split(rng)
            n_layers, n_in, n_out = layers[group][name]["kernel"].shape
            a = jax.random.uniform(key, (n_layers, lora.rank, n_in), jnp.float32, -1, 1)
            tree["layers"][group][name] = {
                "a": a * n_in**-0.5,
                "b": jnp.zeros((n_layers, lora.rank, n_out), jnp.float32),
            }
    return tree


def merge(params: Any, adapter: Adapter, lora: LoraConfig) -> Any:
    """Base weights with the adapter folded in: W + scale * A B, in the base's dtype."""
    layers = dict(params["layers"])
    for group, linears in adapter["layers"].items():
        layers[group] = dict(layers[group])
        for name, leaf in linears.items():
            base = layers[group][name]
            product = jnp.einsum("lri,lro->lio", leaf["a"], leaf["b"])
            merged = dequantize(base) + lora.scale * product
            layers[group][name] = base | (  # beside a bias
                quantize(merged)
                if "scale" in base
                else {"kernel": merged.astype(base["kernel"].dtype)}
            )
    return {**params, "layers": layers}
