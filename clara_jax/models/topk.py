"""Differentiable top-k: the forward pass takes the k best candidates, the backward pass relaxes it.

Slot j of K takes the candidate of rank j. Every method gives relaxed weights soft_BKN, whose rows
are distributions over the candidates, and `select` returns

    weights = hard + soft - stop_gradient(soft)

so that the forward value is exactly one-hot and the gradient is that of the relaxation (the paper's
Algorithm 1, section 3.3). Scores are ranked once by a sort; nothing loops over the slots.

    straight_through  softmax(s / tau) over the candidates that earlier slots left: the paper's
    gumbel            the same with Gumbel noise on s / tau, where a generator is given
    softsort          softmax(-|s_(j) - s_n| / tau), s_(j) the score of rank j (arXiv 2006.16038)
    neuralsort        softmax(((N + 1 - 2 j) s_n - sum_m |s_n - s_m|) / tau) (arXiv 1903.08850)
    lapsum            experimental: differences of soft top-j sets made of Laplace distribution
                      functions (arXiv 2503.06242), N log N
    hard              no gradient at all: the ablation
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

_TINY = 1e-30
_TAKEN_COMPAT = 1e-8  # the release adds its log, after dividing by tau, where -inf belongs

# soft_BKN from scores over tau [B, N], their ranks [B, N], which are no padding [B, N], and k.
Relaxation = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]


def select(
    scores_BN: jax.Array,
    k: int,
    method: str = "straight_through",
    temperature: float | jax.Array = 0.02,
    *,
    mask_BN: jax.Array | None = None,
    rng: jax.Array | None = None,
    compat: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Selects the k best candidates of each row, best first; of equal ones the first.

    Args:
        scores_BN: any float dtype; computed in float32. Finite where not masked.
        k: slots K; may exceed the number of candidates.
        method: a key of METHODS.
        temperature: tau > 0, a scalar or [B, 1].
        mask_BN: bool, false at padding, which is never selected and gets no gradient.
        rng: generator of the noise of `gumbel`; None: no noise.
        compat: taken candidates keep a factor of 1e-8 in `straight_through` and `gumbel`, as in the
            release: where one leads by more than 18.4 tau, later slots' gradient vanishes.

    Returns:
        weights_BKN float32, one-hot (all zero in slots for which no candidate is left), and
        indices_BK int32, -1 in those slots.

    Raises:
        ValueError: unknown method, or k < 1.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(METHODS)}")
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    valid_BN = jnp.ones(scores_BN.shape, bool) if mask_BN is None else mask_BN.astype(bool)
    logits_BN = scores_BN.astype(jnp.float32) / temperature
    if method == "gumbel" and rng is not None:
        logits_BN += jax.random.gumbel(rng, logits_BN.shape)
    ranks_BN = _ranks(jnp.where(valid_BN, logits_BN, -jnp.inf), valid_BN)
    hard_BKN = (ranks_BN[:, None] == jnp.arange(k)[None, :, None]) & valid_BN[:, None]
    filled_BK = hard_BKN.any(-1)
    indices_BK = jnp.where(filled_BK, jnp.argmax(hard_BKN, axis=-1), -1).astype(jnp.int32)
    hard_BKN = hard_BKN.astype(jnp.float32)
    relax = METHODS[method]
    if relax is None:
        return hard_BKN, indices_BK
    if compat and relax is _successive:
        relax = functools.partial(_successive, taken=_TAKEN_COMPAT)
    soft_BKN = relax(logits_BN, ranks_BN, valid_BN, k)
    soft_BKN = jnp.where(filled_BK[..., None] & valid_BN[:, None], soft_BKN, 0.0)
    return hard_BKN + (soft_BKN - jax.lax.stop_gradient(soft_BKN)), indices_BK


@jax.custom_vjp
def mix(weights_BKN: jax.Array, indices_BK: jax.Array, memories_BNMD: jax.Array) -> jax.Array:
    """The selected memories Z m [B, K, M, D], in the memories' dtype.

    Equal to the sum over candidates of weights times memories, but large N costs no copy of the
    candidates: forward only gathers K of them, and the gradient of the weights is N dot products.

    Args:
        weights_BKN: from `select`; only their gradient is used, their value is the indices'.
        indices_BK: from `select`; -1 gives zeros.
        memories_BNMD: the candidates; their gradient reaches those that are selected.
    """
    index_BK11 = jnp.maximum(indices_BK, 0)[..., None, None]
    if memories_BNMD.dtype == jnp.bfloat16:
        # XLA on CPUs gathers bfloat16 as float32, and shares a copy of all candidates in float32
        # with whatever else converts them, such as their norms. Integers it gathers as they are.
        bits_BNMD = jax.lax.bitcast_convert_type(memories_BNMD, jnp.uint16)
        bits_BKMD = jnp.take_along_axis(bits_BNMD, index_BK11, axis=1)
        chosen_BKMD = jax.lax.bitcast_convert_type(bits_BKMD, memories_BNMD.dtype)
    else:
        chosen_BKMD = jnp.take_along_axis(memories_BNMD, index_BK11, axis=1)
    return jnp.where(indices_BK[..., None, None] >= 0, chosen_BKMD, 0)


def _mix_forward(weights_BKN: jax.Array, indices_BK: jax.Array, memories_BNMD: jax.Array) -> tuple:
    return mix(weights_BKN, indices_BK, memories_BNMD), (indices_BK, memories_BNMD)


def _mix_backward(residuals: tuple, g_BKMD: jax.Array) -> tuple:
    indices_BK, memories_BNMD = residuals
    B, N = memories_BNMD.shape[:2]
    # Flattened, for a contraction over two axes may be done on a transposed copy.
    dw_BKN = jnp.einsum(
        "bkx,bnx->bkn",
        g_BKMD.reshape(B, -1, math.prod(g_BKMD.shape[2:])),
        memories_BNMD.reshape(B, N, -1),
        preferred_element_type=jnp.float32,
    )
    g_BKMD = jnp.where(indices_BK[..., None, None] >= 0, g_BKMD, 0)
    row_B1 = jnp.arange(len(indices_BK))[:, None]
    dm_BNMD = jnp.zeros_like(memories_BNMD).at[row_B1, indices_BK].add(g_BKMD)
    return dw_BKN, None, dm_BNMD


mix.defvjp(_mix_forward, _mix_backward)


def _ranks(logits_BN: jax.Array, valid_BN: jax.Array) -> jax.Array:
    """Rank of each candidate, 0 the best, ties in order, padding after all candidates."""
    # Keys in this order: padding last even behind candidates whose score is -inf.
    order_BN = jnp.lexsort((-jax.lax.stop_gradient(logits_BN), ~valid_BN), axis=-1)
    return jnp.argsort(order_BN, axis=-1)


def _sorted(logits_BN: jax.Array, ranks_BN: jax.Array, k: int) -> jax.Array:
    """Logits of ranks 0 .. k-1 [B, k]; with gradient. Ranks beyond N repeat the last."""
    order_BN = jnp.argsort(ranks_BN, axis=-1)
    first_K = jnp.minimum(jnp.arange(k), logits_BN.shape[-1] - 1)
    return jnp.take_along_axis(logits_BN, order_BN[:, first_K], axis=-1)


def _softmax(logits_BKN: jax.Array, keep_BKN: jax.Array) -> jax.Array:
    """Softmax over the candidates that are kept; 0 elsewhere and in rows that keep none."""
    return jnp.where(keep_BKN, jax.nn.softmax(logits_BKN, axis=-1, where=keep_BKN), 0.0)


def _successive(
    logits_BN: jax.Array, ranks_BN: jax.Array, valid_BN: jax.Array, k: int, taken: float = 0.0
) -> jax.Array:
    """Each slot's softmax over what the slots before it left."""
    left_BKN = ranks_BN[:, None] >= jnp.arange(k)[None, :, None]
    logits_BKN = jnp.broadcast_to(logits_BN[:, None], left_BKN.shape)
    if taken:
        logits_BKN = logits_BKN + jnp.where(left_BKN, 0.0, jnp.log(taken))
        left_BKN = jnp.ones_like(left_BKN)
    return _softmax(logits_BKN, left_BKN & valid_BN[:, None])


