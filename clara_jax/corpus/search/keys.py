"""Search keys: memories as short vectors whose inner products order documents like the score.

Every score is that of two unit vectors, or is near one: `cosine` of the flattened memories, `mean`
of their means, `maxsim` of memories whose vectors are normalised one by one and then flattened (the
mean cosine of vectors at the same place, which the mean of the best ones is not below). A key is
what the principal components of the documents' unit vectors x keep of one,

    document  (x - mean) P        query  q P        x P, K of X = M * D numbers

so that q P . (x - mean) P is q . x but for what the components leave out and for q . mean, which is
the same for all documents. Keys are not normalised: that would undo the order.
"""

import dataclasses
import functools
import hashlib
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from clara_jax.models import scores as scores_lib

_EPS = 1e-8  # least norm, as of the scores
_NOTHING = 1e-6  # share of the largest variance below which a component is rounding

_exact = functools.partial(jax.default_matmul_precision, "highest")


@dataclasses.dataclass(frozen=True)
class Basis:
    """Where keys come from."""

    score: str  # a key of models/scores.KINDS
    components_XK: np.ndarray  # float32, orthonormal columns, the largest variance first
    offset_K: np.ndarray  # float32, the mean document's key
    variance: float  # share of the documents' variance that the components keep

    @property
    def key(self) -> int:
        """K."""
        return len(self.offset_K)

    @functools.cached_property
    def name(self) -> str:
        """Differs wherever the keys do."""
        data = self.components_XK.tobytes() + self.offset_K.tobytes() + self.score.encode()
        return f"{self.score}-{self.key}-{hashlib.blake2b(data, digest_size=4).hexdigest()}"

    def documents(self, memories_bMD: np.ndarray) -> np.ndarray:
        """Keys float32 [b, K] of documents' memories, of any float dtype."""
        return self.queries(memories_bMD) - self.offset_K

    def queries(self, memories_nMD: np.ndarray) -> np.ndarray:
        """Keys float32 [n, K] of queries' memories, of any float dtype."""
        return np.asarray(query_keys(memories_nMD, self._components, self.score))

    @functools.cached_property
    def _components(self) -> jax.Array:
        return jnp.asarray(self.components_XK)

    def pack(self) -> bytes:
        """The file of a basis."""
        file = io.BytesIO()
        arrays = {"components": self.components_XK, "offset": self.offset_K}
        np.savez(file, score=self.score, **arrays, variance=self.variance)
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> "Basis":
        """What `pack` made a file of."""
        with np.load(io.BytesIO(data)) as file:
            score, variance = str(file["score"]), float(file["variance"])
            return cls(score, file["components"], file["offset"], variance)


def unit_vectors(memories_bMD: jax.Array, score: str) -> jax.Array:
    """Float32 [b, X] of norm 1 at most; X is M * D, or D for the score `mean`."""
    x = memories_bMD.astype(jnp.float32)
    if score == "mean":
        x = x.mean(1)
    elif score == "maxsim":
        x = _normalised(x)
    elif score != "cosine":
        raise ValueError(f"score {score!r} has no keys")
    return _normalised(x.reshape(len(x), math.prod(x.shape[1:])))  # also of no rows


def _normalised(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _EPS)


@functools.partial(jax.jit, static_argnames="score")
def query_keys(memories_nMD: jax.Array, components_XK: jax.Array, score: str) -> jax.Array:
    """Keys float32 [n, K] of queries (module docstring)."""
    with _exact():
        return unit_vectors(memories_nMD, score) @ components_XK


@functools.partial(jax.jit, static_argnames="score")
def all_scores(queries_nMD: jax.Array, memories_bMD: jax.Array, score: str) -> jax.Array:
    """The trained score of each query with each document, float32 [n, b]."""
    with _exact():
        if score == "maxsim":  # one query at a time: all vectors by all are many
            return jax.lax.map(
                lambda query_MD: scores_lib.score(query_MD[None], memories_bMD[None], score)[0],
                queries_nMD,
            )
        return unit_vectors(queries_nMD, score) @ unit_vectors(memories_bMD, score).T


