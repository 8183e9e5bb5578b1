import os

import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation.journal import Journal

BASIS = {"step": 3, "records": 10}


def make(workdir, calls, basis=BASIS):
    journal = Journal(str(workdir / "eval"), basis)
    found = [
        journal.piece(name, lambda name=name: calls.append(name) or {"nats": 0.1, "text": "ä\n"})
        for name in ("a 0", "a 64")
    ]
    return journal, found


def test_pieces_are_computed_once_over_runs_and_the_file_goes_at_the_end(tmp_path):
    calls = []
    _, first = make(tmp_path, calls)
    journal, again = make(tmp_path, calls)
    assert calls == ["a 0", "a 64"] and first == again
    journal.close()
    assert os.listdir(tmp_path / "eval") == []
    Journal(str(tmp_path / "eval"), BASIS).close()  # nothing was done
    assert os.listdir(tmp_path / "eval") == []
    make(tmp_path, calls)
    assert len(calls) == 4


def test_a_line_that_a_kill_cut_is_made_again(tmp_path):
    calls = []
    make(tmp_path, calls)
    (path,) = (tmp_path / "eval").iterdir()
    data = path.read_bytes()
    for cut in (1, 10, len(data) - data.index(b"\n") - 1, len(data) - 5):
        path.write_bytes(data[:-cut])
        make(tmp_path, calls)
        assert path.read_bytes() == data
    assert calls[2:] == ["a 64"] * 2 + ["a 0", "a 64"] * 2


def test_a_damaged_line_is_left_out_and_its_piece_made_again(tmp_path, caplog):
    calls = []
    make(tmp_path, calls)
    (path,) = (tmp_path / "eval").iterdir()
    head, first, second = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"\0" * 40 + b"\n", first[:20] + b"\n", b'{"name": "a 0", "piece": 3}\n'):
        path.write_bytes(head + damaged + second)
        caplog.clear()
        _, found = make(tmp_path, calls)
        assert found[0] == found[1]
        assert [r.message.split(": ")[0] for r in caplog.records if "damaged" in r.message] == [
            f"{path}:2"
        ]
    assert calls[2:] == ["a 0"] * 3


def test_another_basis_is_another_file_and_none_keeps_nothing(tmp_path):
    calls = []
    make(tmp_path, calls)
    make(tmp_path, calls, BASIS | {"records": 11})
    assert len(calls) == 4 and len(os.listdir(tmp_path / "eval")) == 2
    assert Journal(None, {}).piece("a", lambda: {"x": (1, 2)}) == {"x": [1, 2]}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "eval").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        Journal(str(tmp_path / "eval"), BASIS)
