"""The table of what is published for TPUs: rows, the file they are kept in, mistakes."""

import json

import pytest

from benchmarks import tpu_table
from clara_jax.aot.chips import versions
from clara_jax.errors import UserError

FOUND = {
    "rows": 128, "hbm_bytes_per_device": 3 * 2**30, "hbm_limit_bytes": 4 * 2**30,
    "compute_seconds": 1.5, "interconnect_seconds": 0.25, "predicted_step_seconds": 1.75,
    "predicted_mfu": 0.4, "versions": versions(),
}  # fmt: skip
ROW = tpu_table.ROWS[0]


def run(*arguments: str) -> int:
    return tpu_table.main(list(arguments))


def test_rows_are_kept_and_not_compiled_again(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(tpu_table, "compile_row", lambda row: asked.append(row.name) or FOUND)
    path = tmp_path / "table.jsonl"
    for _ in range(2):
        assert run(f"--only={ROW.name}", f"--output={path}") == 0
        out = capsys.readouterr().out
        assert "| 3.0 | 25% | 1.5 | 0.25 | 1.75 | 0.40 |" in out
    assert asked == [row.name for row in tpu_table.ROWS if ROW.name in row.name]
    older = [{**json.loads(line), "versions": {}} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in older))
    run(f"--only={ROW.name}", f"--output={path}")
    assert len(asked) == 2 * len(older)  # by another compiler


def test_what_does_not_fit_has_no_time():
    none = dict.fromkeys(("compute_seconds", "interconnect_seconds", "predicted_step_seconds",
                          "predicted_mfu"))  # fmt: skip
    assert "| -25% | – | – | – | – |" in tpu_table.markdown(
        [(ROW, FOUND | none | {"hbm_bytes_per_device": 5 * 2**30})]
    )


@pytest.mark.parametrize("line", ["nonsense", '{"rows": 3}', json.dumps({"name": ROW.name})])
def test_files_of_others_are_refused(line, tmp_path, capsys):
    path = tmp_path / "table.jsonl"
    path.write_text(line + "\n")
    assert run(f"--output={path}") == 2
    assert f"{path}: not what --output writes" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    assert run("--only=nonsense") == 2
    assert "--only=nonsense: no such row" in capsys.readouterr().err
    monkeypatch.setattr(tpu_table, "compile_row", lambda row: pytest.fail("compiled first"))
    assert run(f"--output={tmp_path}/no/folder") == 2
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"exit code 2: clara_jax: --topology=v5e-8: not a"):
        tpu_table.compile_row(tpu_table.Row("scp", "tiny", "v5e-8"))
