import pytest

from clara_jax import api
from clara_jax.errors import UserError
from clara_jax.evaluation.inside import counterfactual, data
from clara_jax.evaluation.inside.counterfactual import follows
from clara_jax.evaluation.inside.data import Fact, Given
from clara_jax.inference import answers as answers_lib
from clara_jax.plotting import pyplot


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("It is Rome.", "new"), ("oslo", "old"), ("Paris", "other"), ("Oslo or Rome", "other")],
)
def test_follows(answer, expected):
    assert follows(answer, "Rome", "Oslo") == expected


def test_a_model_that_repeats_the_text_follows_it(random_model, monkeypatch):
    def repeat(model, trees, asked, max_new_tokens, batch):
        assert max_new_tokens == 4
        return ["" if p.vectors is not None else model.tokenizer.decode(p.tokens) for p in asked]

    monkeypatch.setattr(answers_lib, "answers", repeat)
    given = data.read(random_model.model, "facts:6:1", 6)
    found = counterfactual.measure(*random_model, given)
    shares = {name: {k: v["mean"] for k, v in s.items()} for name, s in found["shares"].items()}
    assert shares["text, as it was"] == {"new": 0, "old": 1, "other": 0}
    assert shares["text, one fact changed"] == {"new": 1, "old": 0, "other": 0}
    assert shares["memory, one fact changed"] == {"new": 0, "old": 0, "other": 1}
    assert found["changed"] + found["passed_over"] == 30
    pyplot().close(counterfactual.draw(found))


def test_memories_are_those_of_the_changed_documents(random_model, monkeypatch):
    seen = []
    monkeypatch.setattr(answers_lib, "answers", lambda m, t, asked, n, batch: [""] * len(asked))
    compress = api.compress
    monkeypatch.setattr(
        api, "compress", lambda m, w, t, b: seen.append(list(t)) or compress(m, w, t)
    )
    given = data.read(random_model.model, "facts:2:1", 2)
    counterfactual.measure(*random_model, given)
    assert seen[0] == list(given.documents)
    assert seen[1] and not set(seen[1]) & set(given.documents)


def test_no_fact_to_change(random_model):
    with pytest.raises(UserError, match="no fact can be changed"):
        counterfactual.measure(*random_model, Given(("a",), [Fact(0, "did it ?", "no", None)]))
