"""Who may change a store, and what is reported when it cannot be written.

A local store has two files to lock: `.lock`, held by the one process that changes it, and
`.readers`, shared by those that count on its rows, so that nobody compacts it. Object storage has
no locks.
"""

import contextlib
import os
from collections.abc import Callable, Generator

import jax

from clara_jax import distributed, files
from clara_jax.corpus import format
from clara_jax.corpus.format import Manifest
from clara_jax.errors import UserError

_LOCK, _READERS = ".lock", ".readers"


@contextlib.contextmanager
def changing(path: str, make: Callable[[], Manifest] | None = None) -> Generator[None]:
    """The store is this run's alone, and without what a kill or a full disk left of a part.

    Args:
        path: of the store.
        make: the manifest of a store that is not there yet.

    Raises:
        UserError: there is no store and none is to be made, or another process is changing it.
    """
    with contextlib.ExitStack() as stack:
        if distributed.is_first():
            manifest = files.path(path) / format.MANIFEST
            if make is not None and not manifest.exists():
                _make_folder(path)
            else:
                format.read_manifest(path)  # raises before anything is made
            problem = f"{path}: another run is writing there; wait for it"
            stack.enter_context(files.lock(os.path.join(path, _LOCK), problem))
            if make is not None and not manifest.exists():  # nobody was faster
                format.write_manifest(path, make())
            remove_unlisted(path, format.read_manifest(path))
        distributed.barrier("store")
        try:
            yield
        except Exception:
            if jax.process_count() == 1:  # others might still write
                with contextlib.suppress(Exception):
                    remove_unlisted(path, format.read_manifest(path))
            raise
        distributed.barrier("changed")


def _make_folder(path: str) -> None:
    files.make_folder(path)
    folder, ours = files.path(path), {_LOCK, f"{format.MANIFEST}.tmp"}
    if folder.exists() and {entry.name for entry in folder.iterdir()} - ours:
        raise UserError(f"{path}: holds something else; give --store another name")


@contextlib.contextmanager
def kept(path: str) -> Generator[None]:
    """A local store that others may add to and delete from, but not compact.

    One that cannot be written to is taken as it is.

    Raises:
        UserError: there is none, or it is being compacted.
    """
    format.read_manifest(path)  # raises before anything is made
    with contextlib.ExitStack() as stack:
        if files.is_remote(path) or os.access(path, os.W_OK):
            problem = f"{path}: it is being compacted; wait for its end"
            stack.enter_context(files.lock(os.path.join(path, _READERS), problem, shared=True))
        yield


def alone(path: str) -> contextlib.AbstractContextManager[None]:
    """Keeps away all that count on the rows of a local store.

    Raises:
        UserError: a server does.
    """
    problem = f"{path}: a server answers from it; stop it first"
    return files.lock(os.path.join(path, _READERS), problem)


def remove_unlisted(path: str, manifest: Manifest) -> None:
    """Takes away parts that a kill left unfinished, or that were compacted."""
    listed, folder = {part.name for part in manifest.parts}, files.path(path) / format.PARTS
    for part in folder.iterdir() if folder.exists() else ():
        if part.name not in listed:
            part.rmtree()
