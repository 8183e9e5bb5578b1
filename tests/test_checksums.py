"""Everything that is written is on disk before it has its name, and damage to it is noticed."""

import os
import pathlib

import pytest

from clara_jax import checksums, files
from clara_jax.ledger import Ledger


def flip(path: pathlib.Path, place: int = -1) -> None:
    """Changes one byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip, "inner/b differs from its checksum"),
        (cut, "inner/b has 2 bytes of 3"),
        (pathlib.Path.unlink, "inner/b is missing"),
    ],
)
def test_any_change_of_a_sealed_folder_is_noticed(tmp_path, harm, told):
    (tmp_path / "inner").mkdir()
    for name in ("a", "inner/b", "free"):
        (tmp_path / name).write_bytes(b"abc")
    checksums.seal(tmp_path, lambda name: name != "free")
    flip(tmp_path / "free")
    (tmp_path / "later").write_text("x")
    assert not checksums.damage(tmp_path)
    harm(tmp_path / "inner/b")
    assert checksums.damage(tmp_path) == told
    assert not checksums.damage(tmp_path, lambda name: name == "a")
    (tmp_path / checksums.NAME).unlink()  # as an earlier version left it
    assert not checksums.damage(tmp_path)


def test_no_flipped_bit_of_the_checksums_passes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    checksums.seal(tmp_path)
    path = tmp_path / checksums.NAME
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        if b'"crc32"' in path.read_bytes() and path.read_bytes().split() != whole.split():
            assert checksums.damage(tmp_path), place
        path.write_bytes(whole)


def test_what_has_a_name_is_on_disk(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        own = getattr(os, name)

        def noted(*args, own=own, name=name):
            calls.append(name if name == "replace" else os.readlink(f"/proc/self/fd/{args[0]}"))
            return own(*args)

        monkeypatch.setattr(os, name, noted)
    files.write(tmp_path / "a", "x")
    assert calls == [f"{tmp_path}/a.tmp", "replace", str(tmp_path)]
    calls.clear()
    with files.whole_folder(str(tmp_path / "made")) as folder:
        pathlib.Path(folder, "b").write_text("x")
    assert calls == [f"{folder}/b", folder, "replace", str(tmp_path)]
    calls.clear()
    with Ledger(str(tmp_path / "ledger")) as ledger:
        ledger.append({"x": 1})
        ledger.flush()
    assert str(tmp_path / "ledger") in calls


def test_what_a_kill_left_of_a_folder_is_removed_and_what_is_in_use_is_not(tmp_path):
    left = tmp_path / ".made.abcdefgh"
    left.mkdir()
    (left / "weights").write_text("x")
    with files.whole_folder(str(tmp_path / "made")) as first:
        assert not left.exists()
        with files.whole_folder(str(tmp_path / "made")) as second:
            assert os.path.isdir(first) and first != second
        os.rmdir(tmp_path / "made")
