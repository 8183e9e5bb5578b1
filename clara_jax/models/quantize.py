"""Weight-only int8 of the base's matrices: half the bytes of bfloat16 to hold and to gather.

A kernel [.., in, out] is int8 beside a float32 `scale` [.., out] of its columns; products are in
the activations' dtype. Embeddings, norms and biases stay in bfloat16. Gradients pass through, so
adapters can be trained on such a base (QLoRA), but not the base itself.
"""

from typing import Any

import jax
import jax.numpy as jnp


def quantize(kernel: jax.Array) -> dict[str, jax.Array]:
    """`{"kernel": int8 [..., in, out], "scale": float32 [..., out]}`; the largest is 127 or nearly.

    Scales are numbers that bfloat16 holds too, so that activations in it lose nothing by them.
    """
    # In the kernel's own dtype: a float32 copy would be used twice, and so be held as a whole.
    largest = jnp.maximum(kernel.max(-2), -kernel.min(-2)).astype(jnp.float32)
    # Zeros have the scale 1; NaN stays what it is, for whoever checks the scales.
    scale = jnp.where(largest == 0, 1.0, largest / 127).astype(jnp.bfloat16).astype(jnp.float32)
    steps = jnp.clip(jnp.round(kernel.astype(jnp.float32) / scale[..., None, :]), -127, 127)
    return {"kernel": steps.astype(jnp.int8), "scale": scale}


def dequantize(leaf: dict[str, jax.Array]) -> jax.Array:
    """The kernel in float32, with or without a scale."""
    kernel = leaf["kernel"].astype(jnp.float32)
    return kernel * leaf["scale"][..., None, :] if "scale" in leaf else kernel


def quantize_params(params: Any) -> Any:
    """The base's tree with every kernel quantised, and the rest in bfloat16."""
    if not isinstance(params, dict):
        return params.astype(jnp.bfloat16)
    rest = {name: quantize_params(tree) for name, tree in params.items() if name != "kernel"}
    return rest | (quantize(params["kernel"]) if "kernel" in params else {})
