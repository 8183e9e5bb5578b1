"""Texts that follow prompts of text and of memory vectors.

Prompts are padded to a bucket of lengths and batches to a fixed number of rows, so that few shapes
are compiled.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from clara_jax import sharding
from clara_jax.errors import UserError
from clara_jax.inference import decoding
from clara_jax.inference.decoding import DecodingState
from clara_jax.inference.sampling import Draws, GenerationOptions, before_stop, stop_ids
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.config import ExtraTokens, ModelConfig
from clara_jax.models.decoder import Cache, Decoder
from clara_jax.models.layers import crosses
from clara_jax.runs.setup import Model

BUCKET = 64  # lengths of prompts are rounded up to multiples of it
NONE = -1  # stands after the end of a generated row


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt."""

    tokens: Sequence[int]  # ids; those of memory tokens are slots
    # [S, D], what fills the slots, in order; None if there is no slot
    vectors: np.ndarray | None = None


class PromptBatch(flax.struct.PyTreeNode):
    """Prompts as arrays."""

    tokens_BT: jax.Array | np.ndarray  # int32, 0 at the padding, which is on the right
    lengths_B: jax.Array | np.ndarray  # int32, 0 for rows that only fill the batch
    # int32, which of the row's vectors fills this slot; -1 elsewhere
    slots_BT: jax.Array | np.ndarray
    vectors_BSD: jax.Array | np.ndarray | None  # float32, or None if no prompt has a slot

    def positions(self) -> jax.Array:
        """Int32 [B, T], EMPTY at the padding."""
        return decoding.positions(self.lengths_B, self.tokens_BT.shape[1])

    def embed(self, config: ModelConfig, trees: Trees) -> jax.Array:
        """Input embeddings [B, T, D], memory vectors at their slots."""
        x_BTD = clara.embed(config, trees, self.tokens_BT)
        if self.vectors_BSD is None:
            return x_BTD
        return clara.fill_slots(x_BTD, self.vectors_BSD, self.slots_BT)


class Unfinished(flax.struct.PyTreeNode):
    """What the decoding loop carries."""

    step: jax.Array  # int32 scalar, tokens chosen so far
    tokens_BN: jax.Array  # int32, the tokens chosen, NONE after a row's end
    done_B: jax.Array  # bool, rows that have chosen a stop token or only fill the batch
    rows: DecodingState  # their cache and newest tokens; those of rows that are done mean nothing

    def append(self, rows: DecodingState, stop_V: jax.Array) -> "Unfinished":
        """Adds the newest token of each row that is not done."""
        kept_B1 = jnp.where(self.done_B, NONE, rows.tokens_B)[:, None]
        return Unfinished(
            step=self.step + 1,
            tokens_BN=jax.lax.dynamic_update_slice(self.tokens_BN, kept_B1, (0, self.step)),
            done_B=self.done_B | stop_V[rows.tokens_B],
            rows=rows,
        )


@functools.partial(jax.jit, static_argnames=("decoder", "role", "max_new_tokens"))
def decode(
    decoder: Decoder,
    trees: Trees,
    batch: PromptBatch,
    stop_V: jax.Array,
    draws: Draws | None = None,
    *,
    role: str | None,
    max_new_tokens: int,
) -> jax.Array:
    """A token after each prompt, again and again.

    Args:
        decoder: the module.
        trees: base, memory, added, and the adapter of `role` (see `needed`).
        batch: prompts.
        stop_V: bool, tokens that end a row, over all ids that have a logit.
        draws: how tokens are drawn; None takes the likeliest.
        role: adapter to use; None: the plain base.
        max_new_tokens: N, most tokens of a row.

    Returns:
        Int32 [B, N], NONE after the stop token, which is included.
    """
    with jax.named_scope("prefill"):
        state = prefill(decoder, trees, batch, stop_V, draws, role, max_new_tokens)
    with jax.named_scope("decode"):
        state = jax.lax.while_loop(
            lambda state: (state.step < max_new_tokens) & ~state.done_B.all(),
            lambda state: advance(decoder, trees, state, stop_V, role),
            state,
        )
    return state.tokens_BN


def prefill(
    decoder: Decoder,
    trees: Trees,
    batch: PromptBatch,
    stop_V: jax.Array,
    draws: Draws | None,
    role: str | None,
    max_new_tokens: int,
) -> Unfinished:
    """Reads the prompts and chooses each row's first token; arguments as of `decode`."""
    B, T = batch.tokens_BT.shape
    x_BTD = batch.embed(decoder.config, trees)
    cache = Cache.create(decoder.config, B, T)
    rows = decoding.prefill(decoder, trees, role, x_BTD, batch.lengths_B, cache, draws)
    tokens_BN = jnp.full((B, max_new_tokens), NONE, jnp.int32)
    state = Unfinished(jnp.zeros((), jnp.int32), tokens_BN, batch.lengths_B == 0, rows)
    return state.append(rows.replace(cache=rows.cache.grow(max_new_tokens - 1)), stop_V)


def advance(
    decoder: Decoder, trees: Trees, state: Unfinished, stop_V: jax.Array, role: str | None
) -> Unfinished:
    """One more token for every row; arguments as of `decode`."""
    return state.append(decoding.advance(decoder, trees, role, state.rows), stop_V)


@dataclasses.dataclass(frozen=True)
class Generation:
    """What followed one prompt."""

    tokens: list[int]  # ids, the stop token included
    text: str  # decoded, up to the first stop text


