"""The settings Normal and Oracle: candidates by a search over all documents of a file."""

import dataclasses
import json

import jax
import pytest

from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Prompts, Select
from clara_jax.data import sources
from clara_jax.errors import UserError
from clara_jax.evaluation import evaluate, joint
from clara_jax.evaluation.candidates import Searched
from clara_jax.runs import setup as setup_lib
from clara_jax.sharding import make_mesh
from tests.fixtures.models import altered

DOCUMENTS = ["red fox in a den", "blue whale at sea", "grey wolf in a wood", "old mill"]
RECORDS = [
    {"question": "where is the red fox ?", "docs": DOCUMENTS[:2], "answer": "den",
     "pos_index": [0]},
    # Its gold document shares no word with the question, and comes last of what is searched.
    {"question": "where is the whale at sea ?", "docs": DOCUMENTS[2:], "answer": "x",
     "pos_index": [1]},
    {"question": "a grey fox ?", "docs": [DOCUMENTS[0], DOCUMENTS[0]], "answer": "y",
     "pos_index": [0, 1]},
]  # fmt: skip


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return sources.open_sources(str(path), form="qa")


def test_normal_takes_the_best_of_all_documents(source):
    searched = Searched(source, "normal", 2)
    assert len(searched) == 3 == len(searched.keys)
    found = searched[0]
    assert found.choice[0] == DOCUMENTS[0] and len(found.choice) == 2
    assert found.gold == (0,) and found.answers == ("den",)
    missed = searched[1]
    assert missed.choice[0] == DOCUMENTS[1] and DOCUMENTS[3] not in missed.choice
    # The gold one is still known, beyond what may be chosen: recall counts it as missed.
    assert missed.documents[missed.gold[0]] == DOCUMENTS[3] and missed.gold[0] >= len(missed.choice)
    assert searched[2].gold == (searched[2].documents.index(DOCUMENTS[0]),)  # the same text twice


def test_oracle_puts_gold_documents_among_them(source):
    searched = Searched(source, "oracle", 2)
    for i in range(3):
        normal, oracle = Searched(source, "normal", 2)[i], searched[i]
        assert len(oracle.choice) == len(oracle.documents) == 2
        gold = {oracle.documents[n] for n in oracle.gold}
        assert gold == {normal.documents[n] for n in normal.gold}
        assert len(set(oracle.documents)) == 2
        assert oracle == searched[i]  # the same each time
    assert searched[1].documents.count(DOCUMENTS[1]) == 1  # the best one stays


def test_places_do_not_tell_which_are_gold(source, monkeypatch):
    searched, places = Searched(source, "oracle", 3), set()
    record = source[1]
    for number in range(40):
        asked = dataclasses.replace(record, question=f"{record.question} {number}")
        monkeypatch.setattr(type(source), "__getitem__", lambda *_, r=asked: r)
        found = searched[1]
        places.add(found.documents.index(DOCUMENTS[3]))
        assert len(found.documents) == 3
    assert places == {0, 1, 2}


def test_mistakes(source, tmp_path):
    with pytest.raises(UserError, match=r"qa.jsonl:3|from 1 to 0"):
        Searched(source, "oracle", 0)
    bare = tmp_path / "bare.jsonl"
    rows = [RECORDS[0], {k: v for k, v in RECORDS[1].items() if k != "pos_index"}]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = sources.open_sources(str(bare), form="qa")
    with pytest.raises(UserError, match=r"bare.jsonl:2: 0 gold documents; config.eval.setting"):
        Searched(other, "oracle", 2)
    assert len(Searched(other, "oracle", 2, records=1)) == 1  # the second is not read
    assert Searched(other, "normal", 2)[1].gold == ()
    scp = Config(
        eval=Eval(setting="normal", untrained=True),
        model=Model(preset="tiny", tokenizer="facts", vocab_size=128),
        data=Data(document_length=25, rate=8),
        mesh=Mesh(data=8, fsdp=1),
    )
    with pytest.raises(UserError, match="scp has one document"):
        evaluate.run(scp, str(tmp_path))


def test_the_evaluation_counts_what_was_missed():
    config = Config(
        stage="e2e",
        model=Model(preset="tiny", tokenizer="facts", vocab_size=128),
        data=Data(document_length=25, rate=8),
        memory=Memory(init="tokens"),
        select=Select(k=2, candidates=3),
        eval=Eval(sources="facts:4:1", records=2, batch=8, max_new_tokens=4,
                  conditions="reasoner,gold,all"),
        prompts=Prompts(answer_system="", answer_user="{docs} {question}"),
    )  # fmt: skip
    setup = setup_lib.create(config, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    trees = dict(setup.trees, compressor=setup.trees["reasoner"])
    setup = altered(setup, trees=trees)
    plain = sources.open_sources("facts:4:1", form="qa")
    record = Searched(plain, "normal", 20)[0]
    # As if the search had missed the gold document of the first question.
    documents = tuple(d for i, d in enumerate(record.documents) if i not in record.gold)
    gold = record.documents[record.gold[0]]
    first = dataclasses.replace(record, documents=(*documents[:3], gold), gold=(3,), candidates=3)
    found = joint.evaluate(*setup, [first, Searched(plain, "oracle", 3)[1]])
    assert found["candidates"] == 3.0
    lines = found["predictions"]
    assert [len(line["ranked"]["reasoner"]) for line in lines] == [3, 3]
    assert found["retrieval"]["reasoner"]["recall@3"] == 0.5
    assert lines[0]["pos_index"] == [3] and all(n < 3 for n in lines[0]["chosen"])
    assert lines[0]["documents"] == [first.documents[n][:300] for n in lines[0]["chosen"]]
