"""Files by name, on disk or on object storage (gs://bucket/…), through etils.epath and fsspec."""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

import fsspec
from etils import epath

from clara_jax.errors import UserError, reason

_ANEW = 60.0  # seconds between writes of a remote file that grows

Name = str | os.PathLike[str]


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
    with _told(name):
        return path(name).read_bytes().decode("utf-8", "replace")


def modified(name: Name) -> float:
    """When a file was written."""
    return path(name).stat().mtime if is_remote(name) else os.path.getmtime(name)


def write(name: Name, text: str) -> None:
    """Writes a file, all of it or nothing; errors as in `read`."""
    if is_remote(name):  # an object appears when it is whole
        with _told(name):
            path(name).write_text(text)
        return
    with whole_file(name) as f:
        f.write(text)


@contextlib.contextmanager
def whole_file(name: Name) -> Iterator[TextIO]:
    """Yields a text file on disk, which gets its name when all is written, or is removed."""
    unfinished = f"{os.fspath(name)}.tmp"
    try:
        with open(unfinished, "w", encoding="utf-8") as f:
            yield f
        os.replace(unfinished, name)
    except BaseException as e:
        if isinstance(e, OSError) and e.filename == unfinished:  # who reads it knows the other
            e.filename = os.fspath(name)
        if os.path.exists(unfinished):
            os.remove(unfinished)
        raise


def make_folder(name: Name) -> None:
    """Makes a folder that may be there already.

    Object storage has none to make (and gcsfs would make a bucket); there it is asked for, so that
    a wrong name or missing right shows early.

    Raises:
        UserError: the storage cannot be reached.
    """
    if not is_remote(name):
        os.makedirs(name, exist_ok=True)
        return
    folder = path(name)
    try:
        folder.exists()
    except Exception as e:
        raise UserError(f"{name}: cannot be reached ({reason(e)})") from e


@contextlib.contextmanager
def whole_folder(name: str, *outside: Name) -> Iterator[str]:
    """Yields a folder to write to, which gets its name when all of it is written, or is removed.

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
        folder = tempfile.mkdtemp(prefix=f".{own}.", dir=parent)
    except OSError as e:
        raise UserError(f"{name}: cannot be written here ({e.strerror})") from e
    try:
        # What ends the process raises instead, so that nothing half-written is left.
        before = _on_sigterm(lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            yield folder
        finally:
            _on_sigterm(before)
        for place, _, names in os.walk(folder):  # mkdtemp and safetensors let nobody else read
            os.chmod(place, 0o755)
            for file in names:
                os.chmod(os.path.join(place, file), 0o644)
        os.replace(folder, final)
    except OSError as e:
        raise UserError(f"{name}: cannot be written ({e.strerror or e}); nothing is left") from e
    except UserError as e:  # it knows the folder by the name that it is to have
        raise UserError(str(e).replace(folder, final)) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


class Lines:
    """A text file that grows; a context manager.

    On disk every line is there at once. An object cannot be appended to: it is written anew, all of
    it, at most once a minute and at `flush`, so that a kill loses the lines since then.

    Args:
        name: of the file.
        size: bytes of it to keep, if not all.
    """

    def __init__(self, name: Name, size: int | None = None):
        self._file, self._lines, self._written = None, [], time.monotonic()
        self._remote = path(name) if is_remote(name) else None
        if self._remote is None:
            self._file = open(name, "a", encoding="utf-8")
            if size is not None:
                self._file.truncate(size)
        elif self._remote.exists():
            self._lines = [self._remote.read_bytes()[:size].decode()]

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def write(self, text: str) -> None:
        """Adds text that ends with a newline."""
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
            return
        self._lines.append(text)
        if time.monotonic() - self._written > _ANEW:
            self.flush()

    def flush(self) -> None:
        """Sees that all of it is there."""
        if self._remote is not None:
            write(self._remote, "".join(self._lines))
            self._written = time.monotonic()

    def close(self) -> None:
        """Ends the writing."""
        if self._file is not None:
            self._file.close()
        else:
            self.flush()


@contextlib.contextmanager
def _told(name: Name) -> Iterator[None]:
    """Makes what a storage's library raises an OSError with a `strerror`."""
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
