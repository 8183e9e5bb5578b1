"""What the devices run for the server: read a prompt into a slot, and a token more for all slots.

A slot is a row of one cache. Its columns are the prompt's first, then a ring of as many as an
answer may have tokens. All slots write a step's keys into the same column of the ring, whenever
each of them began: positions say what a column holds, and a row never writes more than the ring.
So a step updates the cache in place, in one shape.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from clara_jax import sharding
from clara_jax.errors import UserError
from clara_jax.inference import decoding
from clara_jax.inference.decoding import DecodingState
from clara_jax.inference.generate import BUCKET, needed
from clara_jax.inference.sampling import GREEDY, Draws, Sampling
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import EMPTY, Cache, Decoder
from clara_jax.models.layers import crosses
from clara_jax.runs.setup import Model

ROLE = "generator"


def _empty_slots(decoder: Decoder, slots: int, first: int, ring: int) -> DecodingState:
    """Slots that hold nothing, with a ring of columns from `first` on."""
    tokens_B, positions_B = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.int32)
    cache = Cache.create(decoder.config, slots, first + ring)
    draws = jax.tree.map(jnp.asarray, Draws.create(GREEDY, slots))
    return DecodingState(tokens_B, positions_B, draws, cache.replace(length=jnp.int32(first)))


def _read_prefix(decoder: Decoder, trees: Trees, tokens_1T: jax.Array) -> Cache:
    """Keys and values of the tokens that all prompts start with."""
    T = tokens_1T.shape[1]
    cache = Cache.create(decoder.config, 1, T)
    if not T:
        return cache
    x_1TD = clara.embed(decoder.config, trees, tokens_1T)
    return clara.run(decoder, trees, ROLE, x_1TD, jnp.arange(T)[None], cache=cache)[1]


def _prefill(
    decoder: Decoder,
    trees: Trees,
    prefix: Cache,
    slots: DecodingState,
    table_RMD: jax.Array,
    slot: jax.Array,
    prompt: tuple[jax.Array, jax.Array, jax.Array],
    draws: Draws,
) -> tuple[DecodingState, jax.Array]:
    """Reads what follows the prefix into a slot: all slots, and its first token int32 [1]."""
    # Tokens; of the table's R * M vectors, those whose means fill places (-1 elsewhere), both
    # padded on the right; and how many are no padding.
    tokens_1T, vectors_1TF, length_1 = prompt
    x_1TD = clara.embed(decoder.config, trees, tokens_1T)
    vectors_XD = table_RMD.reshape(-1, table_RMD.shape[2])
    means_1TD = vectors_XD[jnp.maximum(vectors_1TF, 0)].mean(2).astype(x_1TD.dtype)
    x_1TD = jnp.where(vectors_1TF[..., :1] >= 0, means_1TD, x_1TD)
    cache = prefix.grow(tokens_1T.shape[1])
    row = decoding.prefill(decoder, trees, ROLE, x_1TD, length_1, cache, draws)

    def put(array: jax.Array, part: jax.Array, axis: int = 0) -> jax.Array:
        part = part.astype(array.dtype)
        return jax.lax.dynamic_update_slice_in_dim(array, part, slot, axis)

    # Columns after the prompt keep their old keys, and lose their positions.
    after = jnp.full((1, slots.cache.slots - row.cache.slots), EMPTY, jnp.int32)
    positions_1S = jnp.concatenate([row.cache.positions_BS, after], axis=1)
    cache = slots.cache.replace(
        k=put(slots.cache.k, row.cache.k, 1),
        v=put(slots.cache.v, row.cache.v, 1),
        positions_BS=put(slots.cache.positions_BS, positions_1S),
    )
    slots = DecodingState(
        put(slots.tokens_B, row.tokens_B),
        put(slots.positions_B, row.positions_B),
        jax.tree.map(put, slots.draws, row.draws),
        cache,
    )
    return slots, row.tokens_B


def _step(
    decoder: Decoder, trees: Trees, slots: DecodingState, first: int
) -> tuple[DecodingState, jax.Array]:
    """One more token for every slot: all slots, and its tokens int32 [B]."""
    slots = decoding.advance(decoder, trees, ROLE, slots)
    length = slots.cache.length  # the ring's next column, whose first is `first`
    column = jnp.where(length == slots.cache.slots, first, length)
    return slots.replace(cache=slots.cache.replace(length=column)), slots.tokens_B


class Slots:
    """The slots on the devices, and the compiled programs.

    Args:
        model: the model.
        trees: its weights.
        prefix: ids that all prompts start with.
        slots: B.
        prompt_tokens: most tokens of a prompt after the prefix.
        max_new_tokens: most tokens of an answer.

    Raises:
        UserError: an answer could grow over the length at which the rotary frequencies change.
    """

    def __init__(
        self,
        model: Model,
        trees: Trees,
        prefix: Sequence[int],
        slots: int,
        prompt_tokens: int,
        max_new_tokens: int,
    ):
        self.prefix, self.count = list(prefix), slots
        self.buckets = buckets(prompt_tokens)
        first = len(self.prefix) + self.buckets[-1]
        if crosses(model.architecture, len(self.prefix), first + max_new_tokens):
            raise UserError(
                f"config.serve.prompt_tokens={prompt_tokens} and max_new_tokens={max_new_tokens} "
                "cross the length at which this model's rotary frequencies change; make them less"
            )
        decoder, whole = model.decoder, sharding.replicated(model.mesh)
        self._model, self._trees = model, needed(trees, ROLE)
        make = functools.partial(_empty_slots, decoder, slots, first, max_new_tokens)
        shapes = jax.eval_shape(make)
        sharding.check_memory(
            shapes,
            f"config.serve.slots={slots} with prompt_tokens={prompt_tokens} and "
            f"max_new_tokens={max_new_tokens}",
        )
        # Where results are stored is fixed, so that the next call finds its arguments as the first.
        stored = jax.tree.map(lambda x: whole, shapes)
        spec = decoder.layout.spec(shapes.cache.k.shape, None, "batch", "kv_heads", None, None)
        kv = NamedSharding(model.mesh, spec)
        stored = stored.replace(cache=stored.cache.replace(k=kv, v=kv))
        self._state = jax.jit(make, out_shardings=stored)()
        read = jax.jit(functools.partial(_read_prefix, decoder), out_shardings=whole)
        self._prefix = read(self._trees, np.array([self.prefix], np.int32))
        self._prefill = jax.jit(
            functools.partial(_prefill, decoder), donate_argnums=2, out_shardings=(stored, whole)
        )
        self._step = jax.jit(
            functools.partial(_step, decoder, first=first),
            donate_argnums=1,
            out_shardings=(stored, whole),
        )

    def too_long(self, ids: Sequence[int]) -> int:
        """How many tokens too long a prompt is, 0 or less if it fits."""
        return len(ids) - len(self.prefix) - self.buckets[-1]

    def prefill(
        self,
        slot: int,
        ids: Sequence[int],
        places: Sequence[int],
        table_RMD: jax.Array,
        sampling: Sampling = GREEDY,
    ) -> jax.Array:
        """Reads a prompt into a slot; the first token, int32 [1], to come.

        Args:
            slot: which.
            ids: the prompt, the prefix included.
            places: of the table, whose memories fill the prompt's slots in their order.
            table_RMD: memories on the device.
            sampling: of the answer.
        """
        tokens = np.asarray(ids[len(self.prefix) :], np.int32)
        vectors = self._vectors(tokens, places)
        padding = next(size for size in self.buckets if size >= len(tokens)) - len(tokens)
        tokens_1T = np.pad(tokens, (0, padding))[None]
        vectors_1TF = np.pad(vectors, ((0, padding), (0, 0)), constant_values=-1)[None]
        prompt = tokens_1T, vectors_1TF, np.array([len(tokens)], np.int32)
        draws = Draws.create(sampling, 1)
        self._state, token_1 = self._prefill(
            self._trees, self._prefix, self._state, table_RMD, np.int32(slot), prompt, draws
        )
        return token_1

    def step(self) -> jax.Array:
        """One more token for every slot, int32 [B], to come."""
        self._state, tokens_B = self._step(self._trees, self._state)
        return tokens_B

    def warm_up(self, table_RMD: jax.Array) -> None:
        """Compiles all there is to compile."""
        for bucket in self.buckets:
            for count in self._model.config.vectors or (0,):
                self.rehearse(table_RMD, bucket, 1, count)

    def rehearse(self, table_RMD: jax.Array, bucket: int, tokens: int, count: int = 0) -> None:
        """Reads a prompt with `count` vectors of a document and decodes, as a request would."""
        slots = self._model.extra.memory[:count]
        ids = [*slots, *[0] * bucket][: max(bucket, count)]
        self.prefill(0, [*self.prefix, *ids], (0,) if count else (), table_RMD)
        for _ in range(tokens):
            jax.block_until_ready(self.step())

    def _vectors(self, tokens: np.ndarray, places: Sequence[int]) -> np.ndarray:
        """Which of the table's vectors, M a place, fill each token's slot; [T, F], -1 elsewhere.

        Where the prompt's rate is higher than the memories', F neighbours share a slot.
        """
        M = self._model.extra.memory_tokens
        slots = np.flatnonzero(self._model.extra.is_memory(tokens))
        own = np.array(places, np.int32)[:, None] * M + np.arange(M, dtype=np.int32)[None]
        each, more = divmod(len(slots), max(len(places), 1))
        if more or (M % each if each else len(places)):
            raise ValueError(f"a prompt has {len(slots)} slots for {len(places)} documents")
        shared = M // each if each else 1
        vectors = np.full((len(tokens), shared), -1, np.int32)
        vectors[slots] = own.reshape(-1, shared)
        return vectors


def buckets(longest: int) -> list[int]:
    """Lengths that prompts are padded to, up to one that holds `longest`.

    Multiples of BUCKET, in steps of at least an eighth of the length: padding stays below that.
    """
    lengths = [BUCKET]
    while lengths[-1] < longest:
        lengths.append(lengths[-1] + max(1, lengths[-1] // (8 * BUCKET)) * BUCKET)
    return lengths


def prompt_ids(model: Model, question: str, documents: int) -> list[int]:
    """The prompt of a question and a number of compressed documents."""
    return model.layout.answer_prompt(model.layout.slots(documents), question)[0]


def common_prefix(model: Model) -> list[int]:
    """What the prompts of all questions start with: all that comes before the first memory."""
    ids = prompt_ids(model, "?", 1)
    return ids[: ids.index(model.extra.memory[0])]
