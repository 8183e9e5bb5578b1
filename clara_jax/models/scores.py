"""How well candidates match a query in the space of memories."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_EPS = 1e-8  # least norm, as in PyTorch's cosine similarity
# On TPUs float32 factors are rounded to bfloat16 otherwise, which is coarser than scores' spread.
_EXACT = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}


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
    dots = jnp.einsum(equation, query, memories, **_EXACT)
    query_norm, memory_norm = _norm(query), _norm(memories)
    left, right = equation.split("->")[0].split(",")
    outer = f"{left[:-1]},{right[:-1]}->{equation.split('->')[1]}"
    return dots / jnp.maximum(jnp.einsum(outer, query_norm, memory_norm), _EPS)


def _norm(x: jax.Array, axes: int | tuple[int, ...] = -1) -> jax.Array:
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axes))


def _flat(query_BMD: jax.Array, memories_BNMD: jax.Array) -> jax.Array:
    B, N = memories_BNMD.shape[:2]
    query_BX = query_BMD.reshape(B, -1).astype(jnp.float32)
    dots_BN = _dots(query_BX, memories_BNMD.reshape(B, N, -1))
    norms_BN = _norm(query_BX)[:, None] * _norm(memories_BNMD, (-2, -1))
    return dots_BN / jnp.maximum(norms_BN, _EPS)


@jax.custom_vjp
def _dots(query_BX: jax.Array, memories_BNX: jax.Array) -> jax.Array:
    """Dot products [B, N] in float32 of a float32 query with candidates of any dtype."""
    # Automatic differentiation would make a float32 copy of bfloat16 candidates. Here only their
    # own gradient does, which no stage with candidates needs.
    return _product("bkx,bnx->bkn", query_BX, memories_BNX)


def _dots_forward(query_BX: jax.Array, memories_BNX: jax.Array) -> tuple:
    return _dots(query_BX, memories_BNX), (query_BX, memories_BNX)


def _dots_backward(residuals: tuple, g_BN: jax.Array) -> tuple:
    query_BX, memories_BNX = residuals
    dm_BNX = g_BN[..., None] * query_BX[:, None]
    return _product("bkn,bnx->bkx", g_BN, memories_BNX), dm_BNX.astype(memories_BNX.dtype)


_dots.defvjp(_dots_forward, _dots_backward)


def _product(equation: str, x: jax.Array, memories_BNX: jax.Array) -> jax.Array:
    """The sum over k of the equation's product; x is float32 and without the axis k."""
    # With bfloat16 memories x becomes two rows k, its rounding to bfloat16 and what that leaves
    # out: 16 bits of x count, and XLA multiplies bfloat16 by bfloat16. One row alone it would
    # multiply as a vector, on CPUs with a float32 copy of the memories.
    rows = x[:, None]
    if memories_BNX.dtype == jnp.bfloat16:
        high = x.astype(jnp.bfloat16)
        low = (x - high.astype(jnp.float32)).astype(jnp.bfloat16)
        rows = jnp.stack([high, low], axis=1)
    return jnp.einsum(equation, rows, memories_BNX, **_EXACT).sum(1)


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
