"""What the devices run for the server: read a prompt into a slot, and a token more for all slots.

A slot is a row of one cache. Its columns are the prompt's first, then a ring of as many as an
answer may have tokens. All slots write a step's keys into the same column of the ring, whenever
each of them began: positions say what a column holds, and a row never writes more than the ring.
So a step updates the cache in place, in one shape.
"""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from clara_jax import sharding
from clara_jax.errors import UserError
from clara_jax.inference.generate import BUCKET, needed
from clara_jax.inference.sampling import Draws
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import EMPTY, Cache, Decoder, head_logits
from clara_jax.models.layers import crosses
from clara_jax.runs.setup import Model

ROLE = "generator"


@flax.struct.dataclass
class Choice:
    """How each row's next token is chosen, as `Sampling` of a single prompt.

    Attributes:
        temperature_B: float32, 0 takes the likeliest.
        top_p_B: float32.
        seed_B: uint32.
        drawn_B: int32, tokens chosen so far.
    """

    temperature_B: jax.Array | np.ndarray
    top_p_B: jax.Array | np.ndarray
    seed_B: jax.Array | np.ndarray
    drawn_B: jax.Array | np.ndarray

    @classmethod
    def create(cls, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> "Choice":
        """Of one row, in numpy."""
        values = (temperature, np.float32), (top_p, np.float32), (seed, np.uint32), (0, np.int32)
        return cls(*(np.array([value], dtype) for value, dtype in values))

    def tokens(self, logits_BV: jax.Array) -> jax.Array:
        """Int32 [B], the next tokens."""
        best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

        def draw(logits_BV: jax.Array) -> jax.Array:
            def one(logits_V, temperature, top_p, seed, drawn):
                draws = Draws(seed, jnp.zeros(1, jnp.int32), temperature, top_p)
                return draws.tokens(logits_V[None], drawn)[0]

            rows = self.temperature_B, self.top_p_B, self.seed_B, self.drawn_B
            return jnp.where(self.temperature_B > 0, jax.vmap(one)(logits_BV, *rows), best_B)

        # The vocabulary is drawn from, and sorted for top_p, only where a row asks for it.
        drawn = (self.temperature_B > 0).any()
        return jax.lax.cond(drawn, draw, lambda logits_BV: best_B, logits_BV)


@flax.struct.dataclass
class State:
    """All slots.

    Attributes:
        tokens_B: int32, the newest token of each, whose keys the cache does not hold yet.
        positions_B: int32, theirs.
        choice: of the next tokens.
        turn: int32 scalar, steps so far.
        cache: [L, B, G, P + N, C], see the module's docstring.
    """

    tokens_B: jax.Array
    positions_B: jax.Array
    choice: Choice
    turn: jax.Array
    cache: Cache

    @classmethod
    def create(cls, decoder: Decoder, slots: int, columns: int) -> "State":
        """Slots that hold nothing."""
        zeros = jnp.zeros(slots, jnp.int32)
        choice = Choice(
            jnp.zeros(slots), jnp.ones(slots), jnp.zeros(slots, jnp.uint32), jnp.zeros_like(zeros)
        )
        turn, cache = jnp.zeros((), jnp.int32), Cache.create(decoder.config, slots, columns)
        return cls(zeros, jnp.zeros_like(zeros), choice, turn, cache)


def read_prefix(decoder: Decoder, trees: Trees, tokens_1T: jax.Array) -> Cache:
    """Keys and values of the tokens that all prompts start with."""
    T = tokens_1T.shape[1]
    cache = Cache.create(decoder.config, 1, T)
    if not T:
        return cache
    x_1TD = clara.embed(decoder.config, trees, tokens_1T)
    return clara.run(decoder, trees, ROLE, x_1TD, jnp.arange(T)[None], cache=cache)[1]


def prefill(
    decoder: Decoder, trees: Trees, prefix: Cache, state: State, table_RMD: jax.Array,
    slot: jax.Array, tokens_1T: jax.Array, vectors_1T: jax.Array, length: jax.Array,
    choice: Choice,
) -> tuple[State, jax.Array]:  # fmt: skip
    """Reads a prompt into a slot and chooses its first token.

    Args:
        decoder: the module.
        trees: see `needed`.
        prefix: of `read_prefix`.
        state: all slots.
        table_RMD: memories on the device.
        slot: int32 scalar.
        tokens_1T: int32, the prompt after the prefix, padded on the right.
        vectors_1T: int32, which of the table's R * M vectors fills a place; -1 elsewhere.
        length: int32 scalar, tokens that are no padding.
        choice: of this row.

    Returns:
        All slots, and the token int32 [1].
    """
    T, start = tokens_1T.shape[1], prefix.slots
    x_1TD = clara.embed(decoder.config, trees, tokens_1T)
    x_1TD = clara.fill_slots(x_1TD, table_RMD.reshape(1, -1, table_RMD.shape[2]), vectors_1T)
    column_T = jnp.arange(T, dtype=jnp.int32)
    positions_1T = jnp.where(column_T < length, start + column_T, EMPTY)[None]
    cache = prefix.grow(T)
    hidden, cache = clara.run(decoder, trees, ROLE, x_1TD, positions_1T, cache=cache)
    last_1D = jax.lax.dynamic_index_in_dim(hidden, length - 1, 1, keepdims=False)
    token_1 = _choose(decoder, trees, choice, last_1D)

    def put(array: jax.Array, row: jax.Array, axis: int = 0) -> jax.Array:
        at = [slot if i == axis else 0 for i in range(array.ndim)]
        return jax.lax.dynamic_update_slice(array, row.astype(array.dtype), at)

    empty = jnp.full((1, state.cache.slots - cache.slots), EMPTY, jnp.int32)
    positions_1S = jnp.concatenate([cache.positions_BS, empty], axis=1)
    held = state.cache.replace(
        k=put(state.cache.k, cache.k, 1),
        v=put(state.cache.v, cache.v, 1),
        positions_BS=put(state.cache.positions_BS, positions_1S),
    )
    choice = choice.replace(drawn_B=choice.drawn_B + 1)
    state = State(
        tokens_B=put(state.tokens_B, token_1),
        positions_B=put(state.positions_B, (start + length)[None]),
        choice=jax.tree.map(put, state.choice, choice),
        turn=state.turn,
        cache=held,
    )
    return state, token_1


def step(
    decoder: Decoder, trees: Trees, state: State, first: int, ring: int
) -> tuple[State, jax.Array]:
    """One more token for every slot.

    Args:
        decoder: the module.
        trees: see `needed`.
        state: all slots.
        first: P, the ring's first column.
        ring: N, its columns.

    Returns:
        All slots, and the tokens int32 [B].
    """
    x_B1D = clara.embed(decoder.config, trees, state.tokens_B[:, None])
    cache = state.cache.replace(length=first + state.turn % ring)
    positions_B1 = state.positions_B[:, None]
    hidden, cache = clara.run(decoder, trees, ROLE, x_B1D, positions_B1, cache=cache)
    tokens_B = _choose(decoder, trees, state.choice, hidden[:, 0])
    state = State(
        tokens_B=tokens_B,
        positions_B=state.positions_B + 1,
        choice=state.choice.replace(drawn_B=state.choice.drawn_B + 1),
        turn=state.turn + 1,
        cache=cache.replace(length=jnp.zeros((), jnp.int32)),
    )
    return state, tokens_B


def _choose(decoder: Decoder, trees: Trees, choice: Choice, hidden_BD: jax.Array) -> jax.Array:
    added = trees["added"].get("head")
    return choice.tokens(head_logits(decoder.config, trees["base"], hidden_BD, added))


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
        self, model: Model, trees: Trees, prefix: Sequence[int], slots: int, prompt_tokens: int,
        max_new_tokens: int,
    ):  # fmt: skip
        self.prefix, self.count, self.max_new_tokens = list(prefix), slots, max_new_tokens
        self.buckets = buckets(prompt_tokens)
        first = len(self.prefix) + self.buckets[-1]
        if crosses(model.architecture, len(self.prefix), first + max_new_tokens):
            raise UserError(
                f"config.serve.prompt_tokens={prompt_tokens} and max_new_tokens={max_new_tokens} "
                "cross the length at which this model's rotary frequencies change; make them less"
            )
        decoder, self._trees = model.decoder, needed(trees, ROLE)
        self._whole = sharding.replicated(model.mesh)
        make = functools.partial(State.create, decoder, slots, first + max_new_tokens)
        places = self._places(model, jax.eval_shape(make))
        # Where results lie is fixed, so that the next call finds its arguments as the first did.
        self.state = jax.jit(make, out_shardings=places)()
        tokens = np.array([self.prefix], np.int32)
        read = jax.jit(functools.partial(read_prefix, decoder), out_shardings=self._whole)
        self._prefix = read(self._trees, tokens)
        self._prefill = jax.jit(
            functools.partial(prefill, decoder),
            donate_argnums=2,
            out_shardings=(places, self._whole),
        )
        self._step = jax.jit(
            functools.partial(step, decoder, first=first, ring=max_new_tokens),
            donate_argnums=1,
            out_shardings=(places, self._whole),
        )

    def prefill(
        self, slot: int, tokens: Sequence[int], vectors: Sequence[int], table_RMD: jax.Array,
        choice: Choice,
    ) -> jax.Array:  # fmt: skip
        """Reads the tokens after the prefix into a slot; the first token, int32 [1], to come."""
        length = next(bucket for bucket in self.buckets if bucket >= len(tokens))
        tokens_1T = np.zeros((1, length), np.int32)
        vectors_1T = np.full((1, length), -1, np.int32)
        tokens_1T[0, : len(tokens)], vectors_1T[0, : len(tokens)] = tokens, vectors
        self.state, token_1 = self._prefill(
            self._trees, self._prefix, self.state, table_RMD, np.int32(slot), tokens_1T,
            vectors_1T, np.int32(len(tokens)), choice,
        )  # fmt: skip
        return token_1

    def step(self) -> jax.Array:
        """One more token for every slot, int32 [B], to come."""
        self.state, tokens_B = self._step(self._trees, self.state)
        return tokens_B

    def warm_up(self, table_RMD: jax.Array) -> None:
        """Compiles all there is to compile."""
        for bucket in self.buckets:
            self.prefill(0, [0] * bucket, [-1] * bucket, table_RMD, Choice.create())
        jax.block_until_ready(self.step())

    def rehearse(self, table_RMD: jax.Array, tokens: int) -> None:
        """Reads a prompt of middling length and decodes so many tokens, as a request would."""
        length = self.buckets[len(self.buckets) // 2]
        self.prefill(0, [0] * length, [-1] * length, table_RMD, Choice.create())
        for _ in range(tokens):
            jax.block_until_ready(self.step())

    def _places(self, model: Model, state: State) -> State:
        layout = model.decoder.layout

        def place(*logical: str | None, shape: tuple[int, ...]) -> NamedSharding:
            return NamedSharding(model.mesh, layout.spec(shape, *logical))

        places = jax.tree.map(lambda x: self._whole, state)
        kv = place(None, "batch", "kv_heads", None, None, shape=state.cache.k.shape)
        return places.replace(cache=places.cache.replace(k=kv, v=kv))


def buckets(longest: int) -> list[int]:
    """Lengths that prompts are padded to, up to one that holds `longest`.

    Multiples of BUCKET, in steps of at least an eighth of the length: padding stays below that.
    """
    found = [BUCKET]
    while found[-1] < longest:
        found.append(found[-1] + max(1, found[-1] // (8 * BUCKET)) * BUCKET)
    return found
