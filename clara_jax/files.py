"""Files by name, on disk or on object storage (gs://bucket/…), through etils.epath and fsspec."""

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Generator
from typing import IO, Any

import fsspec
from etils import epath

from clara_jax.errors import UserError, reason

Name = str | os.PathLike[str]

UMASK = os.umask(0o077)  # can only be read by setting it
os.umask(UMASK)


def is_remote(name: Name) -> bool:
    """Whether the name is a URL."""
    return "://" in os.fspath(name)


def normal(name: str) -> str:
    """The name without superfluous separators."""
    return name.rstrip("/") if is_remote(name) else os.path.normpath(name)


def absolute(name: str) -> str:
    """The name as it holds from any folder."""
    return normal(name) if is_remote(name) else os.path.abspath(name)


def path(name: Name) -> epath.Path:
    """What to read and write a file or folder of a workdir with, as with pathlib.

    Raises:
        UserError: a URL that is not gs://, or whose package is not installed.
    """
    if is_remote(name):
        if not os.fspath(name).startswith("gs://"):
            raise UserError(f"{name}: a workdir is a local folder or on gs://")
        _find(name)
    return epath.Path(name)


def read(name: Name) -> str:
    """The text of a file; bytes that are no UTF-8 become question marks.

    Raises:
        OSError: it cannot be read, with `strerror` also where a library says it otherwise.
    """
    with _as_os_error(name):
        return path(name).read_bytes().decode("utf-8", "replace")


def modified(name: Name) -> float:
    """When a file was written."""
    return path(name).stat().mtime if is_remote(name) else os.path.getmtime(name)


def sync(name: Name) -> None:
    """Returns when a local file's content, or a folder's list of names, would survive a power cut.

    What is named elsewhere is synced before, so that no name stands for content that is not there.
    """
    descriptor = os.open(name, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Name) -> list[str]:
    """`sync` for a local folder with all that is in it; returns the paths of its files."""
    found = []
    for place, _, names in os.walk(folder, topdown=False):
        paths = [os.path.join(place, name) for name in sorted(names)]
        for each in (*paths, place):
            sync(each)
        found += paths
    return found


def write(name: Name, content: str | bytes) -> None:
    """Writes a file, all of it or nothing, also if the power fails; errors as in `read`."""
    if is_remote(name):  # an object appears when it is whole
        with _as_os_error(name):
            path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return
    with whole_file(name, "w" if isinstance(content, str) else "wb") as f:
        f.write(content)


@contextlib.contextmanager
def whole_file(name: Name, mode: str = "w") -> Generator[IO]:
    """Yields a file on disk, which gets its name when all is on disk, or is removed."""
    unfinished = f"{os.fspath(name)}.tmp"
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
        sync(unfinished)
        os.replace(unfinished, name)
        sync(os.path.dirname(unfinished) or ".")
    except BaseException as e:
        if isinstance(e, OSError) and e.filename == unfinished:  # who reads it knows the other
            e.filename = os.fspath(name)
        if os.path.exists(unfinished):
            os.remove(unfinished)
        raise


