import pathlib
import re
import subprocess
import sys

import pytest

from clara_jax import errors
from clara_jax.evaluation import report

ROOT = pathlib.Path(__file__).parent.parent
QUICK = "--config=configs/quickstart.py"
ASK = ["--mode=ask", "--workdir=W", "--documents=no.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--mode=train needs --config"),
        ([QUICK], "--mode=train needs --workdir: Folder of the run"),
        ([QUICK, "--workdir="], "--mode=train needs --workdir"),
        (["--mode=evaluate", "--workdir=W"], "--mode=evaluate needs --config"),
        (["--mode=ask", "--documents=d.txt"], "--mode=ask needs --workdir"),
        (["--mode=ask", "--workdir=W"], "--mode=ask answers from --documents or from --store"),
        ([*ASK, QUICK], "--mode=ask uses --config only with --store"),
        ([QUICK, "--workdir=W", "--documents=d.txt"], "--mode=train does not use --documents"),
        ([QUICK, "--workdir=W", "--mode=evaluate", "--top_k=0"], "evaluate does not use --top_k"),
        ([*ASK, "--top_k=two"], "--top_k=two"),
        (["--mode=compile"], "--mode=compile needs --config"),
        (["--mode=compile", QUICK, "--workdir=W"], "--mode=compile does not use --workdir"),
        (["--mode=compile", QUICK, "--topology=v5e-8"], "not a topology such as v5e:4x4"),
        (["--mode=compile", QUICK, "--program=sing"], "--program=sing"),
        (["--mode=compile", QUICK, "--config.mesh.fsdp=9"], "config.mesh data=1 fsdp=9 tensor=1"),
        ([*ASK, "--temperature=hot"], "--temperature=hot"),
        ([*ASK, "--question="], "--question is empty"),
        (ASK, "no.txt: cannot be read (No such file"),
        (["--mode=ask", "--workdir=W", "--documents=LICENSE"], "neither a workdir nor a CLaRa"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        ([QUICK, "--config.train.stps=3"], "unknown option 'stps' Did you mean \"steps\""),
        ([QUICK, "--config.nope=3"], "unknown option 'nope'"),
        ([QUICK, "--config.train.steps=many"], "--config.train.steps=many"),
        ([QUICK, "--nonsense"], "nonsense"),
        ([QUICK, "stray"], "unexpected argument 'stray'"),
        ([QUICK, "--mode=sing"], "--mode=sing"),
        ([QUICK, "--workdir=W", "--config.data.rate=0"], "config.data.rate=0"),
        ([QUICK, "--workdir=W", "--config.data.sources=no.jsonl"], "no.jsonl"),
        ([QUICK, "--workdir=W", "--config.model.base=no/where"], "no/where"),
        ([QUICK, "--workdir=W", "--config.model.preset=gpt9"], "gpt9"),
        (["--config=configs/scp.py", "--workdir=W"], "config.model.base"),
        ([QUICK, "--workdir=W", "--mode=evaluate"], "config.json"),
        (
            [QUICK, "--workdir=W", "--mode=evaluate", "--base=no/where", "--config.eval.untrained"],
            "no/where",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    command, arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    assert command(*(a.replace("=W", f"={tmp_path / 'w'}") for a in arguments)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("clara_jax: ") and message in line


def test_a_process_of_its_own(tmp_path):
    program = [sys.executable, "-m", "clara_jax.main"]
    shown = subprocess.run([*program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert "--config=configs/scp.py" in shown.stdout and "--mode" in shown.stdout
    arguments = [QUICK, f"--workdir={tmp_path}", "--mode=evaluate"]
    wrong = subprocess.run([*program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    line = wrong.stderr.strip().splitlines()[-1]
    assert line.startswith("clara_jax: ") and "config.json" in line


def test_train_evaluate_and_ask(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    small = [
        QUICK, f"--workdir={tmp_path}", "--config.train.steps=2", "--config.train.batch_rows=4",
        "--config.data.sources=facts:50", "--config.eval.records=2", "--config.mesh.fsdp=1",
    ]  # fmt: skip
    assert command(*small) == 0
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    assert command(*small, "--mode=evaluate") == 0
    assert "no document" in capsys.readouterr().out and (tmp_path / "eval" / "2.json").exists()
    ask = ["--mode=ask", f"--workdir={tmp_path}", "--documents=LICENSE", "--top_k=2"]
    assert command(*ask, "--max_new_tokens=4", stdin="who ?\nwhere ?\n") == 0
    shown = capsys.readouterr().out
    scored = [line for line in shown.splitlines() if re.match(r"  [ -][01]\.\d{4}  ", line)]
    assert len(scored) == 4, shown
    assert report.main([str(tmp_path)]) == 0
    assert "expected:" in capsys.readouterr().out
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_ctrl_c_is_one_line(capsys):
    @errors.command
    def main():
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "clara_jax: interrupted\n"
