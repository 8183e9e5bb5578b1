"""How well candidates are ranked, and BM25, the ranking that needs no model."""

from collections.abc import Sequence

import numpy as np

from clara_jax.inference.search_words import Words

KS = (1, 3, 5)


def ranking(scores: Sequence[float] | np.ndarray) -> list[int]:
    """Indices of the candidates, best first, ties in order.

    Args:
        scores: [N], any real dtype; -inf at padding, which is left out.

    Raises:
        ValueError: scores are no vector, or one is NaN.
    """
    scores_N = np.asarray(scores, np.float64)
    if scores_N.ndim != 1:
        raise ValueError(f"scores of shape {scores_N.shape} are no vector")
    if np.isnan(scores_N).any():
        raise ValueError(f"the score of candidate {np.isnan(scores_N).argmax()} is NaN")
    order_N = np.argsort(-scores_N, kind="stable")
    return order_N[scores_N[order_N] > -np.inf].tolist()


def recall_at(ranked: Sequence[int], gold: Sequence[int], k: int) -> float:
    """Share of the gold documents among the first k.

    Args:
        ranked: documents, best first.
        gold: documents that should be found; repeated ones count once.
        k: at least 1; may exceed the number of documents.

    Raises:
        ValueError: no gold document, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    wanted = _wanted(gold)
    return len(wanted & set(ranked[:k])) / len(wanted)


def reciprocal_rank(ranked: Sequence[int], gold: Sequence[int]) -> float:
    """1 over the rank, from 1, of the first gold document; 0 if none is ranked.

    Raises:
        ValueError: no gold document.
    """
    wanted = _wanted(gold)
    return next((1 / rank for rank, n in enumerate(ranked, 1) if n in wanted), 0.0)


def score_rankings(
    rankings: Sequence[Sequence[int]], golds: Sequence[Sequence[int]], ks: Sequence[int] = KS
) -> dict[str, float]:
    """Means of `recall@k`, for every k, and of `mrr` over the questions that have gold documents.

    Args:
        rankings: documents of each question, best first.
        golds: gold documents of each question; may be empty.
        ks: how many of the first documents count.

    Returns:
        Empty if no question has gold documents.

    Raises:
        ValueError: numbers of rankings and golds differ, or some k < 1.
    """
    pairs = [(r, gold) for r, gold in zip(rankings, golds, strict=True) if len(gold)]
    if not pairs:
        return {}
    means = {f"recall@{k}": np.mean([recall_at(r, gold, k) for r, gold in pairs]) for k in ks}
    means["mrr"] = np.mean([reciprocal_rank(r, gold) for r, gold in pairs])
    return {name: float(mean) for name, mean in means.items()}


def _wanted(gold: Sequence[int]) -> set[int]:
    if not len(gold):
        raise ValueError("no gold document: nothing can be found")
    return set(gold)


def bm25_scores(questions: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """BM25 of every question with each of its own candidates.

    Document frequencies and the mean length are those of all distinct candidates of the call. The
    variant is bm25s's default, Lucene's with exact lengths: k1 1.5, b 0.75, a word's weight
    log(1 + (n - df + 0.5) / (df + 0.5)). Words are runs of word characters in lower case, none left
    out or stemmed; one that a question repeats counts as often.

    Args:
        questions: texts.
        candidates: texts of each question's candidates; their number may differ.

    Returns:
        A float32 vector for each question, 0 where no word is shared.

    Raises:
        ValueError: numbers of questions and of lists of candidates differ.
    """
    if len(questions) != len(candidates):
        raise ValueError(f"{len(questions)} questions have {len(candidates)} lists of candidates")
    distinct = dict.fromkeys(text for texts in candidates for text in texts)
    row_of = {text: row for row, text in enumerate(distinct)}
    index = Words.build(distinct)
    return [
        index.scores(question)[[row_of[text] for text in texts]]
        for question, texts in zip(questions, candidates, strict=True)
    ]
