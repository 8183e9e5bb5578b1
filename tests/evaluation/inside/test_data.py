import dataclasses

import numpy as np
import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation.asking import place, prompt
from clara_jax.evaluation.inside import data
from clara_jax.evaluation.inside.data import Fact, Given, changed, form, kinds
from tests.fixtures.models import altered


@pytest.fixture(scope="module")
def given(random_model):
    return data.read(random_model.model, "facts:16:1", 16)


def later(setup):
    return altered(setup, config=dataclasses.replace(setup.model.config, stage="e2e"))


def test_facts_are_those_of_the_documents(given):
    assert len(given.documents) == 16 and len(given.facts) == 80
    for fact in given.facts:
        document = given.documents[fact.row]
        assert document[round(fact.place * len(document)) :].startswith(fact.answer)
    assert "who ?" in kinds(given.facts) and len(kinds(given.facts)) <= 7
    assert [q.documents[0] for q in given.questions] == list(given.documents)


def test_kinds_are_questions_that_documents_answer_differently():
    facts = [Fact(i, q, a, None) for i, (q, a) in enumerate(
        [("where ?", "x"), ("both ?", "yes"), ("where ?", "y"), ("both ?", "yes"), ("a ?", "z")]
    )]  # fmt: skip
    assert kinds(facts) == ["where ?"]
    assert kinds([Fact(0, str(i % 20), str(i), None) for i in range(40)]) == []


def test_later_stages_are_asked_over_candidates(random_model):
    given = data.read(later(random_model).model, "facts:6:1", 4)
    assert len(given.questions) == 4 and len(given.questions[0].documents) == 20
    assert len(given.documents) == 4


def test_sources_without_questions(random_model, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"data_type": "paraphrase", "question": [], "answers": ["b"], "docs": ["a"]}')
    with pytest.raises(UserError, match="no question about a document"):
        data.read(random_model.model, str(path), 4)


def test_places_and_forms():
    assert place("a cat, a catfish", "cat") == 2 / 16
    assert place("a catfish", "cat") is None
    assert form("12 May 1984") == form("1,200 inhabitants") == "number"
    assert form("Oslo") == form("New York") != form("a baker")


@pytest.mark.parametrize("stage", ["scp", "e2e"])
def test_prompts_hold_the_answer_at_their_end(random_model, stage):
    setup = random_model if stage == "scp" else later(random_model)
    memories = np.zeros((1, 4, 128), np.float32)
    told, where = prompt(setup.model, "which city ?", memories, "bogton")
    opened, nothing = prompt(setup.model, "which city ?", memories)
    assert told.tokens[: where.start] == opened.tokens and told.vectors.shape == (4, 128)
    assert setup.model.tokenizer.decode(told.tokens[where]).split()[0] == "bogton"
    assert nothing == slice(len(opened.tokens), len(opened.tokens))


def test_a_changed_document_differs_in_its_fact_alone(given):
    changes = changed(given)
    assert len(changes) > 75
    for fact, new, text in changes:
        before = given.documents[fact.row]
        assert new != fact.answer and new not in before
        assert text.replace(new, fact.answer) == before
        same_kind = {f.answer for f in given.facts if f.question == fact.question}
        assert new in same_kind
    assert changes == changed(given) != changed(given, seed=1)


def test_questions_that_do_not_recur_take_answers_of_their_form():
    texts = ("Oslo fell in 1905, says Oslo.", "Rome rose in 1870.", "Yes it did.")
    facts = [
        Fact(0, "where ?", "Oslo", 0.0),
        Fact(0, "when ?", "1905", 0.5),
        Fact(1, "what place ?", "Rome", 0.0),
        Fact(1, "what year ?", "1870", 0.5),
        Fact(2, "did it ?", "no", None),
    ]
    found = {(fact.answer, new): text for fact, new, text in changed(Given(texts, facts))}
    assert found[("Oslo", "Rome")] == "Rome fell in 1905, says Rome."
    assert set(found) == {("Oslo", "Rome"), ("1905", "1870"), ("Rome", "Oslo"), ("1870", "1905")}