# Ranks give the signs of the differences below. `jnp.abs` would take the sign of a candidate's
# difference to itself, in which XLA may leave a rounding error in place of zero.


def _softsort(logits_BN: jax.Array, ranks_BN: jax.Array, valid_BN: jax.Array, k: int) -> jax.Array:
    best_BK = _sorted(logits_BN, ranks_BN, k)
    sign_BKN = jnp.sign(jnp.arange(k)[None, :, None] - ranks_BN[:, None])
    away_BKN = sign_BKN * (logits_BN[:, None] - best_BK[..., None])
    return _softmax(-away_BKN, valid_BN[:, None])


def _neuralsort(
    logits_BN: jax.Array, ranks_BN: jax.Array, valid_BN: jax.Array, k: int
) -> jax.Array:
    sign_BNN = jnp.sign(ranks_BN[:, None] - ranks_BN[:, :, None])
    pairs_BNN = sign_BNN * (logits_BN[:, :, None] - logits_BN[:, None])
    apart_BN = jnp.sum(jnp.where(valid_BN[:, None], pairs_BNN, 0.0), axis=-1)
    count_B = valid_BN.sum(-1, keepdims=True)[..., None]
    scale_BK = (count_B + 1 - 2 * jnp.arange(1, k + 1)[None, :, None]).astype(jnp.float32)
    return _softmax(scale_BK * logits_BN[:, None] - apart_BN[:, None], valid_BN[:, None])


