"""Building blocks of the decoder: norm, rotary embedding, adapted linear, attention, MLP."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clara_jax.models.attention import attend, for_rows
from clara_jax.models.config import LongRope, LoraConfig, ModelConfig, RopeScaling
from clara_jax.models.layout import Layout

# Position of a token that is none: padding, and cache slots not yet used. No query attends to it.
EMPTY = 2**30

# Logical axes of the kernels as matmuls read them: whole along what fsdp cuts.
_GATHERED = {
    "q": (None, "heads"),
    "k": (None, "heads"),
    "v": (None, "heads"),
    "o": ("heads", None),
    "down": ("mlp", None),
    "gate": (None, "mlp"),
    "up": (None, "mlp"),
}


def over_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector in the shape [1, ..., 1, D] in which it goes with the last axis of x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32 and returned in the input's dtype."""

    eps: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of x."""
        scale_D = self.param(
            "scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.param_dtype)
        )
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * over_last(scale_D.astype(jnp.float32), x)).astype(x.dtype)


def rope_frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
    """Angular frequencies [width/2] in float32, with the `llama3` scaling if given.

    `width` is how much of each head is rotated.
    """
    frequencies = theta ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling is None:
        return frequencies
    # Long wavelengths are divided by the factor, short ones kept, those between interpolated.
    turns = scaling.original_length * frequencies / (2 * jnp.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = jnp.clip(keep, 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotary_tables(config: ModelConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, width/2] in float32: at 100k bfloat16 angles are noise.

    With LongRope a row's largest position, of all sequences packed into it, decides on the factors.
    (transformers decides so for all rows of a call together.) Keys in a cache stay as they were
    rotated: a row must not cross the length after its first call, see `crosses`.
    """
    scaling, factor = config.rope_scaling, 1.0
    if isinstance(scaling, LongRope):
        last_B = jnp.max(jnp.where(positions_BT < EMPTY, positions_BT, 0), axis=1)
        divisors = jnp.where(
            (last_B >= scaling.original_length)[:, None],
            jnp.asarray(scaling.long_factor, jnp.float32)[None],
            jnp.asarray(scaling.short_factor, jnp.float32)[None],
        )
        frequencies = rope_frequencies(config.rotated, config.rope_theta)[None] / divisors
        factor = scaling.attention_factor
    else:
        frequencies = rope_frequencies(config.rotated, config.rope_theta, scaling)[None]
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies[:, None, None]
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def crosses(config: ModelConfig, length: int, longest: int) -> int | None:
    """Where a row of `length` tokens changes its rotary frequencies on its way to `longest`.

    Its keys in a cache would then not fit the queries that follow. Only LongRope has such a length;
    transformers starts again with an empty cache there.
    """
    scaling = config.rope_scaling
    edge = scaling.original_length if isinstance(scaling, LongRope) else None
    return edge if edge is not None and length <= edge < longest else None


