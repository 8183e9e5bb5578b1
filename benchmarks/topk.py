"""Soft against discrete selection, in tables: `python -m benchmarks.topk`.

Random problems: N scores, normal with a spread like that of cosines, and a loss of the k candidates
selected, in order: |sum_j v_jn / sqrt(k) - aim|^2, where candidate n in slot j adds v_jn, half of
which is the same in every slot. The loss is strongly curved where the aim is as long as the mix
(--aim 1), hardly where it is far off (--aim 10). For every estimator of models.topk, k and tau:

    agreement  share of the k slots whose soft row is largest at the candidate that the scores
               select (without noise, as when answering)
    mass       what the soft rows give to those candidates, mean over the k slots
    cosine     of the estimator's gradient by the scores with the exact one, mean over problems
    error      |a g - e| / |e| over all problems together, of gradients g, the exact ones e and the
               one factor a that fits best: 0 is perfect, 1 no better than no gradient at all

Exact is the gradient of the mean loss under the random selection that the relaxations stand for:
successive draws without replacement by softmax(s / tau), Plackett and Luce's distribution, which
is also that of the top k of s / tau with Gumbel noise. All N! / (N - k)! ordered selections are
summed up in float64, 40,320 for N = k = 8; where there are more than MOST, the tables leave a gap.

The estimators without noise take the tangent of the loss at one selection, the hard one; `gumbel`
is the mean of those at random selections, `gumbel, 1 draw` what one train step sees of it. A cosine
near 1 says that training follows the loss of discrete selections. What keeps it off 1: curvature;
for k near N, that softmaxes over what is left do not tell what a slot takes from later ones; and
that the mean softmax of noisy scores is not softmax(s / tau). A high agreement alone says nothing:
it is 1 by construction for all but lapsum and noise.
"""

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.errors import command
from clara_jax.models.topk import METHODS, select

MOST = 50_000  # ordered selections that are enumerated
SLOTS = 10  # the largest k
WIDTH = 8  # D, of the vectors that make up the loss
ESTIMATORS = tuple(name for name, relaxation in METHODS.items() if relaxation is not None)
ONE_DRAW = "gumbel, 1 draw"
QUANTITIES = {
    "agreement": "Agreement with the hard selection",
    "mass": "Soft mass on the hard selection",
    "cosine": "Cosine of the gradient with the exact one",
    "error": "Relative error of the gradient after the best scaling",
}

Table = dict[str, dict[str, np.ndarray]]  # quantity, estimator, [K]


class Problems(NamedTuple):
    """R random problems, float32: scores, what candidates add in each slot, what to add up to."""

    scores_RN: np.ndarray
    parts_RKND: np.ndarray
    aim_RD: np.ndarray


def make_problems(count: int, candidates: int, aim: float, seed: int) -> Problems:
    """Problems whose scores have a standard deviation of 1."""
    rng = np.random.default_rng(seed)
    scores_RN = rng.standard_normal((count, candidates))
    same_R1ND = rng.standard_normal((count, 1, candidates, WIDTH))
    own_RKND = rng.standard_normal((count, min(SLOTS, candidates), candidates, WIDTH))
    aim_RD = aim * rng.standard_normal((count, WIDTH))
    parts_RKND = (same_R1ND + own_RKND) / math.sqrt(2)
    return Problems(*(x.astype(np.float32) for x in (scores_RN, parts_RKND, aim_RD)))


def discrete_losses(problems: Problems, selections_Tk: np.ndarray) -> np.ndarray:
    """The loss of every selection in every problem [R, T], float64."""
    k = selections_Tk.shape[1]
    parts_RKND = problems.parts_RKND.astype(np.float64) / math.sqrt(k)
    mix_RTD = sum(parts_RKND[:, j, selections_Tk[:, j]] for j in range(k))
    return np.square(mix_RTD - problems.aim_RD[:, None]).sum(-1)


