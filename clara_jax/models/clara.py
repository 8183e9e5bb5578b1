"""CLaRa as pure functions over explicit trees: compress, and read memories in place of text.

`trees` is one flat dictionary:

    base        weights of the frozen LLM (models/decoder.py)
    compressor  adapter that turns a document into memory vectors   } absent or None:
    generator   adapter that reads memory vectors and answers       } the plain base
    memory      embeddings [M, D] of the memory tokens
    added       {"embed": [3, D]} embeddings of AE, ENC, SEP; {"head": [D, M + 3]} only for
                checkpoints of the release, which score the added tokens too
"""

from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.models import decoder as decoder_lib
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import Cache, Decoder

Trees = dict[str, Any]
Batch = dict[str, jax.Array]


def init_memory(
    params: Any, memory_tokens: int, rng: jax.Array, init: str = "mean", noise: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Embeddings of the tokens beyond the base vocabulary.

    Args:
        params: base weights.
        memory_tokens: M.
        rng: generator for `tokens` and for the noise.
        init: `mean`, all at the mean of the base's embeddings as in the release, where position
            alone tells memory tokens apart at first; or `tokens`, each a random token's embedding.
        noise: standard deviation of what is added, in units of the base embeddings' own.

    Returns:
        Memory embeddings [M, D] in float32 and `added` {"embed": [3, D]} for AE, ENC, SEP.
    """
    table = params["embed"]["embedding"].astype(jnp.float32)
    mean_D = table.mean(0)
    rng_rows, rng_noise = jax.random.split(rng)
    if init == "tokens":
        memory = table[jax.random.choice(rng_rows, table.shape[0], (memory_tokens,))]
    else:
        memory = jnp.tile(mean_D[None], (memory_tokens, 1))
    if noise:
        memory += noise * table.std() * jax.random.normal(rng_noise, memory.shape)
    return memory, {"embed": jnp.tile(mean_D[None], (3, 1))}


def embed(config: ModelConfig, trees: Trees, tokens: jax.Array) -> jax.Array:
    """Input embeddings [..., D] of tokens [...], added tokens included (`ExtraTokens`)."""
    table = jnp.concatenate([trees["memory"], trees["added"]["embed"]])
    extra = table.astype(jnp.dtype(config.dtype))[jnp.maximum(tokens - config.vocab_size, 0)]
    base = decoder_lib.embed(config, trees["base"], jnp.minimum(tokens, config.vocab_size - 1))
    return jnp.where((tokens < config.vocab_size)[..., None], base, extra)


def run(
    decoder: Decoder,
    trees: Trees,
    role: str | None,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    cache: Cache | None = None,
    rng: jax.Array | None = None,
) -> tuple[jax.Array, Cache | None]:
    """The base with the adapter of `role`; `rng` switches adapter dropout on. See `Decoder`."""
    variables = {"params": trees["base"]}
    if role is not None and trees.get(role) is not None:
        variables["lora"] = trees[role]
    rngs = None if rng is None else {"dropout": rng}
    return decoder.apply(variables, x_BTD, positions_BT, segments_BT, cache, rngs=rngs)


def encode(
    decoder: Decoder,
    trees: Trees,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    role: str = "compressor",
    rng: jax.Array | None = None,
    spread: bool = False,
) -> jax.Array:
    """Hidden states [B, T, D] after the final norm; those at memory tokens are the memory vectors.

    Used as they are: no projection, scale or further norm (release, golden point 2). With `spread`
    the rotary positions of the memory tokens are spread evenly over the document that they follow,
    so that each is near the part it is to hold; the paper and the release count on after it.
    """
    if spread:
        positions_BT = spread_positions(decoder.config, trees, tokens_BT, positions_BT)
    with jax.named_scope("encode"):
        x_BTD = embed(decoder.config, trees, tokens_BT)
        return run(decoder, trees, role, x_BTD, positions_BT, segments_BT, rng=rng)[0]


def spread_positions(
    config: ModelConfig, trees: Trees, tokens_BT: jax.Array, positions_BT: jax.Array
) -> jax.Array:
    """Positions with memory token j of M at (j + 1/2) / M of its document, int32 [B, T]."""
    memory_tokens = trees["memory"].shape[0]
    j_BT = tokens_BT - config.vocab_size
    length_BT = positions_BT - j_BT  # of the document before, since memory tokens count on after it
    spread_BT = (2 * j_BT + 1) * length_BT // (2 * memory_tokens)
    return jnp.where((j_BT >= 0) & (j_BT < memory_tokens), spread_BT, positions_BT)


def memory_vectors(
    config: ModelConfig, trees: Trees, hidden_BTD: jax.Array, tokens_BT: jax.Array
) -> jax.Array:
    """Memory vectors [B, M, D] of rows that hold one document each."""
    memory_tokens = trees["memory"].shape[0]
    first_B = jnp.argmax(tokens_BT == config.vocab_size, axis=1)
    index_BM = first_B[:, None] + jnp.arange(memory_tokens)[None]
    return jnp.take_along_axis(hidden_BTD, index_BM[..., None], axis=1)


def fill_slots(x_BTD: jax.Array, vectors_BSD: jax.Array, slots_BT: jax.Array) -> jax.Array:
    """Replaces x_BTD[b, t] by vectors_BSD[b, slots_BT[b, t]] where the slot is not -1."""
    index = jnp.maximum(slots_BT, 0)[..., None]
    filled = jnp.take_along_axis(vectors_BSD, index, axis=1).astype(x_BTD.dtype)
    return jnp.where((slots_BT >= 0)[..., None], filled, x_BTD)


def generate_hidden(
    decoder: Decoder,
    trees: Trees,
    batch: Batch,
    vectors_BSD: jax.Array,
    rng: jax.Array | None = None,
) -> jax.Array:
    """The generator's hidden states [B, T, D] over prompts whose slots are filled with memories.

    `batch` has dec_tokens, dec_positions, dec_segments and dec_slots, each int32 [B, T]; the last
    indexes `vectors_BSD`, such as the encoder's hidden states of the same row. `rng` switches
    adapter dropout on.
    """
    with jax.named_scope("generate"):
        x_BTD = embed(decoder.config, trees, batch["dec_tokens"])
        x_BTD = fill_slots(x_BTD, vectors_BSD, batch["dec_slots"])
        positions, segments = batch["dec_positions"], batch["dec_segments"]
        return run(decoder, trees, "generator", x_BTD, positions, segments, rng=rng)[0]
