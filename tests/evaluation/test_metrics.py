import pytest

from clara_jax.evaluation import metrics
from clara_jax.text.normalise import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Marlow Bridge.", "marlow bridge"),
        ("An apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("Ann's theatre, atop\na hill", "anns theatre atop hill"),
        ("the", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "f1", "cover"),
    [
        ("the Helen Draycott!", "Helen Draycott", 1, 1, 1),
        ("Helen", "Helen Draycott", 0, 2 / 3, 0),  # precision 1, recall 1/2
        ("It was Helen Draycott", "Helen Draycott", 0, 2 / 3, 1),  # 2/4, 1
        ("red red red", "red", 0, 0.5, 1),  # words count as often as both have them
        ("Draycott Helen", "Helen Draycott", 0, 1, 0),
        ("", "Helen", 0, 0, 0),
        ("1932", "4 June 1932", 0, 0.5, 0),
        ("", "the", 1, 1, 1),
        ("something", "the", 0, 0, 0),  # an accepted answer of no words covers nothing
    ],
)
def test_cases_worked_by_hand(answer, accepted, exact, f1, cover):
    assert metrics.exact_match(answer, accepted) == exact
    assert metrics.f1(answer, accepted) == pytest.approx(f1)
    assert metrics.cover_exact_match(answer, accepted) == cover


def test_best_accepted_answer_counts_and_questions_are_averaged():
    scores = metrics.score(["in 1932", "red fox"], [("4 June 1932", "1932"), ("blue", "fox")])
    assert scores == {
        "exact_match": 0.0,
        "f1": pytest.approx((2 / 3 + 2 / 3) / 2),
        "cover_exact_match": 1.0,
    }
    with pytest.raises(ValueError):
        metrics.score(["one"], [])
