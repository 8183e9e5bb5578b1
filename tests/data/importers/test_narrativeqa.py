"""NarrativeQA's tables as records."""

import csv

import pytest

from clara_jax.data import sources
from clara_jax.data.importers import narrativeqa


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "documents.csv", [["document_id", "set", "kind", "wiki_title"],
          ["a", "test", "movie", "The Mill"], ["b", "train", "gutenberg", "X"]])  # fmt: skip
    write(tmp_path / "qaps.csv", [["document_id", "set", "question", "answer1", "answer2"],
          ["a", "test", "Who built it?", "Anna", "Anna Berg"], ["a", "test", "When?", "1820", ""],
          ["b", "train", "What?", "x", "y"], ["a", "test", " ", "z", ""]])  # fmt: skip
    write(tmp_path / "third_party" / "wikipedia" / "summaries.csv",
          [["document_id", "set", "summary"], ["a", "test", " Anna, \n\n who built it. "],
           ["b", "train", "y"]])  # fmt: skip
    return tmp_path


def test_records_are_read_as_ours(folder, capsys):
    output = folder / "out.jsonl"
    assert narrativeqa.main([str(folder), f"--output={output}"]) == 0
    assert "1 documents, 2 questions" in capsys.readouterr().out
    source = sources.open_sources(str(output))
    assert len(source) == 1
    assert source[0].document == "The Mill\nAnna, who built it."
    assert source[0].accepted == (("Anna", "Anna Berg"), ("1820",))


def test_stories(folder):
    page = "<html><style>p {x}</style><p>Anna &amp; Bo</p><!-- no <b> --> end</html>"
    (folder / "a.content").write_text(page)
    found = list(narrativeqa.convert(str(folder), "test", str(folder)))
    assert found[0]["docs"] == ["The Mill\nAnna & Bo end"]
    (folder / "a.content").write_text("1 < 2 and 3 > 2")
    found = list(narrativeqa.convert(str(folder), "test", str(folder)))
    assert found[0]["docs"] == ["The Mill\n1 < 2 and 3 > 2"]


def test_mistakes(folder, capsys):
    assert narrativeqa.main([str(folder), "--set=valid"]) == 2
    assert "no document of the set valid" in capsys.readouterr().err
    write(folder / "qaps.csv", [["document_id", "set", "question"]])
    assert narrativeqa.main([str(folder)]) == 2
    assert "qaps.csv: has no column answer1" in capsys.readouterr().err
    (folder / "qaps.csv").unlink()
    assert narrativeqa.main([str(folder)]) == 2
    assert "qaps.csv: cannot be read (No such file" in capsys.readouterr().err
