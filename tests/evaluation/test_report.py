"""The picture and the answers of a run, and what is said where a run has none."""

import json
import os

import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation import report
from clara_jax.runs import workdir as workdir_lib


@pytest.fixture
def workdir(tmp_path):
    lines = [{"step": s, "loss": 3.0 / s, "ce_loss": 2.0 / s} for s in (1, 2, 3)]
    lines.append({"step": 3, "eval/ce_loss": 1.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path


def evaluation(workdir, name, memory):
    prediction = {"origin": "f:1", "question": "who ?", "answer": "x", "memory": memory}
    conditions = {n: {"turn_ce": ce} for n, ce in (("memory", 1.0), ("no_document", 2.0))}
    (workdir / "eval").mkdir(exist_ok=True)
    path = workdir / "eval" / name
    path.write_text(json.dumps({"conditions": conditions, "predictions": [prediction] * 9}))
    return path


def test_picture_with_and_without_an_evaluation(workdir):
    plain = (workdir / "loss.png", report.plot(str(workdir)))
    assert str(plain[0]) == plain[1]
    before = plain[0].read_bytes()
    assert before == (report.plot(str(workdir)), plain[0].read_bytes())[1]
    evaluation(workdir, "3.json", "y")
    report.plot(str(workdir))
    assert plain[0].read_bytes() != before  # the baseline's line


def test_samples_are_of_the_latest_step_and_those_written_last(workdir, capsys):
    assert report.samples(str(workdir), 3) == []
    os.utime(evaluation(workdir, "3-2.json", "early"), (1, 1))
    evaluation(workdir, "3.json", "late")
    evaluation(workdir, "0.json", "untrained")
    lines = report.samples(str(workdir), 3)
    assert len(lines) == 6 and lines[1].strip() == "memory: late"
    assert report.main([str(workdir), "--samples=1"]) == 0
    assert "expected: x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", None, "No such file"),
        ("metrics.jsonl", "", "empty"),
        ("metrics.jsonl", '{"step": 1}\n5\n{}\n', "metrics.jsonl:2: not a JSON object"),
        ("eval/3.json", "{", "evaluate again"),
        ("eval/3.json", "{}", "evaluate again"),
    ],
)
def test_mistakes(workdir, capsys, file, content, message):
    evaluation(workdir, "3.json", "y")
    if content is None:
        (workdir / file).unlink()
    else:
        (workdir / file).write_text(content)
    assert report.main([str(workdir)]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(UserError, match=message):
        report.plot(str(workdir))


def test_a_line_that_a_kill_cut_short_is_left_out(workdir):
    with open(workdir / "metrics.jsonl", "a") as f:
        f.write('{"step": 4, "lo')
    assert [line["step"] for line in workdir_lib.read_metrics(str(workdir))] == [1, 2, 3, 3]
