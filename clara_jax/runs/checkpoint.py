"""All Orbax code. A checkpoint holds each trained tree, the optimizer and the position in the data.

`checkpoints/<step>/` has one folder a trained tree (compressor, generator, memory, or base), so
that a later stage reads what it needs, `optimizer`, and `data`. The frozen base is never saved.

A local checkpoint is on disk, with checksums, before it gets its name, and so before an earlier one
is deleted. If the newest is damaged all the same, the one before it is read.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from clara_jax import checksums, distributed, files
from clara_jax.errors import UserError
from clara_jax.models.clara import Trees

# Files of a checkpoint that Orbax writes when we have sealed it.
_ORBAX = ("_CHECKPOINT_METADATA", "commit_success.txt")


class Checkpoints:
    """The checkpoints of one run; a context manager, so that the last save is finished."""

    def __init__(self, workdir: str, keep: int):
        self.directory = f"{files.absolute(workdir)}/checkpoints"
        self._saving = 0
        context = ocp.Context()
        # A function, for Orbax copies the options, and would copy a method with its object.
        context.async_options.post_finalization_callback = lambda: self._seal()
        try:
            files.make_folder(self.directory)
            if distributed.is_first():
                _set_aside(workdir)
            distributed.barrier("checkpoints")
            policies: dict[str, Any] = {  # Orbax's own do not have the types that it asks for
                "save_decision_policy": ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                "preservation_policy": ocp.training.preservation_policies.LatestN(keep),
            }
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                context=context,
                **policies,
                cleanup_tmp_directories=True,
            )
        except OSError as e:
            raise UserError(f"{self.directory}: cannot write checkpoints here ({e})") from e

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.wait()
        self._checkpointer.close()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, trees: Trees, optimizer: Any, data: Any) -> None:
        """Starts to save; returns once the arrays and the data's position are copied.

        Raises:
            UserError: an earlier save in the background failed, such as on a full disk.
        """
        if step == self.latest():
            return
        items = {**{k: _item(v) for k, v in trees.items()}, "optimizer": optimizer, "data": data}
        self.wait()  # which Orbax does as well
        self._saving = step
        self._guard(lambda: self._checkpointer.save_checkpointables_async(step, items))

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._guard(self._checkpointer.wait)
        if self._saving and not files.is_remote(self.directory) and distributed.is_first():
            files.sync_all(os.path.join(self.directory, str(self._saving)))
            files.sync(self.directory)
            self._saving = 0

    def restore(self, trees: Trees, optimizer: Any, data: Any) -> tuple[int, Trees, Any] | None:
        """Reads the newest checkpoint into the shapes and shardings given, and sets `data` to it.

        Returns:
            Step, trees and optimizer state; None if there is no checkpoint.

        Raises:
            UserError: the checkpoint does not fit, such as another rank, rate or base.
        """
        step = self.latest()
        if step is None:
            return None
        abstract = {**{k: _item(v) for k, v in trees.items()}, "optimizer": optimizer}
        abstract = {**jax.tree.map(_abstract, abstract), "data": data}
        items = _load(self._checkpointer, self.directory, step, abstract)
        return step, {k: _tree(items[k]) for k in trees}, items["optimizer"]

    def _seal(self) -> None:
        """Before a checkpoint that is written gets its name."""
        if not files.is_remote(self.directory) and distributed.is_first():
            for folder in self._unfinished():
                checksums.seal(folder, lambda name: name not in _ORBAX)

    def _unfinished(self) -> list[str]:
        """The folder of the checkpoint that is being saved."""
        names = os.listdir(self.directory)
        return [f"{self.directory}/{name}" for name in names if name.startswith(f"{self._saving}.")]

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (OSError, ValueError, RuntimeError) as e:  # a full disk can be any of them
            if not files.is_remote(self.directory):
                for folder in self._unfinished():
                    shutil.rmtree(folder, ignore_errors=True)
            raise UserError(
                f"{self.directory}: saving failed ({_reason(e)}); earlier checkpoints are intact, "
                "make room and run the same command to resume"
            ) from e


def has_checkpoint(workdir: str) -> bool:
    """Whether a run has saved anything yet."""
    return bool(_steps(workdir))


def newest_step(workdir: str) -> int:
    """Step of a run's newest checkpoint whose weights are not damaged; 0 without one.

    Raises:
        UserError: all are damaged.
    """
    for step, problem in _from_newest(workdir, _is_weight):
        if not problem:
            return step
        logging.warning("%s; the one before it is read", problem)
    return 0


def _set_aside(workdir: str) -> None:
    """Takes damaged checkpoints out until the newest is none, for a run to resume from.

    Raises:
        UserError: all are damaged.
    """
    for step, problem in _from_newest(workdir):
        if not problem:
            return
        folder = f"{files.absolute(workdir)}/checkpoints/{step}"
        aside = f"{files.absolute(workdir)}/damaged-{step}"
        logging.warning("%s; it is now %s, and the one before it is read", problem, aside)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)


def _from_newest(
    workdir: str, among: checksums.Among = lambda name: True
) -> Iterator[tuple[int, str]]:
    """Steps of a run's checkpoints, the newest first, and what is wrong with their files.

    Raises:
        UserError: all are damaged.
    """
    steps = _steps(workdir)
    for step in steps:
        folder = f"{files.absolute(workdir)}/checkpoints/{step}"
        problem = checksums.damage(folder, among) or _bottomless(folder)
        if problem and step == steps[-1]:
            raise UserError(
                f"{folder}: damaged ({problem}), and there is no other; put a copy back, or remove "
                "it to begin again"
            )
        yield step, problem and f"{folder}: damaged ({problem})"


def _bottomless(folder: str) -> str:
    """Says so if the metadata cannot be parsed at all; Orbax does without what is no JSON."""
    try:
        json.loads(files.read(f"{folder}/{_ORBAX[0]}"))
    except RecursionError:
        return f"{_ORBAX[0]} is nested too deeply"
    except (OSError, ValueError):
        pass
    return ""


def _steps(workdir: str) -> list[int]:
    """Of a run's checkpoints, the newest first."""
    directory = files.path(workdir) / "checkpoints"
    folders = list(directory.iterdir()) if directory.is_dir() else []
    if files.is_remote(workdir):  # there a step has its name from the start, this file at the end
        folders = [step for step in folders if (step / "commit_success.txt").exists()]
    steps = (int(step.name) for step in folders if step.name.isdecimal())
    return sorted((step for step in steps if step > 0), reverse=True)


