"""One question against its candidates, as many as there are.

Candidates are filled up to a power of two, so that few shapes are compiled.
"""

import functools

import jax
import numpy as np

from clara_jax.models import scores as scores_lib
from clara_jax.models import topk

_FEWEST = 8


def scores(query_MD: np.ndarray, memories_NMD: np.ndarray, kind: str) -> np.ndarray:
    """Scores float32 [N] of a question's candidates; `kind` is a key of models/scores.KINDS."""
    return np.asarray(_scores(query_MD, _filled(memories_NMD, 0), kind))[: len(memories_NMD)]


def best(scores_N: np.ndarray, k: int) -> list[int]:
    """Positions of the k largest scores, the largest first and of equal ones the first."""
    filled = _filled(scores_N, -np.inf)
    is_candidate = np.arange(len(filled)) < len(scores_N)
    indices_K = _select(filled, is_candidate, min(k, len(filled)))
    return [i for i in np.asarray(indices_K).tolist() if i >= 0]


@functools.partial(jax.jit, static_argnames="kind")
def _scores(query_MD: jax.Array, memories_NMD: jax.Array, kind: str) -> jax.Array:
    # In float32, which TPUs do not multiply in unless told to.
    with jax.default_matmul_precision("highest"):
        return scores_lib.score(query_MD[None], memories_NMD[None], kind)[0]


@functools.partial(jax.jit, static_argnames="k")
def _select(scores_N: jax.Array, mask_N: jax.Array, k: int) -> jax.Array:
    return topk.select(scores_N[None], k, "hard", mask_BN=mask_N[None])[1][0]


def _filled(array: np.ndarray, value: float) -> np.ndarray:
    size = max(_FEWEST, 1 << (len(array) - 1).bit_length())
    filled = np.full((size, *array.shape[1:]), value, np.float32)
    filled[: len(array)] = array
    return filled
