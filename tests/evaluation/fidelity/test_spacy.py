"""Names, numbers and dates by a pipeline of spaCy: a stand-in, and spaCy where it is installed."""

import re
import sys
import types

import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation.fidelity import spacy as spacy_lib
from clara_jax.evaluation.fidelity import text as text_lib

STORY = (
    "Anna Berg built the old mill on 4 June 1907. The Danes of Varde sold two hundred boats, "
    "94 km from the river. She left the next spring."
)
TEXT = (
    "Anna Berg's mill is of 1907-06-04. In Varde 200 boats were sold, 95 km from Ribe, "
    "in autumn 1908."
)
PATTERNS = {
    "PERSON": "Anna Berg", "NORP": "The Danes|Danes", "GPE": "Varde|Ribe", "VERB": "built",
    "CARDINAL": "two hundred|200", "QUANTITY": r"\d+ km",
    "DATE": "4 June 1907|1907-06-04|the next spring|autumn 1908",
}  # fmt: skip


class Pipeline:
    """What spacy.load gives, as far as it is used."""

    pipe_names = ("tagger", "ner")

    def __init__(self, *labels):
        self.pipe_labels = {"tagger": ["NN"], "ner": labels}

    def __call__(self, text):
        found = [(label, match) for label, form in PATTERNS.items()
                 for match in re.findall(form, text)]  # fmt: skip
        spans = [types.SimpleNamespace(label_=label, text=match) for label, match in found]
        return types.SimpleNamespace(ents=spans)


def check(compare):
    lost = compare(STORY, TEXT)
    assert lost["entities"] == (3, ("The Danes",))
    assert lost["numbers"] == (2, ("94 km",))  # two hundred is 200
    assert lost["dates"] == (2, ("the next spring",))
    own = compare(TEXT, STORY)
    assert own["entities"] == (3, ("Ribe",)) and own["numbers"] == (2, ("95 km",))
    assert own["dates"] == (2, ("autumn 1908",))
    found = text_lib.scored([TEXT], [STORY], compare)
    assert found["entities_kept"] == [pytest.approx(2 / 3)] and found["dates_own"] == [0.5]


def stand_in(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load, __version__="0"))


def test_labels_of_a_stand_in(monkeypatch):
    stand_in(monkeypatch, lambda name: Pipeline(*PATTERNS))
    compare = spacy_lib.comparer("en_own")
    check(compare)
    assert compare("The Danes and Danes", "") == {
        "entities": (1, ("The Danes",)), "numbers": (0, ()), "dates": (0, ())
    }  # fmt: skip


def test_a_pipeline_of_spacy_itself(tmp_path):
    spacy = pytest.importorskip("spacy", reason="needs spaCy")
    pipeline = spacy.blank("en")
    phrases = {"PERSON": ["Anna Berg"], "NORP": ["The Danes"], "GPE": ["Varde", "Ribe"],
               "CARDINAL": ["two hundred", "200"], "QUANTITY": ["94 km", "95 km"],
               "DATE": ["4 June 1907", "1907-06-04", "the next spring", "autumn 1908"]}  # fmt: skip
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": label, "pattern": text} for label, texts in phrases.items() for text in texts]
    )
    pipeline.to_disk(tmp_path / "own")
    check(spacy_lib.comparer(str(tmp_path / "own")))
    with pytest.raises(UserError, match="no pipeline that spaCy"):
        spacy_lib.comparer(str(tmp_path / "none"))


def test_what_is_missing_is_told_in_one_line(monkeypatch):
    def absent(name):
        raise OSError(f"[E050] Can't find model '{name}'.\nIt is no package.")

    stand_in(monkeypatch, absent)
    with pytest.raises(UserError, match=r"--spacy=en: no pipeline .* \[E050\]") as error:
        spacy_lib.comparer("en")
    assert "\n" not in str(error.value)
    stand_in(monkeypatch, lambda name: Pipeline())
    with pytest.raises(UserError, match=r"no component that labels names.*only tagger, ner"):
        spacy_lib.comparer("en")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match="pip install spacy"):
        spacy_lib.comparer("en")