def rotate(x_BTHC: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (c, c + width/2) of each head, as Hugging Face checkpoints are laid out.

    The part of each head after `width`, twice that of the tables, stays as it is.
    """
    width = 2 * cos.shape[-1]
    if width < x_BTHC.shape[-1]:
        turned = rotate(x_BTHC[..., :width], cos, sin)
        return jnp.concatenate([turned, x_BTHC[..., width:]], axis=-1)
    first, second = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHC.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, w_IO: jax.Array, alone: bool = False) -> jax.Array:
    """The product x w, from [..., in] to [..., out], in the dtype of x; w may be int8.

    The gradient is written out for two reasons. For the order of the operands in that of w:
    automatic differentiation may put the wider activations first, and XLA then transposes them in
    memory, which costs a fifth of a training step on CPUs. And so that what the backward pass keeps
    is w as it is held, not a copy in the dtype of x.

    `alone` keeps XLA from fusing the product, and its gradient with respect to x, with what follows
    them: the TPU compiler's own estimates are a seventh lower then for a layer of 7B, forward and
    backward. Adapters' narrow products gain nothing from it.
    """
    y = x @ w_IO.astype(x.dtype)
    return jax.lax.optimization_barrier(y) if alone else y


def _matmul_forward(x: jax.Array, w_IO: jax.Array, alone: bool) -> tuple:
    return matmul(x, w_IO, alone), (x, w_IO)


def _matmul_backward(alone: bool, residuals: tuple, dy: jax.Array) -> tuple:
    x, w_IO = residuals
    dx = jax.lax.dot_general(dy, w_IO.astype(x.dtype), (((dy.ndim - 1,), (1,)), ((), ())))
    dx = jax.lax.optimization_barrier(dx) if alone else dx
    if not jnp.issubdtype(w_IO.dtype, jnp.floating):
        return dx, np.zeros(w_IO.shape, jax.dtypes.float0)
    rows = tuple(range(x.ndim - 1))
    contract_rows = ((rows, rows), ((), ()))
    if x.shape[-1] <= dy.shape[-1]:
        dw = jax.lax.dot_general(x, dy, contract_rows)
    else:
        dw = jax.lax.dot_general(dy, x, contract_rows).T
    return dx, dw.astype(w_IO.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def residual_variance(config: ModelConfig) -> float:
    """Variance of random o and down layers: all 2 L of them together then add about 1."""
    return 1 / (2 * config.n_layers)


class Linear(nn.Module):
    """y = x W + b + scale * (x' A) B, the last only where the `lora` collection has A and B.

    W is a `kernel`, or an int8 one with a `scale` (models/quantize.py); few layers have a bias.
    """

    features: int
    config: ModelConfig
    lora: LoraConfig
    init_variance: float = 1.0  # of the output over that of the input, at random weights
    layout: Layout = Layout()
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, x_dropped: jax.Array) -> jax.Array:
        """Maps the last axis of x; the adapter reads `x_dropped`, x after the adapter's dropout."""
        dtype = jnp.dtype(self.config.dtype)
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(self.init_variance, "fan_in", "normal"),
            (x.shape[-1], self.features),
            jnp.dtype(self.config.held_dtype),
        )
        # Gathered as it is held, before any cast: int8 is half of what bfloat16 would move.
        kernel = self.layout.constrain(kernel, *_GATHERED[self.name or ""])
        y = matmul(x, kernel, True)
        if self.has_variable("params", "scale"):
            scale_O = self.get_variable("params", "scale").astype(dtype)
            y = y * over_last(scale_O, y)
        if self.bias:
            held = jnp.dtype(self.config.held_dtype)
            bias_O = self.param("bias", nn.initializers.zeros, (self.features,), held)
            y = y + over_last(bias_O.astype(dtype), y)
        if self.has_variable("lora", "a"):
            a_RI = self.get_variable("lora", "a").astype(dtype)
            b_RO = self.get_variable("lora", "b").astype(dtype)
            with jax.named_scope("adapter"):
                y = y + matmul(matmul(x_dropped, a_RI.T), b_RO * self.lora.scale)
        return checkpoint_name(y, self.name)


class AdapterDropout(nn.Module):
    """Dropout on an adapter's input.

    PEFT draws a mask for each linear layer; layers that read the same input (q, k, v; gate, up)
    share one here. Each adapter sees the same distribution, with half the random numbers.
    """

    rate: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Drops entries of x where a `dropout` generator is given, else returns x itself."""
        if self.rate == 0 or not self.has_rng("dropout"):
            return x_BTD
        draws = random_words(self.make_rng("dropout"), x_BTD.shape)
        keep = checkpoint_name(draws >= jnp.uint32(int(self.rate * 2**32)), "dropout_mask")
        return jnp.where(keep, x_BTD / (1 - self.rate), jnp.zeros((), x_BTD.dtype))


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint32 [B, T, D], good enough for dropout and much cheaper than `random.bits`.

    A random word of each row and one of each column are added, and the sum is mixed by the integer
    hash lowbias32 (Wellons, hash-prospector). By the TPU compiler's estimates drawing every word
    takes a sixth of a 7B layer's time.
    """
    B, T, D = shape
    of_row, of_column = jax.random.split(key)
    rows_BT1 = jax.random.bits(of_row, (B, T, 1), jnp.uint32)
    x = rows_BT1 + jax.random.bits(of_column, (1, 1, D), jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Attention(nn.Module):
    """Self-attention with grouped key/value heads."""

    config: ModelConfig
    lora: LoraConfig
    layout: Layout = Layout()
    in_order: bool = True  # no token sees what follows it

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        cos: jax.Array,
        sin: jax.Array,
        mask_BTS: jax.Array,
        segments_BT: jax.Array,
        cache: Any,
        layer: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Attends to the keys that `mask_BTS` allows; with a cache S is its length, else T."""
        c = self.config
        B, T, _ = x_BTD.shape
        linear = {
            name: Linear(features, c, self.lora, variance, self.layout, bias, name=name)
            for name, features, variance, bias in (
                ("q", c.n_heads * c.head_dim, 1.0, c.qkv_bias),
                ("k", c.n_kv_heads * c.head_dim, 1.0, c.qkv_bias),
                ("v", c.n_kv_heads * c.head_dim, 1.0, c.qkv_bias),
                ("o", c.d_model, residual_variance(c), False),
            )
        }
        dropout = AdapterDropout(self.lora.dropout)
        x_dropped = dropout(x_BTD)
        q = linear["q"](x_BTD, x_dropped).reshape(B, T, c.n_heads, c.head_dim)
        k = linear["k"](x_BTD, x_dropped).reshape(B, T, c.n_kv_heads, c.head_dim)
        v = linear["v"](x_BTD, x_dropped).reshape(B, T, c.n_kv_heads, c.head_dim)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, c.held_dtype, name="q_norm")(q)
            k = RMSNorm(c.norm_eps, c.held_dtype, name="k_norm")(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            cache = cache.write(layer, k, v)
        if cache is not None and T < cache.slots:
            keys, values = cache.read(layer)
            y = attend(q, keys, values, mask_BTS)
        else:  # the cache holds no other tokens; reading it would cost a copy
            rows = for_rows(
                c.attention, self.layout, mask_BTS, segments_BT, c.sliding_window, self.in_order
            )
            y = rows(q, k, v)
        return linear["o"](y, dropout(y)), cache


class MLP(nn.Module):
    """Gated SiLU feed-forward layer."""

    config: ModelConfig
    lora: LoraConfig
    layout: Layout = Layout()

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns [B, T, D]."""
        c, layout = self.config, self.layout
        dropout = AdapterDropout(self.lora.dropout)
        x_dropped = dropout(x_BTD)
        gate = Linear(c.d_ff, c, self.lora, layout=layout, name="gate")(x_BTD, x_dropped)
        up = Linear(c.d_ff, c, self.lora, layout=layout, name="up")(x_BTD, x_dropped)
        y_BTF = jax.lax.optimization_barrier(nn.silu(gate) * up)  # see `matmul`
        down = Linear(c.d_model, c, self.lora, residual_variance(c), layout, name="down")
        return down(y_BTF, dropout(y_BTF))
