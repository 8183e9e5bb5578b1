"""Evaluation of questions with candidates, and runs beside each other."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from clara_jax import api
from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Prompts, Select
from clara_jax.corpus import write
from clara_jax.corpus.search.combine import combined
from clara_jax.corpus.search.retrieval import ranking, values
from clara_jax.corpus.search.words import bm25_scores
from clara_jax.data.facts import FactsQuestions
from clara_jax.data.tokenizer import load_tokenizer
from clara_jax.errors import UserError
from clara_jax.evaluation import candidates, compare, driver, joint, metrics, results
from clara_jax.evaluation.journal import Journal
from clara_jax.evaluation.results import means
from clara_jax.inference import answers as answers_lib
from clara_jax.inference import encode
from clara_jax.runs import setup as setup_lib
from clara_jax.sharding import make_mesh
from clara_jax.text.normalise import normalise
from tests.fixtures.models import altered, noised

CONFIG = Config(
    stage="e2e",
    model=Model(preset="tiny", tokenizer="facts", vocab_size=128),
    data=Data(document_length=25, rate=8),
    memory=Memory(init="tokens"),
    select=Select(k=2),
    eval=Eval(sources="facts:4:1", records=3, batch=8, max_new_tokens=4),
    prompts=Prompts(answer_system="", answer_user="{docs} {question}"),
)
SOURCE = FactsQuestions(4, 1)


def make_setup(config):
    setup = setup_lib.create(config, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    fresh = {name: tree for name, tree in setup.trees.items() if name != "base"}
    fresh["compressor"] = fresh["reasoner"]  # as after e2e
    return altered(setup, trees=setup.trees | noised(fresh, 5), step=9)


@pytest.fixture(scope="module")
def setup():
    return make_setup(CONFIG)


@pytest.fixture(scope="module")
def result(setup):
    return joint.evaluate(*setup, SOURCE)


def test_the_reasoner_condition_is_what_ask_gives(setup, result):
    records = [SOURCE[i] for i in range(3)]
    questions, documents = [r.question for r in records], [list(r.documents) for r in records]
    asked = api.Clara(*setup).ask(questions, documents, max_new_tokens=4)
    for prediction, answer in zip(result["predictions"], asked, strict=True):
        assert prediction["chosen"] == list(answer.indices)
        assert prediction["reasoner"] == answer.text
    gold = [[r.documents[g] for g in r.gold] for r in records]
    told = api.Clara(*setup).answer(questions, gold, max_new_tokens=4)
    assert [p["pos_index"] for p in result["predictions"]] == [list(r.gold) for r in records]
    scored = metrics.score(told, [r.answers for r in records])
    assert {k: result["conditions"]["gold"][k] for k in scored} == scored


def test_rankings_are_scored(setup, result):
    records = [SOURCE[i] for i in range(3)]
    golds = [r.gold for r in records]
    scores = bm25_scores([r.question for r in records], [r.documents for r in records])
    assert result["retrieval"]["bm25"] == means(values(list(map(ranking, scores)), golds))
    ours = api.Clara(*setup).rank([r.question for r in records], [r.documents for r in records])
    assert result["retrieval"]["reasoner"] == means(values(list(map(ranking, ours)), golds))
    both = [combined(*pair, 0.3) for pair in zip(ours, scores, strict=True)]  # the default
    assert result["retrieval"]["reasoner+words"] == means(values(list(map(ranking, both)), golds))


def test_what_lexical_overlap_cannot_tell():
    """The quickstart's questions: BM25 finds the three that share all words, not which it is."""
    records = [FactsQuestions(150, 7)[i] for i in range(150)]
    scores = bm25_scores([r.question for r in records], [r.documents for r in records])
    found = means(values(list(map(ranking, scores)), [r.gold for r in records]))
    assert found["recall@1"] < 0.6 and found["recall@5"] > 0.95
    tokenizer = load_tokenizer("facts")
    for record in records:
        assert len(record.documents) == 20 and len(record.gold) == 1
        document = record.documents[record.gold[0]]
        assert record.answers[0] in document
        name = " ".join(record.question.split()[3:5])
        assert [name in text for text in record.documents].count(True) == 1 and name in document
        assert 0 not in tokenizer.encode(record.question)


