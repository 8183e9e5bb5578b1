"""A question's candidates by both scores: alpha * n(trained) + (1 - alpha) * n(BM25).

n takes a score to a share of its range: from the least that it can be (0 for BM25, -1 for all kinds
of cosines) to the largest among the candidates. Which alpha is best depends on model and documents:
it is fitted on questions whose documents are known, `clara compress --fit`, and kept as

    STORE/search/alpha.json   with what it was fitted on, and the metrics of every alpha
"""

import dataclasses
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from clara_jax import checksums, files
from clara_jax import config as config_lib
from clara_jax.corpus.search.words import DAMAGED
from clara_jax.corpus.store import Store
from clara_jax.errors import reason
from clara_jax.models.clara import Trees
from clara_jax.runs.fingerprint import model_hash
from clara_jax.runs.setup import Model

# Where none is fitted. Cosines of one question differ little as shares of the range from -1, so
# with 0.3 they decide between documents that BM25 hardly tells apart, and seldom against it: a
# ranking near that of words, which no model has to be good for.
DEFAULT = 0.3
ALPHAS = tuple(n / 20 for n in range(21))
FILE = "alpha.json"
_GROWN = 2  # times the rows, or as much fewer, that an alpha is doubtful for
_AGAIN = "fit it again with --mode=compress --fit"


def combined(trained_C: np.ndarray, words_C: np.ndarray | None, alpha: float) -> np.ndarray:
    """Float64 [C] to rank a question's candidates by.

    Args:
        trained_C: their trained scores.
        words_C: their BM25; None: the trained scores alone count.
        alpha: from 0, the ranking by BM25, to 1, that by the trained score.
    """
    if words_C is None:
        return np.asarray(trained_C, np.float64)
    return alpha * _share(trained_C, -1) + (1 - alpha) * _share(words_C, 0)


def path(store: str) -> epath.Path:
    """The file of a store's alpha."""
    return files.path(store) / "search" / FILE


def with_alpha(
    options: config_lib.Search, store: Store | None, model: Model, trees: Trees
) -> config_lib.Search:
    """`config.search` with an alpha: its own, or the one that is fitted, or the default.

    Every process must call it. An alpha of another model is not used; a warning says so.
    """
    if options.alpha >= 0:
        return options
    info = None if store is None else _fitted(store)
    if store is None or info is None:
        return dataclasses.replace(options, alpha=DEFAULT)
    if info["model"] != scored_by(model, trees):
        logging.warning(
            "%s: its alpha is of another model; %s is used; %s", store.path, DEFAULT, _AGAIN
        )
        return dataclasses.replace(options, alpha=DEFAULT)
    if not store.rows / _GROWN <= info["rows"] <= store.rows * _GROWN:
        logging.warning(
            "%s: had %d rows when its alpha was fitted and has %d now; %s",
            store.path,
            info["rows"],
            store.rows,
            _AGAIN,
        )
    return dataclasses.replace(options, alpha=info["alpha"])


def scored_by(model: Model, trees: Trees) -> str:
    """The fingerprint of what gives trained scores."""
    return f"{model_hash(model, trees)} {model.config.select.score}"


def _share(scores_C: np.ndarray, low: float) -> np.ndarray:
    above_C = np.asarray(scores_C, np.float64) - low
    most = above_C.max(initial=0)
    return above_C / most if most > 0 else np.zeros_like(above_C)  # no word is shared


def _fitted(store: Store) -> dict[str, Any] | None:
    file = path(store.path)
    if not file.exists():
        return None
    try:
        info = checksums.loads(files.read(file))
        if not (0 <= info["alpha"] <= 1 and info["rows"] >= 0 and isinstance(info["model"], str)):
            raise ValueError("values that no alpha has")
        return info
    except DAMAGED as e:
        logging.warning("%s: damaged (%s); %s is used; %s", file, reason(e), DEFAULT, _AGAIN)
        return None
