import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import Data
from clara_jax.inference import lens
from clara_jax.inference.lens import Word
from tests.fixtures.models import altered


@pytest.fixture(scope="module")
def setup(random_setup):
    return random_setup(Data(document_length=40, rate=10), 5)


def test_vectors_that_are_embeddings_say_their_words(setup):
    (red,) = setup.model.tokenizer.encode("red")
    (horse,) = setup.model.tokenizer.encode("horse")
    rows = np.asarray(setup.trees["base"]["embed"]["embedding"])
    head = setup.trees["base"].get("head")
    if head is not None:
        rows = np.asarray(head["kernel"]).T
    memories = np.zeros((2, 4, 128), np.float32)
    memories[0, 2], memories[1, 1], memories[1, 3] = rows[red], rows[red], 2 * rows[horse]
    one, both = lens.words(*setup, memories, 5)
    assert one[0].text == "red" and 1 < len(one) <= 5
    assert [word.text for word in both[:1]] == ["horse"] and "red" in [w.text for w in both]
    logit = float(rows[red].astype(np.float32) @ rows[red])
    assert one[0].score == pytest.approx(logit, rel=1e-4)
    scores = [word.score for word in both]
    assert scores == sorted(scores, reverse=True)
    assert len({word.text.casefold() for word in both}) == len(both) <= 5


def test_more_logits_than_words(setup):
    added = {**setup.trees["added"], "head": jnp.ones((128, 7))}
    other = altered(setup, trees={**setup.trees, "added": added})
    memories = np.ones((1, 4, 128), np.float32)
    assert lens.words(*other, memories) == lens.words(*setup, memories)


def test_marks_are_of_words_of_the_documents_that_were_not_asked_for():
    found = [Word(text, 1.0) for text in ("Paris", "fra", "capital", "of", "x", "Rome")]
    marked = lens.mark(found, "What is the capital?", ["Paris, the Capital of France.", "xy"])
    assert [word.text for word in marked if word.in_documents] == ["Paris", "fra", "of"]
    assert [word.text for word in marked] == [word.text for word in found]
