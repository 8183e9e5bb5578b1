"""Malformed records are named by file and line."""

import dataclasses
import json

import pytest

from clara_jax.data import records
from clara_jax.errors import UserError

GOOD = {"data_type": "qa", "question": ["q1", "q2"], "answers": ["a1", "a2"], "docs": ["t\nd"]}
E2E = {"question": "q", "docs": ["a", "b", "c"], "answer": "x", "pos_index": [2]}


def test_good_records():
    record = records.parse_scp(GOOD, "f:1")
    assert record.questions == ("q1", "q2") and record.document == "t\nd" and record.origin == "f:1"
    plain = {"data_type": "paraphrase", "question": [""], "answers": ["p"], "docs": ["d"]}
    assert records.parse_scp(plain, "f:1").questions == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_type": "other"}, "data_type 'other'"),
        ({"question": "q1"}, "question must be a list of texts, not str"),
        ({"answers": "a1"}, "answers must be a list of texts, not str"),
        ({"answers": None}, "answers must be a list of texts, not missing"),
        ({"answers": ["a1"]}, "2 questions but 1 answers"),
        ({"question": [], "answers": []}, "question is empty"),
        ({"question": [1, 2]}, "question must be a list of texts"),
        ({"docs": ["a", "b"]}, "one document, not 2"),
        ({"docs": "a"}, "docs must be a list of texts"),
        ({"docs": [" \n"]}, "document is empty"),
        ({"data_type": "paraphrase"}, "paraphrase needs one text in answers, not 2"),
        ({"data_type": "paraphrase", "answers": [" "]}, "answer 1 is empty"),
        ({"question": ["q1", " "]}, "question 2 is empty"),
        ({"answers": ["", "a2"]}, "answer 1 is empty"),
        ({"docs": ["t\ud800"]}, "docs holds half of a surrogate pair"),
        ({"aliases": ["a", "b"]}, "aliases must be a list of texts, not str"),
        ({"aliases": [["a"]]}, "aliases must hold a list of texts for each question"),
    ],
)
def test_malformed_scp(change, message):
    with pytest.raises(UserError, match=f"^f:3: .*{message}"):
        records.parse_scp(GOOD | change, "f:3")


@pytest.mark.parametrize("key", ["docs", "context", "content"])
@pytest.mark.parametrize("answer", ["answer", "answers", "golden_answers", "gold_answer"])
def test_names_of_the_e2e_form(key, answer):
    value = {"question": "q", key: ["a", "b"], answer: ["x", "y"], "pos_index": [1, 0]}
    record = records.parse_qa(value, "f:1")
    assert record.documents == ("a", "b") and record.answers == ("x", "y")
    mapped = records.gold_records(record)
    assert [r.document for r in mapped] == ["b", "a"]
    assert all(r.questions == ("q",) and r.answers == ("x",) for r in mapped)


def test_aliases_are_answers_and_gold_may_be_unknown():
    record = records.parse_qa(E2E | {"aliases": ["x", "X."], "pos_index": []}, "f:1")
    assert record.answers == ("x", "X.") and records.gold_records(record) == []
    (mapped,) = records.gold_records(dataclasses.replace(record, gold=(0,)))
    assert mapped.answers == ("x",) and mapped.accepted == (("x", "X."),)
    scp = records.parse_scp(GOOD | {"aliases": [[], ["b"]]}, "f:1")
    assert scp.accepted == (("a1",), ("a2", "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ["q"]}, "question must be a text"),
        ({"docs": []}, "no documents"),
        ({"answer": []}, "the answer must be"),
        ({"answer": 3}, "the answer must be"),
        ({"pos_index": [3]}, "pos_index must list positions in the 3 documents"),
        ({"pos_index": [True]}, "pos_index"),
        ({"pos_index": 1}, "pos_index"),
        ({"docs": ["a", "b", "\n"]}, "document 2, which pos_index names, is empty"),
        ({"answer": " "}, "answer 1 is empty"),
        ({"question": "\udfff"}, "question holds half of a surrogate pair"),
        ({"aliases": ["\ud800"]}, "answer holds half of a surrogate pair"),
    ],
)
def test_malformed_e2e(change, message):
    with pytest.raises(UserError, match=f"^f:3: .*{message}"):
        records.parse_qa(E2E | change, "f:3")
    missing = {k: v for k, v in E2E.items() if k != "docs"}
    with pytest.raises(UserError, match="none of docs, context, content"):
        records.parse_qa(missing, "f:3")


@pytest.mark.parametrize(
    "line",
    [b"{", b"[1]", b'"a"', b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}", b'{"a":' + b"[" * 10**5],
)  # fmt: skip
def test_malformed_lines(line):
    with pytest.raises(UserError, match=r"^f:3: "):
        records.parse_line(line, "f:3")
    assert records.parse_line(json.dumps(GOOD), "f:3") == GOOD


def test_lines_of_a_file_have_their_numbers(tmp_path):
    path = str(tmp_path / "a.jsonl")
    records.write(path, [{"a": "é\u2028"}, {"b": 2}])
    with open(path, "a", encoding="utf-8") as f:
        f.write("\n \n[]\n")
    lines = records.lines(path)
    assert [next(lines), next(lines)] == [({"a": "é\u2028"}, f"{path}:1"), ({"b": 2}, f"{path}:2")]
    with pytest.raises(UserError, match=r"a\.jsonl:5: a record must be a JSON object"):
        next(lines)
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read \(No such file"):
        list(records.lines(str(tmp_path / "none.jsonl")))


def test_null_is_nothing():
    row = {"question": "Who?", "docs": ["T\nBy Zoe."], "answer": "Zoe"}
    expected = records.parse_qa(row, "f:1")
    empty = dict.fromkeys(("pos_index", "aliases", "teacher_scores", "answers", "context"))
    assert records.parse_qa(empty | row, "f:1") == expected
    assert records.parse_qa({**row, "answer": None, "answers": ["Zoe"]}, "f:1") == expected
    scp = {"question": ["Who?", "?"], "docs": ["T"], "answers": ["a", "b"], "data_type": "qa"}
    more = {"aliases": [None, ["c"]]}
    assert records.parse_scp(scp | more, "f:1").accepted == (("a",), ("b", "c"))
    assert records.parse_line('{"a": null, "b": 1}', "f:1") == {"b": 1}


def test_names_with_commas_and_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a, b,c.jsonl").touch()
    names = records.names_of(" x.jsonl,3*each:~/a, b,c.jsonl,, y.jsonl ,~/z,a, b,c.jsonl")
    here = str(tmp_path)
    assert names == [
        "x.jsonl", f"3*each:{here}/a, b,c.jsonl", "y.jsonl", f"{here}/z", "a, b,c.jsonl",
    ]  # fmt: skip
