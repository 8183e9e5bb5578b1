"""Decoding with a KV cache on the devices: a prompt for each row, then a token at a time.

Prompts are padded on the right. A padding slot has the position EMPTY in the cache, which nothing
attends to, and a row's new tokens count on from its own length.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.inference.sampling import Draws
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import EMPTY, Cache, Decoder, head_logits


class DecodingState(flax.struct.PyTreeNode):
    """Rows that are being decoded."""

    # int32, the newest token of each row, whose keys the cache does not hold yet
    tokens_B: jax.Array
    positions_B: jax.Array  # int32, its position
    draws: Draws | None  # of the next tokens; None takes the likeliest
    cache: Cache  # keys and values of all tokens before; its `length` is where the next ones go


def prefill(
    decoder: Decoder,
    trees: Trees,
    role: str | None,
    x_BTD: jax.Array,
    lengths_B: jax.Array | np.ndarray,
    cache: Cache,
    draws: Draws | None = None,
) -> DecodingState:
    """Reads prompts and chooses each row's first token.

    Args:
        decoder: the module.
        trees: base, memory, added, and the adapter of `role`.
        role: adapter to use; None: the plain base.
        x_BTD: input embeddings of the prompts.
        lengths_B: int32, tokens of each that are no padding.
        cache: what all prompts start with, and T slots more.
        draws: how tokens are drawn; None takes the likeliest.
    """
    T = x_BTD.shape[1]
    start = cache.slots - T
    positions_BT = positions(lengths_B, T, start)
    hidden_BTD, cache = clara.run(decoder, trees, role, x_BTD, positions_BT, cache=cache)
    last_B = jnp.maximum(lengths_B - 1, 0)
    hidden_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    tokens_B, draws = _choose(decoder.config, trees, hidden_BD, draws)
    return DecodingState(tokens_B, jnp.asarray(lengths_B) + start, draws, cache)


def advance(
    decoder: Decoder, trees: Trees, role: str | None, state: DecodingState
) -> DecodingState:
    """One more token for every row; arguments as of `prefill`."""
    x_B1D = clara.embed(decoder.config, trees, state.tokens_B[:, None])
    positions_B1 = state.positions_B[:, None]
    hidden_B1D, cache = clara.run(decoder, trees, role, x_B1D, positions_B1, cache=state.cache)
    tokens_B, draws = _choose(decoder.config, trees, hidden_B1D[:, 0], state.draws)
    return DecodingState(tokens_B, state.positions_B + 1, draws, cache)


def positions(lengths_B: jax.Array | np.ndarray, columns: int, start: int = 0) -> jax.Array:
    """Int32 [B, T] of prompts whose first token is at `start`, EMPTY at the padding."""
    column_T = jnp.arange(columns, dtype=jnp.int32)[None]
    return jnp.where(column_T < lengths_B[:, None], start + column_T, EMPTY)


def _choose(
    config: ModelConfig, trees: Trees, hidden_BD: jax.Array, draws: Draws | None
) -> tuple[jax.Array, Draws | None]:
    logits_BV = head_logits(config, trees["base"], hidden_BD, trees["added"].get("head"))
    if draws is not None:
        return draws.tokens(logits_BV)
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), None
