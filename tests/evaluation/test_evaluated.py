"""Predictions with their values, paired tests between runs, and runs of several seeds."""

import dataclasses
import json
import pathlib
import shutil
import sys

import pytest

from clara_jax import config as config_lib
from clara_jax.config import Config
from clara_jax.errors import UserError
from clara_jax.evaluation import compare, evaluated, predictions, results
from clara_jax.runs import workdir as workdir_lib

ANSWERS = ["red fox", "baker", "no", "a mill"]


def result(correct, seconds=1.0):
    """Four questions, of which the named ones are answered rightly and ranked first."""
    rows = [
        {
            "origin": f"f.jsonl:{i + 1}",
            "question": f"what is {i} ?",
            "answer": answer,
            "answers": [answer, f"alias {i}"],
            "pos_index": [0],
            "chosen": [0],
            "documents": [f"document {i}"],
            "ranked": {"reasoner": [0, 1] if i in correct else [1, 0], "bm25": [1, 0]},
            "reasoner": f"Alias {i}." if i in correct else "nothing",
        }
        for i, answer in enumerate(ANSWERS)
    ]
    share = len(correct) / 4
    return {
        "step": 2,
        "questions": 4,
        "conditions": {"reasoner": {"f1": share, "exact_match": share, "seconds": seconds}},
        "retrieval": {"reasoner": {"recall@1": share}, "bm25": {"recall@1": 0.0}},
        "predictions": rows,
    }


