"""How well candidates match a query in the space of memories."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_EPS = 1e-8  # least norm, as in PyTorch's cosine similarity


def score(query_BMD: jax.Array, memories_BNMD: jax.Array, kind: str = "cosine") -> jax.Array:
    """Scores of each query's candidates [B, N] in float32, from -1 to 1.

    Args:
        query_BMD: the query reasoner's memory vectors.
        memories_BNMD: the compressor's, of each candidate.
        kind: a key of KINDS. `cosine`, of the flattened memories, is the paper's (section 3.3);
            `maxsim`, late interaction, is the mean over query vectors of the largest cosine with a
            memory vector; `mean` is the cosine of the means over memory vectors.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"score {kind!r} is unknown; known: {', '.join(KINDS)}")
    return KINDS[kind](query_BMD, memories_BNMD)


def _cosine(equation: str, query: jax.Array, memories: jax.Array) -> jax.Array:
    """Dot products by the equation over the norms of the last axes."""
    dots = jnp.einsum(equation, query, memories, preferred_element_type=jnp.float32)
    query_norm, memory_norm = _norm(query), _norm(memories)
    left, right = equation.split("->")[0].split(",")
    outer = f"{left[:-1]},{right[:-1]}->{equation.split('->')[1]}"
    return dots / jnp.maximum(jnp.einsum(outer, query_norm, memory_norm), _EPS)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(-1))


def _flat(query_BMD: jax.Array, memories_BNMD: jax.Array) -> jax.Array:
    B, N = memories_BNMD.shape[:2]
    return _cosine("bx,bnx->bn", query_BMD.reshape(B, -1), memories_BNMD.reshape(B, N, -1))


def _maxsim(query_BMD: jax.Array, memories_BNMD: jax.Array) -> jax.Array:
    return _cosine("bqx,bnmx->bnqm", query_BMD, memories_BNMD).max(-1).mean(-1)


def _mean(query_BMD: jax.Array, memories_BNMD: jax.Array) -> jax.Array:
    query_BD = query_BMD.astype(jnp.float32).mean(1)
    return _cosine("bx,bnx->bn", query_BD, memories_BNMD.mean(2, dtype=jnp.float32))


KINDS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cosine": _flat,
    "maxsim": _maxsim,
    "mean": _mean,
}
