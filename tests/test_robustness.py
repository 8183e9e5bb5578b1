"""Some of the malformed inputs of tests/robustness.py, and that its checks see what is wrong."""

import json
import pathlib

import pytest

from tests import robustness
from tests.robustness import COMMANDS, Case, Outcome

SAMPLE = [
    "--config.data.rate=-1",
    "--config.optim.learning_rate=x",
    "--config.data.records=100000 letters",
    "train, records.jsonl cut",
    "ask of a store, store/manifest.json flipped at 7/20",
    "verify, store/parts/00000/documents.arrow a folder",
    "ask of an export, native/config.json deep",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robustness") / "world"
    robustness.build(folder)
    return folder


@pytest.fixture(scope="module")
def named(world):
    return {case.name: case for case in robustness.cases(world)}


@pytest.mark.parametrize("name", SAMPLE)
def test_one_line_and_nothing_lost(world, named, name):
    assert robustness.wrong(named[name], world, None) == ""


def test_there_are_hundreds(named):
    assert len(named) > 400


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
