import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation import inside_counterfactual, inside_data
from clara_jax.evaluation.inside_counterfactual import follows
from clara_jax.evaluation.inside_data import Fact, Given
from clara_jax.evaluation.report import pyplot
from clara_jax.inference import engine


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("It is Rome.", "new"), ("oslo", "old"), ("Paris", "other"), ("Oslo or Rome", "other")],
)
def test_follows(answer, expected):
    assert follows(answer, "Rome", "Oslo") == expected


def test_a_model_that_repeats_the_text_follows_it(random_model, monkeypatch):
    def repeat(setup, asked, max_new_tokens, batch):
        assert max_new_tokens == 4
        return ["" if p.vectors is not None else setup.tokenizer.decode(p.tokens) for p in asked]

    monkeypatch.setattr(engine, "answers", repeat)
    given = inside_data.read(random_model, "facts:6:1", 6)
    found = inside_counterfactual.measure(random_model, given)
    shares = {name: {k: v["mean"] for k, v in s.items()} for name, s in found["shares"].items()}
    assert shares["text, as it was"] == {"new": 0, "old": 1, "other": 0}
    assert shares["text, one fact changed"] == {"new": 1, "old": 0, "other": 0}
    assert shares["memory, one fact changed"] == {"new": 0, "old": 0, "other": 1}
    assert found["changed"] + found["passed_over"] == 30
    pyplot().close(inside_counterfactual.draw(found))


def test_memories_are_those_of_the_changed_documents(random_model, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "answers", lambda s, asked, n, batch: [""] * len(asked))
    compress = engine.compress
    monkeypatch.setattr(engine, "compress", lambda s, t, b: seen.append(list(t)) or compress(s, t))
    given = inside_data.read(random_model, "facts:2:1", 2)
    inside_counterfactual.measure(random_model, given)
    assert seen[0] == list(given.documents)
    assert seen[1] and not set(seen[1]) & set(given.documents)


def test_no_fact_to_change(random_model):
    with pytest.raises(UserError, match="no fact can be changed"):
        inside_counterfactual.measure(
            random_model, Given(("a",), [Fact(0, "did it ?", "no", None)])
        )