def load_trees(workdir: str, abstract: Trees, step: int | None = None) -> tuple[int, Trees]:
    """Reads trained trees of a run's checkpoint, without optimizer and data.

    Args:
        workdir: of the run.
        abstract: trees with the names, shapes and shardings to read.
        step: of the checkpoint; None: the newest complete one.

    Returns:
        The checkpoint's step, and the trees.

    Raises:
        UserError: there is no checkpoint, or it does not fit.
    """
    directory = f"{files.absolute(workdir)}/checkpoints"
    if not files.path(directory).is_dir():
        raise UserError(f"{workdir}: no checkpoints here; is this the workdir of a training run?")
    with ocp.training.Checkpointer(directory) as checkpointer:
        latest = checkpointer.latest
        if latest is None:
            raise UserError(f"{directory}: no complete checkpoint yet")
        kept = sorted(c.step for c in checkpointer.checkpoints)
        if step is not None and step not in kept:
            raise UserError(
                f"{directory}: step {step}, from which a later run started, is gone (there are "
                f"{', '.join(map(str, kept))}): this run went on since; put a copy back"
            )
        if step is None:
            step = newest_step(workdir)
        elif problem := checksums.damage(f"{directory}/{step}", _is_weight):
            raise UserError(f"{directory}/{step}: damaged ({problem}); put a copy back")
        items = {k: jax.tree.map(_abstract, _item(v)) for k, v in abstract.items()}
        loaded = _load(checkpointer, directory, step, items)
        return step, {k: _tree(v) for k, v in loaded.items()}


def _load(checkpointer: Any, directory: str, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    try:
        return checkpointer.load_checkpointables(step, abstract)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
        others = [c.step for c in checkpointer.checkpoints if c.step != step]
        before = f" to go on from step {max(others)}" if others else ""
        raise UserError(
            f"{directory}/{step}: cannot be read with this config ({_reason(e)}); if it was "
            "written with another model, LoRA rank, rate or stage, give those; if it is damaged, "
            f"remove it{before}"
        ) from e


def _is_weight(name: str) -> bool:
    """Whether a file of a checkpoint is of a trained tree."""
    return name.split(os.sep)[0] not in ("optimizer", "data")


def _reason(e: BaseException) -> str:
    """The first line of the innermost error: Orbax wraps it in pages about its own workings."""
    while (inner := e.__cause__ or e.__context__) is not None:
        e = inner
    lines = str(e).strip().splitlines() or [type(e).__name__]
    return lines[0][:300]


def _item(tree: Any) -> Any:
    """A bare array (the memory embeddings) as a tree, which is what Orbax saves."""
    return {"array": tree} if not isinstance(tree, dict) else tree


def _tree(item: Any) -> Any:
    return item["array"] if set(item) == {"array"} else item


def _abstract(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
