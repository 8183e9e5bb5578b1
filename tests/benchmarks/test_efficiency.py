"""The efficiency table of a tiny model; what is measured is never asserted."""

import json

import pytest

from benchmarks import efficiency, measure
from clara_jax.evaluation import efficiency_table
from clara_jax.evaluation.efficiency_table import Row
from clara_jax.text.markdown import table


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 1)
    monkeypatch.setattr(efficiency, "alone", lambda function, *args: function(*args))


@pytest.mark.slow
def test_rows_of_a_tiny_model(here, tmp_path, capsys, monkeypatch):
    read = []
    batches = efficiency.generate.prompt_batches

    def noted(asked, *rest):
        read.append((len(asked), len(asked[0].tokens)))
        return batches(asked, *rest)

    monkeypatch.setattr(efficiency.generate, "prompt_batches", noted)
    output = str(tmp_path / "table")
    arguments = ["--preset=tiny", "--rate", "64", "--documents=2", "--new_tokens=4", "--batch=2"]
    assert efficiency.main([*arguments, "--output", output]) == 0
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    ours, theirs = text.split(efficiency_table.PAPER)
    names = [line.split("|")[1].strip() for line in ours.splitlines() if line.startswith("|")]
    assert names[2:] == ["full text", "64x"]
    assert "| Phi4-mini | 64x | 0.605 | 0.0853 | 0.355 | 1.98x |" in theirs and "16x" not in theirs
    # Memories and their separators in place of the texts.
    assert read == [(2, 47 + 32 + 2 * 256), (2, 47 + 32 + 2 * (4 + 1))]
    full, short = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert full["compress"] == full["query"] == 0 < short["compress"]
    assert short["stored"] == 2 * 4 * 128 and full["stored"] == 4 * 256
    assert short["cache"] < full["cache"] and short["program_gib"] < full["program_gib"]


def test_table():
    rows = [Row("full text", 0, 0, 1.5, 2.0, 1, 1, 1024, 2**20),
            Row("16x", 0.5, 0.1, 0.2, 0.4, 1, 1, 2048, 2**20)]  # fmt: skip
    text = table(efficiency_table.HEAD, efficiency_table.cells(rows))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = dict(zip(lines[0], lines[3], strict=True))
    assert (found["answer, s"], found["faster than text"], found["decode, s"]) == (
        "0.5", "4.00x", "0.2"
    )  # fmt: skip
    assert found["stored KiB a document"] == "2.0" and lines[2][1] == ""
    assert Row("x", 0, 0, 2.0, 1.9, 1, 1, 1, 1).decode == 0.0


def test_mistakes(capsys):
    assert efficiency.main(["--preset=nano"]) == 2
    assert "--preset=nano is unknown" in capsys.readouterr().err
    for wrong in (["--rate", "0"], ["--rate", "257"], ["--batch", "0"], ["--new_tokens", "1"]):
        with pytest.raises(SystemExit):
            efficiency.main(wrong)
