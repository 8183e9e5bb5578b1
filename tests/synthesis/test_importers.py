import json

import pytest

from clara_jax.data import records
from clara_jax.errors import UserError
from clara_jax.synthesis import importers


def run(tmp_path, kind, values, name="in.jsonl"):
    source, output = tmp_path / name, tmp_path / "out.jsonl"
    rows = values if isinstance(values, list) else [values]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    _, left = importers.convert(kind, str(source), str(output))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], left


def test_release_files_of_every_stage(tmp_path):
    document = "This a document about Tin. \n Tin melts at 232 degrees."
    rows, left = run(tmp_path, "clara", [
        {"data_type": "qa", "question": ["At what?"], "answers": ["232"], "docs": [document]},
        {"data_type": "paraphrase", "question": "", "answers": ["It melts."],
         "docs": ["This a document about Tin. \nTin melts."]},
        {"question": "Which metal?", "docs": [document, "bare"], "gold_answer": "tin",
         "pos_index": [0]},
        {"question": " ", "docs": [document], "answer": "tin"},
    ])  # fmt: skip
    assert [row["docs"][0] for row in rows] == [
        "Tin\nTin melts at 232 degrees.", "Tin\nTin melts.", "Tin\nTin melts at 232 degrees."
    ]  # fmt: skip
    assert records.parse_qa(rows[2], "x").gold == (0,)
    assert left == {importers.EMPTY: 1}


def test_teacher_answer_comes_before_the_reference(tmp_path):
    rows, left = run(tmp_path, "teacher", [
        {"query": "Who?", "docs": ["Ann ran.", {"title": "B", "text": "b"}],
         "mistral_label": "It was Ann.", "label": ["Ann"]},
        {"question": "Who?", "docs": [], "answer": "Ann"},
    ])  # fmt: skip
    assert rows == [{"question": "Who?", "docs": ["Ann ran.", "B\nb"], "answer": "It was Ann."}]
    assert left == {importers.NO_DOCUMENT: 1}


QAS = [
    {"question": "Who?", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "Ann B"}]},
    {"question": "Why?", "answers": [], "is_impossible": True},
]


def test_squad_nested_and_flat(tmp_path):
    nested = {"data": [{"title": "A_B", "paragraphs": [{"context": "Ann\n ran.", "qas": QAS}]}]}
    wanted = {"data_type": "qa", "question": ["Who?"], "answers": ["Ann"],
              "docs": ["A B\nAnn ran."], "aliases": [["Ann B"]]}  # fmt: skip
    flat = [{"title": "A_B", "context": "Ann\n ran.", **qa} for qa in QAS]
    assert run(tmp_path, "squad", nested, "in.json") == ([wanted], {importers.UNANSWERABLE: 1})
    assert run(tmp_path, "squad", flat) == ([wanted], {importers.UNANSWERABLE: 1})


def test_squad_answers_that_are_one_text(tmp_path):
    found, _ = run(tmp_path, "squad", [{"context": "c", "question": "q", "answers": "Paris"}])
    assert found[0]["answers"] == ["Paris"] and "aliases" not in found[0]


@pytest.mark.parametrize(
    ("kind", "values", "name", "message"),
    [
        ("squad", [{"context": "c", "question": "q", "answers": 5}], "in.jsonl",
         "answers must hold texts"),
        ("teacher", [{"query": "?", "docs": ["a"]}], "in.jsonl", "in.jsonl:1: has none of mistral"),
        ("clara", [{"data_type": "qa", "question": ["a"], "answers": [], "docs": ["d"]}],
         "in.jsonl", "in.jsonl:1: 1 questions but 0 answers"),
        ("squad", {"data": [{"paragraphs": [{"context": "c"}]}]}, "in.json",
         r"data\[0\].paragraphs\[0\]: qas must be a list"),
        ("squad", {"version": 1}, "in.json", "no list `data`"),
        ("squad", {"x": 1}, "in.parquet", "Parquet is not read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, kind, values, name, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, kind, values, name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_command(tmp_path, capsys):
    source = tmp_path / "in.json"
    data = {"data": [{"paragraphs": [{"context": "Ann ran.", "qas": QAS}]}]}
    source.write_text(json.dumps(data), encoding="utf-8")
    assert importers.main(["squad", str(source), str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "1 records" in out and f"left out: 1 {importers.UNANSWERABLE}" in out
    assert importers.main(["squad", str(tmp_path / "none"), str(tmp_path / "o")]) == 2
