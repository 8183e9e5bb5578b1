"""Some of the malformed inputs of tests/robustness.py, and that its checks see what is wrong."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests import robustness
from tests.robustness import COMMANDS, Case, Outcome

ROOT = pathlib.Path(__file__).parent.parent
SAMPLE = [
    "--config.data.rate=-1",
    "--config.optim.learning_rate=x",
    "--config.data.records=100000 letters",
    "verify, store/manifest.json noise",
    "verify, store/parts/00000/documents.arrow a folder",
    "ask of an export, native/config.json deep",
    "evaluate, records.jsonl cut",
]


def test_one_line_and_nothing_lost(tmp_path):
    """In a process of its own, which forks: one that has used JAX cannot."""
    output = tmp_path / "out.json"
    cases = [f"--case={name}" for name in SAMPLE]
    command = [sys.executable, "-m", "tests.robustness", *cases, f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["wrong"] == {} and found["cases"] == len(SAMPLE) and found["all"] > 400


@pytest.mark.parametrize(
    ("outcome", "what"),
    [
        (Outcome(-11, "", "", 1, 0), "signal 11"),
        (Outcome(70, "", "clara_jax: a bug\n", 1, 0), "exit code 70"),
        (Outcome(2, "", "Traceback (most recent call last)\nclara_jax: x\n", 1, 0), "a traceback"),
        (Outcome(2, "", "", 1, 0), "0 lines"),
        (Outcome(-9, "", "", 61, 0), "more than 60 s"),
        (Outcome(0, "", "", 1, 5 << 30), "5120 MiB"),
        (Outcome(0, "other", "I 1 x\n", 1, 0), "another answer, silently"),
        (Outcome(0, "other", "W 1 x\n", 1, 0), ""),
        (Outcome(2, "", "clara_jax: x\n", 1, 0), ""),
    ],
)
def test_what_is_wrong_is_seen(tmp_path, monkeypatch, outcome, what):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    monkeypatch.setattr(robustness, "run", lambda *_: outcome)
    case = Case("x", COMMANDS["ask"])
    assert what in (found := robustness.wrong(case, tmp_path, Outcome(0, "a", "", 1, 0)))
    assert bool(found) == bool(what)


def test_files_that_are_lost_or_left_are_seen(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")

    def run(arguments, folder: pathlib.Path):
        (folder / "run" / "config.json").unlink()
        (folder / "temporary").write_text(json.dumps(arguments))
        return Outcome(0, "", "", 1, 0)

    monkeypatch.setattr(robustness, "run", run)
    found = robustness.wrong(Case("x", COMMANDS["ask"]), tmp_path, None)
    assert "changed ['run/config.json']" in found and "left ['temporary']" in found
