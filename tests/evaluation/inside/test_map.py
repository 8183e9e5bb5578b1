import builtins
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation.inside import map as map_lib
from clara_jax.evaluation.inside.data import Given
from clara_jax.models import clara
from clara_jax.plotting import pyplot
from tests.fixtures.models import altered

DOCUMENTS = ("this is bela loka .", "the dog is red . the city is bogton .", "the owl")


@pytest.mark.parametrize("role", [None, "compressor"])
def test_text_means_are_of_the_text_alone(random_model, role):
    found = map_lib.text_means(*random_model, DOCUMENTS, role)
    run = jax.jit(clara.run, static_argnums=(0, 2))
    for row, text in zip(found, DOCUMENTS, strict=True):
        ids, _ = random_model.model.layout.document_ids(text)
        tokens = jnp.asarray(ids[:-4])[None]
        positions = jnp.arange(tokens.shape[1])[None]
        x = clara.embed(random_model.model.architecture, random_model.trees, tokens)
        hidden, _ = run(random_model.model.decoder, random_model.trees, role, x, positions)
        np.testing.assert_allclose(row, hidden[0, 1:].mean(0), rtol=1e-4, atol=1e-5)


def test_pca_finds_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((40, 2)) * [5, 2]
    axes = np.linalg.qr(rng.standard_normal((9, 2)))[0]
    points = plane @ axes.T + 3
    flat, shares = map_lib.pca(points)
    assert sum(shares) == pytest.approx(1) and shares[0] > shares[1]
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(flat[:, None] - flat[None], axis=-1), distances, atol=1e-9
    )


def test_apart():
    texts = np.random.default_rng(1).standard_normal((20, 8))
    same = map_lib.apart(texts, texts)
    assert same["gap"] == 0 and same["cosine"] == pytest.approx(1)
    assert same["nearest"]["mean"] == 1 and same["chance"] == 0.05
    moved = map_lib.apart(texts, texts + 10)  # as one: each stays nearest to its own
    assert moved["gap"] > 5 and moved["nearest"]["mean"] == 1
    assert map_lib.apart(texts, texts[::-1])["nearest"]["mean"] < 0.2


def test_without_scikit_learn_there_is_pca_alone(random_model, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    given = Given(DOCUMENTS, names=("a", "b"), other=random_model)
    found = map_lib.measure(*random_model, given)
    assert list(found["models"]) == ["a", "b"] and found["models"]["a"]["tsne"] is None
    assert found["models"]["a"] == found["models"]["b"]
    assert len(found["models"]["a"]["pca"]["points"]) == 6
    pyplot().close(map_lib.draw(found))


def test_tsne_keeps_clusters_apart():
    pytest.importorskip("sklearn")
    points = np.random.default_rng(2).standard_normal((40, 5)).astype(np.float32)
    points[20:] += 50
    flat = map_lib.tsne(points)
    centres = flat[:20].mean(0), flat[20:].mean(0)
    assert (
        np.linalg.norm(centres[0] - centres[1])
        > np.linalg.norm(flat[:20] - centres[0], axis=1).max()
    )


def test_the_weight_is_told_only_of_a_run_that_trained_the_compressor(random_model):
    assert map_lib._mse_weight(random_model.model) == 0.1
    config = dataclasses.replace(random_model.model.config, stage="e2e")
    assert map_lib._mse_weight(altered(random_model, config=config).model) is None


def test_too_few_documents(random_model):
    with pytest.raises(UserError, match="2 documents are too few"):
        map_lib.measure(*random_model, Given(DOCUMENTS[:2]))