def test_conditions_and_table(result):
    usual = [name for name, condition in joint.CONDITIONS.items() if condition.default]
    assert list(result["conditions"]) == [*usual, "constant"]
    assert (result["step"], result["questions"], result["candidates"]) == (9, 3, 20.0)
    for name, numbers in result["conditions"].items():
        assert 0 <= numbers["f1"] <= 1
        low, high = result["intervals"][name]["f1"]
        assert low <= numbers["f1"] <= high
        assert name == "constant" or np.isfinite(numbers["answer_ce"])
    low, high = result["intervals"]["retrieval bm25"]["recall@1"]
    assert low <= result["retrieval"]["bm25"]["recall@1"] <= high
    text = results.table(result)
    assert "F1, 95 %" in text and "constant" in text
    assert "20.0 candidates each" in text and "recall@1" in text and "gold text" in text
    assert "turn CE" not in text


def test_without_gold_documents_or_baselines(setup):
    records = [dataclasses.replace(SOURCE[i], gold=()) for i in range(3)]
    found = joint.evaluate(*setup, records)
    assert found["retrieval"] == {}
    assert "gold" not in found["conditions"] and "bm25" in found["conditions"]
    bare = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, baselines=False))
    found = joint.evaluate(*altered(setup, config=bare), records)
    assert list(found["conditions"]) == ["reasoner"]
    results.table(found)


def chosen(setup, conditions, journal=None, records=3):
    options = dataclasses.replace(CONFIG.eval, conditions=conditions, records=records)
    options = dataclasses.replace(options, batch=1)  # pieces of four
    config = dataclasses.replace(CONFIG, eval=options)
    return joint.evaluate(*altered(setup, config=config), SOURCE, journal)


def test_gold_documents_of_some_questions(setup):
    records = [SOURCE[0], dataclasses.replace(SOURCE[1], gold=()), SOURCE[2]]
    options = dataclasses.replace(CONFIG.eval, conditions="constant")
    found = joint.evaluate(
        *altered(setup, config=dataclasses.replace(CONFIG, eval=options)), records
    )
    text = results.table(found)
    assert "rankings, over the 2 questions that name gold documents:" in text
    everything = joint.evaluate(
        *altered(setup, config=dataclasses.replace(CONFIG, eval=options)), SOURCE
    )
    assert "name gold documents" not in results.table(everything)


def test_conditions_of_ones_own(setup):
    found = chosen(setup, "constant, all", records=1)
    record = SOURCE[0]
    told = api.Clara(*setup).answer([record.question], [list(record.documents)], 4)
    assert [p["all"] for p in found["predictions"]] == told
    assert list(found["conditions"]) == ["all", "constant"]
    assert found["predictions"][0]["constant"] == normalise(record.answers[0])
    with pytest.raises(UserError, match="no condition 'al'; there are reasoner, "):
        chosen(setup, "al")


def test_every_condition_that_can_take_place(setup):
    every = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, conditions=" every"))
    setup = altered(setup, config=every)
    names = joint._names(*setup, gold_known=True)
    assert names == [*joint.CONDITIONS, "constant"]
    assert set(names) - set(joint._names(*setup, gold_known=False)) == {"gold", "gold_text"}


def test_fewer_documents_are_read_than_in_training(setup, result):
    options = dataclasses.replace(CONFIG.eval, k=1, conditions="reasoner")
    config = dataclasses.replace(CONFIG, eval=options)
    found = joint.evaluate(*altered(setup, config=config), SOURCE)
    for one, two in zip(found["predictions"], result["predictions"], strict=True):
        assert one["chosen"] == two["chosen"][:1] and len(two["chosen"]) == 2


def test_a_kill_in_the_middle_and_a_rerun_give_the_same(setup, tmp_path, monkeypatch):
    def run():
        found = chosen(setup, "reasoner,no_document", Journal(str(tmp_path), {}), records=4)
        seconds = [numbers.pop("seconds") for numbers in found["conditions"].values()]
        return found | {"seconds": 0}, seconds

    whole = run()
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))  # as if killed after the first of two
    again = run()
    assert again[0] == whole[0] and again[1] != whole[1]
    monkeypatch.setattr(driver, "_piece", lambda *_: pytest.fail("evaluated again"))
    assert run()[0] == whole[0]


