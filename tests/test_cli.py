"""`clara`: one door to every command."""

import importlib.util
import pathlib

import pytest

import clara_jax
from clara_jax import cli, command_line, main
from clara_jax.errors import UserError

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
    assert cli.main(["clara", "train", "--config=scp:tiny"]) == 2
    assert "--mode=train needs --workdir" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        cli.main(["clara", "report"])
    assert e.value.code == 2 and "usage: clara report" in capsys.readouterr().err


def test_configs_have_names():
    for file in command_line.CONFIGS.glob("*.py"):
        assert command_line.packaged(file.stem) == str(file)
    assert command_line.packaged("scp:tiny") == f"{command_line.CONFIGS}/scp.py:tiny"
    for given in ("configs/scp.py:tiny", "own.py", "/x/scp:tiny"):
        assert command_line.packaged(given) == given
    with pytest.raises(UserError, match=r"--config=scq: no such config.* quickstart, scp"):
        command_line.packaged("scq")
