"""A decoder written once more, in plain numpy and float64, for the real one to be compared with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params
from clara_jax.models.lora import init_adapter


def rms_norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def rotate(x_THC, positions_T, config):
    half = config.rotated // 2
    divisors, factor = 1.0, 1.0
    if scaling := config.rope_scaling:  # LongRope
        long = positions_T.max() + 1 > scaling.original_length
        divisors = np.array(scaling.long_factor if long else scaling.short_factor)
        factor = scaling.attention_factor
    angles = positions_T[:, None, None] * config.rope_theta ** -(np.arange(half) / half) / divisors
    turned = (x_THC[..., :half] + 1j * x_THC[..., half : 2 * half]) * np.exp(1j * angles) * factor
    return np.concatenate([turned.real, turned.imag, x_THC[..., 2 * half :]], axis=-1)


def numpy_decoder(
    config: ModelConfig, params: Any, x_TD: np.ndarray, adapter: Any = None, scale: float = 0.0
) -> np.ndarray:
    """Hidden states [T, D] of one sequence; layers, heads and queries one by one."""

    def to64(tree):
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)

    params, adapter, x = to64(params), to64(adapter), np.asarray(x_TD, np.float64)
    T, group = len(x), config.n_heads // config.n_kv_heads
    positions = np.arange(T)
    for i in range(config.n_layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        low_rank = jax.tree.map(lambda leaf, i=i: leaf[i], (adapter or {}).get("layers", {}))

        def linear(y, part, name, layer=layer, low_rank=low_rank):
            out = y @ layer[part][name]["kernel"] + layer[part][name].get("bias", 0)
            if name in low_rank.get(part, {}):
                leaf = low_rank[part][name]
                out += scale * (y @ leaf["a"].T) @ leaf["b"]
            return out

        y = rms_norm(x, layer["attention_norm"]["scale"], config.norm_eps)
        q, k, v = (linear(y, "attention", n).reshape(T, -1, config.head_dim) for n in "qkv")
        if config.qk_norm:
            norm = {n: layer["attention"][f"{n}_norm"]["scale"] for n in "qk"}
            q, k = rms_norm(q, norm["q"], config.norm_eps), rms_norm(k, norm["k"], config.norm_eps)
        q, k = rotate(q, positions, config), rotate(k, positions, config)
        attended = np.zeros_like(q)
        for h in range(config.n_heads):
            for t in range(T):
                first = max(0, t + 1 - (config.sliding_window or T))
                scores = k[first : t + 1, h // group] @ q[t, h] / np.sqrt(config.head_dim)
                weights = np.exp(scores - scores.max())
                attended[t, h] = weights / weights.sum() @ v[first : t + 1, h // group]
        x = x + linear(attended.reshape(T, -1), "attention", "o")
        y = rms_norm(x, layer["mlp_norm"]["scale"], config.norm_eps)
        gate = linear(y, "mlp", "gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, "mlp", "up"), "mlp", "down")
    return rms_norm(x, params["norm"]["scale"], config.norm_eps)


@pytest.fixture(scope="session")
def reference() -> Callable[..., np.ndarray]:
    return numpy_decoder


@pytest.fixture(scope="session")
def small() -> ModelConfig:
    return ModelConfig(
        vocab_size=50, d_model=32, d_ff=48, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8
    )


@pytest.fixture(scope="session")
def random_params() -> Callable[[ModelConfig], Any]:
    """Makes base weights whose norm scales are not the ones that they start from."""

    def make(config: ModelConfig) -> Any:
        rng = np.random.default_rng(1)

        def draw(path, leaf):
            scale = path[-1].key == "scale"
            deviation = 0.3 if scale else leaf.shape[-2] ** -0.5
            return jnp.asarray(rng.standard_normal(leaf.shape) * deviation + scale, leaf.dtype)

        return jax.tree.map_with_path(draw, abstract_params(config))

    return make


@pytest.fixture(scope="session")
def random_adapter() -> Callable[..., Any]:
    """Makes adapters whose B is not zero, as after training."""

    def make(config: ModelConfig, lora: LoraConfig, seed: int = 0) -> Any:
        adapter = init_adapter(config, lora, jax.random.key(seed))
        leaves, structure = jax.tree.flatten(adapter)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        return structure.unflatten(
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        )

    return make
