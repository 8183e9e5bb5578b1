"""What closeness of memories means: changed copies of documents, and pairs that people scored.

Beside the memories' own score (`config.select.score`) stand the cosine of the plain base's mean
states, and BM25 of one text as the question and the other as the document, of its score with
itself. A memory that keeps facts is nearer to a copy that says the same than to one in which one
name is another.
"""

import itertools
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.stats

from clara_jax.corpus.search.words import bm25_scores
from clara_jax.data import records as records_lib
from clara_jax.data.records import ScpRecord
from clara_jax.data.tfds_source import open_rows, read_row
from clara_jax.errors import UserError
from clara_jax.evaluation import asking
from clara_jax.evaluation.fidelity import copies
from clara_jax.evaluation.fidelity.pieces import Pieces
from clara_jax.evaluation.journal import Piece
from clara_jax.evaluation.results import share
from clara_jax.evaluation.statistics import Values
from clara_jax.inference import rank
from clara_jax.inference.encode import compress
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model

SCORERS = ("memory", "base mean", "BM25")
COPIES = ("paraphrase", "reordered", "one fact exchanged", "another document")
_RESAMPLES = 1000
_TIMES = 4  # as many pairs in a piece as documents elsewhere: a document has about four copies
# Fields of a pair: of GLUE's and of PAWS's sets, of the usual STS files, and plain ones.
_FIRST, _SECOND = ("sentence1", "text1", "first"), ("sentence2", "text2", "second")
_SCORE = ("score", "label")

Pair = tuple[str, str, float]


def pair_scores(
    model: Model, trees: Trees, pairs: Sequence[tuple[str, str]], pieces: Pieces | None, part: str
) -> dict[str, list]:
    """How close the texts of each pair are, by each of SCORERS; `part` is for the progress."""
    found = (pieces or Pieces()).each(
        part, pairs, partial(_vector_scores, model, trees), times=_TIMES
    )
    # Their weights are of all words, whatever the pieces.
    words = bm25_scores([first for first, _ in pairs], pairs)
    return {
        **{name: [score for piece in found for score in piece[name]] for name in SCORERS[:2]},
        "BM25": [float(both / max(itself, 1e-9)) for itself, both in words],
    }


def _vector_scores(model: Model, trees: Trees, pairs: Sequence[tuple[str, str]]) -> Piece:
    """A piece of `pair_scores`, by what needs the model."""
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
    row = {text: i for i, text in enumerate(distinct)}
    memories_nMD = compress(model, trees, distinct, model.config.eval.batch).memories
    means_nD = asking.text_means(model, trees, distinct, enc=False)
    means_nD /= np.maximum(np.linalg.norm(means_nD, axis=1, keepdims=True), 1e-12)
    kind = model.config.select.score
    index = [(row[a], row[b]) for a, b in pairs]
    near = [rank.scores(memories_nMD[a], memories_nMD[[b]], kind) for a, b in index]
    return {
        "memory": [float(scores_1[0]) for scores_1 in near],
        "base mean": [float(means_nD[a] @ means_nD[b]) for a, b in index],
    }


def changed(records: Sequence[ScpRecord], seed: int = 0) -> list[tuple[str, str, str, str, str]]:
    """Documents with their changed copies, see `copies.copies`.

    Raises:
        UserError: there are no two documents with such copies.
    """
    found = copies.copies(list(records), np.random.default_rng(seed))
    if len(found) < 2:
        raise UserError(
            "similarity: no two documents have two sentences and a name or a number to exchange"
        )
    return found


