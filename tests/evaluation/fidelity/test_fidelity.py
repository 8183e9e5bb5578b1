"""Fidelity: what becomes of facts, copies that keep or change them, ROUGE, and the command."""

import dataclasses
import json
import math
import sys
import types

import jax
import numpy as np
import pytest
import scipy.stats

from clara_jax import api, errors
from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Prompts
from clara_jax.data.facts import FactsSource
from clara_jax.data.records import ScpRecord
from clara_jax.errors import UserError
from clara_jax.evaluation import asking
from clara_jax.evaluation.answer_losses import cross_entropies, labelled_rows
from clara_jax.evaluation.fidelity import __main__ as fidelity
from clara_jax.evaluation.fidelity import copies, order, similarity, spacy, tables
from clara_jax.evaluation.fidelity import facts as facts_lib
from clara_jax.evaluation.fidelity import text as text_lib
from clara_jax.evaluation.fidelity.pieces import Pieces
from clara_jax.evaluation.journal import Journal
from clara_jax.runs import setup as setup_lib
from clara_jax.sharding import make_mesh
from tests.fixtures.models import altered, noised

CONFIG = Config(
    stage="scp",
    model=Model(preset="tiny", tokenizer="facts", vocab_size=128),
    data=Data(sources="facts:50,text:facts:50:2", document_length=25, rate=8),
    memory=Memory(init="tokens"),
    eval=Eval(sources="facts:6:1", batch=8, max_new_tokens=4),
    prompts=Prompts(
        qa_system="", qa_user="{docs}", answer_system="", answer_user="{docs} {question}"
    ),
)
RECORDS = [FactsSource(6, 1)[i] for i in range(6)]
STORY = (
    "Old Mill\nAnna Berg built the mill in 1820. It burnt down in 1907. Later the town of Varde "
    "bought the land. A school for 300 pupils stands there now."
)
OTHER = "River\nThe river Skjern is 94 km long. Peter Holm mapped it."