def fit(memories_nMD: np.ndarray, score: str, key: int) -> Basis:
    """The principal components of a sample of documents.

    From the n x n products of the sample where X is larger than n, as it mostly is: X x X ones
    would be 4 to 17 GB for the 9,216 to 65,536 numbers of a document.

    Args:
        memories_nMD: the sample, some times as many as `key`.
        score: a key of models/scores.KINDS.
        key: K at most; n - 1 documents or X numbers have no more components.
    """
    x_nX = np.asarray(jax.jit(unit_vectors, static_argnums=1)(memories_nMD, score))
    mean_X = x_nX.mean(0)
    x_nX = x_nX - mean_X
    n, X = x_nX.shape
    with _exact():
        x = jnp.asarray(x_nX)
        products = np.array(x @ x.T if n < X else x.T @ x)
    total, K = max(float(np.trace(products)), _EPS), max(min(key, n - 1, X), 1)
    size = len(products)
    variances_K, vectors_sK = scipy.linalg.eigh(
        products, subset_by_index=(size - K, size - 1), overwrite_a=True
    )
    largest = slice(None, None, -1)
    variances_K, vectors_sK = variances_K[largest], vectors_sK[:, largest]
    kept = max(int((variances_K > _NOTHING * variances_K[0]).sum()), 1)
    components_XK = vectors_sK[:, :kept]
    if n < X:
        with _exact():
            components_XK = np.asarray(x.T @ components_XK)
    # Those of little variance have lost their right angles to rounding.
    components_XK = np.linalg.qr(components_XK)[0].astype(np.float32)
    share = float(np.maximum(variances_K[:kept], 0).sum() / total)
    return Basis(score, components_XK, (mean_X @ components_XK).astype(np.float32), share)


class Recall:
    """Counts how many of the documents that score best are among the candidates of keys.

    Documents come block after block; memories of them all are never held.

    Args:
        queries_nMD: memories of the queries.
        own_n: the row of each query if it is a document itself, which is not to be found; else -1.
        score: as of the basis.
        best: documents of each query that should be found.

    Attributes:
        best_nb: rows of the documents that score best so far; -1 where there are fewer.
        scores_nb: their scores, float32; -inf where there are fewer.
    """

    def __init__(self, queries_nMD: np.ndarray, own_n: np.ndarray, score: str, best: int):
        self._queries, self._own, self._score = queries_nMD, np.asarray(own_n), score
        self.scores_nb: np.ndarray = np.full((len(queries_nMD), best), -np.inf, np.float32)
        self.best_nb = np.full((len(queries_nMD), best), -1)

    def add(self, first: int, memories_bMD: np.ndarray, alive_b: np.ndarray) -> None:
        """A block of documents, whose first has the row `first`."""
        block_nb = np.array(all_scores(self._queries, memories_bMD, self._score))
        rows_b = np.arange(first, first + len(memories_bMD))
        block_nb[:, ~alive_b] = -np.inf
        block_nb[rows_b[None] == self._own[:, None]] = -np.inf
        scores: np.ndarray = np.concatenate([self.scores_nb, block_nb], 1)
        rows = np.concatenate([self.best_nb, np.broadcast_to(rows_b, block_nb.shape)], 1)
        places = np.argsort(-scores, axis=1, kind="stable")[:, : self.best_nb.shape[1]]
        self.scores_nb = np.take_along_axis(scores, places, 1)
        self.best_nb = np.where(self.scores_nb > -np.inf, np.take_along_axis(rows, places, 1), -1)

    def of(self, candidates_nC: np.ndarray) -> float:
        """Share of the best documents among the candidates, mean over queries."""
        shares = [
            len(wanted & set(own)) / len(wanted)
            for best, own in zip(self.best_nb.tolist(), candidates_nC.tolist(), strict=True)
            if (wanted := set(best) - {-1})
        ]
        return float(np.mean(shares)) if shares else 1.0