def _lapsum(logits_BN: jax.Array, ranks_BN: jax.Array, valid_BN: jax.Array, k: int) -> jax.Array:
    """Slot j (from 1) is what the soft top-j set has beyond the soft top-(j-1) set."""
    # Membership of a set of j is F(logit - b), F Laplace's distribution function, with the
    # threshold b that makes the memberships add up to j.
    count_B1 = valid_BN.sum(-1, keepdims=True)
    fixed_BN = jax.lax.stop_gradient(logits_BN)
    sorted_BN = jnp.where(
        jnp.arange(logits_BN.shape[-1])[None] < count_B1,
        _sorted(fixed_BN, ranks_BN, logits_BN.shape[-1]),
        -jnp.inf,
    )
    sizes_K = jnp.arange(1, k + 1, dtype=jnp.float32)
    threshold_BK = jax.vmap(_laplace_threshold, (0, None))(sorted_BN, sizes_K)
    # The gradient of b by the implicit function theorem: db = sum f_n ds_n / sum f_n.
    density_BKN = jnp.exp(-jnp.abs(fixed_BN[:, None] - threshold_BK[..., None]))
    density_BKN = jnp.where(valid_BN[:, None], density_BKN, 0.0)
    density_BKN /= jnp.maximum(density_BKN.sum(-1, keepdims=True), _TINY)
    moved_BN = jnp.where(valid_BN, logits_BN - fixed_BN, 0.0)
    threshold_BK += jnp.einsum("bkn,bn->bk", density_BKN, moved_BN)
    above_BKN = logits_BN[:, None] - threshold_BK[..., None]
    tail_BKN = 0.5 * jnp.exp(-jnp.abs(above_BKN))
    sets_BKN = jnp.where(above_BKN >= 0, 1 - tail_BKN, tail_BKN)
    sets_BKN = jnp.where((sizes_K[None] < count_B1)[..., None], sets_BKN, 1.0)  # all of them
    sets_BKN = jnp.where(valid_BN[:, None], sets_BKN, 0.0)
    return jnp.diff(sets_BKN, axis=1, prepend=0.0)


def _laplace_threshold(sorted_N: jax.Array, sizes_K: jax.Array) -> jax.Array:
    """Thresholds b_K with sum_n F(s_n - b) = size, for s sorted downwards, -inf at its end."""
    # With i scores above b, and d = s_i - b, the sum is i - e^-d L / 2 + e^d U / 2, where L and U
    # add up e^-|s_n - s_i| over the scores above and below. So comparing the sums at the scores
    # themselves gives i, and e^d solves a quadratic equation. L and U come from linear recurrences;
    # nothing overflows, for every exponent is negative.
    N = sorted_N.shape[0]
    gap_N = jnp.append(sorted_N[:-1] - sorted_N[1:], jnp.inf)  # to the next lower score
    gap_N = jnp.where(jnp.isnan(gap_N), jnp.inf, gap_N)
    decay_N = jnp.exp(-gap_N)

    def combine(left: tuple, right: tuple) -> tuple:
        return left[0] * right[0], left[1] * right[0] + right[1]

    ones_N = jnp.ones(N)
    # above_i = 1 + above_(i-1) decay_(i-1); below_i adds e^(s_n - s_(i+1)) over n > i.
    _, above_N = jax.lax.associative_scan(combine, (jnp.append(0.0, decay_N[:-1]), ones_N))
    _, from_here_N = jax.lax.associative_scan(combine, (decay_N, ones_N), reverse=True)
    below_N = jnp.append(from_here_N[1:], 0.0)
    sums_N = jnp.arange(1, N + 1) - 0.5 * above_N + 0.5 * below_N * decay_N
    sums_N = jnp.where(jnp.isfinite(sorted_N), sums_N, jnp.inf)
    # At the largest score the sum is below 1 or all others are tied to it: some score is above b,
    # unless ties make even the first sum exceed the size.
    i_K = jnp.sum(sums_N[None] <= sizes_K[:, None], axis=1) - 1
    first_K, i_K = i_K < 0, jnp.maximum(i_K, 0)
    c_K = sizes_K - (i_K + 1)
    L_K, V_K, gap_K = above_N[i_K], below_N[i_K], gap_N[i_K]
    root_K = jnp.sqrt(jnp.square(c_K) + L_K * V_K * decay_N[i_K])
    positive_K = (
        jnp.log(jnp.maximum(c_K + root_K, _TINY)) - jnp.log(jnp.maximum(V_K, _TINY)) + gap_K
    )
    negative_K = jnp.log(L_K) - jnp.log(jnp.maximum(root_K - c_K, _TINY))
    # c = 0: both logs of a root that may underflow, replaced by half their sum.
    middle_K = 0.5 * (jnp.log(L_K) - jnp.log(jnp.maximum(V_K, _TINY)) + gap_K)
    d_K = jnp.where(c_K > 0, positive_K, jnp.where(c_K < 0, negative_K, middle_K))
    d_K = jnp.clip(d_K, 0.0, gap_K)
    tied_K = jnp.log(from_here_N[0] / (2 * sizes_K))  # b above all scores
    return sorted_N[i_K] + jnp.where(first_K, tied_K, -d_K)


METHODS: dict[str, Relaxation | None] = {
    "straight_through": _successive,
    "gumbel": _successive,
    "softsort": _softsort,
    "neuralsort": _neuralsort,
    "lapsum": _lapsum,
    "hard": None,
}