@pytest.fixture(scope="module")
def setup():
    made = setup_lib.create(CONFIG, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    fresh = {name: tree for name, tree in made.trees.items() if name != "base"}
    return altered(made, trees=made.trees | noised(fresh, 5), step=9)


def test_facts_are_kept_altered_or_lost():
    assert facts_lib.judge("The owl.", ["owl"], 0.1) == "kept"
    assert facts_lib.judge("in 1907", ["1820", "1907"], 0.9) == "kept"
    assert facts_lib.judge("fox", ["owl"], 0.9) == "altered"
    assert facts_lib.judge("fox", ["owl"], 0.3) == "lost"
    assert facts_lib.judge(" ", ["owl"], 0.9) == "lost"


def test_numbers_of_facts():
    fact = facts_lib.Fact("q ?", ("owl",), "owl", 0.9, "kept", 0.05, 0, 2, "d")
    others = [
        dataclasses.replace(fact, answer="fox", state="altered", place=0.99, piece=1),
        dataclasses.replace(fact, answer="fox", state="lost", probability=0.2, place=None),
        dataclasses.replace(fact, accepted=("cat",), pieces=1),
        fact,
    ]
    others = [dataclasses.replace(each, document=str(i)) for i, each in enumerate(others)]
    found = facts_lib.summary([fact, *others])
    assert (found["kept"], found["altered"], found["lost"]) == (0.6, 0.2, 0.2)
    assert found["precision"] == 0.75 and found["sure"] == 4
    assert found["constant"] == 0.8  # owl, to a question that is asked five times
    places = {name: (v["facts"], v["kept"]) for name, v in found["by_place"].items()}
    assert places == {"1": (3, 1.0), "5": (1, 0.0)}
    pieces = {name: (v["facts"], v["kept"]) for name, v in found["by_piece"].items()}
    assert pieces == {"1": (3, 2 / 3), "2": (1, 0.0)}
    low, high = found["intervals"]["kept"]
    assert 0 <= low < 0.6 < high <= 1
    # Ten facts of each document say little more than one: what differs are documents.
    tenfold = facts_lib.summary([fact, *others] * 10)
    assert tenfold["intervals"]["kept"] == pytest.approx([low, high], abs=0.01)
    assert tenfold["intervals"]["precision"] == pytest.approx(found["intervals"]["precision"])
    one, ten = (f["by_place"]["1"]["interval"] for f in (found, tenfold))
    assert one == ten


def test_a_fact_is_found_as_a_word_of_its_own():
    assert facts_lib.locate("the cattle saw a cat .", ["Cat"]) == 17 / 22
    assert facts_lib.locate("cattle", ["cat"]) is None
    assert facts_lib.locate("x (b+c)", ["no", "(b+c)"]) == 2 / 7


def test_knee_is_where_most_is_lost_for_each_doubling():
    assert facts_lib.knee([32, 4, 8, 16], [0.1, 1.0, 0.9, 0.2]) == (8, 16)
    assert facts_lib.knee([4, 8, 16], [1.0, 0.9, 0.75]) == (8, 16)
    assert facts_lib.knee([4, 8, 64], [1.0, 0.7, 0.2]) == (4, 8)
    assert facts_lib.knee([4, 8, 16], [0.5, 0.5, 0.6]) is None
    assert facts_lib.knee([4, 8], [1.0, 0.5]) is None


@pytest.mark.parametrize("stage", ["scp", "instruct"])
def test_nats_are_those_of_the_answers(setup, stage):
    """The same sum as the evaluation's, and each answer's own probability."""
    setup = altered(setup, config=dataclasses.replace(setup.model.config, stage=stage))
    record = dataclasses.replace(
        RECORDS[0], questions=RECORDS[0].questions[:2], answers=RECORDS[0].answers[:2]
    )
    given, rate = asking.read(*setup, [record.document])
    assert given[0].memories.shape == (1, 3, 128) and rate == pytest.approx(25 / 3)
    costs, tokens = asking.nats(*setup, record.questions, given * 2, record.answers)
    end = int(stage != "scp")  # the later stages' turns hold the end token
    assert tokens.tolist() == [len(text.split()) + end for text in record.answers]
    assert len(costs) == 2 and (costs > 0).all()
    if stage == "scp":
        rows = labelled_rows(setup.model, record, given[0].memories)
        total = cross_entropies(*setup, rows, "generator", lambda n: None)[0][1]
        assert costs.sum() == pytest.approx(total, rel=1e-4)
    words = ["cat", "dog", "owl", "fox"]
    each = asking.nats(*setup, ["which animal ?"] * 4, given * 4, words)[0]
    assert np.exp(-each).sum() < 1 and len(set(each.tolist())) == 4


def test_long_documents_are_read_in_pieces(setup):
    text = "red . " * 30 + "the animal is owl . " + "blue . " * 30
    one = asking.read(*setup, [text])[0][0]
    assert len(one.texts) > 2 and len(one.memories) == len(one.texts)
    record = ScpRecord("qa", ("which animal ?",), ("owl",), text, "t")
    fact = facts_lib.ask(*setup, [record])[0][0]
    assert fact.pieces == len(one.texts)
    assert "owl" in one.texts[fact.piece] and not any("owl" in t for t in one.texts[: fact.piece])
    assert 0 < fact.probability < 1 and fact.place == pytest.approx(text.index("owl") / len(text))


def test_base_means_are_of_the_text_alone(setup):
    texts = ["red blue", "red blue green black white", "red blue"]
    means = asking.text_means(*setup, texts, enc=False)
    assert np.allclose(means[0], means[2]) and not np.allclose(means[0], means[1], atol=1e-2)
    alone = asking.text_means(*setup, texts[:1], enc=False)
    assert np.allclose(means[0], alone[0], atol=1e-5)
    # States are normalised: their mean is no longer than each. Padding adds nothing to it.
    assert 0.1 < np.sqrt(np.square(means).mean(1)).max() < 1.01


def test_copies_keep_or_change_one_fact():
    rng = np.random.default_rng(0)
    for record in RECORDS:
        same = copies.reordered(record.document, rng)
        assert same != record.document and sorted(same.split()) == sorted(record.document.split())
        assert same.split(" . ")[0] == record.document.split(" . ")[0]
        changed = copies.swapped(record.document, "", rng)
        pairs = list(zip(changed.split(), record.document.split(), strict=True))
        assert sum(a != b for a, b in pairs) == 1
    head, parts = copies.split(STORY)
    assert head == "Old Mill\n" and len(parts) == 4
    assert copies.reverse(STORY).startswith("Old Mill\nA school for 300 pupils")
    changed = copies.swapped(STORY, OTHER, rng)
    assert changed != STORY and changed.startswith("Old Mill\n")
    assert any(name in changed for name in ("Skjern", "Peter Holm"))
    assert "7" not in copies.swapped("There were 7 of them.", "It has 12.", rng)
    assert copies.swapped("Nothing here.", "Nor here.", rng) is None
    assert copies.reordered("T\nOne sentence.", rng) is None


def test_rouge():
    texts = ["the cat sat", "Away the cat ran", "a a", "", "-"]
    wanted = ["the cat ran away", "the cat ran away.", "a b", "a", "-"]
    found = text_lib.scored(texts, wanted)
    assert found["rouge_1"] == pytest.approx([4 / 7, 1, 1 / 2, 0, 0])
    assert found["rouge_l"] == pytest.approx([4 / 7, 3 / 4, 1 / 2, 0, 0])
    assert all(isinstance(value, float) for value in found["rouge_l"])


@pytest.fixture
def bert(tmp_path, monkeypatch):
    """A stand-in for bert-score, which scores equal texts 1 and others 0; its tokenizer."""
    tokenizer = types.SimpleNamespace(model_max_length=10**30)

    class BERTScorer:
        def __init__(self, model_type, num_layers):
            assert (model_type, num_layers) == (str(tmp_path), 3)
            self._tokenizer = tokenizer

        def score(self, texts, wanted):
            assert all(text.strip() for text in [*texts, *wanted])
            return (
                *[None] * 2,
                np.array([float(a == b) for a, b in zip(texts, wanted, strict=True)]),
            )

    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(BERTScorer=BERTScorer))
    config = {"model_type": "bert", "num_hidden_layers": 3, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tokenizer


def test_bert_score_of_what_bert_score_cannot_read(tmp_path, bert):
    score = text_lib.bert_scores(str(tmp_path))
    assert bert.model_max_length == 62  # none was told
    assert score(["a", " ", "b", "c"], ["a", "a", "", "d"]) == [1, 0, 0, 0]
    assert score([""], [""]) == [0]
    bert.model_max_length = 64
    text_lib.bert_scores(str(tmp_path))
    assert bert.model_max_length == 64


def test_paraphrases_read_back(setup):
    clara = types.SimpleNamespace(
        model=setup.model, paraphrase=lambda texts, _: [texts[0], "", "x"]
    )
    similar = lambda texts, wanted: [float(len(texts) == len(wanted) == 3)] * 3  # noqa: E731
    paraphrase = dataclasses.replace(RECORDS[2], data_type="paraphrase", answers=("x",))
    found = text_lib.read_back(clara, [*RECORDS[:2], paraphrase], 5, similar)
    assert found["means"]["rouge_l"] == pytest.approx(2 / 3) and found["documents"] == 3
    assert found["means"]["bert_score"] == 1.0
    assert [sample["reference"] == "x" for sample in found["samples"]] == [False, False, True]
    assert "bert_score" not in text_lib.read_back(clara, RECORDS[:3], 5)["means"]


def test_names_numbers_and_dates_of_a_paraphrase():
    text = "The mill of Anna Berg, of 1820, is gone. Varde has 400 pupils there."
    found = text_lib.scored([text, STORY], [STORY, STORY])
    assert found["rouge_1"][1] == found["entities_kept"][1] == found["dates_kept"][1] == 1.0
    assert found["entities_kept"][0] == 1.0  # Anna Berg, Varde
    assert found["dates_kept"][0] == 0.5 and found["numbers_kept"][0] == 0.0
    assert found["numbers_own"][0] == 1.0 and found["numbers_own"][1] == 0.0


def test_order_words():
    assert order.depends_on_order("Who came after her?")
    assert not order.depends_on_order("Which afternoon was it?")
    text, turned, first, second = order._case(STORY)
    assert (first, second) == ("Anna Berg", "Varde")
    assert turned.index(second) < turned.index(first) and text.index(first) < text.index(second)
    assert order._case("T\nOnly Anna Berg. Nobody.") is None


def test_the_answer_to_which_first_turns_round_with_the_document(setup, monkeypatch):
    records = [ScpRecord("qa", ("q",), ("a",), text, "t") for text in (STORY, STORY + " So.")]
    monkeypatch.setattr(order, "_read", lambda model, trees, texts: texts)
    reads = lambda m, w, questions, given, told: np.array(  # noqa: E731
        [text.index(name) for text, name in zip(given, told, strict=True)]
    )[None]
    monkeypatch.setattr(asking, "nats", reads)
    found = order.which_first(*setup, records)
    assert found["documents"] == 2
    assert found["shares"] == {"in_order": 1.0, "reversed": 1.0, "both": 1.0, "same": 0.0}
    blind = lambda m, w, questions, given, told: np.array(  # noqa: E731
        [question.index(name) for question, name in zip(questions, told, strict=True)]
    )[None]
    monkeypatch.setattr(asking, "nats", blind)  # the question's first name
    shares = order.which_first(*setup, records)["shares"]
    assert shares == {"in_order": 0.5, "reversed": 0.5, "both": 0.0, "same": 1.0}


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40), rng.normal(size=40)
    assert similarity.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])
    assert similarity.spearman([1, 1, 1], [1, 2, 3]) == 0.0
    low, high = similarity.spearman_interval(a, a + 0.1 * b)
    assert 0.8 < low <= similarity.spearman(a, a + 0.1 * b) <= high <= 1


