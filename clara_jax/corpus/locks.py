"""Who may change a store, and what is told when it cannot be written.

A local store has two files to lock: `.lock`, held by the one process that changes it, and
`.readers`, shared by those that count on its rows, so that nobody compacts it. Object storage has
no locks.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

from clara_jax import distributed, files
from clara_jax.corpus import format
from clara_jax.corpus.format import Busy, Damaged, Manifest
from clara_jax.errors import UserError, reason

_LOCK, _READERS = ".lock", ".readers"


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Makes what a full disk raises, or a missing right, `Damaged`."""
    try:
        yield
    except (ValueError, OSError) as e:
        raise Damaged(
            f"{path}: cannot be written ({reason(e)[:200]}); make room and run the same command to "
            "go on"
        ) from e


@contextlib.contextmanager
def changing(path: str, make: Callable[[], Manifest] | None = None) -> Iterator[None]:
    """The store is this run's alone, and without what a kill left of another's.

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
            stack.enter_context(_locked(path, _LOCK, "another run is writing there; wait for it"))
            if make is not None and not manifest.exists():  # nobody was faster
                format.write_manifest(path, make())
            remove_unlisted(path, format.read_manifest(path))
        distributed.barrier("store")
        yield
        distributed.barrier("changed")


def _make_folder(path: str) -> None:
    files.make_folder(path)
    folder = files.path(path)
    if folder.exists() and {p.name for p in folder.iterdir()} - {
        _LOCK,
        f"{format.MANIFEST}.tmp",
    }:
        raise UserError(f"{path}: holds something else; give --store another name")


@contextlib.contextmanager
def kept(path: str) -> Iterator[None]:
    """A local store that others may add to and delete from, but not compact.

    One that cannot be written to is taken as it is.

    Raises:
        UserError: there is none, or it is being compacted.
    """
    format.read_manifest(path)  # raises before anything is made
    if not files.is_remote(path) and not os.access(path, os.W_OK):
        yield
        return
    with _locked(path, _READERS, "it is being compacted; wait for its end", fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Keeps away all that count on the rows of a local store.

    Raises:
        UserError: a server does.
    """
    with _locked(path, _READERS, "a server answers from it; stop it first"):
        yield


@contextlib.contextmanager
def _locked(path: str, name: str, message: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Holds a lock of a local store; object storage has none."""
    if files.is_remote(path):
        yield
        return
    with open(os.path.join(path, name), "w") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except OSError as e:
            raise Busy(f"{path}: {message}") from e
        yield


def remove_unlisted(path: str, manifest: Manifest) -> None:
    """Takes away parts that a kill left unfinished, or that were compacted."""
    listed, folder = {part.name for part in manifest.parts}, files.path(path) / format.PARTS
    for part in folder.iterdir() if folder.exists() else ():
        if part.name not in listed:
            part.rmtree()
