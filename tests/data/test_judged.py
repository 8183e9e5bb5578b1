import json

import pytest

from clara_jax.data.documents import stream
from clara_jax.data.judged import Judged, read
from clara_jax.data.records import digest
from clara_jax.errors import UserError


def lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def beir(folder):
    (folder / "qrels").mkdir(parents=True)
    lines(folder / "corpus.jsonl", {"_id": "a", "title": "Oslo", "text": "A city.", "metadata": {}})
    lines(
        folder / "queries.jsonl", {"_id": "q1", "text": "where ?"}, {"_id": "q2", "text": "who ?"}
    )
    qrels = "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t1\nq1\tc\t0\n"
    (folder / "qrels" / "dev.tsv").write_text(qrels)
    (folder / "qrels" / "test.tsv").write_text(qrels.replace("q1", "q2"))
    return str(folder)


def test_a_beir_folder(tmp_path):
    folder = beir(tmp_path / "set")
    assert read(folder)[0] == [Judged("q1", "where ?", {"a": 2, "b": 1})]
    assert read(f"{folder}:test")[0] == [Judged("q2", "who ?", {"a": 2, "b": 1})]
    assert read(folder)[1] == read(f"{folder}:dev")[1] != read(f"{folder}:test")[1]
    assert [(d.id, d.whole) for d in stream(folder)] == [("a", "Oslo\nA city.")]
    with pytest.raises(UserError, match=r"train.tsv: not there; .*:SPLIT, one of dev, test"):
        read(f"{folder}:train")
    (tmp_path / "set/qrels/dev.tsv").write_text("query-id\nq1 a 2\n")
    with pytest.raises(UserError, match="not lines of query-id, corpus-id, score"):
        read(folder)


def test_lines(tmp_path):
    path = lines(tmp_path / "d.jsonl", {"question": "a ?", "docs": ["x", "y"], "pos_index": [1]},
                 {"question": "b ?", "ids": ["n"], "id": "own"}, {"question": "c ?"})  # fmt: skip
    assert read(path)[0] == [Judged("0", "a ?", {digest("y"): 1}), Judged("own", "b ?", {"n": 1})]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"question": " "}, "d.jsonl:1: question must be a text"),
        ({"question": "a", "ids": "x"}, "ids must be a list"),
        ({"question": "a", "docs": [3], "pos_index": [0]}, "docs must be a list"),
        ({"question": "a", "docs": ["x"], "pos_index": [1]}, "positions in docs, not"),
        ({"question": "a", "pos_index": ["0"]}, "pos_index must be a list"),
        ({"question": "a", "docs": ["x"]}, "no question names its documents"),
    ],
)
def test_mistakes(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        read(lines(tmp_path / "d.jsonl", value))
