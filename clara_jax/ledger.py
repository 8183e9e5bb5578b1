"""Files of JSON objects, one a line, that only grow: a kill costs no more than the last line.

size = read("state.jsonl", lambda entry, start: print(entry), print)
with Ledger("state.jsonl", size) as ledger:
    ledger.append({"job": 3})
"""

import io
import json
import os
import time
from collections.abc import Callable
from typing import Any

from clara_jax import files

Entry = dict[str, Any]
_PAUSE = 60.0  # seconds between writes of a file on object storage
_SYNC = 1.0  # seconds of lines that a power cut may cost on disk


class Ledger:
    """Appends to a file; a context manager.

    On disk a line is there at once, all of it or nothing; a power cut may take those of the last
    second. An object cannot be appended to: it is written again, all of it, at most once a minute
    and at `flush`, so that a kill loses the lines since then.

    Args:
        name: of the file, which is made if there is none.
        size: the number of its bytes to keep, as `read` returns it; None: all.

    Attributes:
        size: of the file with all lines.

    Raises:
        OSError: it cannot be written; as do `append`, `flush` and `close`.
    """

    def __init__(self, name: str, size: int | None = None):
        self._name, self._file, self._lines = name, None, []
        self._written = time.monotonic()
        if files.is_remote(name):
            there = files.path(name)
            self._lines = [there.read_bytes()[:size]] if there.exists() else []
            self.size = sum(map(len, self._lines))
            return
        self._file = open(name, "ab", buffering=0)  # noqa: SIM115  (`close` closes it)
        files.sync(os.path.dirname(name) or ".")
        if size is not None:
            self._file.truncate(size)
        self.size = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def append(self, entry: Entry) -> int:
        """Adds a line; returns the position of its first byte."""
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if self._file is not None:
            self._write(self._file, line)
        else:
            self._lines.append(line)
        if time.monotonic() - self._written > (_SYNC if self._file else _PAUSE):
            self.flush()
        self.size += len(line)
        return self.size - len(line)

    def flush(self) -> None:
        """Returns when all lines are where they are kept."""
        if self._file is None:
            files.write(self._name, b"".join(self._lines))
        else:
            os.fsync(self._file.fileno())
        self._written = time.monotonic()

    def close(self) -> None:
        """Ends the writing."""
        self.flush()
        if self._file is not None:
            self._file.close()

    def _write(self, file: io.FileIO, line: bytes) -> None:
        try:
            while line:
                line = line[file.write(line) :]
        except OSError as e:  # a full disk: the next line must not follow half of this one
            file.truncate(self.size)
            raise OSError(e.errno, e.strerror, self._name) from e


def read(
    name: str,
    take: Callable[[Entry, int], None],
    damaged: Callable[[str], None] | None = None,
) -> int:
    """Reads a file line by line, but for a last one without an end: a kill or a full disk cut it.

    Args:
        name: of the file; one that is not there has no lines.
        take: is given each object and the position of its line; its ValueError, KeyError or
            TypeError means that the line is damaged.
        damaged: is given "FILE:LINE: damaged (REASON)"; None: the first such line ends the file.

    Returns:
        The number of bytes of the lines, for a `Ledger` that continues the file.
    """
    size = 0
    if not files.path(name).exists():
        return size
    with files.path(name).open("rb") as f:
        for number, line in enumerate(f, 1):
            if not line.endswith(b"\n"):
                break
            try:
                take(json.loads(line), size)
            except (ValueError, KeyError, TypeError, RecursionError) as e:
                if damaged is None:
                    break
                damaged(f"{name}:{number}: damaged ({e})")
            size += len(line)
    return size


def entry(name: str, start: int) -> Entry:
    """The object on disk whose line begins at a position."""
    with open(name, "rb") as f:
        f.seek(start)
        return json.loads(f.readline())
