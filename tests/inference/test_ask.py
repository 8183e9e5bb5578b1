import io
import json
import sys

import pytest

import clara_jax
from clara_jax.data.facts import FactsSource
from clara_jax.errors import UserError
from clara_jax.inference import ask, encode

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
        "Oslo", "   0.7500  " + "c " * 40, "  -0.1250  a b",
    ]  # fmt: skip


@pytest.mark.parametrize("stdin", [io.StringIO, Terminal])
def test_many_questions_compress_once(workdir, file, capsys, monkeypatch, stdin):
    read, original = [], encode.prompts.document_ids

    def counted(tokenizer, extra, text, length):
        read.append(text)
        return original(tokenizer, extra, text, length)

    monkeypatch.setattr(sys, "stdin", stdin("\n".join([QUESTIONS[0], " ", QUESTIONS[1]]) + "\n"))
    monkeypatch.setattr(encode.prompts, "document_ids", counted)
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


def test_a_release(shared, tmp_path, capsys):
    golden = shared / "golden"
    record = json.loads((golden / "texts.json").read_text())["examples"][1]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record))
    folder, base = str(golden / "ckpt_mistral_stage2"), str(golden / "base_mistral")
    ask.run(folder, str(path), base, record["question"], max_new_tokens=16)
    scalars = json.loads((golden / "golden_mistral.json").read_text())
    *answer, first, second = capsys.readouterr().out.splitlines()
    assert "\n".join(answer) == scalars["gen_from_questions/texts"][1].strip()
    assert first.startswith("   0.6774  ") and second.startswith("   0.6765  ")
    assert record["docs"][2].startswith(first[11:]) and record["docs"][1].startswith(second[11:])
