"""Synthetic against human questions: what is counted, and runs on equally many of each."""

import argparse
import json

import pytest

from benchmarks import human_questions
from clara_jax.data.records import ScpRecord
from clara_jax.data.sources import JsonlSource
from clara_jax.errors import UserError

DOCUMENT = "Bridge\nThe bridge was opened in 1987 by Ada Holm. It is red."
OTHER = "Dog\nA dog sat there. It barked all night."
HUMAN = {DOCUMENT: [("When was the bridge opened?", "1987"), ("Who opened it?", "Ada Holm")],
         OTHER: [("What did the dog do?", "barked")]}  # fmt: skip
SYNTHETIC = {DOCUMENT: [("When was the bridge opened?", "in 1987"), ("Is it red?", "yes"),
                        ("What colour is it?", "red")]}  # fmt: skip


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who opened it?", "who"), ("In which year was it?", "which"),
        ("how many dogs", "how many"), ("How did it go?", "how"), ("Is it red?", "yes or no"),
        ("Name the dog.", "other"),
        ("The bridge was opened by whom and when?", "when"),
    ],
)  # fmt: skip
def test_kinds_of_questions(question, kind):
    assert human_questions.kind(question) == kind


def test_what_is_counted():
    found = human_questions.describe(HUMAN, SYNTHETIC)
    human, synthetic = found["human"], found["synthetic"]
    assert (human["documents"], human["pairs a document"]) == (2, 1.5)
    assert (synthetic["documents"], synthetic["pairs a document"]) == (1, 3)
    # Of 1987 and Ada Holm the synthetic set has the first; of "in 1987", yes, red people have none.
    assert (synthetic["answers found"], human["answers found"]) == (0.5, 0.0)
    assert synthetic["question overlap"] > 0.5
    assert human["kind: when"] == pytest.approx(1 / 3)
    assert synthetic["kind: yes or no"] == pytest.approx(1 / 3)
    text = human_questions.table(found)
    assert "| answers found | 0 | 0.5 |" in text and "| kind: yes or no | 0 | 0.3333 |" in text


def test_pieces_belong_to_the_document_that_they_are_of():
    piece = ScpRecord("qa", ("Is it red?",), ("yes",), "Bridge\nIt  is red.", "x:1")
    elsewhere = ScpRecord("qa", ("Is it blue?",), ("no",), "Sea\nIt is blue.", "x:2")
    paraphrase = ScpRecord("paraphrase", (), ("It has a red colour.",), DOCUMENT, "x:3")
    found = human_questions.by_document([piece, elsewhere, paraphrase], list(HUMAN))
    assert found == {DOCUMENT: [("Is it red?", "yes")]}


def test_documents_of_several_lines_are_asked_about_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(human_questions.synthesis, "run", lambda *unused: 1)
    args = argparse.Namespace(
        output=str(tmp_path), base_url="u", model="m", rounds=1, concurrency=1, seed=0
    )
    with pytest.raises(SystemExit) as ended:
        human_questions._synthesize(args, ["T\nfirst\nsecond", "alone"])
    assert ended.value.code == 1
    rows = list(map(json.loads, (tmp_path / "documents.jsonl").read_text().splitlines()))
    assert rows == [{"title": "T", "text": "first\nsecond"}, {"title": "", "text": "alone"}]


def test_as_many_of_each_about_the_same_documents():
    human, synthetic = human_questions.equal(HUMAN, SYNTHETIC, seed=1)
    assert list(human) == list(synthetic) == [DOCUMENT]
    assert len(human[DOCUMENT]) == len(synthetic[DOCUMENT]) == 2
    assert set(synthetic[DOCUMENT]) < set(SYNTHETIC[DOCUMENT])


@pytest.mark.slow  # training and evaluation, which other tests run
def test_two_runs_from_files_that_exist(tmp_path, capsys):
    """Comparison and training without an endpoint; the config is the quickstart's, two steps."""
    for name, asked in (("human", HUMAN), ("synthetic", SYNTHETIC)):
        human_questions.write(str(tmp_path / f"{name}.jsonl"), asked)
    assert [r.document for r in JsonlSource(str(tmp_path / "human.jsonl"))] == [DOCUMENT, OTHER]
    arguments = [
        f"--human={tmp_path / 'human.jsonl'}", f"--synthetic={tmp_path / 'synthetic.jsonl'}",
        f"--output={tmp_path / 'out'}", "--train=configs/quickstart.py",
        f"--dev={tmp_path / 'human.jsonl'}", "--set=train.steps=1", "--set=train.batch_rows=8",
        "--set=data.encoder_row=64", "--set=data.decoder_row=64", "--set=eval.max_new_tokens=2",
        "--set=eval.baselines=false", "--set=data.document_length=30", "--set=mesh.fsdp=1",
    ]  # fmt: skip
    assert human_questions.main(arguments) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| pairs | 2 | 2 |" in text and "| f1 |" in text
    assert text.strip() in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "synthetic.jsonl").open()]
    assert len(rows) == 1 and len(rows[0]["question"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train=configs/quickstart.py"], "--train and --dev go together"),
        (["--train=no.py", "--dev=x"], "no.py: no such config file"),
        (["--train=configs/quickstart.py", "--dev=x", "--set=train.stps=1"], "--set=train.stps=1"),
        (["--train=configs/quickstart.py", "--dev=x", "--set=train.steps=x"], "not of its type"),
    ],
)
def test_mistakes(arguments, message, tmp_path, capsys):
    assert (
        human_questions.main([f"--human={tmp_path}/h", f"--output={tmp_path}/o", *arguments]) == 2
    )
    assert message in capsys.readouterr().err


def test_nothing_in_common_is_told(tmp_path):
    human_questions.write(str(tmp_path / "human.jsonl"), {DOCUMENT: HUMAN[DOCUMENT]})
    human_questions.write(str(tmp_path / "other.jsonl"), {OTHER: HUMAN[OTHER]})
    with pytest.raises(SystemExit):
        human_questions.main(["--output=x"])
    assert human_questions.main([
        f"--human={tmp_path / 'human.jsonl'}", f"--synthetic={tmp_path / 'other.jsonl'}",
        f"--output={tmp_path}",
    ]) == 2  # fmt: skip
    assert UserError
