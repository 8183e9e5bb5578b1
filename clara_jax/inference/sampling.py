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

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token always.
        top_p: draws among the likeliest tokens whose probabilities first add up to this.
        seed: the same seed draws the same texts for the same prompts.

    Raises:
        UserError: a value that cannot be meant.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

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

    def draws(self, index: Sequence[int], rows: int) -> "Draws | None":
        """What a batch needs to draw tokens, in numpy; None for greedy decoding.

        Args:
            index: which of all prompts each of the first rows holds.
            rows: of the batch.
        """
        if self.temperature == 0:
            return None
        index_B = np.zeros(rows, np.int32)
        index_B[: len(index)] = index
        values = np.float32(self.temperature), np.float32(self.top_p)
        return Draws(np.uint32(self.seed), index_B, *values)


GREEDY = Sampling()


@flax.struct.dataclass
class Draws:
    """`Sampling` for the rows of a batch, as arrays: other values do not compile anew.

    Attributes:
        seed: uint32 scalar.
        index_B: int32, which of all prompts a row holds: it draws the same in every batch.
        temperature: float32 scalar above 0.
        top_p: float32 scalar.
    """

    seed: jax.Array | np.ndarray
    index_B: jax.Array | np.ndarray
    temperature: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray

    def tokens(self, logits_BV: jax.Array, step: jax.Array | int) -> jax.Array:
        """Int32 [B], a token drawn for each row from its float32 logits.

        Args:
            logits_BV: of the next token.
            step: how many tokens were drawn before.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        keys_B = jax.vmap(lambda index: jax.random.fold_in(key, index))(self.index_B)
        logits_BV = logits_BV / jnp.maximum(self.temperature, _COLDEST)
        # The vocabulary is sorted only if that leaves something out.
        logits_BV = jax.lax.cond(
            self.top_p < 1, nucleus, lambda logits_BV, _: logits_BV, logits_BV, self.top_p
        )
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def nucleus(logits_BV: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Logits with -inf for all but the fewest likeliest tokens whose probabilities reach top_p."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    least_B1 = jnp.where(before_BV < top_p, sorted_BV, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def stop_texts(stop: str | Iterable[str]) -> tuple[str, ...]:
    """The texts that end an answer, without empty ones.

    Raises:
        UserError: neither a text nor several.
    """
    texts = (stop,) if isinstance(stop, str) else stop
    texts = tuple(texts) if isinstance(texts, Iterable) else (texts,)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"stop={stop!r} must be a text or a list of texts")
    return tuple(filter(None, texts))


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first that occurs of some texts."""
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
    ids = {*ends, tokenizer.eos_id} - {None}
    if stops:
        texts = ((i, tokenizer.decode([i])) for i in range(tokenizer.size))
        ids.update(i for i, text in texts if any(stop in text for stop in stops))
    return sorted(ids)
