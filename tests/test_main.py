import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
QUICK = "--config=configs/quickstart.py"


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, XLA_FLAGS="")
    return subprocess.run(
        [sys.executable, "-m", "clara_jax.main", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --config"),
        ([QUICK], "--workdir is missing"),
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


def test_train_and_evaluate(tmp_path):
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
    report = subprocess.run(
        [sys.executable, "-m", "clara_jax.evaluation.report", str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "expected:" in report.stdout and (tmp_path / "loss.png").stat().st_size > 5000