def edit(workdir, change):
    """Changes the result of a run, not its lines."""
    path = pathlib.Path(workdir) / "eval" / "2.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def edit_lines(workdir, change):
    """Changes the lines."""
    path = pathlib.Path(workdir) / "eval" / "2.jsonl"
    lines = [json.loads(row) for row in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


@pytest.fixture
def workdirs(tmp_path):
    """A good run, the same with another seed, and one that knows one answer."""
    found = []
    for name, correct, seed, k in (("a/e2e", {0, 1, 2, 3}, 0, 5), ("b/e2e", {0, 1}, 1, 5),
                                   ("c", {0}, 1, 3)):  # fmt: skip
        workdir = tmp_path / name
        workdir.mkdir(parents=True)
        config = Config(stage="e2e", seed=seed, init_from=str(tmp_path / f"scp{seed}"))
        select = dataclasses.replace(config.select, k=k)
        config_lib.save(dataclasses.replace(config, select=select), workdir / "config.json")
        (tmp_path / f"scp{seed}").mkdir(exist_ok=True)
        config_lib.save(Config(seed=seed), tmp_path / f"scp{seed}" / "config.json")
        (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        results.write(result(correct), str(workdir))
        found.append(str(workdir))
    return found


def test_a_line_a_question_with_all_values(workdirs):
    with open(f"{workdirs[1]}/eval/2.jsonl", encoding="utf-8") as f:
        lines = [json.loads(row) for row in f]
    assert [line["values"]["reasoner"]["exact_match"] for line in lines] == [1, 1, 0, 0]
    assert [line["retrieval"]["reasoner"]["recall@1"] for line in lines] == [1, 1, 0, 0]
    assert lines[2]["retrieval"]["bm25"] == lines[2]["retrieval"]["reasoner"]
    assert lines[0]["answers"] == ["red fox", "alias 0"] and "ranked" not in lines[0]
    # Nothing is scored again: a test reads the values of the file.
    lines[3]["values"]["reasoner"]["f1"] = 0.5
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with open(f"{workdirs[1]}/eval/2.jsonl", "w", encoding="utf-8") as f:
        f.write(text)
    (run,) = evaluated.load(workdirs[1:2])
    assert run.values["f1"] == [1, 1, 0, 0.5]


def test_a_result_of_before_there_were_lines(workdirs, tmp_path):
    old = tmp_path / "a" / "e2e" / "eval" / "2.jsonl"
    told = json.loads((tmp_path / "a" / "e2e" / "eval" / "2.json").read_text())
    assert predictions.of(f"{old}"[:-1], told) == predictions.lines(told)
    old.unlink()
    assert predictions.of(f"{old}"[:-1], told) == predictions.lines(told)
    old.write_text('{"question": "who ?"}\n')
    with pytest.raises(UserError, match=r"2\.jsonl: damaged.*evaluate again"):
        predictions.of(f"{old}"[:-1], told)


def test_paired_tests_are_of_the_same_questions(workdirs, tmp_path):
    # The second run has the questions in another order, one twice and one of its own.
    path = tmp_path / "b" / "e2e" / "eval" / "2.jsonl"
    lines = path.read_text().splitlines()
    own = lines[0].replace("what is 0", "who is 0")
    path.write_text("\n".join([own, lines[3], lines[2], lines[1], lines[0], lines[0]]) + "\n")
    edit(workdirs[1], lambda told: told.update(questions=6))
    found = evaluated.load(workdirs)
    tests = {(test.other, test.metric): test for test in evaluated.tests(found)}
    assert {metric for _, metric in tests} == set(evaluated.TESTED)
    first = tests[found[1].label, "f1"]
    assert (first.questions, first.paired.difference) == (4, 0.5)
    assert tests[found[2].label, "recall@1"].paired.difference == 0.75
    assert first.paired.low <= 0.5 <= first.paired.high and 0 < first.paired.p <= 1
    other = evaluated.load(workdirs[:1])[0]
    strange = [dict(line, question="where ?") for line in other.lines]
    with pytest.raises(UserError, match="share no question"):
        evaluated.tests([other, dataclasses.replace(other, lines=strange)])


def test_runs_of_several_seeds(workdirs):
    found = evaluated.load(workdirs)
    head, cells, _ = evaluated.seed_table(found)
    assert len(cells) == 1 and cells[0][1] == "2"  # the third has another k
    assert cells[0][head.index("F1")] == "0.750 ± 0.354"
    # What a run started from belongs to its method.
    assert evaluated.method(found[0].config) == evaluated.method(found[1].config)
    started = dataclasses.replace(found[1].config, init_from="elsewhere")
    assert evaluated.method(started) != evaluated.method(found[0].config)
    assert evaluated.seed_table(found[1:])[1] == []


def test_a_seed_counts_once_and_only_what_was_evaluated_alike_is_pooled(workdirs, tmp_path):
    again = str(shutil.copytree(workdirs[0], tmp_path / "again"))
    found = evaluated.load([*workdirs[:2], again])
    head, cells, _ = evaluated.seed_table(found)
    assert [row[1] for row in cells] == ["2"] and cells[0][head.index("F1")] == "0.750 ± 0.354"
    assert (
        cells[0][0]
        == f"{found[0].label} (not {found[2].label}, of the same seed), {found[1].label}"
    )
    assert evaluated.seed_table(evaluated.load([workdirs[0], again]))[1] == []
    for settings in ({"setting": "normal"}, {"k": 3}, {"max_new_tokens": 4}, {"store": "s"}):
        edit(workdirs[1], lambda told, new=settings: told.update(settings=new))
        assert evaluated.seed_table(evaluated.load(workdirs[:2]))[1] == []
    edit(workdirs[1], lambda told: told.update(settings={"k": 5, "batch": 3}))  # 5 is as trained
    assert len(evaluated.seed_table(evaluated.load(workdirs[:2]))[1]) == 1
    edit_lines(workdirs[1], lambda lines: [dict(lines[0], question="who ?"), *lines[1:]])
    assert evaluated.seed_table(evaluated.load(workdirs[:2]))[1] == []


def test_what_was_not_evaluated_alike_is_named(workdirs, tmp_path, capsys):
    found = evaluated.load(workdirs)
    assert evaluated.unlike(found[:2]) == ""
    assert evaluated.unlike(found).endswith(
        f"k 5 ({found[0].label}, {found[1].label}), 3 ({found[2].label})."
    )
    edit(workdirs[1], lambda told: told.update(settings={"setting": "normal", "k": 2}, questions=3))
    edit_lines(workdirs[1], lambda lines: lines[:3])
    assert compare.main([*workdirs[:2], "--output", str(tmp_path / "all")]) == 0
    told, first = (tmp_path / "all.md").read_text().split("\n\n")[:2]
    assert told == (
        "Not evaluated alike, means do not compare: setting given (a/e2e), normal (b/e2e); "
        "k 5 (a/e2e), 2 (b/e2e); questions 4 (a/e2e), 3 (b/e2e), of which 3 are the same in all."
    )
    assert first.splitlines()[0].endswith("| candidates | k |")
    assert [row.split(" | ")[-2:] for row in first.splitlines()[2:4]] == [
        ["given", "5 |"], ["normal", "2 |"]
    ]  # fmt: skip


def test_recall_is_over_the_questions_that_name_gold_documents(workdirs):
    edit_lines(workdirs[1], lambda lines: [
        {name: value for name, value in line.items() if i or name != "retrieval"}
        for i, line in enumerate(lines)
    ])  # fmt: skip
    found = evaluated.load(workdirs[:2])
    head, cells, _ = evaluated.interval_table(found)
    assert cells[1][head.index("recall@1")].endswith(") of 3 questions")
    assert cells[1][head.index("recall@1")].startswith("0.333 (")  # the first of four had it found
    assert "questions" not in cells[0][head.index("recall@1")] + cells[1][head.index("F1")]
    assert compare.rows(found)["b/e2e"]["recall@1"] == "0.500 of 3"  # the result's own mean
    assert compare.rows(found)["a/e2e"]["recall@1"] == "1.000"
    tests = {test.metric: test for test in evaluated.tests(found)}
    assert (tests["f1"].questions, tests["recall@1"].questions) == (4, 3)
    assert tests["recall@1"].paired.difference == pytest.approx(2 / 3)
    head, cells, _ = evaluated.seed_table(found)  # the same questions, but not the same of them
    assert cells[0][head.index("recall@1")] == "" and cells[0][head.index("F1")] != ""


def test_questions_of_one_document_are_drawn_together(workdirs):
    def of_one(lines):
        for line in lines:
            del line["pos_index"]
        return [line | {"document": "abc"[i // 2]} for i, line in enumerate(lines)]

    alone = evaluated.paired(*evaluated.load(workdirs[:2]))["f1"][0]
    for workdir in workdirs[:2]:
        edit_lines(workdir, of_one)
    together = evaluated.paired(*evaluated.load(workdirs[:2]))["f1"][0]
    assert alone.p == pytest.approx(0.5, abs=0.03) and (together.low, together.high) == (0, 1)
    assert together.p == pytest.approx(1, abs=0.01)  # of one document's signs
    (run,) = evaluated.load(workdirs[1:2])
    assert predictions.mean(run.lines, run.own, "f1")[1:] == (0, 1, 4)
    for line in run.lines:  # as older versions wrote them
        del line["document"]
        line["origin"] = "f.jsonl:1"
    assert predictions.groups(run.lines) == ["f.jsonl:1"] * 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: lines[:2], "2 lines of 4 questions"),
        (lambda lines: [*lines, lines[0]], "5 lines of 4 questions"),
        (lambda lines: lines[0]["values"]["reasoner"].update(f1="x") or lines, "line 1: 'x'"),
        (lambda lines: lines[1].update(chosen=3) or lines, "an iterable, not int"),
        (lambda lines: lines[1].update(documents=[3]) or lines, "line 2: 3 is"),
        (lambda lines: lines[1]["retrieval"].update(reasoner=3) or lines, "no attribute 'values'"),
        (lambda lines: lines[1].update(reasoner=None) or lines, "line 2: None is"),
        (lambda lines: lines[1].update(values={}) or lines, "KeyError"),
        (lambda lines: [[], *lines[1:]], "TypeError"),
    ],
)
def test_lines_that_do_not_fit_the_result(workdirs, change, told):
    edit_lines(workdirs[0], change)
    with pytest.raises(UserError, match=r"2\.jsonl: damaged .*evaluate again") as e:
        evaluated.load(workdirs[:1])
    assert told in str(e.value)


def test_labels_tell_runs_apart():
    assert workdir_lib.labels(["x/a/e2e", "x/b/e2e"]) == ["a/e2e", "b/e2e"]
    assert workdir_lib.labels(["x/a/", "x/b"]) == ["a", "b"]
    assert workdir_lib.labels(["a", "a"]) == ["a", "a"]


def test_comparison_tells_of_tests_and_seeds(workdirs, tmp_path, capsys):
    assert compare.main([*workdirs, "--output", str(tmp_path / "all")]) == 0
    text = (tmp_path / "all.md").read_text()
    assert text in capsys.readouterr().out
    assert "less |  | questions | difference | 95 % | p |" in text
    assert "+0.500" in text and "0.750 ± 0.354" in text and "1.000 (0.398-1.000)" in text
    assert compare.main([str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "no evaluation" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_comparison_of_runs_that_lack_curves(workdirs, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(compare, "save", lambda figure, path: drawn.append(figure))
    (tmp_path / "a" / "e2e" / "metrics.jsonl").unlink()
    assert compare.main([*workdirs, "--output", str(tmp_path / "all")]) == 0
    (ax,) = drawn[0].axes  # no run ranked while it was trained
    assert [text.get_text() for text in ax.get_legend().get_texts()] == compare.labels(workdirs)[1:]
    compare.pyplot().close(drawn[0])
    for path in tmp_path.glob("**/metrics.jsonl"):
        path.write_text('{"step": 1, "tokens_per_s": 2.0}\n')
    capsys.readouterr()
    assert compare.main([*workdirs, "--output", str(tmp_path / "none")]) == 0
    assert len(drawn) == 1 and "no metrics.jsonl has curves" in capsys.readouterr().out


def test_comparison_without_matplotlib_in_a_new_folder(workdirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert compare.main([*workdirs, "--output", str(tmp_path / "new" / "x")]) == 0
    captured = capsys.readouterr()
    assert (tmp_path / "new" / "x.md").read_text() in captured.out
    assert captured.err.startswith("no picture: plots need matplotlib")
    assert captured.err.count("\n") == 1


def test_questions_of_several_files_are_also_told_apart(workdirs):
    found = evaluated.load(workdirs[1:2])
    assert evaluated.file_table(found)[1] == []
    origins = ["d/n.jsonl:1", "d/n.jsonl:2", "d/h.jsonl:1", "d/h.jsonl:2"]
    lines = [line | {"origin": o} for line, o in zip(found[0].lines, origins, strict=True)]
    head, cells, _ = evaluated.file_table([dataclasses.replace(found[0], lines=lines)])
    assert head[:3] == ["", "questions of", "F1"]
    assert [row[1:3] for row in cells] == [
        ["n.jsonl (2)", "1.000 (0.158-1.000)"], ["h.jsonl (2)", "0.000 (0.000-0.842)"]
    ]  # fmt: skip
