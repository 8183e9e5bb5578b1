"""CLaRa as pure functions over explicit trees: compress, and read memories in place of text.

`trees` is one flat dictionary:

    base        weights of the frozen LLM (models/decoder.py)
    compressor  adapter that turns a document into memory vectors   } absent or None:
    generator   adapter that reads memory vectors and answers       } the plain base
    memory      embeddings [M, D] of the memory tokens
    pool        [D, D], the map of pooled memories, where memories are pooled
    added       {"embed": [3, D]} embeddings of AE, ENC, SEP; {"head": [D, M + 3]} only for
                checkpoints of the release, which score the added tokens too
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.models import decoder as decoder_lib
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import Cache, Decoder

Array = jax.Array | np.ndarray
C = TypeVar("C", Cache, None)
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


def embed(config: ModelConfig, trees: Trees, tokens: Array) -> jax.Array:
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
    cache: C = None,
    rng: jax.Array | None = None,
) -> tuple[jax.Array, C]:
    """The base with the adapter of `role`; `rng` switches adapter dropout on. See `Decoder`."""
    row = x_BTD, positions_BT, segments_BT, cache
    result: Any = decoder.apply(_variables(trees, role), *row, rngs=_rngs(rng))
    return result


def _variables(trees: Trees, role: str | None) -> dict[str, Any]:
    adapter = None if role is None else trees.get(role)
    return {"params": trees["base"], **({} if adapter is None else {"lora": adapter})}


def _rngs(rng: jax.Array | None) -> dict[str, jax.Array] | None:
    return None if rng is None else {"dropout": rng}


@dataclasses.dataclass(frozen=True)
class MemoryLayout:
    """Where in a text's row the memory vectors come from (`config.memory`)."""

    count: int  # M, vectors of a text
    # `tokens`: states at memory tokens after the text (paper); `pool`: means of the text's states
    kind: str = "tokens"
    # whom the encoder's tokens attend to beside those before them: `memories`, memory tokens each
    # other; `all`, every token its whole text
    sees: str = "before"
    spread: bool = False  # rotary positions of memory tokens are spread over their text

    @property
    def pools(self) -> bool:
        """The row holds no memory tokens."""
        return self.kind == "pool"

    @property
    def is_papers(self) -> bool:
        """As in the paper and the release, wherever memory tokens are thought to be."""
        return (self.kind, self.sees) == ("tokens", "before")


def encode(
    decoder: Decoder,
    trees: Trees,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    layout: MemoryLayout,
    role: str = "compressor",
    rng: jax.Array | None = None,
) -> jax.Array:
    """States [B, T, D] after the final norm, of which `memories` takes the memory vectors.

    Without pooling those at memory tokens, as they are: no scale or further norm (release, golden
    point 2). The paper and the release count the positions of memory tokens on after the text;
    spread evenly over it, each is near the part that it is to hold. With pooling each state is the
    mean over its window of the text (2510.20797).
    """
    if layout.spread:
        positions_BT = spread_positions(decoder.config, trees, tokens_BT, positions_BT)
    both_BT = both_ways(decoder.config, layout, tokens_BT, segments_BT)
    with jax.named_scope("encode"):
        x_BTD = embed(decoder.config, trees, tokens_BT)
        row = x_BTD, positions_BT, segments_BT, None, both_BT
        hidden_BTD, _ = decoder.apply(_variables(trees, role), *row, rngs=_rngs(rng))
        return pooled(hidden_BTD, positions_BT, segments_BT, layout) if layout.pools else hidden_BTD


def both_ways(
    config: ModelConfig, layout: MemoryLayout, tokens_BT: jax.Array, segments_BT: jax.Array
) -> jax.Array | None:
    """The encoder's tokens that see each other both ways, bool [B, T]; None where none does."""
    if layout.sees == "before":
        return None
    if layout.sees == "all":
        return segments_BT > 0
    j_BT = tokens_BT - config.vocab_size
    return (j_BT >= 0) & (j_BT < layout.count)


def pooled(
    hidden_BTD: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array, layout: MemoryLayout
) -> jax.Array:
    """The mean [B, T, D] of each token's window, of which a text of L tokens has min(M, L).

    Token t of a text is in window floor(t M / L); of a text of fewer than M tokens every token is
    a window.
    """
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    length_BT = same_BTT.sum(-1)
    window_BT = positions_BT * layout.count // length_BT
    member_BTT = same_BTT & (window_BT[:, :, None] == window_BT[:, None, :])
    weight_BTT = member_BTT / member_BTT.sum(-1, keepdims=True)
    return jnp.einsum("bts,bsd->btd", weight_BTT.astype(hidden_BTD.dtype), hidden_BTD)


def memories(trees: Trees, hidden_BTD: jax.Array, places_BSM: jax.Array) -> jax.Array:
    """Memory vectors [B, S, M, D] of the S texts of a row, from the states at their places.

    Pooled ones go through the trained map `pool`, which starts as the identity.
    """
    B, S, M = places_BSM.shape
    vectors = jnp.take_along_axis(hidden_BTD, places_BSM.reshape(B, S * M, 1), axis=1)
    if "pool" in trees:
        vectors = vectors @ trees["pool"].astype(vectors.dtype)
    return vectors.reshape(B, S, M, -1)


def every_rate(memories_BSMD: jax.Array, counts: Sequence[int]) -> jax.Array:
    """Memories [B, S, P, D] at several rates one after the other; P is the sum of the counts.

    A coarser memory is the mean of neighbours in the finest one, whose M each count divides.
    """
    B, S, M, D = memories_BSMD.shape
    if tuple(counts) == (M,):
        return memories_BSMD
    of_rate = [memories_BSMD.reshape(B, S, n, M // n, D).mean(3) for n in counts]
    return jnp.concatenate(of_rate, axis=2)


def spread_positions(
    config: ModelConfig, trees: Trees, tokens_BT: jax.Array, positions_BT: jax.Array
) -> jax.Array:
    """Positions with memory token j of M at (j + 1/2) / M of its document, int32 [B, T]."""
    memory_tokens = trees["memory"].shape[0]
    j_BT = tokens_BT - config.vocab_size
    length_BT = positions_BT - j_BT  # of the document before, since memory tokens count on after it
    spread_BT = (2 * j_BT + 1) * length_BT // (2 * memory_tokens)
    return jnp.where((j_BT >= 0) & (j_BT < memory_tokens), spread_BT, positions_BT)


def fill_slots(x_BTD: jax.Array, vectors_BSD: Array, slots_BT: Array) -> jax.Array:
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
