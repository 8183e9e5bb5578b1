"""Softmax attention of grouped heads, by XLA or by a kernel of the accelerator.

A kernel never holds the scores [B, H, T, S]. It serves whole rows (training, compressing, prompts);
decoding against a cache is XLA's whatever is chosen.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from clara_jax.models.layout import Layout

# Finite, so that a row without any allowed key (padding) gives a uniform softmax and not NaN.
_MASKED = -1e30
_BLOCK = 128  # rows are padded to multiples of it for the TPU kernel
_BLOCKS = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")


def attend(
    q_BTHC: jax.Array, k_BSGC: jax.Array, v_BSGC: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Softmax attention [B, T, H*C] of grouped heads; scores and softmax in float32."""
    B, T, H, C = q_BTHC.shape
    G = k_BSGC.shape[2]
    # The query heads of a key/value head are folded into its rows: one matmul per (b, g).
    q = q_BTHC.reshape(B, T, G, H // G, C).transpose(0, 2, 3, 1, 4).reshape(B, G, -1, C)
    k, v = k_BSGC.swapaxes(1, 2), v_BSGC.swapaxes(1, 2)
    scores = jnp.einsum("bgqc,bgsc->bgqs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, G, H // G, T, -1) * C**-0.5
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], scores, _MASKED), axis=-1)
    weights = weights.astype(v.dtype).reshape(B, G, -1, weights.shape[-1])
    y = jnp.einsum("bgqs,bgsc->bgqc", weights, v).reshape(B, G, H // G, T, C)
    return y.transpose(0, 3, 1, 2, 4).reshape(B, T, H * C)


def splash(
    q_BTHC: jax.Array,
    k_BTGC: jax.Array,
    v_BTGC: jax.Array,
    segments_BT: jax.Array,
    window: int | None,
    layout: Layout,
    mask_BTS: jax.Array | None = None,
) -> jax.Array:
    """The Pallas kernel for TPUs: causal, within segments; [B, T, H*C]. Interpreted elsewhere.

    Tokens see their own segment (int32) alone, of it themselves and the window - 1 tokens before
    them in the row; or, where a mask is given, what it allows. The kernel runs on every device's
    part of rows and heads, cut as `layout` says.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel_lib,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    B, T, _, C = q_BTHC.shape
    padded = -(-T // _BLOCK) * _BLOCK
    extra = padded - T
    block = max(size for size in (128, 256, 384, 512) if padded % size == 0)

    sizes: dict[str, Any] = dict.fromkeys(_BLOCKS, block)
    make: Callable[..., Any] = functools.partial(
        kernel_lib.make_splash_mha,
        block_sizes=kernel_lib.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        interpret=layout.platform != "tpu",
    )
    shape = (padded, padded)
    if window is None or window >= T:
        in_order = masks.CausalMask(shape)
    else:
        in_order = masks.LocalMask(shape, (window - 1, 0), 0)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, *mask: Any) -> jax.Array:
        q, k, v = (
            jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))).swapaxes(1, 2)
            for x in (q * C**-0.5, k, v)
        )
        segments = jnp.pad(segments, ((0, 0), (0, extra)))
        H = q.shape[1]
        if mask:
            seen = jnp.pad(mask[0], ((0, 0), (0, extra), (0, extra)))

            def kernel(q: Any, k: Any, v: Any, segments: Any, seen_TS: jax.Array) -> jax.Array:
                made = make(jnp.tile(seen_TS[None], (H, 1, 1)))
                # The kernel asks this under jit, where it has made an array of it.
                made.fwd_mask_info = made.fwd_mask_info._replace(is_dynamic_mask=True)
                return made(q, k, v, segments)

            y = jax.vmap(kernel)(q, k, v, kernel_lib.SegmentIds(segments, segments), seen)
        else:
            kernel = make(masks.MultiHeadMask([in_order] * H))
            y = jax.vmap(kernel)(q, k, v, kernel_lib.SegmentIds(segments, segments))
        return y.swapaxes(1, 2)[:, :T].reshape(*y.shape[:1], T, -1)

    row = (segments_BT,) if mask_BTS is None else (segments_BT, mask_BTS)

    if layout.mesh is not None:
        rows = layout.spec((B,), "batch")
        heads = "kv_heads" if k_BTGC.shape[2] % layout.parts("kv_heads") == 0 else None
        q_spec = layout.spec(q_BTHC.shape, "batch", None, heads, None)
        k_spec = layout.spec(k_BTGC.shape, "batch", None, heads, None)
        run = jax.shard_map(
            run,
            mesh=layout.mesh,
            in_specs=(q_spec, k_spec, k_spec, *[rows] * len(row)),
            out_specs=PartitionSpec(*q_spec[:3]),
            check_vma=False,  # the kernel's outputs do not say how they vary over the mesh
        )
    return run(q_BTHC, k_BTGC, v_BTGC, *row)


def cudnn(
    q_BTHC: jax.Array, k_BSGC: jax.Array, v_BSGC: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """CuDNN's fused kernel for GPUs, [B, T, H*C]; bfloat16 or float16."""
    y = jax.nn.dot_product_attention(
        q_BTHC, k_BSGC, v_BSGC, mask=mask_BTS[:, None], implementation="cudnn"
    )
    return y.reshape(*y.shape[:2], -1)


def for_rows(
    name: str,
    layout: Layout,
    mask_BTS: jax.Array,
    segments_BT: jax.Array,
    window: int | None,
    in_order: bool = True,
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The attention of that name (`ModelConfig.attention`) over whole rows.

    `in_order` says that no token sees what follows it, which the mask shows too.
    """
    if name == "splash":
        mask = None if in_order else mask_BTS
        return functools.partial(
            splash, segments_BT=segments_BT, window=window, layout=layout, mask_BTS=mask
        )
    return functools.partial({"xla": attend, "cudnn": cudnn}[name], mask_BTS=mask_BTS)


ATTENTIONS = ("xla", "splash", "cudnn")