@contextlib.contextmanager
def writing(what: str, advice: str = "") -> Generator[None]:
    """Turns an OSError into a UserError: what cannot be written, why, and what helps."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{what} cannot be written ({e.strerror}){advice}") from e


def make_folder(name: Name) -> None:
    """Makes a folder that may be there already.

    Object storage has none to make (and gcsfs would make a bucket); there it is asked for, so that
    a wrong name or missing right shows early.

    Raises:
        UserError: the storage cannot be reached.
    """
    if not is_remote(name):
        os.makedirs(name, exist_ok=True)
        sync(os.path.dirname(os.path.abspath(name)))
        return
    folder = path(name)
    try:
        folder.exists()
    except Exception as e:
        raise UserError(f"{name}: cannot be reached ({reason(e)})") from e


@contextlib.contextmanager
def whole_folder(name: str, *outside: Name) -> Generator[str]:
    """Yields a folder to write to, which gets its name when all of it is on disk, or is removed.

    What a kill left of an earlier one is removed.

    Args:
        name: of the folder.
        *outside: folders that it must not lie in.

    Raises:
        UserError: there is something of that name already, or it cannot be written.
    """
    if is_remote(name):
        raise UserError(f"{name}: must be a local folder; copy it from there")
    final = absolute(name)
    for other in outside:
        if final.startswith(os.path.join(absolute(os.fspath(other)), "")):
            raise UserError(f"{name}: lies inside {other}; give a folder beside it")
    if os.path.exists(final) and (not os.path.isdir(final) or os.listdir(final)):
        raise UserError(f"{name}: is there already; give another name, or remove it first")
    try:
        parent, own = os.path.split(final)
        os.makedirs(parent, exist_ok=True)
        for left in glob.glob(os.path.join(glob.escape(parent), f".{glob.escape(own)}.????????")):
            with contextlib.suppress(OSError), _held(left):
                shutil.rmtree(left)
        folder = tempfile.mkdtemp(prefix=f".{own}.", dir=parent)
    except OSError as e:
        raise UserError(f"{name}: cannot be written here ({e.strerror})") from e
    try:
        # What ends the process raises instead, so that nothing half-written is left.
        before = _on_sigterm(lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            with _held(folder):
                yield folder
        finally:
            _on_sigterm(before)
        os.chmod(folder, 0o777 & ~UMASK)  # mkdtemp lets nobody else read
        sync_all(folder)
        os.replace(folder, final)
        sync(parent)
    except OSError as e:
        raise UserError(f"{name}: cannot be written ({e.strerror or e}); nothing is left") from e
    except UserError as e:  # it knows the folder by the name that it is to have
        raise UserError(str(e).replace(folder, final)) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: str) -> Generator[None]:
    """Locks a folder itself, which no kill leaves locked; an OSError where another has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _on_sigterm(handler: Any) -> Any:
    """Sets the handler, where this can be done; returns the one before."""
    if threading.current_thread() is not threading.main_thread() or handler is None:
        return None
    return signal.signal(signal.SIGTERM, handler)


def local(name: str) -> str:
    """Name of a local file with the content of this one, for reading at any position.

    A URL of any kind that fsspec knows is copied once to the user's cache folder, and again when it
    has changed.

    Raises:
        UserError: it cannot be copied.
    """
    if not is_remote(name):
        return name
    _find(name)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        storage, there = fsspec.core.url_to_fs(name)
        key = hashlib.blake2b(f"{name} {storage.ukey(there)}".encode(), digest_size=16).hexdigest()
        copy = os.path.join(cache, "clara_jax", f"{key}-{os.path.basename(there)}")
        if not os.path.exists(copy):
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            storage.get_file(there, f"{copy}.{os.getpid()}")
            os.replace(f"{copy}.{os.getpid()}", copy)
        return copy
    except Exception as e:
        raise UserError(f"{name}: cannot be read ({reason(e)})") from e


class Busy(UserError):
    """Another process holds a lock."""


@contextlib.contextmanager
def lock(name: str, problem: str, shared: bool = False, wait: bool = False) -> Generator[None]:
    """Holds the lock of a file, which is made if there is none; object storage has no locks.

    Args:
        name: of the file.
        problem: what another process does that holds it, as the error tells it.
        shared: hold it together with others that share it.
        wait: wait until it is free.

    Raises:
        Busy: another process holds it.
        UserError: the file system has no locks.
    """
    if is_remote(name):
        yield
        return
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with open(name, "a+b") as f:  # for reading and writing, or NFS refuses one of the two kinds
        try:
            fcntl.flock(f, kind)
        except BlockingIOError as e:
            raise Busy(problem) from e
        except OSError as e:
            raise UserError(f"{name}: cannot be locked ({e.strerror})") from e
        yield


@contextlib.contextmanager
def _as_os_error(name: Name) -> Generator[None]:
    """Turns what a storage's library raises into an OSError with a `strerror`."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as e:
        raise OSError(None, reason(e), os.fspath(name)) from e


def _find(name: Name) -> None:
    """Raises where no package for this kind of URL is installed."""
    scheme = os.fspath(name).split("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as e:
        how = "pip install 'clara-jax[gcs]'" if scheme == "gs" else reason(e)
        raise UserError(f"{name}: {scheme}:// needs another package: {how}") from e
    except ValueError as e:
        raise UserError(f"{name}: {scheme}:// is no storage that fsspec knows") from e
