import numpy as np
import pytest

from clara_jax import api
from clara_jax.data.records import QaRecord
from clara_jax.evaluation.inside import lens
from clara_jax.evaluation.inside.data import Given
from clara_jax.inference.encode import Compressed
from clara_jax.inference.lens import Word


@pytest.fixture
def saying(random_model, monkeypatch):
    """Memories of texts are the embeddings of four of their words, those of questions of `queries`.

    Gives a function that sets the latter.
    """
    table = np.asarray(random_model.trees["base"]["embed"]["embedding"])

    def vectors(texts):
        ids = [random_model.model.tokenizer.encode(" ".join(text.split()[:4])) for text in texts]
        return table[np.array(ids)]

    def use(queries):
        monkeypatch.setattr(
            api, "compress", lambda model, trees, texts, batch: Compressed(vectors(texts), 0, 1.0)
        )
        monkeypatch.setattr(api, "encode_query", lambda *_: vectors(queries))

    return use


def test_each_slot_says_its_own_word(random_model, saying):
    documents = ("red horse city baker", "blue drum figs food")
    questions = ("which city ?", "which food ?")
    given = Given(documents, questions=[
        QaRecord(q, documents[::-1], ("x",), (1 - i,), "") for i, q in enumerate(questions)
    ])  # fmt: skip
    saying(["horse city goat owl", "figs drum mule crow"])
    found = lens.measure(*random_model, given)
    first = found["words"][0]
    assert first["document"] == documents[0]
    assert [words[0][0] for words in first["memory"]] == ["red", "horse", "city", "baker"]
    assert [words[0][0] for words in first["query"]] == ["horse", "city", "goat", "owl"]
    # `city` was asked for, `goat` is not in the document.
    assert [words[0][2] for words in first["query"]] == [True, False, False, False]
    counts = found["counts"]
    assert counts["query"]["own"] > counts["query"]["another"]
    assert counts["query"]["difference"] == pytest.approx(
        counts["query"]["own"] - counts["query"]["another"]
    )
    assert counts["memory"]["own"] == 3
    # `red` is short, and `city` was asked for.
    assert [words[0][2] for words in first["memory"]] == [False, True, False, True]
    assert any("**horse**" in line for line in lens.text(found))


def test_words_that_any_document_holds_are_not_marked():
    said = "the of With There through Paris Fox 1907 1 巴黎 château mill".split()
    plain = lens._plain([Word(text, 1.0, in_documents=True) for text in [*said, "no"]])
    assert [text for text, _, marked in plain if marked] == [
        "Paris", "1907", "巴黎", "château", "mill",
    ]  # fmt: skip
    assert lens._plain([Word("mill", 1.0)]) == [["mill", 1.0, False]]


def test_the_control_is_a_question_with_other_documents():
    documents = [["a"], ["a", "b"], ["c"]]
    assert [lens._another(documents, n) for n in range(3)] == [["c"], ["c"], ["a"]]
    assert lens._another([["a"], ["a"]], 0) == ["a"]
