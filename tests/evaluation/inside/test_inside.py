"""The command: what it writes, and what it says of mistakes."""

import json
import os

import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation.inside import __main__ as inside


def test_all_parts(random_workdir, tmp_path, capsys):
    output = tmp_path / "out"
    assert inside.main([random_workdir, "--count=4", f"--output={output}"]) == 0
    assert f"pictures and numbers: {output}" in capsys.readouterr().out
    found = json.loads((output / "inside.json").read_text())
    assert list(found) == list(inside.PARTS)
    assert found["slots"]["facts"] == 20 and found["slots"]["replaced_by"] == "mean"
    for name in inside.PARTS:
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in (output / "inside.md").read_text()


def test_texts_alone_and_another_run(random_workdir, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("the dog is red .\n\nthe owl is blue .\n\nthis is bela loka .\n")
    output = str(tmp_path / "out")
    arguments = [random_workdir, f"--documents={path}", f"--output={output}"]
    assert inside.main([*arguments, "--only=map", f"--compare={random_workdir}/."]) == 0
    assert sorted(os.listdir(output)) == ["inside.json", "inside.md", "map.png"]
    assert inside.chosen("", has_questions=False) == ["attention", "map"]


def test_a_part_that_the_documents_do_not_serve(random_workdir, tmp_path, capsys):
    path, output = tmp_path / "two.txt", tmp_path / "out"
    path.write_text("the dog is red .\n\nthe owl is blue .\n")
    arguments = [random_workdir, f"--documents={path}", f"--output={output}"]
    assert inside.main([*arguments, "--only=map"]) == 2
    assert "2 documents are too few" in capsys.readouterr().err
    assert inside.main(arguments) == 0
    assert list(json.loads((output / "inside.json").read_text())) == ["attention"]
    assert "Left out: map: 2 documents" in (output / "inside.md").read_text()


def test_a_part_that_was_named_and_cannot_be_done_loses_no_other(random_workdir, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--questions=facts:1:1", "--count=1", f"--output={output}"]
    assert inside.main([random_workdir, *arguments, "--only=map,lens"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "map: 1 documents are too few" in error
    assert list(json.loads((output / "inside.json").read_text())) == ["lens"]
    assert "Left out: map: 1 documents" in (output / "inside.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=slot"], "no 'slot'; there are slots, lens"),
        (["--documents=x.txt", "--only=slots"], "needs questions"),
        (["--documents=x.txt"], "x.txt"),
        (["--questions=none.jsonl"], "none.jsonl: cannot be read"),
        (["--only=slots", "--compare=x"], "--compare is for map"),
        (["--only=map", "--replace=zero"], "--replace is for slots"),
    ],
)
def test_mistakes(random_workdir, capsys, arguments, message):
    assert inside.main([random_workdir, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_parts_are_named_once():
    assert inside.chosen("map, lens,map", has_questions=True) == ["map", "lens"]
    with pytest.raises(UserError):
        inside.chosen("map,", has_questions=True)