def exact_gradient(problems: Problems, k: int, temperature: float) -> np.ndarray:
    """Gradient [R, N], float64, by the scores of the mean loss of k successive random draws."""
    logits_RN = problems.scores_RN.astype(np.float64) / temperature
    N = logits_RN.shape[1]
    selections_Tk = np.array(list(itertools.permutations(range(N), k)))
    losses_RT = discrete_losses(problems, selections_Tk)
    # A draw depends on the set of those before it alone, and sets are far fewer than selections.
    bits_Tk = 1 << selections_Tk
    sets_S, set_Tk = np.unique(np.cumsum(bits_Tk, axis=1) - bits_Tk, return_inverse=True)
    set_Tk = set_Tk.reshape(selections_Tk.shape)
    left_SN = (sets_S[:, None] >> np.arange(N)) & 1 == 0
    left_RSN = np.where(left_SN, logits_RN[:, None], -np.inf)
    total_RS = np.logaddexp.reduce(left_RSN, axis=-1)
    soft_RSN = np.exp(left_RSN - total_RS[..., None])
    gradient_RN = np.empty_like(logits_RN)
    for r, (logits_N, total_S) in enumerate(zip(logits_RN, total_RS, strict=True)):
        p_T = np.exp((logits_N[selections_Tk] - total_S[set_Tk]).sum(1))
        # The mean is taken off first, for it adds nothing but rounding.
        weights = np.repeat(p_T * (losses_RT[r] - p_T @ losses_RT[r]), set_Tk.shape[1])
        drawn_N = np.bincount(selections_Tk.ravel(), weights, minlength=N)
        set_S = np.bincount(set_Tk.ravel(), weights, minlength=len(sets_S))
        gradient_RN[r] = (drawn_N - set_S @ soft_RSN[r]) / temperature
    return gradient_RN


@functools.partial(jax.jit, static_argnames="method")
def estimates(
    problems: Problems, k: jax.Array, method: str, temperature: jax.Array, keys_S: jax.Array
) -> jax.Array:
    """An estimator's gradients by the scores [S, R, N], one for each generator of noise."""
    K = problems.parts_RKND.shape[1]

    def loss(scores_RN: jax.Array, key: jax.Array) -> jax.Array:
        # Slots do not depend on how many follow: one compilation for all k.
        weights_RKN, _ = select(scores_RN, K, method, temperature, rng=key)
        weights_RKN *= (jnp.arange(K) < k)[None, :, None] / jnp.sqrt(k)
        mix_RD = jnp.einsum("rkn,rknd->rd", weights_RKN, problems.parts_RKND)
        return jnp.square(mix_RD - problems.aim_RD).sum()

    return jax.vmap(jax.grad(loss), (None, 0))(problems.scores_RN, keys_S)


@functools.partial(jax.jit, static_argnames=("slots", "method"))
def agreement(
    scores_RN: jax.Array, slots: int, method: str, temperature: jax.Array, keys_S: jax.Array
) -> jax.Array:
    """Agreement and mass [2, K], means over noise, problems and the first k slots, for each k."""

    def soft_rows(key: jax.Array) -> jax.Array:
        logits_RN = scores_RN / temperature
        if method == "gumbel":
            logits_RN += jax.random.gumbel(key, logits_RN.shape)
        ranks_RN = jnp.argsort(jnp.argsort(-logits_RN, axis=-1), axis=-1)
        return METHODS[method](logits_RN, ranks_RN, jnp.ones(logits_RN.shape, bool), slots)

    soft_SRKN = jax.vmap(soft_rows)(keys_S)
    hard_RK = jnp.argsort(-scores_RN, axis=-1)[:, :slots]
    mass_SRK = jnp.take_along_axis(soft_SRKN, hard_RK[None, ..., None], axis=-1)[..., 0]
    same_SRK = soft_SRKN.argmax(-1) == hard_RK[None]
    per_slot_2K = jnp.stack([same_SRK.mean((0, 1)), mass_SRK.mean((0, 1))])
    return jnp.cumsum(per_slot_2K, axis=1) / jnp.arange(1, slots + 1)[None]


def compare(estimates_SRN: np.ndarray, exact_RN: np.ndarray) -> tuple[float, float]:
    """Mean cosine, and relative error after the best common scaling (module docstring)."""
    estimates_SRN, exact_SRN = np.broadcast_arrays(estimates_SRN.astype(np.float64), exact_RN)
    dot_SR = (estimates_SRN * exact_SRN).sum(-1)
    norms_SR = np.linalg.norm(estimates_SRN, axis=-1) * np.linalg.norm(exact_SRN, axis=-1)
    # A gradient that vanishes has no direction: it counts as one at a right angle.
    cosine_SR = np.divide(dot_SR, norms_SR, out=np.zeros_like(dot_SR), where=norms_SR > 0)
    scale = dot_SR.sum() / max(np.square(estimates_SRN).sum(), 1e-300)
    off = np.square(scale * estimates_SRN - exact_SRN).sum() / max(
        np.square(exact_SRN).sum(), 1e-300
    )
    return float(cosine_SR.mean()), math.sqrt(off)


