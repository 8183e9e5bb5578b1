"""`clara`: one door to every command."""

import importlib.util
import pathlib
import sys

import pytest
from absl import flags

import clara_jax
from clara_jax import cli, command_line, main
from clara_jax import config as config_lib
from clara_jax.config import Config
from clara_jax.errors import UserError
from tests.fixtures.command import forget

MODE = main.MODES["evaluate"]
NAMES = {name: module for group in cli.COMMANDS.values() for name, (module, _) in group.items()}


def test_help_lists_every_command(capsys):
    assert cli.main(["clara", "--help"]) == cli.main(["clara"]) == 0
    shown = capsys.readouterr().out
    assert set(main.MODES) == {name for name, module in NAMES.items() if module == "main"}
    for name, module in NAMES.items():
        assert f"\n  {name} " in shown
        source = importlib.util.find_spec(f"clara_jax.{module}").origin
        assert "\ndef main(" in pathlib.Path(source).read_text(encoding="utf-8")


def test_version(capsys):
    assert cli.main(["clara", "--version"]) == 0
    assert capsys.readouterr().out.strip() == clara_jax.__version__ != ""


def test_modes_and_other_commands_are_run(tmp_path, capsys, command):
    assert command("--help") == 0  # without the flags that earlier tests of this process set
    assert cli.main(["clara", "nothing"]) == 2
    assert "known: train, evaluate" in capsys.readouterr().err
    assert cli.main(["clara", "ask", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--rate" in shown and "--topology" not in shown
    assert "  --config.search.candidates=200\n      documents of a question that are" in shown
    assert "--config.train" not in shown
    # A preset that does not exist, with a base or without, before anything is loaded.
    for base in ([], [f"--config.model.base={tmp_path}"]):
        arguments = ["--config=scp:mistral7b", f"--workdir={tmp_path / 'x'}", *base]
        assert command(*arguments) == 2
        error = capsys.readouterr().err
        assert "config.model.preset='mistral7b' is not one of" in error and "mistral_7b" in error
    forget()
    assert cli.main(["clara", "train", "--config=scp:tiny"]) == 2
    assert "--mode=train needs --workdir" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        cli.main(["clara", "report"])
    assert e.value.code == 2 and "usage: clara report" in capsys.readouterr().err


def test_options_without_a_file(tmp_path, monkeypatch):
    """The workdir's own options where there are some, else those that the mode begins with."""
    own = tmp_path / "run"
    own.mkdir()
    config_lib.save(Config(seed=7), own / "config.json")
    option, folder = "--config.seed=3", command_line.CONFIGS

    def file(mode, *arguments):
        found = command_line.with_file(["clara", *arguments], main.MODES[mode])
        return found[1] if found[1:] != list(arguments) else None

    assert file("serve", "--config.serve.port=9000") == f"--config={folder}/serve.py"
    assert file("synthesize", option) == f"--config={folder}/synthesize.py"
    assert file("train", option, "--workdir=/none") == f"--config={folder}/scp.py"
    for mode in ("train", "evaluate"):
        assert file(mode, option, f"--workdir={own}") == f"--config={folder}/run.py:{own}"
    assert file("serve", option, f"--workdir={own}") == f"--config={folder}/serve.py"
    assert file("train", option, "--config=scp") is file("train", "--workdir=/none") is None

    def parsed(workdir):
        arguments = command_line.with_file(["clara", option, f"--workdir={workdir}"], MODE)
        monkeypatch.setattr(sys, "argv", arguments)
        forget()
        command_line.parse(arguments)
        return config_lib.freeze(flags.FLAGS.config)

    assert parsed(own) == Config(seed=3)
    with pytest.raises(UserError, match=r"none/config\.json: no such file"):
        parsed(tmp_path / "none")


def test_configs_have_names():
    for file in command_line.CONFIGS.glob("*.py"):
        assert command_line.packaged(file.stem) == str(file)
    assert command_line.packaged("scp:tiny") == f"{command_line.CONFIGS}/scp.py:tiny"
    for given in ("configs/scp.py:tiny", "own.py", "/x/scp:tiny"):
        assert command_line.packaged(given) == given
    with pytest.raises(UserError, match=r"--config=scq: no such config.* quickstart, run, scp"):
        command_line.packaged("scq")
