import dataclasses
import io
import json
import shutil
import sys

import pytest

import clara_jax
from clara_jax import ask
from clara_jax import config as config_lib
from clara_jax.corpus import write
from clara_jax.corpus.search import search
from clara_jax.data.facts import FactsSource
from clara_jax.data.prompts import TextLayout
from clara_jax.errors import UserError
from clara_jax.exchange import export_model

DOCUMENTS = [FactsSource(9, seed=3)[i].document for i in range(9)]
QUESTIONS = ["who is this ?", "where does he live ?"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": document}) for document in DOCUMENTS))
    return str(path)


def expected(workdir, questions, **options):
    answers = clara_jax.load(workdir).ask(questions, [DOCUMENTS] * len(questions), **options)
    return "".join(ask.show(answer, DOCUMENTS) + "\n" for answer in answers)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_question(workdir, file, capsys):
    options = {"top_k": 2, "max_new_tokens": 6}
    assert ask.run(workdir, file, question=QUESTIONS[0], **options) == 0
    printed = capsys.readouterr().out
    assert printed == expected(workdir, QUESTIONS[:1], **options)
    assert len(printed.splitlines()) == 3


def test_show():
    answer = clara_jax.Answer("Oslo", (2, 0), (0.75, -0.125))
    texts = ["a\n b", "never", "c " * 200]
    assert ask.show(answer, texts).splitlines() == [
        "Oslo",
        "   0.7500  " + "c " * 40,
        "  -0.1250  a b",
    ]


@pytest.mark.parametrize("stdin", [io.StringIO, Terminal])
def test_many_questions_compress_once(workdir, file, capsys, monkeypatch, stdin):
    read, original = [], TextLayout.document_ids

    def counted(layout, text):
        read.append(text)
        return original(layout, text)

    monkeypatch.setattr(sys, "stdin", stdin("\n".join([QUESTIONS[0], " ", QUESTIONS[1]]) + "\n"))
    monkeypatch.setattr(TextLayout, "document_ids", counted)
    assert ask.run(workdir, file, max_new_tokens=6) == 0
    assert sorted(read) == sorted([*QUESTIONS, *DOCUMENTS])
    printed = capsys.readouterr().out
    if stdin is Terminal:
        assert printed.count("question: ") == 4, "three lines and the end"
        printed = printed.replace("question: ", "").removesuffix("\n")
    assert printed == expected(workdir, QUESTIONS, max_new_tokens=6)


def test_no_question(workdir, file, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n\n"))
    with pytest.raises(UserError, match="standard input holds no question"):
        ask.run(workdir, file)
    with pytest.raises(UserError, match="--question is empty"):
        ask.run(workdir, file, question=" ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 ?\n"), "utf-8"))
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        ask.run(workdir, file)
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    assert ask.run(workdir, file) == 0


def test_options_are_checked_before_work(workdir, file, monkeypatch):
    monkeypatch.setattr(ask, "_compress", lambda *_: pytest.fail("compressed"))
    for options in ({"top_k": 0}, {"temperature": -1.0}, {"top_p": 2.0}, {"max_new_tokens": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            ask.run(workdir, file, question="who ?", **options)


def test_a_release(release, tmp_path, capsys):
    documents = ["The Aven rises in the hills.", "A ferry crossed it.", "Rose kept the old boat."]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": "who ?", "answer": "Rose", "docs": documents}))
    folder, base = str(release / "ckpt_mistral_stage2"), str(release / "base_mistral")
    ask.run(folder, str(path), base, "who ?", max_new_tokens=4)
    (expected,) = clara_jax.load(folder, base).ask(["who ?"], [documents], max_new_tokens=4)
    *answer, first, second = capsys.readouterr().out.splitlines()
    assert "\n".join(answer) == expected.text and len(expected.indices) == 2
    for line, i, score in zip((first, second), expected.indices, expected.scores, strict=True):
        assert line == f"  {score:7.4f}  {documents[i]}"


@pytest.fixture(scope="module")
def store(workdir, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("store") / "s")
    documents = [{"id": f"d{i}", "title": f"T {i}", "text": x} for i, x in enumerate(DOCUMENTS)]
    write.add(path, clara_jax.load(workdir).model, clara_jax.load(workdir).trees, documents)
    return path


@pytest.mark.parametrize("hops", [1, 2])
def test_a_store(workdir, store, capsys, hops):
    config = dataclasses.replace(config_lib.Config(), search=config_lib.Search(hops=hops))
    options = {"top_k": 2, "max_new_tokens": 6}
    ask.run(workdir, store=store, question=QUESTIONS[0], config=config, **options)
    *answer, first, second = capsys.readouterr().out.splitlines()
    clara, opened = clara_jax.load(workdir), clara_jax.open_store(store)
    memories = opened.memories(range(9))
    (expected,) = clara.ask(QUESTIONS[:1], [memories], **options)
    ids = [line.split()[1] for line in (first, second)]
    assert ids[0] == f"d{expected.indices[0]}"
    if hops == 1:
        assert "\n".join(answer) == expected.text
        assert second == f"  {expected.scores[1]:7.4f}  d{expected.indices[1]}  " + (
            f"T {expected.indices[1]}"
        )
    assert len(set(ids)) == 2


def test_documents_or_a_store(workdir, store, file):
    for given in ({}, {"store": store, "documents": file}):
        with pytest.raises(UserError, match="--documents or from --store: give one"):
            ask.run(workdir, question="who ?", **given)
    with pytest.raises(UserError, match="only with --store"):
        ask.run(workdir, file, question="who ?", config=config_lib.Config())


def test_deleted_and_added_in_a_real_store(workdir, store, tmp_path):
    path = shutil.copytree(store, tmp_path / "copy")
    clara = clara_jax.load(workdir)
    found = search.Search(clara_jax.open_store(path), config_lib.Search())

    def ids():
        hits = search.find(clara.model, clara.trees, found, QUESTIONS[:1], 99)[0]
        return [document.id for document in found.store.documents([hit.row for hit in hits])]

    best = ids()[0]
    found.refresh(write.delete(path, [best]))
    assert best not in ids() and len(ids()) == 8
    new = {"id": "new", "text": QUESTIONS[0]}
    found.refresh(write.add(path, clara.model, clara.trees, [new]))
    assert ids()[0] == "new" and len(ids()) == 9
    before = ids()
    found.refresh(write.compact(path))
    assert ids() == before and found.store.rows == 9


def test_exported_keys(workdir, store, tmp_path):
    with pytest.raises(UserError, match="give both, or neither"):
        export_model.run(workdir, "native", str(tmp_path / "x"), store=store)
    assert export_model.run(workdir, "faiss", str(tmp_path / "x"), store=store) == 0
    assert len((tmp_path / "x" / "ids.jsonl").read_text().splitlines()) == 9
