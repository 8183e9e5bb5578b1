"""Sweeps: what a table of axes expands to, what is shared, what a kill or a failure leaves."""

import json
import pathlib
import sys

import pytest

from clara_jax import config as config_lib
from clara_jax.errors import UserError
from clara_jax.evaluation import results
from clara_jax.evaluation.sweep import __main__ as sweep
from clara_jax.evaluation.sweep import cost, plan
from clara_jax.evaluation.sweep.plan import Sweep
from clara_jax.runs.lineage import lineage

ROOT = pathlib.Path(__file__).parents[3]
STAGES = '''
from clara_jax import config as clara_config

def get_config(stage="scp"):
    """Tiny."""
    config = clara_config.default()
    config.stage = stage
    config.model.preset, config.model.tokenizer, config.model.vocab_size = "tiny", "facts", 192
    config.data.sources, config.eval.sources = "facts:200", "facts:4:1"
    config.data.document_length, config.data.rate = 40, 10
    config.data.encoder_row = config.data.decoder_row = 96
    config.data.packing_bins = 8
    config.memory.init = "tokens"
    config.prompts.qa_system, config.prompts.qa_user = "", "{docs}"
    config.train.steps, config.train.batch_rows = 2, 8
    config.eval.records, config.eval.max_new_tokens, config.eval.baselines = 2, 4, False
    config.mesh.fsdp, config.lora.dropout = 1, 0.0
    return config
'''
SWEEP = '''
from clara_jax.evaluation.sweep.plan import Sweep

def get_sweep(name="all"):
    """Rates."""
    return Sweep({"scp": "tiny.py"}, {"rate": {"20": {"data.rate": 20}}},
                 paper={"rate=20": {"f1": 0.123}})
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.py").write_text(STAGES)
    (tmp_path / "sweep.py").write_text(SWEEP)
    return tmp_path


def expand(folder, axes, **others):
    stages = {stage: f"tiny.py:{stage}" for stage in ("scp", "instruct", "e2e")}
    given = Sweep(stages, axes, **others)
    return {run.name: run for run in plan.expand(given, str(folder), str(folder / "out"))}


def test_runs_share_what_they_have_in_common(folder):
    found = expand(folder, {
        "rate": {"10": {"data.rate": 10}, "20": {"data.rate": 20}},
        "k": {"1": {"e2e:select.k": 1}},
        "setting": {"oracle": {"eval.setting": "oracle"}},
        "chain": {"short": {"stages": ("scp", "e2e")}},
    }, grids=(("rate", "k"),))  # fmt: skip
    assert list(found) == ["base", "rate=10", "rate=20", "k=1", "setting=oracle", "chain=short",
                           "rate=10,k=1", "rate=20,k=1"]  # fmt: skip
    base = found["base"].stages
    assert [s.config.stage for s in base] == ["scp", "instruct", "e2e"]
    assert [s.config.init_from for s in base] == ["", base[0].workdir, base[1].workdir]
    assert base[2].config.data.memories and not base[1].config.data.memories
    assert found["rate=10"].stages == base and found["rate=10"].key == found["base"].key
    assert not {s.workdir for s in found["rate=20"].stages} & {s.workdir for s in base}
    assert all(s.config.data.rate == 20 for s in found["rate=20"].stages)
    k1 = found["k=1"].stages
    assert k1[:2] == base[:2] and k1[2].workdir != base[2].workdir and k1[2].config.select.k == 1
    assert k1[1].config.select.k == 5
    # Another evaluation of the same training.
    assert [s.workdir for s in found["setting=oracle"].stages] == [s.workdir for s in base]
    assert found["setting=oracle"].key != found["base"].key
    short = found["chain=short"].stages
    assert len(short) == 2 and short[1].config.init_from == base[0].workdir
    assert found["rate=10,k=1"].stages == k1
    assert found["rate=20,k=1"].stages[2].config.select.k == 1


def test_where_runs_are_on_their_axes(folder):
    found = expand(folder, {
        "rate": {"20": {"data.rate": 20, "eval.batch": 2}, "5": {"data.rate": 5, "eval.batch": 8}},
        "k": {"1": {"e2e:select.k": 1}},
        "few": {"3": {"evaluate:eval.records": 3}},
        "seed": {"1": {"seed": 1}},
        "other": {"1": {"data.rate": 20}, "x": {}},
    }, grids=(("rate", "k"),))  # fmt: skip
    # A seed is no place, nor is what only looks like a number.
    assert found["base"].at == {"rate": 10.0, "k": 5.0, "few": 2.0}
    assert found["rate=5"].at == {"rate": 5.0} and found["rate=20,k=1"].at == {"rate": 20, "k": 1}
    assert found["seed=1"].at == {"seed": "1"} and found["other=x"].at == {"other": "x"}
    without = expand(folder, {"k": {"1": {"scp:select.k": 1}}}, options={"stages": ("e2e",)})
    assert without["base"].at == {}


def test_an_evaluation_may_have_other_options_than_the_training(folder):
    found = expand(folder, {"to": {
        "others": {"evaluate:data.sources": "facts:300", "evaluate:eval.records": 5},
        "fewer": {"evaluate:eval.records": 5},
    }})  # fmt: skip
    base, others, fewer = found.values()
    assert others.stages == base.stages == fewer.stages
    assert base.evaluated == base.stages[-1].config
    assert others.evaluated.data.sources == "facts:300" and others.evaluated.eval.records == 5
    assert others.evaluated.data.memories == base.stages[-1].config.data.memories
    assert len({run.key for run in found.values()}) == 3


def test_axes_that_are_only_crossed(folder):
    found = expand(folder, {
        "rate": {"10": {"data.rate": 10}, "20": {"data.rate": 20}},
        "k": {"1": {"e2e:select.k": 1}},
    }, grids=(("rate", "k"),), single=False)  # fmt: skip
    assert list(found) == ["base", "rate=10,k=1", "rate=20,k=1"]


def test_mistakes(folder, capsys):
    for axes, message in (
        ({"a": {"b": {"data.rat": 1}}}, r"a=b: option data\.rat=1"),
        ({"a": {"b": {"data.rate": "x"}}}, "a=b: option data.rate='x'"),
        ({"a": {"b": {"sc:data.rate": 4}}}, "no stage 'sc'"),
        ({"a": {"b": {"evaluate:data.rate": 4}}}, "evaluate:data.rate: an evaluation has"),
        ({"a": {"b": {"data.rate": 41}}}, "leaves no memory vector"),
        ({"a": {"b": {"stages": []}}}, r"a=b: stages=\[\]: must be a list of some of scp, instr"),
        ({"a": {"b": {"stages": "scp"}}}, "a=b: stages='scp': must be a list"),
        ({"a": {"b": {"stages": ["evaluate"]}}}, "no stage 'evaluate'"),
        ({"a": {"b": {"e2e:stages": ["scp"]}}}, "a=b: e2e:stages: the chain has stages"),
        ({"a": {"b": {"data": {}}}}, "a=b: data is a group"),
    ):
        with pytest.raises(UserError, match=message):
            expand(folder, axes)
    with pytest.raises(UserError, match="no axis 'k'"):
        expand(folder, {}, grids=(("k",),))
    planned = list(expand(folder, {"rate": {"20": {"data.rate": 20}}}).values())
    assert [run.name for run in plan.only(planned, "rate=*")] == ["rate=20"]
    assert plan.only(planned, "") == planned
    with pytest.raises(UserError, match=r"no run fits 'rat'; there are base, rate=20"):
        plan.only(planned, "base,rat")
    out = f"--output={folder / 'out'}"
    assert sweep.main([str(folder / "none.py"), out]) == 2
    assert "none.py: no such file" in capsys.readouterr().err
    assert sweep.main([str(folder / "tiny.py"), out]) == 2
    assert "has no get_sweep" in capsys.readouterr().err
    assert sweep.main([str(folder / "sweep.py"), out, "--set=5"]) == 2
    assert "must be NAME=VALUE" in capsys.readouterr().err


@pytest.fixture
def faked(monkeypatch):
    """Training and evaluation that leave the files and count what they are asked for."""
    calls = []

    def train(config, workdir):
        calls.append((config.stage, config.data.rate))
        if config.data.rate == 20:
            raise UserError("no data | here")
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        config_lib.save(config, pathlib.Path(workdir) / "config.json")
        return 0

    def run(config, workdir):
        calls.append(("evaluate", config.data.rate))
        found = ["a" if config.data.rate == 10 or i == 2 else "b" for i in range(4)]
        rows = [{"origin": f"x:{i}", "question": f"{config.eval.sources} {i}", "answer": "a",
                 "answers": ["a"], "memory": answer} for i, answer in enumerate(found)]  # fmt: skip
        results.write(
            {"step": 2, "questions": 4, "compression_rate": 9.5, "predictions": rows,
             "conditions": {"memory": {"f1": 1.0}}, "settings": config.eval.sources}, workdir
        )  # fmt: skip

    monkeypatch.setattr(sweep.train, "train", train)
    monkeypatch.setattr(sweep.evaluate, "run", run)
    return calls


def test_failed_runs_stay_in_the_table_and_are_tried_again(folder, faked, capsys):
    def run(*more):
        faked.clear()
        code = sweep.main([str(folder / "sweep.py"), f"--output={folder / 'out'}", *more])
        capsys.readouterr()
        return code, list(faked)

    assert run("--only=base") == (0, [("scp", 10), ("evaluate", 10)])
    text = (folder / "out" / "sweep.md").read_text()
    assert "| rate=20 |" in text and "not run" in text and "1.000 (0.398-1.000)" in text
    assert run() == (1, [("scp", 20)])  # the first is done
    text = (folder / "out" / "sweep.md").read_text()
    assert "failed: no data \\| here" in text and "F1, paper (not comparable)" in text
    assert "0.123" in text.splitlines()[-1] and "0.123" not in text.splitlines()[-2]
    rows = json.loads((folder / "out" / "sweep.json").read_text())
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert rows[0]["metrics"]["f1"] == 1.0 and rows[0]["rate"] == 9.5
    assert rows[1]["paper"] == {"comparable": False, "f1": 0.123}
    # Of the paper's own recipe, until an option of it is changed.
    path = folder / "sweep.py"
    path.write_text(SWEEP.replace("paper=", 'comparable=True, source="Table 9", paper='))
    for more, mark in (("--set=seed=0", "(comparable)"), ("--set=train.steps=1", "(not comp")):
        run("--only=base", more)
        text = (folder / "out" / "sweep.md").read_text()
        assert f"F1, paper {mark}" in text and "Paper: Table 9." in text
    path.write_text(SWEEP)
    assert run("--only=rate=20") == (1, [("scp", 20)])
    # Other options are another run: what is recorded under the name does not count.
    assert run("--only=base", "--set=seed=5")[1][0] == ("scp", 10)
    (folder / "out" / "results" / "base.json").write_text("{")
    assert run("--only=base")[0] == 2


def test_a_damaged_result_is_told_in_its_row(folder, faked, capsys):
    (folder / "sweep.py").write_text(SWEEP.replace('"data.rate": 20', '"data.rate": 8'))
    arguments = [str(folder / "sweep.py"), f"--output={folder / 'out'}"]
    assert sweep.main(arguments) == 0
    path = folder / "out" / "results" / "rate=20.json"
    whole = json.loads(path.read_text())
    without = [{k: v for k, v in whole.items() if k != key} for key in ("metrics", "intervals")]
    for text in ("{", "[]", *map(json.dumps, without)):
        path.write_text(text)
        capsys.readouterr()
        assert sweep.main([*arguments, "--only=base"]) == 0
        captured = capsys.readouterr()
        assert f"{path}: damaged" in captured.err
        (line,) = (line for line in captured.out.splitlines() if line.startswith("| rate=20 |"))
        assert line.endswith("| damaged: remove results/rate=20.json |")
        assert "| base | scp | 9.5x | 1.000" in captured.out
        # Of a run that is asked for it is an error, before others are trained.
        (folder / "out" / "results" / "base.json").unlink(missing_ok=True)
        faked.clear()
        assert sweep.main(arguments) == 2 and not faked
        assert sweep.main([*arguments, "--only=base"]) == 0


def test_runs_are_tested_against_the_base_and_drawn(folder, faked, capsys):
    """Only where they answered its questions; pictures are of what is done."""
    (folder / "sweep.py").write_text(
        SWEEP.replace(
            '{"rate": {"20": {"data.rate": 20}}}',
            '{"rate": {"20": {"data.rate": 20}, "8": {"data.rate": 8}, "10": {"data.rate": 10}}, '
            '"on": {"others": {"evaluate:eval.sources": "facts:9:1"}}}',
        )
    )
    arguments = [str(folder / "sweep.py"), f"--output={folder / 'out'}"]
    assert sweep.main(arguments) == 1  # rate=20 fails
    rows = {r["name"]: r for r in json.loads((folder / "out" / "sweep.json").read_text())}
    assert rows["rate=8"]["less_base"]["difference"] == -0.75
    assert rows["rate=8"]["less_base"]["p"] == pytest.approx(0.25, abs=0.02)  # of 2 ** 3 signs
    # The second evaluation of the base's workdir has not taken the place of the first.
    assert rows["base"]["evaluation"] == "2.json" and rows["on=others"]["evaluation"] == "2-2.json"
    assert rows["on=others"]["workdir"] == rows["base"]["workdir"]
    assert [name for name, row in rows.items() if "less_base" in row] == ["rate=8"]
    assert [rows[n].get("same_questions") for n in ("rate=8", "on=others", "rate=10")] == [
        True, False, None,
    ]  # fmt: skip
    assert rows["base"]["at"] == {"rate": 10.0}
    text = (folder / "out" / "sweep.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| rate=8 |"))
    assert "-0.750 (0.2" in line and "![sweep_rate.png](sweep_rate.png)" in text
    pictures = sorted(path.name for path in (folder / "out").glob("*.png"))
    assert pictures == ["sweep_others.png", "sweep_rate.png"]
    # An evaluation that is gone leaves the rest of the table as it is.
    (pathlib.Path(rows["rate=8"]["workdir"]) / "eval" / "2.json").unlink()
    capsys.readouterr()
    assert sweep.main(arguments) == 1
    assert "rate=8 is not tested" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_table(folder, faked, monkeypatch, capsys):
    (folder / "sweep.py").write_text(SWEEP.replace('"data.rate": 20', '"data.rate": 8'))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert sweep.main([str(folder / "sweep.py"), f"--output={folder / 'out'}"]) == 0
    captured = capsys.readouterr()
    assert "no pictures: plots need matplotlib" in captured.err and "| base |" in captured.out
    assert (folder / "out" / "sweep.json").exists()


def test_a_signal_ends_the_sweep(folder, faked, monkeypatch, capsys):
    monkeypatch.setattr(sweep.train, "train", lambda *_: 143)
    assert sweep.main([str(folder / "sweep.py"), f"--output={folder / 'out'}"]) == 143
    assert not faked and "not run" in capsys.readouterr().out


def test_a_real_run(folder, capsys):
    """Trained and evaluated; a second call does neither."""
    arguments = [str(folder / "sweep.py"), f"--output={folder / 'out'}", "--only=base"]
    assert sweep.main(arguments) == 0
    (workdir,) = (folder / "out" / "runs").iterdir()
    assert (workdir / "eval" / "2.json").exists() and (workdir / "eval" / "2.jsonl").exists()
    config = config_lib.load(workdir / "config.json")
    assert config.train.steps == 2 and not lineage(config)
    first = capsys.readouterr()
    assert sweep.main(arguments) == 0
    again = capsys.readouterr()
    assert (
        "base: done already" in again.err
        and first.out.splitlines()[-3:] == (again.out.splitlines()[-3:])
    )


def test_dry_run_of_models_that_no_machine_here_holds(tmp_path, capsys):
    arguments = [f"{ROOT / 'configs' / 'sweep.py'}:sizes", f"--output={tmp_path / 'out'}",
                 "--dry_run", "--only=model=llama2_70b"]  # fmt: skip
    assert sweep.main(arguments) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert "| 69 B | 128.5 |" in row and "scp, instruct, e2e" in row
    assert not (tmp_path / "out").exists()


def test_cost_is_parameters_times_tokens(folder):
    (stage,) = expand(folder, {}).pop("base").stages[:1]
    found = cost.cost(stage.config)
    assert found.tokens == 2 * 8 * (96 + 96)
    assert found.flops == 4 * found.base * found.tokens
    assert 0 < found.trained < found.base and found.base_bytes == 4 * found.base


@pytest.mark.parametrize("name", ["quickstart", "smollm2", "sizes"])
def test_sweeps_of_the_repository_expand(name, tmp_path):
    given, folder = plan.load(f"{ROOT / 'configs' / 'sweep.py'}:{name}")
    found = plan.expand(given, folder, str(tmp_path))
    assert len(found) > 10 and found[0].name == "base"
    assert len({run.name for run in found}) == len(found)
