"""Rankings by hand and by properties, and BM25 against its formula."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_jax.corpus.search.retrieval import ranking, recall_at, reciprocal_rank, values
from clara_jax.corpus.search.words import bm25_scores
from clara_jax.evaluation.results import means


def test_ranking_by_hand():
    assert ranking([0.1, 0.9, -3, 0.9]) == [1, 3, 0, 2]  # ties in order
    assert ranking(np.float32([-np.inf, 2, -np.inf, np.inf])) == [3, 1]
    assert ranking(np.uint8([0, 200, 3])) == [1, 2, 0]
    assert ranking([]) == []


@given(st.lists(st.integers(-3, 3) | st.just(-math.inf), max_size=9))
def test_ranking_is_a_stable_order_of_what_is_not_masked(scores):
    kept = [n for n, s in enumerate(scores) if s > -math.inf]
    assert ranking(scores) == sorted(kept, key=lambda n: -scores[n])


def test_ranking_refuses_what_has_no_order():
    with pytest.raises(ValueError, match="candidate 1 is NaN"):
        ranking([0.0, math.nan])
    with pytest.raises(ValueError, match="no vector"):
        ranking(np.zeros((2, 3)))


def test_recall_and_rank_by_hand():
    ranked = [4, 0, 3, 1]
    assert [recall_at(ranked, [0, 1], k) for k in (1, 2, 3, 4, 9)] == [0, 0.5, 0.5, 1, 1]
    assert recall_at(ranked, [4, 4, 3], 1) == 0.5  # a gold document repeated is one
    assert recall_at(ranked, [7, 4], 9) == 0.5  # one that is no candidate is never found
    assert reciprocal_rank(ranked, [1, 3]) == 1 / 3
    assert reciprocal_rank(ranked, [7]) == 0


def test_recall_and_rank_need_gold_and_a_place():
    with pytest.raises(ValueError, match="no gold"):
        recall_at([0], [], 1)
    with pytest.raises(ValueError, match="no gold"):
        reciprocal_rank([0], [])
    with pytest.raises(ValueError, match="k=0"):
        recall_at([0], [0], 0)


def test_means_are_over_questions_with_gold():
    rankings, golds = [[0, 1, 2], [2, 1, 0], [1, 0]], [[0], np.array([0, 1]), []]
    assert means(values(rankings, golds)) == {
        "recall@1": 0.5,
        "recall@3": 1.0,
        "recall@5": 1.0,
        "mrr": 0.75,
        "ndcg@5": pytest.approx((1 + (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3))) / 2),
    }
    assert means(values(rankings, golds, ks=(2,))) == {
        "recall@2": 0.75,
        "mrr": 0.75,
        "ndcg@2": pytest.approx((1 + (1 / math.log2(3)) / (1 + 1 / math.log2(3))) / 2),
    }
    assert values([[0]], [[]]) == {} == values([], [])
    with pytest.raises(ValueError):
        values(rankings, golds[:2])


def test_metrics_are_those_of_trec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(0)
    names = [f"d{n}" for n in range(40)]
    rankings = [[str(name) for name in rng.permutation(names)[:25]] for _ in range(30)]
    golds = [{str(n): int(rng.integers(1, 4)) for n in rng.choice(names, size, replace=False)}
             for size in rng.integers(1, 15, 30)]  # fmt: skip
    runs = {f"q{i}": {n: 1 / r for r, n in enumerate(own, 1)} for i, own in enumerate(rankings)}
    judged = {f"q{i}": gold for i, gold in enumerate(golds)}
    theirs = {"recall@1": "recall_1", "recall@10": "recall_10", "mrr": "recip_rank",
              "ndcg@10": "ndcg_cut_10"}  # fmt: skip
    scored = pytrec_eval.RelevanceEvaluator(judged, set(theirs.values())).evaluate(runs)
    found = values(rankings, golds, (1, 10))
    for ours, name in theirs.items():
        np.testing.assert_allclose(found[ours], [scored[f"q{i}"][name] for i in range(30)], 1e-6)


def test_gains_count_in_ndcg():
    """By hand, as trec_eval has it: the gain by itself, not as an exponent."""
    gains = {"a": 1, "b": 3}
    best = 3 + 1 / math.log2(3)
    assert values([["a", "x", "b"]], [gains], (3,))["ndcg@3"] == [(1 + 3 / 2) / best]
    assert values([["a", "x", "b"]], [gains], (1,))["ndcg@1"] == [1 / 3]


def formula(question, document, documents):
    """Lucene's BM25, k1 1.5, b 0.75, over the distinct documents."""
    words = [re.findall(r"\w+", text.lower()) for text in documents]
    own, mean = re.findall(r"\w+", document.lower()), np.mean([len(w) for w in words])
    total = 0.0
    for word in re.findall(r"\w+", question.lower()):
        n, tf = sum(word in w for w in words), own.count(word)
        weight = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
        total += weight * tf / (tf + 1.5 * (0.25 + 0.75 * len(own) / mean))
    return total


def test_bm25_is_its_formula_over_distinct_documents():
    questions = ["Who wrote the Iliad, the EPIC?", "a b-c", "Ödön wo?"]
    candidates = [
        ["Homer wrote the Iliad.", "the the the", "", "Virgil wrote an epic poem in Latin verse."],
        ["b c b", "Homer wrote the Iliad."],
        ["ödön lebt", "the the the", "a"],
    ]
    found = bm25_scores(questions, candidates)
    distinct = {text for texts in candidates for text in texts}
    assert len(distinct) == 7
    for question, texts, scores in zip(questions, candidates, found, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, [formula(question, t, distinct) for t in texts], 1e-5)
    assert [ranking(scores)[0] for scores in found] == [0, 0, 0]
    assert found[2][2] == 0  # no word shared


def test_bm25_without_words_is_zero():
    same = bm25_scores(["a", "", "?!"], [["a", "b"], ["a"], ["b", "a", "b"]])
    assert [x.tolist() for x in same[1:]] == [[0], [0, 0, 0]] and same[0][0] > 0
    for candidates in ([["", "..."], []], [[], []]):
        found = bm25_scores(["a", "b"], candidates)
        assert [x.tolist() for x in found] == [[0.0] * len(texts) for texts in candidates]
    assert bm25_scores([], []) == []
    with pytest.raises(ValueError, match="2 questions"):
        bm25_scores(["a", "b"], [["a"]])


def test_bm25_prints_nothing_even_where_all_is_logged():
    code = """
import logging, sys
from clara_jax.corpus.search.words import bm25_scores
assert "bm25s" not in sys.modules
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("jax").setLevel(logging.WARNING)
assert bm25_scores(["a"], [["a b", "c"]])[0][0] > 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and "bm25s" not in done.stderr.lower() and "%|" not in done.stderr
