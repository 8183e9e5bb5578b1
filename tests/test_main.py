import os
import pathlib
import re
import subprocess
import sys

import pytest

from clara_jax import errors

ROOT = pathlib.Path(__file__).parent.parent
QUICK = "--config=configs/quickstart.py"
ASK = ["--mode=ask", "--workdir=W", "--documents=no.txt"]


def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    one_device = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = dict(os.environ, XLA_FLAGS=one_device)
    return subprocess.run(
        [sys.executable, "-m", "clara_jax.main", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, input=stdin,
    )  # fmt: skip


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
        (["--mode=compile", QUICK, "--config.mesh.fsdp=3"], "config.mesh data=1 fsdp=3 tensor=1"),
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
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path):
    arguments = [a.replace("=W", f"={tmp_path / 'w'}") for a in arguments]
    result = command(*arguments)
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("clara_jax: ") and message in line
    assert "Traceback" not in result.stderr


def test_help():
    result = command("--help")
    assert result.returncode == 0
    assert "--config=configs/scp.py" in result.stdout and "--mode" in result.stdout


def test_train_evaluate_and_ask(tmp_path):
    small = [
        QUICK, f"--workdir={tmp_path}", "--config.train.steps=2", "--config.train.batch_rows=4",
        "--config.data.sources=facts:50", "--config.eval.records=2",
    ]  # fmt: skip
    result = command(*small)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    result = command(*small, "--mode=evaluate")
    assert result.returncode == 0, result.stderr
    assert "no document" in result.stdout and (tmp_path / "eval" / "2.json").exists()
    asked = command("--mode=ask", f"--workdir={tmp_path}", "--documents=LICENSE", "--top_k=2",
                    "--max_new_tokens=4", stdin="who ?\nwhere ?\n")  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    scored = [line for line in asked.stdout.splitlines() if re.match(r"  [ -][01]\.\d{4}  ", line)]
    assert len(scored) == 4, asked.stdout
    report = subprocess.run(
        [sys.executable, "-m", "clara_jax.evaluation.report", str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "expected:" in report.stdout and (tmp_path / "loss.png").stat().st_size > 5000


def test_ctrl_c_is_one_line(capsys):
    @errors.command
    def main():
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "clara_jax: interrupted\n"
