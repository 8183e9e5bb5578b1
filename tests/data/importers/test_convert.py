import json

import pytest

from clara_jax.data import records
from clara_jax.data.importers import convert
from clara_jax.errors import UserError


def run(tmp_path, kind, values, name="in.jsonl"):
    source, output = tmp_path / name, tmp_path / "out.jsonl"
    rows = values if isinstance(values, list) else [values]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    _, left = convert.convert(kind, str(source), str(output))
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
    assert left == {convert.EMPTY: 1}


def test_teacher_answer_comes_before_the_reference(tmp_path):
    rows, left = run(tmp_path, "teacher", [
        {"query": "Who?", "docs": ["Ann ran.", {"title": "B", "text": "b"}],
         "mistral_label": "It was Ann.", "label": ["Ann"]},
        {"question": "Who?", "docs": [], "answer": "Ann"},
    ])  # fmt: skip
    assert rows == [{"question": "Who?", "docs": ["Ann ran.", "B\nb"], "answer": "It was Ann."}]
    assert left == {convert.NO_DOCUMENT: 1}


QAS = [
    {"question": "Who?", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "Ann B"}]},
    {"question": "Why?", "answers": [], "is_impossible": True},
]


def test_squad_nested_and_flat(tmp_path):
    nested = {"data": [{"title": "A_B", "paragraphs": [{"context": "Ann\n ran.", "qas": QAS}]}]}
    wanted = {"data_type": "qa", "question": ["Who?"], "answers": ["Ann"],
              "docs": ["A B\nAnn ran."], "aliases": [["Ann B"]]}  # fmt: skip
    flat = [{"title": "A_B", "context": "Ann\n ran.", **qa} for qa in QAS]
    assert run(tmp_path, "squad", nested, "in.json") == ([wanted], {convert.UNANSWERABLE: 1})
    assert run(tmp_path, "squad", flat) == ([wanted], {convert.UNANSWERABLE: 1})


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
    assert convert.main(["squad", str(source), str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "1 records" in out and f"left out: 1 {convert.UNANSWERABLE}" in out
    assert convert.main(["squad", str(tmp_path / "none"), str(tmp_path / "o")]) == 2
    capsys.readouterr()
    output = str(tmp_path / "nonexist" / "x.jsonl")
    assert convert.main(["squad", str(source), output]) == 2
    assert (
        f"{output}: " in capsys.readouterr().err
    )  # and not the name that it has until it is whole


PARAGRAPHS = [["A", ["Ann ran.", " Bob  sat."]], ["B", ["Bob."]]]
HOTPOT = {"question": "Who?", "answer": "Ann", "context": PARAGRAPHS}


def test_hotpotqa_of_its_authors_and_of_the_hub(tmp_path):
    facts = [["B", 0], ["B", 3]]
    columns = {"context": {"title": ["A", "B"], "sentences": [["Ann ran.", "Bob sat."], ["Bob."]]},
               "supporting_facts": {"title": ["B", "B"], "sent_id": [0, 3]}}  # fmt: skip
    lost = HOTPOT | {"supporting_facts": [["B", 0], ["C", 0]]}
    rows, _ = run(tmp_path, "hotpotqa", [HOTPOT | {"supporting_facts": facts}, HOTPOT | columns])
    assert rows == [{"question": "Who?", "docs": ["A\nAnn ran. Bob sat.", "B\nBob."],
                     "answer": "Ann", "pos_index": [1]}] * 2  # fmt: skip
    assert "pos_index" not in run(tmp_path, "hotpotqa", lost)[0][0]


def test_musique_without_the_unanswerable(tmp_path):
    paragraphs = [{"title": "A", "paragraph_text": "a", "is_supporting": False},
                  {"title": "B", "paragraph_text": "b", "is_supporting": True}]  # fmt: skip
    value = {"question": "Who?", "answer": "Ann", "answer_aliases": ["Anna"], "answerable": True,
             "paragraphs": paragraphs}  # fmt: skip
    rows, left = run(tmp_path, "musique", [value, value | {"answerable": False}])
    assert rows == [{"question": "Who?", "docs": ["A\na", "B\nb"], "answer": "Ann",
                     "aliases": ["Anna"], "pos_index": [1]}]  # fmt: skip
    assert left == {convert.UNANSWERABLE: 1}


def test_passages_in_both_of_dprs_forms(tmp_path):
    passages = [{"title": "A", "text": "a"}, {"title": "B", "text": "b", "isgold": True}]
    asked = {"question": "Who?", "answers": ["Ann", "Anna"]}
    grouped = asked | {"positive_ctxs": passages[1:], "negative_ctxs": passages[:1] * 9}
    rows, _ = run(tmp_path, "nq", [asked | {"ctxs": passages}, grouped])
    assert rows[0] == {"question": "Who?", "answer": "Ann", "aliases": ["Anna"],
                       "docs": ["A\na", "B\nb"], "pos_index": [1]}  # fmt: skip
    assert len(rows[1]["docs"]) == 10
    assert rows[1]["docs"][rows[1]["pos_index"][0]] == "B\nb"


def test_pubmedqa_is_read_by_number_and_from_the_hub(tmp_path):
    whole = {"12": {"QUESTION": "Is it?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}}
    source = tmp_path / "in.json"
    source.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    convert.convert("pubmedqa", str(source), str(tmp_path / "out"))
    wanted = {"data_type": "qa", "question": ["Is it?"], "answers": ["maybe"],
              "docs": ["PubMed 12\nOne. Two."]}  # fmt: skip
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8")) == wanted
    hub = {"pubid": 12, "question": "Is it?", "context": {"contexts": ["One.", "Two."]},
           "final_decision": "maybe"}  # fmt: skip
    assert run(tmp_path, "pubmedqa", [hub])[0] == [wanted]


def test_pubmedqa_in_one_line_and_after_a_byte_order_mark(tmp_path):
    one = {"QUESTION": "Is it?", "CONTEXTS": "One whole.", "final_decision": "yes"}
    source = tmp_path / "in.json"
    for value, count in (({"12": one, "13": one}, 2), ({"12": one}, 1), (one, 1)):
        source.write_text(json.dumps(value) + "\n", encoding="utf-8-sig")
        written, _ = convert.convert("pubmedqa", str(source), str(tmp_path / "out"))
        lines = (tmp_path / "out").read_text(encoding="utf-8").splitlines()
        assert written == len(lines) == count
        named = "PubMed 12\n" if value is not one else ""
        assert json.loads(lines[0])["docs"] == [f"{named}One whole."]


@pytest.mark.parametrize("name", ["in.json", "in.jsonl"])
def test_squad_after_a_byte_order_mark(tmp_path, name):
    asked = {"question": "Who?", "answers": ["Ann"]}
    flat = asked | {"context": "Ann ran."}
    nested = {"data": [{"paragraphs": [{"context": "Ann ran.", "qas": [asked]}]}]}
    text = json.dumps(flat if name.endswith("l") else nested)
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert convert.convert("squad", str(tmp_path / name), str(tmp_path / "out"))[0] == 1


def test_one_text_in_place_of_a_list_is_not_its_letters(tmp_path):
    passages = [{"title": "A", "text": "a", "has_answer": "False"},
                {"title": "B", "text": "b", "has_answer": "true"}]  # fmt: skip
    asked = {"question": "Where?", "answers": "Paris", "ctxs": passages}
    rows, left = run(tmp_path, "nq", [asked, asked | {"answers": []}])
    assert rows == [{"question": "Where?", "answer": "Paris", "aliases": [],
                     "docs": ["A\na", "B\nb"], "pos_index": [1]}]  # fmt: skip
    assert left == {convert.UNANSWERABLE: 1}
    paragraph = {"title": "A", "paragraph_text": "a", "is_supporting": "false"}
    value = {"question": "Who?", "answer": "Ann", "answer_aliases": "Anna",
             "paragraphs": [paragraph, paragraph | {"is_supporting": True}]}  # fmt: skip
    rows, _ = run(tmp_path, "musique", [value])
    assert rows[0]["aliases"] == ["Anna"] and rows[0]["pos_index"] == [1]
    rows, _ = run(tmp_path, "hotpotqa", [
        HOTPOT | {"context": [["A", "Ann ran."]], "supporting_facts": [["A", 0]]},
        HOTPOT | {"context": {"title": ["A"], "sentences": ["Ann ran."]}},
        HOTPOT | {"context": {"title": "A", "sentences": [["Ann ran."]]}},
    ])  # fmt: skip
    assert [row["docs"] for row in rows] == [["A\nAnn ran."]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"a": 1}}, "no text or list of texts"),
        ({"answers": ["a", 3]}, "no text or list of texts"),
        ({"ctxs": [{"text": "a", "has_answer": "maybe"}]}, "neither true nor false: 'maybe'"),
    ],
)
def test_what_is_no_text_and_no_mark_is_told(tmp_path, change, message):
    value = {"question": "Where?", "answers": ["Paris"], "ctxs": [{"text": "a"}]} | change
    with pytest.raises(UserError, match=f"in.jsonl:1: is no record of nq .*{message}"):
        run(tmp_path, "nq", [value])


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', "[", '{"question": "Who?",\n"context": 3}'])
@pytest.mark.parametrize("kind", ["hotpotqa", "musique", "nq", "pubmedqa"])
def test_files_of_another_kind_are_told(tmp_path, kind, text):
    (tmp_path / "in").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"in: |in:1: "):
        convert.convert(kind, str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
