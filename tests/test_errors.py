"""How a command ends: with one line and the right exit code, whatever happens."""

import re
import sys

import pytest

from clara_jax.errors import UserError, command, tell


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("do this"), 2, "do this"),
        (OSError(13, "Permission denied", "f"), 2, "f: Permission denied"),
        (ModuleNotFoundError("No", name="uvicorn.config"), 2, ".*pip install 'clara-jax.serve.'"),
        (MemoryError("1 TiB"), 2, "out of memory .MemoryError: 1 TiB.; make .* smaller"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9"), 2, "out of memory .*"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("x"), 70, "KeyError: 'x'; this is a bug in clara_jax: report it with .*"),
        (ModuleNotFoundError("No", name="ours"), 70, ".* this is a bug .*"),
    ],
)  # fmt: skip
def test_every_end_is_a_line_and_a_code(error, code, line, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    @command
    def main():
        raise error

    assert main() == code
    told = capsys.readouterr().err
    assert re.fullmatch(f"clara_jax: {line}\n", told)
    logs = [path.read_text() for path in tmp_path.iterdir()]
    assert len(logs) == (code == 70)
    for log in logs:
        assert "Traceback" in log and "raise error" in log and str(tmp_path) in told


def test_a_full_disk_does_not_hide_a_bug(capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    assert command(lambda: {}["x"])() == 70
    assert "KeyError" in capsys.readouterr().err


def test_success_is_zero():
    assert command(lambda: None)() == 0 and command(lambda: 3)() == 3
    with pytest.raises(SystemExit):
        command(sys.exit)(1)


def test_a_long_input_does_not_make_a_long_line(capsys):
    tell(UserError(f"config.seed={'7' * 10**6} must be from 0; see --help"))
    line = capsys.readouterr().err
    assert len(line) < 900 and line.startswith("clara_jax: config.seed=777")
    assert "7 ... 7" in line and line.endswith("see --help\n")
