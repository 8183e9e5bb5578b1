"""Replies of an endpoint and results of jobs, kept so that no kill loses one.

OUTPUT/state.jsonl is a ledger that begins with a line of what the results depend on. Then there is
a line for every reply as it came, `{"job", "step", "reply"}`, and one for every finished job,
`{"job", "result"}`, which settles it. Memory holds no texts, only where the lines of a job begin.
"""

import array
import collections
import contextlib
import dataclasses
import os
from typing import Any

from clara_jax import files, ledger
from clara_jax.endpoint.client import Reply
from clara_jax.errors import UserError
from clara_jax.ledger import Ledger

NAME = "state.jsonl"


class Replies:
    """What a run has received so far, for one process at a time; a context manager.

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
        self._path, self._basis = os.path.join(folder, NAME), basis
        if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(self._path):
            raise UserError(f"{folder}: holds something else; give --output another name")
        os.makedirs(folder, exist_ok=True)
        self.tokens, self.count = [0, 0], 0
        # Of jobs by key: where the result is, or the replies are while there is no result.
        self._results: dict[bytes, int] = {}
        self._replies: dict[bytes, array.array] = collections.defaultdict(lambda: array.array("q"))
        problem = f"{folder}: another run is writing there; wait for its end"
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.lock(self._path, problem))
            size = ledger.read(self._path, self._take, self._refuse)
            self._ledger = stack.enter_context(Ledger(self._path, size))
            if not size:
                self._ledger.append({"basis": basis})
            self._open = stack.pop_all()

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the writing; another process may continue."""
        self._open.close()

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, job: str) -> bool:
        return bytes.fromhex(job) in self._results

    def result(self, job: str) -> dict[str, Any] | None:
        """What a finished job gave; None of one that is not finished."""
        start = self._results.get(bytes.fromhex(job))
        return None if start is None else ledger.entry(self._path, start)["result"]

    def of(self, job: str) -> dict[str, Reply]:
        """Replies by step that an earlier run received for a job that it did not finish."""
        lines = [ledger.entry(self._path, i) for i in self._replies.get(bytes.fromhex(job), ())]
        return {line["step"]: Reply(**line["reply"]) for line in lines}

    def add(self, job: str, step: str, reply: Reply) -> None:
        """Keeps a reply."""
        self._ledger.append({"job": job, "step": step, "reply": dataclasses.asdict(reply)})
        self._count(reply.tokens_in, reply.tokens_out)

    def finish(self, job: str, result: dict[str, Any]) -> None:
        """Settles a job."""
        self._settle(bytes.fromhex(job), self._ledger.append({"job": job, "result": result}))

    def _take(self, line: ledger.Entry, start: int) -> None:
        if not start:
            _compare(line["basis"], self._basis, self._path)
        elif "result" in line:
            self._settle(bytes.fromhex(line["job"]), start)
        else:
            self._replies[bytes.fromhex(line["job"])].append(start)
            self._count(line["reply"]["tokens_in"], line["reply"]["tokens_out"])

    def _refuse(self, problem: str) -> None:
        raise UserError(f"{problem}; remove the line, or the folder")

    def _settle(self, job: bytes, start: int) -> None:
        self._results[job] = start
        self._replies.pop(job, None)

    def _count(self, read: int, written: int) -> None:
        self.count += 1
        self.tokens[0] += read
        self.tokens[1] += written


def _compare(before: dict[str, Any], now: dict[str, Any], path: str) -> None:
    other = [name for name in now if now[name] != before.get(name)]
    if other:
        values = ", ".join(f"{n}={before.get(n)!r:.60} (now {now[n]!r:.60})" for n in other)
        raise UserError(
            f"{path}: was begun with {values}; set it back to go on, or give another --output"
        )