def changed_copies(
    model: Model,
    trees: Trees,
    records: Sequence[ScpRecord],
    pieces: Pieces | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Closeness of documents to their changed copies.

    Returns:
        `documents`, `scores` {scorer: {copy: [one a document]}}, and `told_apart` {scorer: {mean,
        interval}}: how often a copy that says the same (the paraphrase where there is one, else
        the reordered one) is nearer than the one with a fact exchanged; a tie counts half.

    Raises:
        UserError: there are no two documents with such copies.
    """
    documents = changed(records, seed)
    # Copies of a document stand together: a piece compresses it once.
    named = [
        (copy, (text, changed_text))
        for text, *changed_texts in documents
        for copy, changed_text in zip(COPIES, changed_texts, strict=True)
        if changed_text
    ]
    kinds, pairs = zip(*named, strict=True)
    scores: dict[str, dict[str, list[float]]] = {}
    for name, values in pair_scores(model, trees, pairs, pieces, "changed copies").items():
        scores[name] = {copy: [] for copy in COPIES if copy in kinds}
        for copy, value in zip(kinds, values, strict=True):
            scores[name][copy].append(value)
    apart = {}
    for name, of in scores.items():
        paraphrases = iter(of.get("paraphrase", ()))
        same = [
            next(paraphrases) if paraphrase else score
            for (_, paraphrase, *_), score in zip(documents, of["reordered"], strict=True)
        ]
        # Closer than rounding is a tie: BM25 does not see order at all.
        apart[name] = share(
            [
                0.5 if abs(a - b) < 1e-6 else float(a > b)
                for a, b in zip(same, of["one fact exchanged"], strict=True)
            ]
        )
    return {"documents": len(documents), "scores": scores, "told_apart": apart}


def human_scores(
    model: Model, trees: Trees, pairs: Sequence[Pair], pieces: Pieces | None = None, seed: int = 0
) -> dict[str, Any]:
    """Spearman's rank correlation of each of SCORERS with people's scores, with its interval."""
    scores = [score for *_, score in pairs]
    texts = [(first, second) for first, second, _ in pairs]
    ours = pair_scores(model, trees, texts, pieces, "pairs that people scored")
    return {
        "pairs": len(pairs),
        "spearman": {name: spearman(values, scores) for name, values in ours.items()},
        "intervals": {
            name: list(spearman_interval(values, scores, seed)) for name, values in ours.items()
        },
    }


def spearman(ours: Values, theirs: Values) -> float:
    """Spearman's rank correlation, equal values having their mean rank; 0 if all are equal."""
    if len(set(ours)) == 1 or len(set(theirs)) == 1:
        return 0.0
    return float(scipy.stats.spearmanr(ours, theirs).statistic)


def spearman_interval(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """Its 95 % percentile bootstrap interval, over pairs."""
    rng = np.random.default_rng(seed)
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    draws = [rng.integers(0, len(a), len(a)) for _ in range(_RESAMPLES)]
    low, high = np.quantile([spearman(a[i], b[i]) for i in draws], (0.025, 0.975))
    return float(low), float(high)


def read_pairs(name: str, count: int) -> list[Pair]:
    """The first pairs with scores of a JSONL file, or of `tfds:glue/stsb/validation` and the like.

    A row has `sentence1` and `sentence2` (or `text1`, `text2`; `first`, `second`) and a number
    under `score` or `label`; PAWS's labels are 0 and 1.

    Raises:
        UserError: it cannot be read, or a row is none.
    """
    if name.startswith("tfds:"):
        rows = open_rows(name.removeprefix("tfds:"))
        values = ((read_row(rows, i, name), f"{name}:{i}") for i in range(len(rows)))
    else:
        values = records_lib.lines(name)
    pairs = [_pair(value, origin) for value, origin in itertools.islice(values, count)]
    if len(pairs) < 3 or len({score for _, _, score in pairs}) < 2:
        raise UserError(f"{name}: three pairs or more, of differing scores, are needed")
    return pairs


def _pair(value: dict[str, Any], origin: str) -> Pair:
    parts: list[Any] = [
        next((value[k] for k in keys if k in value), None) for keys in (_FIRST, _SECOND, _SCORE)
    ]
    first, second, score = parts
    numeric = isinstance(score, int | float | np.number) and np.isfinite(score)
    if not all(isinstance(t, str) and t.strip() for t in (first, second)) or not numeric:
        raise UserError(
            f"{origin}: a pair has texts sentence1 and sentence2 and a number score, not "
            f"{json.dumps(value, default=str)[:80]}"
        )
    return first, second, float(score)
