"""BM25 over a store: what is added later scores like what is built anew, nearly."""

import numpy as np
import pytest
from etils import epath

from clara_jax.corpus.search.words import Words, best

RNG = np.random.default_rng(0)
VOCABULARY = [f"w{i}" for i in range(40)]
TEXTS = [" ".join(RNG.choice(VOCABULARY, RNG.integers(1, 12))) for _ in range(90)]
ALL = np.ones(90, bool)


def test_search_is_the_order_of_scores():
    words = Words.build(TEXTS)
    scores = words.scores("w3 w17, W3 nothing")
    order = sorted(np.flatnonzero(scores > 0), key=lambda row: (-scores[row], row))[:12]
    assert best(scores, 12, ALL).tolist() == order
    assert not len(best(words.scores(""), 12, ALL)) + len(best(words.scores("unknown"), 12, ALL))
    alive = ALL.copy()
    alive[order[0]] = False
    assert best(words.scores("w3 w17 w3"), 12, alive)[0] == order[1]


def test_added_documents():
    base = Words.build(TEXTS[:80])
    words = base.extended(TEXTS[80:85]).extended([*TEXTS[85:89], "brandnew word"])
    assert words.rows == 90 and base.rows == 80 and base.scores("w3").shape == (80,)
    np.testing.assert_allclose(words.scores("w3 w5")[:80], base.scores("w3 w5"))
    anew = Words.build([*TEXTS[:89], "brandnew word"])
    for question in ("w3 w5 w9", "w1", "brandnew"):
        np.testing.assert_allclose(words.scores(question), anew.scores(question), rtol=0.2)
    assert best(words.scores("brandnew"), 3, ALL).tolist() == [89]


def test_when_to_build_anew():
    words = Words.build(TEXTS[:80])
    assert words.can_take(80) and words.can_take(90) and not words.can_take(91)
    assert not words.can_take(79)  # rows are gone


@pytest.mark.parametrize("texts", [TEXTS, ["", "?!"]])
def test_saved_and_read_back(tmp_path, texts):
    words = Words.build(texts)
    words.save(epath.Path(tmp_path / "w"), {"parts": [["a", 1]]})
    other, info = Words.load(epath.Path(tmp_path / "w"))
    assert info == {"parts": [["a", 1]]} and other.rows == len(texts)
    np.testing.assert_array_equal(other.scores("w3 w5"), words.scores("w3 w5"))
    assert Words.load(epath.Path(tmp_path / "none")) is None
    (tmp_path / "w" / "words.json").write_text("{")
    assert Words.load(epath.Path(tmp_path / "w")) is None


@pytest.mark.parametrize(
    ("question", "expected", "texts"),
    [
        ("北京在哪里？", 1, ["东京是日本的首都。", "北京是中国的首都。", "巴黎是法国的首都。"]),
        ("寺", 1, ["大阪城", "京都の寺 Kyoto"]),
        ("Kyoto 寺", 1, ["大阪城", "京都の寺 Kyoto"]),
        ("เมืองหลวงของไทย", 1, ["โตเกียวอยู่ในญี่ปุ่น", "กรุงเทพเป็นเมืองหลวงของไทย"]),
        ("서울", 1, ["부산은 항구다", "서울은 수도다"]),
        ("हिन्दी", 1, ["तमिल भाषा", "हिन्दी भाषा"]),
        ("cafe\u0301", 1, ["the", "a café"]),
        ("ＴＯＫＹＯ", 1, ["Kyoto", "Tokyo"]),
    ],
)
def test_scripts_without_blanks_and_other_forms(question, expected, texts):
    assert Words.build(texts).scores(question).argmax() == expected