def test_a_kill_and_a_rerun_on_other_questions(setup, tmp_path):
    options = dataclasses.replace(CONFIG.eval, conditions="reasoner", batch=1, records=0)
    config = dataclasses.replace(CONFIG, eval=options)
    one = altered(setup, config=config)
    # Of few documents, each of which is a batch.
    asked = [dataclasses.replace(SOURCE[i], documents=SOURCE[i].documents[:3]) for i in range(4)]
    asked = [dataclasses.replace(record, gold=()) for record in asked]

    def answers(records, journal):
        found = joint.evaluate(*one, records, journal)
        return [p["reasoner"] for p in found["predictions"]]

    answers(asked[:3], Journal(str(tmp_path), {}))
    (path,) = tmp_path.iterdir()  # what a kill leaves: two lines, of other questions
    for records in (asked[::-1], asked, [dataclasses.replace(r, question="who ?") for r in asked]):
        lines = path.read_text().splitlines()
        kept = [json.loads(line) for line in lines[1:]]
        assert answers(records, Journal(str(tmp_path), {})) == answers(records, None)
        assert [json.loads(line) for line in path.read_text().splitlines()[1:]][:-1] == kept


def test_answer_loss_of_a_perfect_prefix_is_that_of_training(setup):
    """The labels are those of training: the answer and what closes it."""
    record = SOURCE[0]
    docs = list(record.documents[:2])
    asked = answers_lib.answer_prompts(setup.model, [record.question], [docs])
    whole, _ = setup.model.layout.answer_prompt("\n\n".join(docs), record.question, "baker")
    tail = whole[len(asked[0].tokens) :]
    assert tail == setup.model.tokenizer.encode(["baker", setup.model.tokenizer.eos_id])


def test_memories_are_read_from_the_folder(setup, result, tmp_path, monkeypatch):
    data = dataclasses.replace(CONFIG.data, memories=str(tmp_path / "memories"))
    kept = altered(setup, config=dataclasses.replace(CONFIG, data=data))
    first = joint.evaluate(*kept, SOURCE)
    monkeypatch.setattr(joint.encode, "compress", lambda *_: pytest.fail("compressed again"))
    again = joint.evaluate(*kept, SOURCE)
    for found in (first, again):
        assert found["retrieval"] == result["retrieval"]
        assert found["compression_rate"] == result["compression_rate"]


def test_memories_are_read_from_a_store(setup, result, tmp_path, monkeypatch):
    path, records = str(tmp_path / "store"), [SOURCE[i] for i in range(3)]
    options = config_lib.Store(part=16)
    write.add(path, *setup, [d for record in records for d in record.documents], options)
    options = dataclasses.replace(CONFIG.eval, store=path, conditions="reasoner")
    kept = altered(setup, config=dataclasses.replace(CONFIG, eval=options))
    expected = encode.compress(*setup, list(records[0].documents[:2])).memories
    monkeypatch.setattr(joint.encode, "compress", lambda *_: pytest.fail("compressed again"))
    found = joint.evaluate(*kept, SOURCE)
    # The store has bfloat16; close scores may change places.
    for name, value in found["retrieval"]["reasoner"].items():
        assert value == pytest.approx(result["retrieval"]["reasoner"][name], abs=0.35)
    memories = joint._stored(*kept, records[0].documents[:2])
    np.testing.assert_allclose(list(memories.values()), expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(UserError, match="holds no document of the id"):
        joint._stored(*kept, ["another"])


# --- Runs beside each other ----------------------------------------------------------------------


@pytest.fixture
def runs(result, tmp_path):
    for name, recall in (("instruct", 0.25), ("e2e", 0.75)):
        workdir = tmp_path / name
        (workdir / "eval").mkdir(parents=True)
        found = json.loads(json.dumps(result))
        found["retrieval"]["reasoner"]["recall@1"] = recall
        (workdir / "eval" / "9.json").write_text(json.dumps(found))
        lines = [{"step": s, "loss": 1 / s, "recall@1": recall} for s in (1, 2)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path


def test_comparison(runs, capsys):
    output = str(runs / "all")
    assert compare.main([f"{runs}/instruct/", str(runs / "e2e"), "--output", output]) == 0
    text = (runs / "all.md").read_text()
    assert text in capsys.readouterr().out
    first = text.split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines()]
    assert [row[0] for row in rows[2:]] == ["instruct", "e2e", "BM25"]
    assert [row[1:3] for row in rows[2:4]] == [["3", "0.250"], ["3", "0.750"]]
    assert (runs / "all.png").stat().st_size > 10_000


def test_mistakes_of_a_comparison(runs, capsys):
    (runs / "new").mkdir()
    assert compare.main([str(runs / "new")]) == 2
    assert "no evaluation; run --mode=evaluate" in capsys.readouterr().err
    assert compare.main([str(runs / "e2e"), "--output", str(runs / "e2e/metrics.jsonl/x")]) == 2
    with pytest.raises(UserError, match="nothing to evaluate on"):
        candidates.open_questions(dataclasses.replace(CONFIG, eval=Eval()))
