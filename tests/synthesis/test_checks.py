import json
import sys

import pytest

from clara_jax.data.documents import Document
from clara_jax.errors import UserError
from clara_jax.synthesis import checks, languages
from clara_jax.synthesis.checks import Pair
from clara_jax.text import mentions

DOCUMENT = Document(
    "1",
    "Harbour of Lenz",
    "The stone pier in Lenz was finished by Marta Olsen on 4 May 1871 after nine years of work. "
    "Fishing boats left every morning for the banks near Torv. "
    "In 1902 a storm sank 1,250 boats, and the painter Emil Rask drew the wreckage. "
    "Schools later showed his drawings of the wreckage to visitors.",
    "x",
)


def flags(question, answer, **options):
    return checks.check(DOCUMENT, [Pair(question, answer, **options)]).flags[0]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who finished the stone pier?", "Marta Olsen"),
        ("When was the pier finished?", "May 1871"),
        ("When was the pier finished?", "May 4, 1871"),
        ("How many boats sank in the storm?", "1250"),
        ("How long did work on the pier take?", "9 years"),
        ("Did a storm sink boats?", "Yes"),
        ("Did a storm sink boats?", "Yes, in 1902"),
        ("Who drew the wreckage?", "The wreckage was drawn by painter Emil Rask."),
        ("What left daily once Marta Olsen's stone pier was finished?", "Fishing boats"),
        ("What did schools show to visitors?", "drawings of the wreckage"),
    ],
)
def test_sound_pairs_pass(question, answer):
    assert flags(question, answer) == ()


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Who finished the stone pier?", "Hilde Brandt", checks.ANSWER),
        ("Who finished the stone pier?", "Marta Brandt", checks.ENTITY),
        ("When was the pier finished?", "4 May 1873", checks.DATE),
        ("When was the pier finished?", "5 May 1871", checks.DATE),
        ("How many boats sank in the storm?", "1,350 boats", checks.NUMBER),
        ("How many boats sank in the storm?", "twelve hundred", checks.NUMBER),
        ("How many boats sank in the storm?", "Emil Rask", checks.KIND),
        ("Who finished the stone pier after nine years of work?", "Emil Rask", checks.ELSEWHERE),
        ("Who finished the pier?", "Marta Olsen, who had quarrelled bitterly over money with "
         "merchants", checks.ANSWER),
        ("Did a storm sink boats?", "Yes, in 1903", checks.NUMBER),
        ("Which pier did Marta Olsen finish?", "Marta Olsen", checks.ITSELF),
        ("", "Marta Olsen", checks.LENGTH),
        ("Who finished the stone pier?", " ", checks.LENGTH),
        ("Who finished the stone pier?", "pier " * 61, checks.LENGTH),
        ("Wer hat die steinerne Mole von Lenz und wann gebaut?", "Marta Olsen", checks.LANGUAGE),
    ],
)  # fmt: skip
def test_faults_are_flagged(question, answer, reason):
    assert reason in flags(question, answer)


def test_complex_pairs_may_join_what_stands_apart():
    question, answer = "What joins pier and storm?", "Olsen visitors"
    assert checks.ELSEWHERE in flags(question, answer)
    assert checks.ELSEWHERE not in flags(question, answer, kind="complex")


def test_repeated_questions():
    pairs = [
        Pair("Who finished the stone pier?", "Marta Olsen"),
        Pair("who finished the Stone Pier", "Olsen"),
        Pair("When was the stone pier finished?", "1871"),
    ]
    found = checks.check(DOCUMENT, pairs).flags
    assert [checks.REPEAT in reasons for reasons in found] == [False, True, False]


def test_coverage_and_what_is_left():
    pairs = [Pair("Who finished the pier in Lenz on 4 May 1871?", "Marta Olsen")]
    found = checks.check(DOCUMENT, pairs)
    assert found.coverage["dates"] == 0.5 and "1902" in found.uncovered["dates"]
    assert 0 < found.coverage["entities"] < 1 and "Emil Rask" in found.uncovered["entities"]
    assert "1250" in found.uncovered["numbers"]
    assert json.loads(json.dumps(found.as_json()))["coverage"]["dates"] == 0.5
    assert checks.check(DOCUMENT, []).coverage["dates"] == 0


def test_paraphrase():
    good = (
        "After nine years, Marta Olsen completed the pier of stone in Lenz on 4 May 1871. Each "
        "morning boats fished the banks near Torv. A storm in 1902 took 1250 of them; painter Emil "
        "Rask sketched what remained at the harbour, and visitors of schools saw it."
    )
    assert checks.check_paraphrase(DOCUMENT, good).flags == ()
    bad = checks.check_paraphrase(DOCUMENT, good.replace("1250", "1300").replace("Torv", "Vik"))
    assert bad.lost == {"entities": ("Torv",), "numbers": ("1250",)}
    assert bad.added == {"entities": ("Vik",), "numbers": ("1300",)}
    assert checks.COPIED in checks.check_paraphrase(DOCUMENT, DOCUMENT.text).flags
    assert checks.SHORT in checks.check_paraphrase(DOCUMENT, "A pier.").flags
    assert checks.LONG in checks.check_paraphrase(DOCUMENT, 3 * good).flags
    assert json.dumps(bad.as_json())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("twenty-five of 1,250 and 1.5 million", {25, 1250, 1_500_000}),
        ("two hundred and five", {205}),
        ("56.2% on the 3rd, twice", {56.2, 3, 2}),
        ("from 1922–26", {1922, 26, 1926}),
        ("B12 and none", set()),
    ],
)
def test_numbers(text, values):
    assert mentions.numbers(text) == values


def test_dates():
    text = "On 10 November 1921, May 3, June 2001; 1999-03-04, 3.4.1999 and the 1980s"
    assert mentions.dates(text) == {
        (1921, 11, 10), (None, 5, 3), (2001, 6, None), (1999, 3, 4), (1999, 4, 3),
        (1980, None, None),
    }  # fmt: skip


def test_entities():
    text = "Birds sing. The Old Mill of Torv stands. NATO paid Ada Lind's bill. Torv fell."
    assert mentions.entities(text) == ("Old Mill of Torv", "NATO", "Ada Lind", "Torv")


@pytest.mark.parametrize(
    ("text", "language", "other"),
    [
        ("Who built the pier of the town?", "English", False),
        ("Wer hat die Mole der Stadt gebaut und wann?", "English", True),
        ("Wer hat die Mole der Stadt gebaut und wann?", "German", False),
        ("谁建造了 Lenz 的码头？", "Chinese", False),
        ("Who built the pier?", "Chinese", True),
        ("谁建造了码头？", "English", True),
        ("Combien de bateaux ont coulé ?", "English", True),
        ("Хто збудував міський причал і коли?", "Ukrainian", False),
        ("Anything", "Klingon", False),
    ],
)
def test_languages(text, language, other):
    assert languages.is_other(text, language) is other


def test_without_py3langid_one_line_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(UserError, match=r"pip install 'clara-jax\[synthesis\]'"):
        languages.model.__wrapped__()
