import dataclasses
import json
import sys
import types

import pytest

from clara_jax.config import Config
from clara_jax.errors import UserError
from clara_jax.synthesis import corpus
from clara_jax.text import sentences


def config(length=256, **options):
    base = Config()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, document_length=length),
        synthesis=dataclasses.replace(base.synthesis, **options),
    )


def written(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(names, counts=None, **options):
    return list(corpus.read(names, config(**options), counts))


def test_cut_at_sentence_ends_with_the_title_on_each(tmp_path):
    text = " ".join(f"Sentence number {i} is short." for i in range(12))
    found = read(written(tmp_path, "a.jsonl", [{"title": "Ti", "text": text}]), length=32)
    assert len(found) > 2
    assert all(d.title == "Ti" and d.text.endswith(".") for d in found)
    assert all(sentences.estimate(d.whole) <= 32 for d in found)
    assert " ".join(d.text for d in found) == text
    assert found[0].whole.startswith("Ti\nSentence number 0")


def test_forms_of_files(tmp_path):
    rows = [
        {"passage": "One is here."},
        {"contents": "Ti\nTwo is here.", "title": "Ti"},
        {"question": "?", "docs": ["A\nThree is here.", "This a document about B. \n Four."]},
        {"context": [{"title": "C", "text": "Five."}], "question": "?"},
    ]
    jsonl = written(tmp_path, "a.jsonl", rows)
    text = written(tmp_path, "b.md", "# Head\nSix\nis here.\n\n\n## Other\nSeven.\n")
    wanted = ["One is here.", "Ti\nTwo is here.", "A\nThree is here.", "B\nFour.", "C\nFive.",
              "Head\nSix is here.", "Other\nSeven."]  # fmt: skip
    found = read(f"{jsonl}, {text}")
    assert [d.whole for d in found] == wanted
    assert [d.origin for d in found][-2:] == [f"{text}:2", f"{text}:7"]
    assert read(str(tmp_path)) == found == read(f"{jsonl},{text}")
    assert len(read(jsonl, documents=2)) == 2


def test_copies_are_left_out_and_counted(tmp_path):
    base = [f"word{i}" for i in range(100)]
    nearly = [*base[:50], "other", *base[51:]]
    apart = [w if i % 5 else f"x{i}" for i, w in enumerate(base)]
    texts = [" ".join(words) for words in (base, base, nearly, apart)]
    texts[1] = texts[1].upper().replace(" ", "  ")
    path = written(tmp_path, "a.jsonl", [{"text": t} for t in [*texts, " "]])
    counts = corpus.Counts()
    assert [d.text for d in read(path, counts, length=999)] == [texts[0], texts[3]]
    assert counts == corpus.Counts(5, 1, 4, exact=1, near=1, leaked=0, kept=2)
    assert [d.text for d in read(path, length=999, near_duplicates=1.0)] == [
        texts[0], texts[2], texts[3]
    ]  # fmt: skip


def test_passages_of_evaluation_files_are_left_out(tmp_path):
    run = " ".join(f"r{i}" for i in range(13))
    evaluation = written(tmp_path, "e.jsonl", [
        {"question": "?", "docs": [f"T\nsome text {run} ends", "Short one."], "answer": "x"}
    ])  # fmt: skip
    path = written(tmp_path, "a.jsonl", [
        {"text": f"Other {run.upper()} here."},
        {"text": "short ONE"},
        {"text": f"Only {run[:-4]} twelve."},
        {"text": "A short one too."},
    ])  # fmt: skip
    counts = corpus.Counts()
    assert len(read(path, counts, exclude=evaluation)) == 2
    assert counts.leaked == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"id": 1}', "a.jsonl:2: has none of text"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: text must be a text, not 3"),
        ("a.jsonl", b"{", "a.jsonl:1: not JSON"),
        ("a.txt", b"ok\n\xff", "a.txt: not UTF-8 at byte 3"),
        ("a.txt", b"\n\n", "holds no document"),
        ("a.json", b'[{"text": "x"}]', "a.json: is no plain text; write it as .txt, or as .jsonl"),
        ("a.CSV", b"id,text", "is no plain text"),
    ],
)
def test_mistakes_are_one_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, name, content))


@pytest.mark.parametrize("name", ["", "no/such.txt", "hf:squad", "tfds:squad"])
def test_wrong_names(name):
    with pytest.raises(UserError):
        read(name)


def test_hf(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        read("hf:a/b/train")
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda name, split, streaming: [{"context": f"{name} {split}"}]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert [d.text for d in read("hf:a/b/train")] == ["a/b train"]


def test_tfds_rows(monkeypatch):
    from clara_jax.data import tfds_source

    rows = [{"article": b"Text here.", "title": b"Ti"}]
    monkeypatch.setattr(tfds_source, "open_rows", lambda name, folder: rows)
    assert [d.whole for d in read("tfds:x/train")] == ["Ti\nText here."]
