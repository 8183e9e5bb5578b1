"""What a run of synthesis has got so far: a file that only grows, so that no kill loses it.

OUTPUT/state.jsonl begins with a line of what the results depend on. Then there is a line for every
reply as it came, `{"job", "step", "reply"}`, and one for every finished job, `{"job", "result"}`,
which settles it. Memory holds no texts, only where the lines of each job stand.
"""

import array
import collections
import dataclasses
import fcntl
import json
import os
from typing import Any

from clara_jax.endpoint.client import Reply
from clara_jax.errors import UserError

NAME = "state.jsonl"


class Store:
    """The state of a run, for one process at a time; a context manager.

    Attributes:
        tokens: read and written so far, over all runs.
        count: of replies so far.

    Args:
        folder: OUTPUT; made if it is not there.
        basis: what results depend on; another one than that of the file is an error.

    Raises:
        UserError: the folder is of something else, or in use, or its basis is another.
    """

    def __init__(self, folder: str, basis: dict[str, Any]):
        path = os.path.join(folder, NAME)
        if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(path):
            raise UserError(f"{folder}: holds something else; give --output another name")
        os.makedirs(folder, exist_ok=True)
        self._path, self._file = path, open(path, "a+b", buffering=0)  # every line at once
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._file.close()
            raise UserError(f"{folder}: another run is writing there; wait for its end") from e
        self.tokens, self.count = [0, 0], 0
        # Of jobs by key: where the result is, or the replies are while there is no result.
        self._results: dict[bytes, int] = {}
        self._replies: dict[bytes, array.array] = collections.defaultdict(lambda: array.array("q"))
        try:
            self._load(basis)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *unused: Any) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, job: str) -> bool:
        return bytes.fromhex(job) in self._results

    def result(self, job: str) -> dict[str, Any] | None:
        """What a finished job gave; None of one that is not finished."""
        start = self._results.get(bytes.fromhex(job))
        return None if start is None else self._line(start)["result"]

    def replies(self, job: str) -> dict[str, Reply]:
        """Replies by step that an earlier run got for a job that it did not finish."""
        lines = map(self._line, self._replies.get(bytes.fromhex(job), ()))
        return {line["step"]: Reply(**line["reply"]) for line in lines}

    def add(self, job: str, step: str, reply: Reply) -> None:
        """Keeps a reply."""
        self._append({"job": job, "step": step, "reply": dataclasses.asdict(reply)})
        self._add_up(reply.tokens_in, reply.tokens_out)

    def finish(self, job: str, result: dict[str, Any]) -> None:
        """Settles a job."""
        self._results[bytes.fromhex(job)] = self._append({"job": job, "result": result})
        self._replies.pop(bytes.fromhex(job), None)

    def _append(self, line: dict[str, Any]) -> int:
        start = self._end
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            while data:
                written = self._file.write(data)
                data = data[written:]
                self._end += written
        except OSError as e:  # a full disk; the next line must not stand behind half a line
            self._file.truncate(start)
            self._end = start
            raise OSError(e.errno, e.strerror, self._path) from e
        return start

    def _line(self, start: int) -> dict[str, Any]:
        """The line that begins there, read without moving where others are written."""
        parts, size = [], 1 << 14
        while True:
            part = os.pread(self._file.fileno(), size, start)
            end = part.find(b"\n")
            if end >= 0 or not part:
                return json.loads(b"".join([*parts, part[:end]]))
            parts.append(part)
            start += len(part)

    def _load(self, basis: dict[str, Any]) -> None:
        self._end = 0
        with open(self._path, "rb") as f:
            for number, line in enumerate(f, 1):
                if not line.endswith(b"\n"):  # a kill, or a full disk, cut it
                    break
                try:
                    self._take(json.loads(line), number, basis)
                except (ValueError, KeyError, TypeError) as e:
                    raise UserError(
                        f"{self._path}:{number}: damaged ({e}); remove the line, or the folder"
                    ) from e
                self._end += len(line)
        self._file.truncate(self._end)
        if not self._end:
            self._append({"basis": basis})

    def _take(self, line: dict[str, Any], number: int, basis: dict[str, Any]) -> None:
        if number == 1:
            _compare(line["basis"], basis, self._path)
            return
        job = bytes.fromhex(line["job"])
        if "result" in line:
            self._results[job] = self._end
            self._replies.pop(job, None)
        else:
            self._replies[job].append(self._end)
            self._add_up(line["reply"]["tokens_in"], line["reply"]["tokens_out"])

    def _add_up(self, read: int, written: int) -> None:
        self.count += 1
        self.tokens[0] += read
        self.tokens[1] += written


def _compare(before: dict[str, Any], now: dict[str, Any], path: str) -> None:
    other = [name for name in now if now[name] != before.get(name)]
    if other:
        told = ", ".join(f"{n}={before.get(n)!r:.60} (now {now[n]!r:.60})" for n in other)
        raise UserError(
            f"{path}: was begun with {told}; set it back to go on, or give another --output"
        )
