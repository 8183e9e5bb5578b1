"""How the next token is drawn, and what ends an answer."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.data.tokenizer import Tokenizer
from clara_jax.errors import UserError

_COLDEST = 1e-20  # so that no temperature above 0 divides by what float32 takes for 0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Raises:
        UserError: a value that cannot be meant.
    """

    temperature: float = 0.0  # divides the logits; 0 takes the likeliest token always
    top_p: float = 1.0  # draws among the likeliest tokens whose probabilities first add up to this
    seed: int = 0  # the same seed draws the same texts for the same prompts

    def __post_init__(self):
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), int | float | np.number):
                raise UserError(f"{name}={getattr(self, name)!r} must be a number")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not isinstance(self.seed, int | np.integer) or not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed!r} must be a whole number from 0 to 2**32 - 1")


GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """How a text is generated.

    Raises:
        UserError: `stop` is neither a text nor several.
    """

    max_new_tokens: int  # most tokens
    sampling: Sampling = GREEDY  # how each is chosen
    # texts that end it and are no part of it, such as a newline, given as one or several; empty
    # ones do not count
    stop: str | Iterable[str] = ()

    def __post_init__(self):
        object.__setattr__(self, "stop", _stop_texts(self.stop))


class Draws(flax.struct.PyTreeNode):
    """`Sampling` of each row of a batch, as arrays: other values do not compile again."""

    temperature_B: jax.Array | np.ndarray  # float32, 0 takes the likeliest token
    top_p_B: jax.Array | np.ndarray  # float32
    seed_B: jax.Array | np.ndarray  # uint32
    # int32, which of all prompts a row holds: it draws the same in every batch
    index_B: jax.Array | np.ndarray
    count_B: jax.Array | np.ndarray  # int32, tokens drawn so far

    @classmethod
    def create(cls, sampling: Sampling, rows: int, index: Sequence[int] = ()) -> "Draws":
        """Of a batch of `rows` rows, the first of which hold the prompts `index`; in numpy."""
        index_B = np.zeros(rows, np.int32)
        index_B[: len(index)] = index
        return cls(
            np.full(rows, sampling.temperature, np.float32),
            np.full(rows, sampling.top_p, np.float32),
            np.full(rows, sampling.seed, np.uint32),
            index_B,
            np.zeros(rows, np.int32),
        )

    def tokens(self, logits_BV: jax.Array) -> tuple[jax.Array, "Draws"]:
        """The next token of each row, int32 [B], from its float32 logits; and the draws after."""
        best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        # The vocabulary is drawn from, and sorted for top_p, only where a row needs it.
        tokens_B = jax.lax.cond(
            (self.temperature_B > 0).any(),
            lambda logits_BV: jnp.where(self.temperature_B > 0, self._drawn(logits_BV), best_B),
            lambda logits_BV: best_B,
            logits_BV,
        )
        return tokens_B, self.replace(count_B=self.count_B + 1)

    def _drawn(self, logits_BV: jax.Array) -> jax.Array:
        logits_BV = logits_BV / jnp.maximum(self.temperature_B, _COLDEST)[:, None]
        top_p_B1 = self.top_p_B[:, None]
        logits_BV = jax.lax.cond(
            (self.top_p_B < 1).any(),
            lambda logits_BV: jnp.where(top_p_B1 < 1, nucleus(logits_BV, top_p_B1), logits_BV),
            lambda logits_BV: logits_BV,
            logits_BV,
        )

        @jax.vmap
        def draw(logits_V, seed, index, count):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), count), index)
            return jax.random.categorical(key, logits_V).astype(jnp.int32)

        return draw(logits_BV, self.seed_B, self.index_B, self.count_B)


def nucleus(logits_BV: jax.Array, top_p: jax.typing.ArrayLike) -> jax.Array:
    """Logits with -inf for all but the fewest likeliest tokens whose probabilities reach top_p."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    least_B1 = jnp.where(before_BV < top_p, sorted_BV, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _stop_texts(stop: str | Iterable[str]) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    texts = tuple(texts) if isinstance(texts, Iterable) else (texts,)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"stop={stop!r} must be a text or a list of texts")
    return tuple(filter(None, texts))


def before_stop(text: str, stops: Iterable[str]) -> str:
    """The text up to the first of the stop texts in it."""
    return re.split("|".join(map(re.escape, stops)), text, maxsplit=1)[0] if stops else text


@functools.lru_cache(maxsize=8)
def stop_ids(tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> list[int]:
    """Tokens that end an answer: end tokens, and all whose own text contains one of `stops`.

    The end tokens are the tokenizer's and what its chat template puts after an assistant's turn.
    """
    probe = "answer"
    parts = list(tokenizer.chat("", "question", probe))
    after = max(i for i, part in enumerate(parts) if isinstance(part, str) and probe in part)
    ends = [part for part in parts[after:] if isinstance(part, int)][:1]
    ids = {i for i in (*ends, tokenizer.eos_id) if i is not None}
    if stops:
        texts = ((i, tokenizer.decode([i])) for i in range(tokenizer.size))
        ids.update(i for i, text in texts if any(stop in text for stop in stops))
    return sorted(ids)
