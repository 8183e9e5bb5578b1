"""Checkpoints outlast power cuts, and damage to one is noticed."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.path.deleter import StandardCheckpointDeleter as Deleter

from clara_jax.errors import UserError
from clara_jax.runs.checkpoint import Checkpoints, load_trees, newest_step

MEMORY = {"memory": jax.ShapeDtypeStruct((64, 64), np.float32)}


class Position:
    """Of the data, at step `at`."""

    def __init__(self, at=0):
        self.at = at

    async def save(self, directory):
        async def write():
            (await directory.await_creation() / "at").write_text(str(self.at))

        return write()

    async def load(self, directory):
        async def read():
            self.at = int((directory / "at").read_text())

        return read()


def state(step):
    return {"memory": jnp.full((64, 64), float(step))}, {"mean": jnp.full(64, step / 2)}


def saved(workdir, steps, keep=2):
    with Checkpoints(str(workdir), keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, *state(step), Position(step))


def restored(workdir) -> tuple[int, float, float, int]:
    data = Position()
    with Checkpoints(str(workdir), 2) as checkpoints:
        step, trees, optimizer = checkpoints.restore(*state(0), data)
    return step, float(trees["memory"][3, 3]), float(optimizer["mean"][0]), data.at


def flip(folder: pathlib.Path) -> None:
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["memory", "optimizer", "data"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, part):
    saved(tmp_path, (1, 2, 3))
    flip(tmp_path / "checkpoints/3" / part)
    step, trees = load_trees(str(tmp_path), MEMORY)
    assert (
        step
        == newest_step(str(tmp_path))
        == trees["memory"][0, 0]
        == (2 if part == "memory" else 3)
    )
    assert (f"checkpoints/3: damaged ({part}/" in caplog.text) == (part == "memory")
    assert restored(tmp_path) == (2, 2.0, 1.0, 2)
    assert "it is now" in caplog.text and (tmp_path / "damaged-3").is_dir()
    saved(tmp_path, (3,))
    assert restored(tmp_path) == (3, 3.0, 1.5, 3)


def test_metadata_without_end_are_damage(tmp_path, caplog):
    saved(tmp_path, (1, 2))
    (tmp_path / "checkpoints/2/_CHECKPOINT_METADATA").write_text("[" * 100_000)
    assert restored(tmp_path)[0] == 1
    assert "_CHECKPOINT_METADATA is nested too deeply" in caplog.text


def test_where_all_are_damaged_nothing_begins_again_by_itself(tmp_path):
    saved(tmp_path, (1,))
    flip(tmp_path / "checkpoints/1/memory")
    for call in (lambda: restored(tmp_path), lambda: load_trees(str(tmp_path), MEMORY)):
        with pytest.raises(UserError, match=r"differs from its checksum.*there is no other"):
            call()
    with pytest.raises(UserError, match="put a copy back"):
        load_trees(str(tmp_path), MEMORY, 1)


def test_one_of_an_earlier_version_is_read(tmp_path):
    saved(tmp_path, (1,))
    (tmp_path / "checkpoints/1/checksums.json").unlink()
    assert restored(tmp_path) == (1, 1.0, 0.5, 1)


def test_all_is_on_disk_before_an_earlier_one_goes(tmp_path, monkeypatch):
    synced, gone = set(), []
    fsync, remove = os.fsync, Deleter.delete_steps

    def noted(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        return fsync(descriptor)

    def deleted(self, steps):
        gone.extend((step, set(synced)) for step in steps)
        return remove(self, steps)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Deleter, "delete_steps", deleted)
    saved(tmp_path, (1, 2), keep=1)
    ((step, names),) = gone
    folder = tmp_path / "checkpoints/2"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    there = {name.partition("checkpoints/2.")[2].partition("/")[2] for name in names}
    # What Orbax writes after that it can do without, and it is on disk at the end.
    late = {"_CHECKPOINT_METADATA", "commit_success.txt", "checksums.json"}
    assert step == 1 and written - late <= there and "checksums.json.tmp" in there
    assert {str(folder / name) for name in late} <= synced
    for name in late - {"checksums.json"}:
        (folder / name).write_text("")
    assert restored(tmp_path)[0] == 2


def test_a_full_disk_leaves_no_half_of_one(tmp_path, monkeypatch):
    saved(tmp_path, (1,))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        saved(tmp_path, (2,))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
