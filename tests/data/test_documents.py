import json

import pyarrow
import pyarrow.parquet
import pytest

from clara_jax.data.documents import Document, of_values, read_documents, stream
from clara_jax.data.records import digest
from clara_jax.errors import UserError


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*values):
    return "\n".join(map(json.dumps, values))


def test_lines_of_one_document_each(tmp_path):
    lines = jsonl(
        {"text": "one", "id": 3},
        {"contents": "zwei\nHälfte"},
        {"document": "three", "title": "Title"},
        {"text": "Four\nis first", "title": "Four"},
        {"text": "one"},
        {"text": "  "},
        {"text": "five", "title": None},
        {"text": "six", "title": ""},
    )
    path = written(tmp_path, "d.JSONL", lines.replace("\n", "\n\n") + "\n")
    expected = ["one", "zwei\nHälfte", "Title\nthree", "Four\nis first", "five", "six"]
    assert read_documents(path) == expected


def test_ids_and_titles_of_lines(tmp_path):
    lines = jsonl(
        {"text": "one", "id": "a"},
        {"text": "Ti\ntwo", "title": "Ti", "id": 3},
        {"text": "three"},
        {"docs": ["Head\nfour", "no title", " \nfive", "x" * 201 + "\nsix"]},
        {"text": "Ti", "title": "Ti"},
    )
    found = list(stream(written(tmp_path, "d.jsonl", lines)))
    assert [(d.id, d.title, d.text) for d in found[:3]] == [
        ("a", "", "one"), ("3", "Ti", "two"), (digest("three").hex(), "", "three"),
    ]  # fmt: skip
    assert [(d.title, d.text) for d in found[3:]] == [
        ("Head", "four"), ("", "no title"), ("", " \nfive"), ("", "x" * 201 + "\nsix"), ("", "Ti"),
    ]  # fmt: skip
    assert found[3].id == digest("Head\nfour").hex() and found[1].origin.endswith("d.jsonl:2")


@pytest.mark.parametrize("key", ["text", "contents", "document"])
def test_parquet(tmp_path, key):
    rows = {key: ["one", None, "", "four"], "id": [7, 8, 9, 10], "title": [None, "T", "", "F"],
            "other": [1, 2, 3, 4]}  # fmt: skip
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    with pytest.raises(UserError, match=r"d.parquet: row 2: has none of text, contents"):
        list(stream(path))
    rows[key][1] = "two"
    pyarrow.parquet.write_table(pyarrow.table(rows), path, row_group_size=3)
    assert [(d.id, d.whole) for d in stream(path)] == [("7", "one"), ("8", "T\ntwo"),
                                                       ("10", "F\nfour")]  # fmt: skip
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        list(stream(path))


def test_rows_in_lists_and_other_names_of_texts(tmp_path):
    lines = jsonl(
        {"context": [{"title": "C", "text": "five"}], "question": "?"},
        {"passage": "six"},
        {"article": "seven", "title": "S"},
        {"context": "eight"},
    )
    path = written(tmp_path, "d.jsonl", lines)
    assert read_documents(path) == ["C\nfive", "six", "S\nseven", "eight"]


def test_documents_of_a_program():
    given = [Document("a", "", "x"), "text", {"text": "y", "id": "b"}]
    assert [d.text for d in of_values(given)] == ["x", "text", "y"]
    with pytest.raises(UserError, match=r"documents\[1\]: must be a text or a mapping, not 3"):
        list(of_values(["a", 3]))


def test_records_give_all_their_documents(tmp_path):
    lines = jsonl(
        {"question": "?", "docs": ["b", "a"], "answer": "c"},
        {"question": "?", "context": ["a", "", "d "]},
        {"data_type": "qa", "question": ["?"], "answers": ["!"], "docs": ["e"]},
    )
    assert read_documents(written(tmp_path, "r.jsonl", lines)) == ["b", "a", "d ", "e"]


