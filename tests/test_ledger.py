"""Ledgers on disk; tests/test_files.py has those on object storage."""

import pytest

from clara_jax import ledger
from clara_jax.ledger import Ledger

ENTRIES = [{"n": 0, "text": "é\u2028\n" * 9_000}, {"n": 1}, {"n": 2}]


def entries(path, damaged=None):
    """Numbers of the entries, and the bytes that `read` counts."""
    found = []
    size = ledger.read(str(path), lambda entry, start: found.append(entry["n"]), damaged)
    return found, size


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "f.jsonl"
    assert entries(path) == ([], 0)
    with Ledger(str(path)) as file:
        starts = [file.append(entry) for entry in ENTRIES]
        assert file.size == path.stat().st_size  # while it is open
    assert [ledger.entry(str(path), start) for start in starts] == ENTRIES
    assert entries(path) == ([0, 1, 2], file.size)
    return path


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_torn_last_line_is_cut_and_the_file_continues(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    found, size = entries(path)
    assert found == [0, 1] and size == len(whole) - 9
    with Ledger(str(path), size) as file:
        assert file.append(ENTRIES[2]) == size
    assert path.read_bytes() == whole


def test_damage_is_reported_with_its_line_or_ends_the_file(path):
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"{]\n", b"[]\n", b"{}\n", b"\0" * 40 + b"\n"):
        path.write_bytes(first + damaged + second + third)
        problems = []
        assert entries(path, problems.append) == ([0, 1, 2], path.stat().st_size)
        assert [problem.split(" (")[0] for problem in problems] == [f"{path}:2: damaged"]
        assert entries(path) == ([0], len(first))


def test_a_full_disk_leaves_no_half_line_before_the_next(path):
    class Full:
        def __init__(self, file):
            self._file, self.left = file, 5

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            if not self.left:
                raise OSError(28, "No space left on device")
            size, self.left = self._file.write(data[: self.left]), 0
            return size

    with Ledger(str(path)) as file:
        file._file = Full(file._file)
        with pytest.raises(OSError, match="No space left") as error:
            file.append({"n": 3})
        assert error.value.filename == str(path)
        file._file.left = 10**6
        file.append({"n": 4})
    assert entries(path)[0] == [0, 1, 2, 4]