def measure(problems: Problems, temperature: float, keys_S: jax.Array) -> Table:
    """Every quantity of every estimator, [K] for k = 1 .. K; NaN where exact is unknown."""
    N, K = problems.scores_RN.shape[1], problems.parts_RKND.shape[1]
    table = {quantity: {} for quantity in QUANTITIES}
    keys = {method: keys_S if method == "gumbel" else keys_S[:1] for method in ESTIMATORS}
    for method in ESTIMATORS:
        both = agreement(problems.scores_RN, K, method, temperature, keys[method])
        table["agreement"][method], table["mass"][method] = np.asarray(both)
    for name in (*ESTIMATORS, ONE_DRAW):
        table["cosine"][name], table["error"][name] = np.full((2, K), np.nan)
    for k in [k for k in range(1, K + 1) if math.perm(N, k) <= MOST]:
        exact_RN = exact_gradient(problems, k, temperature)
        for method in ESTIMATORS:
            estimates_SRN = estimates(problems, np.float32(k), method, temperature, keys[method])
            gradients = {method: estimates_SRN.mean(0, keepdims=True)}
            if method == "gumbel":
                gradients[ONE_DRAW] = estimates_SRN
            for name, gradients_SRN in gradients.items():
                both = compare(np.asarray(gradients_SRN), exact_RN)
                table["cosine"][name][k - 1], table["error"][name][k - 1] = both
    return table


def markdown(tables: dict[float, Table], spread: float) -> Iterator[str]:
    """Lines of the tables of one spread, from those of each temperature."""
    for quantity, title in QUANTITIES.items():
        rows = next(iter(tables.values()))[quantity]
        slots = len(next(iter(rows.values())))
        yield f"### {title}; scores' standard deviation {spread:g}\n"
        yield "| estimator | tau | " + " | ".join(f"k={k + 1}" for k in range(slots)) + " |"
        yield "|---|---|" + "---|" * slots
        for name, (temperature, table) in itertools.product(rows, tables.items()):
            cells = (" " if np.isnan(x) else f"{x:.2f}" for x in table[quantity][name])
            yield f"| {name} | {temperature:g} | " + " | ".join(cells) + " |"
        yield ""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.topk", description=__doc__.split("\n", 1)[0]
    )
    add = functools.partial(parser.add_argument, metavar="X")
    add("--candidates", type=int, default=8, help="N (default %(default)s)")
    add("--spread", type=float, nargs="+", default=[0.05, 0.3], help="deviations of the scores")
    add("--temperature", type=float, nargs="+", default=[1.0, 0.5, 0.1, 0.02], help="tau")
    add("--problems", type=int, default=32, help="random problems (default %(default)s)")
    add("--noise", type=int, default=1000, help="noise draws of gumbel (default %(default)s)")
    add("--aim", type=float, default=3.0, help="how far off: 1 strongly curved, 10 hardly")
    add("--seed", type=int, default=0)
    add("--output", default="", help="also write the tables there, as Markdown")
    args = parser.parse_args(argv)
    if not 2 <= args.candidates <= 62:  # sets of them are bits of an int64
        parser.error("--candidates must be from 2 to 62")
    if min(args.problems, args.noise) < 1 or not 0 <= args.seed < 2**32:
        parser.error("--problems and --noise must be at least 1, --seed from 0 to 2**32 - 1")
    if not all(1e-6 <= x <= 1e6 for x in (*args.spread, *args.temperature, args.aim)):
        parser.error("--spread, --temperature and --aim must be from 1e-6 to 1e6")
    problems = make_problems(args.problems, args.candidates, args.aim, args.seed)
    keys_S = jax.random.split(jax.random.key(args.seed), args.noise)
    lines: list[str] = []
    for spread in args.spread:
        scaled = problems._replace(scores_RN=problems.scores_RN * np.float32(spread))
        tables = {tau: measure(scaled, tau, keys_S) for tau in args.temperature}
        lines += markdown(tables, spread)
    print("\n".join(lines))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as f:
            f.write("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
