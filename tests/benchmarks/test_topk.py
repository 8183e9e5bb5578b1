"""The exact gradient against brute force, and estimators where theory says what they give."""

import itertools
import math

import jax
import numpy as np
import pytest

from benchmarks import topk
from benchmarks.topk import (
    ESTIMATORS,
    agreement,
    compare,
    discrete_losses,
    estimates,
    exact_gradient,
    make_problems,
    measure,
)
from clara_jax.models.topk import select

KEYS = jax.random.split(jax.random.key(0), 3000)


def mean_loss(scores_N, problems, k, temperature):
    """Of the first problem: every selection's probability, draw by draw, times its loss."""
    weights = np.exp(np.float64(scores_N) / temperature)
    total = 0.0
    for selection in itertools.permutations(range(len(scores_N)), k):
        probability, left = 1.0, weights.sum()
        for n in selection:
            probability, left = probability * weights[n] / left, left - weights[n]
        mix = sum(problems.parts_RKND[0, j, n].astype(np.float64) for j, n in enumerate(selection))
        total += probability * ((mix / math.sqrt(k) - problems.aim_RD[0]) ** 2).sum()
    return total


def nearly_linear(problems):
    """The same problems with a loss whose curvature is lost beside its slope."""
    return problems._replace(aim_RD=problems.aim_RD * np.float32(1e4))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_exact_gradient_is_that_of_the_mean_loss(k, temperature):
    problems, step = make_problems(2, 5, 3.0, 0), 1e-4
    found = exact_gradient(problems, k, temperature)[0]
    for n in range(5):
        moved = [problems.scores_RN[0] + sign * step * (np.arange(5) == n) for sign in (1, -1)]
        up, down = (mean_loss(scores, problems, k, temperature) for scores in moved)
        assert found[n] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6), n


def test_exact_gradient_survives_leads_of_thousands_of_temperatures():
    problems = make_problems(3, 6, 3.0, 0)
    found = exact_gradient(problems, 4, 1e-4)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-9)


def test_noisy_selections_are_those_of_the_enumeration():
    """The mean loss over selections by `select` with noise, against that of successive draws."""
    problems, k, temperature = make_problems(1, 4, 3.0, 1), 2, 0.8
    scores = np.repeat(problems.scores_RN, 40_000, axis=0)
    _, indices = select(scores, k, "gumbel", temperature, rng=jax.random.key(0))
    losses = discrete_losses(problems, np.asarray(indices))[0]
    expected = mean_loss(problems.scores_RN[0], problems, k, temperature)
    assert losses.mean() == pytest.approx(expected, abs=5 * losses.std() / 200)


def test_a_linear_loss_and_one_slot_make_straight_through_exact():
    problems = nearly_linear(make_problems(4, 6, 3.0, 0))
    exact = exact_gradient(problems, 1, 0.5)
    found = np.asarray(estimates(problems, np.float32(1), "straight_through", 0.5, KEYS[:1]))
    np.testing.assert_allclose(found[0], exact, rtol=1e-2, atol=1e-3 * np.abs(exact).max())
    assert compare(found, exact)[1] < 1e-3
    # A curved loss is another matter: its tangent at the hard selection misleads.
    curved = make_problems(4, 6, 1.0, 0)
    found = np.asarray(estimates(curved, np.float32(1), "straight_through", 0.5, KEYS[:1]))
    assert compare(found, exact_gradient(curved, 1, 0.5))[0] < 0.9


@pytest.mark.parametrize("method", ESTIMATORS)
def test_estimates_are_gradients_through_the_slots_asked_for(method):
    problems, k = make_problems(2, 6, 3.0, 0), 3

    def loss(scores):
        weights, _ = select(scores, k, method, 0.5)
        mix = (weights[..., None] * problems.parts_RKND[:, :k]).sum((1, 2)) / math.sqrt(k)
        return ((mix - problems.aim_RD) ** 2).sum()

    found = estimates(problems, np.float32(k), method, 0.5, KEYS[:2])
    if method == "gumbel":
        assert np.abs(found[0] - found[1]).max() > 0.1
    else:
        np.testing.assert_allclose(found[1], jax.jit(jax.grad(loss))(problems.scores_RN), atol=1e-4)


def test_agreement_by_hand():
    scores = np.float32([[0.2, 0.0, 0.1]])
    same, mass = np.asarray(agreement(scores, 3, "straight_through", 0.1, KEYS[:1]))
    e = np.exp([2.0, 1.0, 0.0])
    slots = [e[0] / e.sum(), e[1] / e[1:].sum(), 1.0]
    np.testing.assert_allclose(mass, np.cumsum(slots) / [1, 2, 3], rtol=1e-5)
    assert same.tolist() == [1, 1, 1]
    # With one score far above tau, noise leaves it in front and shuffles the others.
    same, mass = np.asarray(agreement(np.float32([[9, 0, 0]]), 3, "gumbel", 0.1, KEYS))
    np.testing.assert_allclose(same, [1, 0.75, 2 / 3], atol=0.02)
    assert mass[0] == pytest.approx(1)


def test_comparison_takes_one_scale_for_all():
    exact = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert compare(5 * exact[None], exact) == (pytest.approx(1), pytest.approx(0, abs=1e-7))
    # The best factor of (1, 1) against lengths 1 and 2 is 1.5, which misses both by 0.5.
    apart = compare(np.array([[[1.0, 0.0], [0.0, 1.0]]]), exact)
    assert apart == (pytest.approx(1), pytest.approx(math.sqrt(0.5 / 5)))
    assert compare(np.zeros((1, 2, 2)), exact) == (0, 1)


def test_tables_hold_all_that_can_be_enumerated(monkeypatch):
    monkeypatch.setattr(topk, "MOST", 20)
    table = measure(make_problems(2, 5, 3.0, 0), 0.5, KEYS[:10])
    assert set(table["cosine"]) == {*ESTIMATORS, "gumbel, 1 draw"}
    assert set(table["mass"]) == set(ESTIMATORS)
    for name in table["error"]:
        known = [True, True, False, False, False]  # 5 and 20 selections, then 60
        for quantity in ("cosine", "error"):
            assert np.isfinite(table[quantity][name]).tolist() == known, name
    assert all(len(x) == 5 for x in table["agreement"].values())


def test_command(tmp_path, capsys):
    path = tmp_path / "table.md"
    arguments = "--candidates 3 --problems 2 --noise 4 --spread 0.1 --temperature 1 0.02"
    assert topk.main([*arguments.split(), "--output", str(path)]) == 0
    text = path.read_text()
    assert capsys.readouterr().out == text + "\n"
    assert text.count("###") == 4 and "| k=3 |" in text and "k=4" not in text
    rows = [line for line in text.splitlines() if line.startswith("| softsort | 0.02 |")]
    assert len(rows) == 4 and all(row.count("|") == 6 for row in rows)
    assert topk.main([*arguments.split(), "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--candidates=63", "--problems=0", "--temperature=0"])
def test_mistakes(option, capsys):
    with pytest.raises(SystemExit) as stop:
        topk.main([option])
    assert stop.value.code == 2 and option.split("=")[0] in capsys.readouterr().err