@pytest.mark.parametrize("name", ["d.txt", "d.md", "d"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_paragraphs_of_plain_text(tmp_path, name, newline):
    text = "\ufeffone\nstill one\n\n  \ntwo\n\nonë\n\ntwo\n"
    path = written(tmp_path, name, text.replace("\n", newline))
    assert read_documents(path) == ["one\nstill one", "two", "onë"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.txt", "", "d.txt: holds no document"),
        ("d.txt", " \n\n\t\n", "d.txt: holds no document"),
        ("d.jsonl", "\n\n", "d.jsonl: holds no document"),
        ("d.jsonl", jsonl({"docs": [""]}), "d.jsonl: holds no document"),
        ("d.txt", "é".encode("latin-1"), "d.txt: not UTF-8 at byte 0"),
        ("d.jsonl", jsonl({"text": "a"}) + "\n\nnonsense", "d.jsonl:3: not JSON"),
        ("d.jsonl", b'{"text": "\xe9"}', "d.jsonl:1: not JSON .*utf-8"),
        ("d.jsonl", "[1]", "d.jsonl:1: a record must be a JSON object"),
        ("d.jsonl", jsonl({"body": "a"}), "d.jsonl:1: has none of text, contents, document, docs"),
        ("d.jsonl", jsonl({"text": 3}), "d.jsonl:1: text must be a text, not 3"),
        ("d.jsonl", jsonl({"text": None}), "d.jsonl:1: has none of text, contents"),
        ("d.jsonl", jsonl({"text": "\ud800"}), r"d.jsonl:1: text must be a text, not '\\ud800'"),
        ("d.jsonl", jsonl({"text": "a", "title": 3}), "d.jsonl:1: title must be a text, not 3"),
        ("d.jsonl", jsonl({"text": "a", "id": ""}), "d.jsonl:1: id must not be empty"),
        ("d.jsonl", jsonl({"text": "a", "id": "b "}), "nor begin or end with a blank: 'b '"),
        ("d.jsonl", jsonl({"text": "a", "id": True}), "id must be a text, not True"),
        ("d.jsonl", jsonl({"docs": "a"}), "d.jsonl:1: docs must be a list of texts, not 'a'"),
        ("d.jsonl", jsonl({"context": ["a", 3]}), r"d.jsonl:1: context\[1\] must be a text"),
    ],
)
def test_mistakes(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_documents(written(tmp_path, name, content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"no\.jsonl: cannot be read \(No such file"):
        read_documents(tmp_path / "no.jsonl")
    with pytest.raises(UserError, match=r"corpus\.jsonl: cannot be read \(No such file"):
        read_documents(tmp_path)  # a folder is that of a BEIR set


ROWS = [{"id": "1", "title": "T", "text": 'a "b", c\nd'}, {"id": "2", "title": "", "text": "two"}]
TABLE = 'id{0}text{0}title\n1{0}"a ""b"", c\nd"{0}T\n2{0}two{0}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", json.dumps(ROWS)),
        ("d.json", jsonl(*ROWS)),
        ("d.ndjson", jsonl(*ROWS)),
        ("d.CSV", TABLE.format(",")),
        ("d.tsv", TABLE.format("\t")),
    ],
)
def test_corpora_of_other_forms(tmp_path, name, content):
    found = list(stream(written(tmp_path, name, content)))
    assert [(d.id, d.title, d.text) for d in found] == [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.tsv", "1\tthe text\n", ":1: must name the columns"),
        ("d.csv", "id,text\n1,a,b\n", "csv:2: has not the 2 cells"),
        ("d.csv", "id,text\n1\n", "csv:2: has not the 2 cells"),
        ("d.csv", 'id,text\n1,"a" b\n', 'csv:2: .*double a "'),
        ("d.tsv", 'id\ttext\n1\t"a\n2\tb\n', "unexpected end"),
        ("d.json", "[1]", "number 1: a document must be a text"),
        ("d.json", "no", "json:1: not JSON"),
        ("d.html", "<p>a", ".html is not read; convert it to one of .jsonl"),
    ],
)
def test_what_is_no_prose_is_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        list(stream(written(tmp_path, name, content)))


@pytest.mark.parametrize("key", ["_id", "docid", "doc_id", "docno", "pid"])
def test_ids_of_corpora(tmp_path, key):
    lines = jsonl({key: "d7", "text": "one"}, {"id": "x", key: "d8", "text": "two", "title": None})
    assert [d.id for d in stream(written(tmp_path, "d.jsonl", lines))] == ["d7", "x"]
