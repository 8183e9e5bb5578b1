import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax import api
from clara_jax.evaluation import asking
from clara_jax.evaluation.inside import data
from clara_jax.evaluation.inside import slots as slots_lib
from clara_jax.models import clara
from clara_jax.models.decoder import head_logits
from clara_jax.plotting import pyplot


@pytest.fixture(scope="module")
def given(random_model):
    return data.read(random_model.model, "facts:3:1", 3)


def by_hand(setup, fact, memory_MD):
    """Log-probability of the fact's answer: one row without padding."""
    prompt, where = asking.prompt(setup.model, fact.question, memory_MD[None], fact.answer)
    tokens = np.asarray(prompt.tokens)
    x_BTD = np.array(clara.embed(setup.model.architecture, setup.trees, jnp.asarray(tokens)[None]))
    x_BTD[0, setup.model.extra.is_memory(tokens)] = memory_MD
    positions = jnp.arange(len(tokens))[None]
    run = jax.jit(clara.run, static_argnums=(0, 2))
    hidden, _ = run(setup.model.decoder, setup.trees, "generator", jnp.asarray(x_BTD), positions)
    log_probs = jax.nn.log_softmax(
        head_logits(setup.model.architecture, setup.trees["base"], hidden[0])
    )
    return sum(float(log_probs[i - 1, tokens[i]]) for i in range(where.start, where.stop))


def test_scores_are_those_of_memories_with_a_slot_replaced(random_model, given):
    memories = api.compress(*random_model, given.documents).memories
    mean = memories.mean(0)
    nats, right = slots_lib.scores(*random_model, given.facts, memories, mean)
    assert nats.shape == right.shape == (15, 10)
    for n in (0, 7, 14):
        fact = given.facts[n]
        memory = memories[fact.row]
        without, alone = memory.copy(), mean.copy()
        without[1], alone[3] = mean[1], memory[3]
        expected = [by_hand(random_model, fact, m) for m in (memory, mean, without, alone)]
        np.testing.assert_allclose(nats[n, [0, 1, 3, 9]], expected, rtol=1e-4)
    # Slots of a random model matter, each in another way.
    assert np.abs(nats[:, :1] - nats[:, 1:]).min(0).max() > 1e-3


def test_kept_slots():
    kept = slots_lib.kept_slots(3)
    assert kept.sum(1).tolist() == [3, 0, 2, 2, 2, 1, 1, 1]
    assert not kept[3, 1] and kept[6, 1]


def test_panels_are_means_over_the_facts_of_a_column(random_model, given, monkeypatch):
    facts, M = given.facts, 4

    def scores(model, trees, facts, memories, mean):
        assert (mean == 0).all()
        nats = np.full((len(facts), 2 + 2 * M), -10.0)
        nats[:, 0] = -1
        for n, fact in enumerate(facts):  # the name lies in slot 0, all else in slot 2
            slot = 0 if fact.question == "who ?" else 2
            nats[n, 2 : 2 + M] = -1
            nats[n, 2 + slot] = -7
            nats[n, 2 + M + slot] = -2
        return nats, nats > -5

    monkeypatch.setattr(slots_lib, "scores", scores)
    found = slots_lib.measure(*random_model, dataclasses.replace(given, replace="zero"))
    panel = found["panels"]["by question"]
    who = panel["columns"].index("who ?")
    needed, suffices = np.array(panel["needed"]), np.array(panel["suffices"])
    assert needed[:, who].tolist() == [6, 0, 0, 0] and suffices[:, who].tolist() == [8, 0, 0, 0]
    others = np.delete(needed, who, axis=1)
    assert (others[2] == 6).all() and others.sum() == others[2].sum()
    assert sum(panel["facts"]) == sum(f.question in panel["columns"] for f in facts)
    first = found["panels"]["by place of the answer in the document"]
    assert first["columns"][0] == "0-20 %" and np.array(first["needed"])[0, 0] == 6
    assert found["concentration"]["mean"] == 1 and found["concentration_if_even"] == 0.25
    assert found["right"]["all slots"]["mean"] == 1 and found["right"]["no slot"]["mean"] == 0
    assert found["right"]["one slot alone"]["mean"] == 0.25
    assert len(found["panels"]["one example"]["columns"]) == 5
    pyplot().close(slots_lib.draw(found))


@pytest.mark.parametrize(("effect", "dark"), [(0.0, False), (0.02, False), (3.0, True)])
def test_nothing_does_not_look_like_something(effect, dark):
    panel = {"columns": ["a", "b"], "needed": [[0, effect]], "suffices": [[effect, 0]]}
    figure = slots_lib.draw(
        {"replaced_by": "mean", "facts": 2, "documents": 1, "panels": {"by question": panel}}
    )
    maps = [axes for axes in figure.axes if axes.get_title()]
    bars = [axes for axes in figure.axes if axes.get_ylabel() == "nats"]
    assert len(maps) == len(bars) == 2
    for axes in maps:
        (image,) = axes.get_images()
        shade = image.cmap(image.norm(effect))[0]  # red, 1 in white
        assert (shade < 0.1) == dark and (shade > 0.7) != dark
        assert ("no effect" in axes.get_xlabel()) != dark
    pyplot().close(figure)