def test_copies_are_told_apart_by_words_and_another_document_is_farther(setup):
    found = similarity.changed_copies(*setup, RECORDS)
    assert found["documents"] == 6 and "paraphrase" not in found["scores"]["memory"]
    words = found["scores"]["BM25"]
    assert words["reordered"] == pytest.approx([1.0] * 6, abs=1e-5)
    assert max(words["another document"]) < min(words["one fact exchanged"]) < 1
    assert found["told_apart"]["BM25"]["mean"] == 1.0
    assert all(-1 <= v <= 1.001 for v in found["scores"]["base mean"]["reordered"])
    # A paraphrase that is the document itself is nearer than any copy.
    own = [dataclasses.replace(r, data_type="paraphrase", answers=(r.document,)) for r in RECORDS]
    found = similarity.changed_copies(*setup, own)
    assert found["scores"]["memory"]["paraphrase"] == pytest.approx([1.0] * 6, abs=1e-5)
    assert found["told_apart"]["memory"]["mean"] == 1.0


def test_pairs_with_peoples_scores(setup, tmp_path):
    path = tmp_path / "pairs.jsonl"
    texts = [record.document for record in RECORDS]
    rows = [{"sentence1": texts[0], "sentence2": texts[0], "score": 5.0}]
    rows += [{"text1": texts[0], "text2": text, "label": 0} for text in texts[1:4]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = similarity.read_pairs(str(path), 10)
    assert pairs[1] == (texts[0], texts[1], 0.0) and len(pairs) == 4
    found = similarity.human_scores(*setup, pairs)
    assert found["pairs"] == 4 and all(0.7 < v < 0.8 for v in found["spearman"].values())
    with pytest.raises(UserError, match="three pairs"):
        similarity.read_pairs(str(path), 2)
    for row in ({"sentence1": "a", "score": 1}, {"text1": "a", "text2": "b", "label": "x"}):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=r"pairs.jsonl:1: a pair has"):
            similarity.read_pairs(str(path), 9)
    with pytest.raises(UserError, match="cannot be read"):
        similarity.read_pairs(str(tmp_path / "none"), 9)


