"""Search keys: order like the score, and principal components like numpy's."""

import numpy as np
import pytest

from clara_jax.corpus.search import keys
from clara_jax.corpus.search.keys import Basis, Recall, fit
from clara_jax.models import scores as scores_lib

RNG = np.random.default_rng(0)
DOCUMENTS = 1 + RNG.standard_normal((60, 3, 16)).astype(np.float32)
QUERIES = RNG.standard_normal((4, 3, 16)).astype(np.float32)


@pytest.mark.parametrize("score", ["cosine", "mean"])
def test_all_components_give_the_score_but_for_a_constant(score):
    basis = fit(DOCUMENTS, score, 1000)
    assert basis.variance == pytest.approx(1, abs=1e-3)
    assert basis.key == (48 if score == "cosine" else 16)
    products = basis.queries(QUERIES) @ basis.documents(DOCUMENTS).T
    exact = np.array(scores_lib.score(QUERIES, np.stack([DOCUMENTS] * 4), score))
    np.testing.assert_allclose(
        products - products.mean(1, keepdims=True), exact - exact.mean(1, keepdims=True), atol=1e-5
    )


@pytest.mark.parametrize("n", [20, 60])  # fewer documents than numbers, and more
def test_components_are_the_principal_ones(n):
    basis = fit(DOCUMENTS[:n], "cosine", 5)
    x = np.array(keys.unit_vectors(DOCUMENTS[:n], "cosine"))
    values, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)[1:]
    np.testing.assert_allclose(np.abs(vectors[:5] @ basis.components_XK), np.eye(5), atol=1e-3)
    share = np.square(values[:5]).sum() / np.square(values).sum()
    assert basis.variance == pytest.approx(share, rel=1e-4)
    np.testing.assert_allclose(basis.documents(DOCUMENTS[:n]).mean(0), 0, atol=1e-5)


def test_few_documents_have_few_components():
    assert fit(DOCUMENTS[:4], "cosine", 64).key == 3
    assert fit(DOCUMENTS[:1], "cosine", 64).key == 1
    assert fit(np.stack([DOCUMENTS[0]] * 9), "cosine", 64).key >= 1  # all alike


def test_a_basis_is_read_back_equal():
    basis = fit(DOCUMENTS, "maxsim", 7)
    other = Basis.unpack(basis.pack())
    assert other.name == basis.name and other.score == "maxsim"
    np.testing.assert_array_equal(other.documents(DOCUMENTS), basis.documents(DOCUMENTS))
    assert fit(DOCUMENTS[1:], "maxsim", 7).name != basis.name


def test_recall_counts_block_by_block():
    own = np.array([3, -1, 20, -1])
    alive = np.ones(60, bool)
    alive[40:45] = False
    recall = Recall(QUERIES, own, "cosine", 6)
    for first in range(0, 60, 25):
        recall.add(first, DOCUMENTS[first : first + 25], alive[first : first + 25])
    exact = np.array(scores_lib.score(QUERIES, np.stack([DOCUMENTS] * 4)))
    exact[:, ~alive] = -np.inf
    exact[0, 3] = exact[2, 20] = -np.inf
    best = np.argsort(-exact, 1)[:, :6]
    np.testing.assert_array_equal(recall.best_nb, best)
    assert recall.of(best) == 1
    assert recall.of(np.concatenate([best[:, :3], np.full((4, 3), -1)], 1)) == 0.5
    few = Recall(QUERIES, own, "cosine", 6)
    few.add(0, DOCUMENTS[:2], alive[:2])
    assert (few.best_nb[:, 2:] == -1).all() and few.of(few.best_nb[:, :2]) == 1
