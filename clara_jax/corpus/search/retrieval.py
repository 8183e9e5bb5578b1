"""How well candidates are ranked."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

KS = (1, 3, 5)


def order(scores_N: np.ndarray) -> np.ndarray:
    """Positions of scores, the largest first, equal ones as they stand."""
    return np.argsort(-scores_N, kind="stable")


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
    order_N = order(scores_N)
    return order_N[scores_N[order_N] > -np.inf].tolist()


def recall_at(ranked: Sequence[object], gold: Collection[object], k: int) -> float:
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


def reciprocal_rank(ranked: Sequence[object], gold: Collection[object]) -> float:
    """1 over the rank, from 1, of the first gold document; 0 if none is ranked.

    Raises:
        ValueError: no gold document.
    """
    wanted = _wanted(gold)
    return next((1 / rank for rank, n in enumerate(ranked, 1) if n in wanted), 0.0)


def ndcg_at(ranked: Sequence[object], gold: Collection[object], k: int) -> float:
    """Normalised discounted cumulative gain of the first k.

    Args:
        ranked: documents, best first.
        gold: documents that should be found, of gain 1; repeated ones count once. Or their gains.
        k: at least 1.

    Raises:
        ValueError: no gold document, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    gains = gold if isinstance(gold, Mapping) else dict.fromkeys(_wanted(gold), 1)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = sorted(gains.values(), reverse=True)[:k]
    hits = [gains.get(n, 0) for n in ranked[:k]]
    return float(discounts[: len(hits)] @ hits / (discounts[: len(best)] @ best))


def values(
    rankings: Sequence[Sequence[object]],
    golds: Sequence[Collection[object]],
    ks: Sequence[int] = KS,
) -> dict[str, list[float]]:
    """`recall@k` for every k, `mrr` and `ndcg@K` for the largest, of the questions that name golds.

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
    recalls = {f"recall@{k}": [recall_at(r, gold, k) for r, gold in pairs] for k in ks}
    ranks = [reciprocal_rank(r, gold) for r, gold in pairs]
    return (
        recalls
        | {"mrr": ranks}
        | {f"ndcg@{max(ks)}": [ndcg_at(r, gold, max(ks)) for r, gold in pairs]}
    )


def _wanted(gold: Collection[object]) -> set[object]:
    if not len(gold):
        raise ValueError("no gold document: nothing can be found")
    return set(gold)