def generate(
    model: Model,
    trees: Trees,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    *,
    role: str | None = "generator",
    batch: int = 16,
    report: Callable[[int], None] = lambda rows: None,
) -> list[Generation]:
    """Decodes until the end token, a stop text, or `options.max_new_tokens`.

    Args:
        model: the model.
        trees: its weights.
        prompts: any number of them.
        options: how each text is generated. A stop text that no single token holds does not save
            work, but the text still ends before it. A prompt's draws depend on its position.
        role: adapter to use; None: the plain base.
        batch: most rows at once.
        report: called with the number of prompts finished after each batch.

    Raises:
        UserError: an answer may grow over the length at which the model changes its rotary
            frequencies.
    """
    decoder, trees = model.decoder, needed(trees, role)
    max_new_tokens, stops = options.max_new_tokens, options.stop
    for length in {len(prompt.tokens) for prompt in prompts}:
        # The newest token of all has no key yet.
        if edge := crosses(model.architecture, length, length + max_new_tokens - 1):
            raise UserError(
                f"max_new_tokens={max_new_tokens} after a prompt of {length} tokens crosses "
                f"{edge}, the length at which this model's rotary frequencies change: ask for at "
                f"most {edge - length + 1} new tokens, or give a prompt of more than {edge}"
            )
    _check_memory(model, prompts, max_new_tokens, batch)
    size = model.architecture.vocab_size
    if "head" in trees["added"]:
        size += trees["added"]["head"].shape[1]
    stop_V = np.zeros(size, bool)
    stop_V[stop_ids(model.tokenizer, stops)] = True
    out: dict[int, Generation] = {}
    for index, arrays in prompt_batches(prompts, model.extra, batch):
        greedy = options.sampling.temperature == 0
        draws = None if greedy else Draws.create(options.sampling, len(arrays.tokens_BT), index)
        tokens_BN = decode(
            decoder,
            trees,
            put(model, arrays),
            stop_V,
            draws,
            role=role,
            max_new_tokens=max_new_tokens,
        )
        for i, row in zip(index, to_host(model, tokens_BN).tolist(), strict=False):
            tokens = [token for token in row if token != NONE]
            out[i] = Generation(tokens, before_stop(model.tokenizer.decode(tokens), stops))
        report(len(index))
    return [out[i] for i in range(len(prompts))]


def _check_memory(model: Model, prompts: Sequence[Prompt], max_new_tokens: int, batch: int) -> None:
    """Refuses prompts or answers whose cache, or scores of the attention, no device could hold."""
    own, B = model.architecture, rows_for(len(prompts), batch)
    T = max((len(prompt.tokens) for prompt in prompts), default=0)
    width = 2 * own.n_layers * own.n_kv_heads * own.head_dim
    arrays = [jax.ShapeDtypeStruct((B, T + max_new_tokens, width), jnp.dtype(own.dtype))]
    if own.attention == "xla":
        arrays.append(jax.ShapeDtypeStruct((B, own.n_heads, T, T), np.float32))
    sharding.check_memory(arrays, f"a prompt of {T} tokens with {max_new_tokens} new ones")


def prompt_batches(
    prompts: Sequence[Prompt], extra: ExtraTokens, batch: int
) -> Iterator[tuple[list[int], PromptBatch]]:
    """Batches of prompts of similar length, in numpy.

    Args:
        prompts: any number of them.
        extra: ids beyond the vocabulary.
        batch: rows of a batch; fewer prompts than that are filled up to a power of two only.

    Yields:
        Which prompts the first rows hold, and the arrays.
    """
    rows = rows_for(len(prompts), batch)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    width = max((len(p.vectors) for p in prompts if p.vectors is not None), default=0)
    for start in range(0, len(prompts), rows):
        index = by_length[start : start + rows]
        length = -(-len(prompts[index[-1]].tokens) // BUCKET) * BUCKET
        tokens, slots = np.zeros((rows, length), np.int32), np.full((rows, length), -1, np.int32)
        lengths, vectors = np.zeros(rows, np.int32), None
        for row, i in enumerate(index):
            ids, filling = np.asarray(prompts[i].tokens, np.int32), prompts[i].vectors
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            places = np.flatnonzero(extra.is_memory(ids))
            given = 0 if filling is None else len(filling)
            if len(places) != given:
                raise ValueError(f"a prompt has {len(places)} slots for {given} vectors")
            slots[row, places] = np.arange(len(places))
            if filling is not None:
                if vectors is None:
                    vectors = np.zeros((rows, width, filling.shape[1]), np.float32)
                vectors[row, : len(filling)] = filling
        yield index, PromptBatch(tokens, lengths, slots, vectors)


def rows_for(examples: int, batch: int) -> int:
    """Rows of a batch for few examples: a power of two, `batch` at most."""
    return min(batch, 1 << max(examples - 1, 0).bit_length())


def needed(trees: Trees, role: str | None) -> Trees:
    """The trees that a pass with this role reads; passing on others would only add arguments."""
    return {k: v for k, v in trees.items() if k in ("base", "memory", "pool", "added", role)}


def put(model: Model, tree: PromptBatch | np.ndarray) -> Any:
    """Numpy arrays onto the mesh: sharded by rows where these divide, else replicated."""
    rows = jax.tree.leaves(tree)[0].shape[0]
    shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    layout = sharding.replicated if rows % shards else sharding.batch_sharding
    return sharding.put_whole(layout(model.mesh), tree)


def to_host(model: Model, array: jax.Array) -> np.ndarray:
    """All of an array, whichever devices and processes hold it."""
    return np.asarray(jax.device_put(array, sharding.replicated(model.mesh)))