def test_command(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda workdir, base: api.Clara(*setup))
    output = str(tmp_path / "f")
    assert fidelity.main(["a", "b", "--count=4", f"--output={output}"]) == 0
    result = json.loads((tmp_path / "f.json").read_text())
    facts = result["runs"]["a"]["facts"]
    assert facts["unseen"]["facts"] == facts["seen"]["facts"] == 20
    assert math.isclose(sum(facts["seen"][s] for s in facts_lib.STATES), 1)
    assert result["runs"]["a"]["rate"] == pytest.approx(25 / 3)
    assert len(result["runs"]["b"]["answers"]["unseen"]) == 20
    assert result["runs"]["a"]["order"]["other"]["questions"] == 20
    text = (tmp_path / "f.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "## Closeness to changed copies" in text and "## Paraphrases" not in text
    for name in ("facts", "places", "similarity"):
        assert (tmp_path / f"f_{name}.png").stat().st_size > 10_000
    # A model with a real vocabulary is asked for paraphrases too.
    model = dataclasses.replace(setup.model.config.model, tokenizer="")
    config = dataclasses.replace(setup.model.config, model=model)
    none = dict.fromkeys(text_lib.KINDS, (4, ("x",)))
    monkeypatch.setattr(spacy, "comparer", lambda name: lambda text, other: none)
    options = fidelity.Options(("text",), "facts:3:1", 2, spacy="en_own", tokens=4)
    clara = api.Clara(*altered(setup, config=config))
    found = fidelity.measure(clara, options)
    assert found["text"]["unseen"]["documents"] == found["text"]["seen"]["documents"] == 2
    assert found["text"]["seen"]["means"]["dates_kept"] == 0.75
    text = tables.markdown({"r": found})
    assert "ROUGE-L" in text and "dates are found by en_own." in text
    assert "| Mistral-7B | unseen | 16x | 0.914 | 0.600 |" in text


def test_parts_that_cannot_be_done_lose_no_other(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda workdir, base: api.Clara(*setup))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command = ["a", "--count=1", f"--output={tmp_path / 'new' / 'f'}"]
    assert fidelity.main([*command, "--encoder=/nonexist"]) == 0
    starts = (
        "left out: text: the made-up", "--encoder=/nonexist is not used",
        "left out: similarity: no two documents", "no pictures: plots need matplotlib",
    )  # fmt: skip
    told = capsys.readouterr().err.splitlines()
    assert [sum(line.startswith(start) for line in told) for start in starts] == [1] * 4
    found = json.loads((tmp_path / "new" / "f.json").read_text())["runs"]["a"]
    assert "order" in found and not {"similarity", "text"} & set(found)
    assert "## Facts" in (tmp_path / "new" / "f.md").read_text()
    # What was named is an error, before any work.
    monkeypatch.setattr(facts_lib, "ask", None)
    for part, why in (("similarity", "no two documents"), ("text", "made-up facts")):
        assert fidelity.main([*command, f"--parts=facts,{part}"]) == 2
        assert why in capsys.readouterr().err
    assert fidelity.main([*command, f"--pairs={tmp_path / 'none'}"]) == 2
    assert "none: cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_to_the_same_numbers(setup, tmp_path, monkeypatch):
    config = dataclasses.replace(
        setup.model.config,
        model=dataclasses.replace(setup.model.config.model, tokenizer=""),  # so that it paraphrases
        eval=dataclasses.replace(setup.model.config.eval, batch=2),
    )
    clara = api.Clara(*altered(setup, config=config))
    monkeypatch.setattr(api, "load", lambda workdir, base: clara)
    monkeypatch.setattr(fidelity, "draw", lambda runs, output: [])
    command = ["run", "--count=4", "--documents=facts:4:1", "--tokens=2"]

    def result(folder, code=0):
        (tmp_path / folder).mkdir(exist_ok=True)
        assert fidelity.main([*command, f"--output={tmp_path / folder / 'f'}"]) == code
        return json.loads((tmp_path / folder / "f.json").read_text())

    whole = result("whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["f.json", "f.md"]
    answer, calls = asking.answer, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 6:  # after all facts, in the middle of the shuffled sentences
            raise KeyboardInterrupt
        return answer(*args)

    monkeypatch.setattr(asking, "answer", killed)
    with pytest.raises(FileNotFoundError):  # it ended before it wrote its result
        result("half", errors.INTERRUPTED)
    monkeypatch.setattr(Journal, "close", lambda self: None)
    assert result("half") == whole and len(calls) == 6 + 4
    # Of all parts nothing is computed twice: a journal that holds them all needs no model.
    for module, name in ((asking, "read"), (asking, "answer"), (clara, "paraphrase"),
                         (asking, "nats"), (similarity, "compress")):  # fmt: skip
        monkeypatch.setattr(module, name, None)
    assert result("half") == whole


def test_other_documents_or_steps_are_other_pieces(setup, tmp_path):
    counted = lambda items: {"items": list(items)}  # noqa: E731
    for step, items in ((9, "abc"), (9, "abd"), (10, "abc")):
        journal = Journal(str(tmp_path), {})
        pieces = Pieces(journal, altered(setup, step=step), "w")
        assert "".join(p["items"][0] for p in pieces.each("part", [items], counted)) == items
    (path,) = tmp_path.iterdir()
    assert len(path.read_text().splitlines()) == 1 + 3
    # Trained anew to the same step: the generator alone differs.
    trees = dict(setup.trees, generator=jax.tree.map(lambda x: 1.01 * x, setup.trees["generator"]))
    Pieces(Journal(str(tmp_path), {}), altered(setup, step=10, trees=trees), "w").each(
        "part", ["abc"], counted
    )
    assert len(path.read_text().splitlines()) == 1 + 4


def test_seen_are_documents_that_were_compressed():
    found = fidelity.seen(CONFIG, fidelity.Options(count=80))
    assert len(found) == 50 and all(record.compress for record in found)
    assert found[0].document == FactsSource(50)[0].document
    data = dataclasses.replace(CONFIG.data, sources="/none.jsonl")
    assert fidelity.seen(dataclasses.replace(CONFIG, data=data), fidelity.Options()) == []


def test_mistakes(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda workdir, base: api.Clara(*setup))
    monkeypatch.chdir(tmp_path)
    assert fidelity.main(["a", "a/"]) == 2
    assert "named twice" in capsys.readouterr().err
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"data_type": "paraphrase", "docs": ["x"], "answers": ["y"]}))
    assert fidelity.main(["a", f"--documents={path}"]) == 2
    assert "no qa record" in capsys.readouterr().err and list(tmp_path.iterdir()) == [path]
    with pytest.raises(SystemExit):
        fidelity.main(["a", "--parts=facts,nothing"])
    assert "no part 'nothing'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(UserError, match="bert-score"):
        text_lib.bert_scores(str(tmp_path))
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(UserError, match="rouge-score: pip install"):
        text_lib.rouge_scorer()
