"""The rows of a batch come from streams, so that how many processes read them changes nothing.

The records are shared out to `data.shards` streams, and a batch has equally many rows of each, one
stream's after the other's. A process opens those that its own rows are of: some of them or all, and
a stream may be read by several, each of which drops the rows of the others.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from clara_jax.errors import UserError

Batch = dict[str, np.ndarray]


class Streams(Iterator[Batch]):
    """A process's rows of each batch; Orbax saves and restores the position of every stream.

    Args:
        open_stream: gives stream n's batches, `rows / shards` rows each.
        shards: how many streams there are.
        rows: of a whole batch.
        of_processes: the rows that each process reads; one process reads all by default.
        process: this one's index.
        any_of: whether a flag is set in any process; asked before each batch if the data can end,
            for the streams hold unequal numbers of rows.

    Raises:
        UserError: the rows do not divide by the streams.
    """

    def __init__(
        self,
        open_stream: Callable[[int], grain.DatasetIterator],
        shards: int,
        rows: int,
        of_processes: Sequence[range] = (),
        process: int = 0,
        any_of: Callable[[bool], bool] = bool,
    ):
        if rows % shards:
            raise UserError(
                f"config.train.batch_rows={rows} does not divide by config.data.shards={shards}"
            )
        each = rows // shards
        read = [
            range(of.start // each, -(-of.stop // each)) for of in of_processes or [range(rows)]
        ]
        self._shards, self._any_of = shards, any_of
        self._streams = {n: open_stream(n) for n in read[process]}
        # Saved by the first process that reads it: files of the same name would collide.
        self._saved = [n for n in read[process] if not any(n in other for other in read[:process])]
        own, first = (of_processes or [range(rows)])[process], read[process].start * each
        self._rows = slice(own.start - first, own.stop - first)

    def __next__(self) -> Batch:
        read = (next(stream, None) for stream in self._streams.values())
        parts = [part for part in read if part is not None]
        if self._any_of(len(parts) < len(self._streams)):
            raise StopIteration
        if len(parts) == 1:
            return {key: value[self._rows] for key, value in parts[0].items()}
        return {key: np.concatenate([p[key] for p in parts])[self._rows] for key in parts[0]}

    def get_state(self) -> dict[int, Any]:
        """Position of each stream that is read here."""
        return {n: stream.get_state() for n, stream in self._streams.items()}

    def set_state(self, state: dict[int, Any]) -> None:
        """Goes to a position that `get_state` gave."""
        for n, stream in self._streams.items():
            stream.set_state(state[n])

    async def save(self, directory: Any) -> Awaitable[None]:
        """Takes down the position, and gives what writes it, for Orbax's thread."""
        states = {self._name(n): json.dumps(self._streams[n].get_state()) for n in self._saved}

        async def write() -> None:
            path = await directory.await_creation()
            for name, state in states.items():
                await asyncio.to_thread((path / name).write_text, state)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Gives what reads the position."""

        async def read() -> None:
            state = {}
            for n in self._streams:
                state[n] = json.loads(
                    await asyncio.to_thread((directory / self._name(n)).read_text)
                )
            self.set_state(state)

        return read()

    def _name(self, n: int) -> str:
        # As Grain itself names one process's position: runs of one stream were saved by it.
        return f"process_{n}-of-{self._shards}.json"


def choose(processes: int, rows: int) -> int:
    """How many streams a new run has: one a process, or as many of them as divide the batch."""
    return math.gcd(processes, rows)
