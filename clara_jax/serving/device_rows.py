"""Memories of the store that stay on the device, the least recently used ones leave first."""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax import sharding
from clara_jax.runs.setup import Model

_AT_ONCE = 8  # rows of one write


class DeviceRows:
    """A table [R, M, D] on the devices, and which row of the store each of its places holds.

    `place` is for one thread; `missing` for any.

    Args:
        model: the model.
        capacity: R.
        read: reads memories [n, M, D] of rows of the store.
        count: called with the hits and the misses of each use.
    """

    def __init__(
        self,
        model: Model,
        capacity: int,
        read: Callable[[Sequence[int]], np.ndarray],
        count: Callable[[int, int], None],
    ):
        self.capacity, self._read, self._count = capacity, read, count
        M, D = len(model.extra.memory), model.architecture.d_model
        dtype, whole = jnp.dtype(model.architecture.dtype), sharding.replicated(model.mesh)
        table = jax.ShapeDtypeStruct((capacity, M, D), dtype)
        sharding.check_memory(table, f"config.serve.cached={capacity}")
        make = jax.jit(lambda: jnp.zeros(table.shape, dtype), out_shardings=whole)
        self.table_RMD = make()
        self._write = jax.jit(
            lambda table, places, rows: table.at[places].set(rows.astype(dtype), mode="drop"),
            donate_argnums=0,
            out_shardings=whole,
        )
        self._lock = threading.Lock()
        self._places: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._put(np.zeros(0, np.int32), np.zeros((0, M, D), np.float32))  # compiles

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Those that are not on the device now."""
        with self._lock:
            return [row for row in rows if row not in self._places]

    def place(self, rows: Sequence[int], given: Mapping[int, np.ndarray]) -> list[int]:
        """Brings rows of the store onto the device.

        Args:
            rows: at most R.
            given: memories [M, D] of some, read before.

        Returns:
            The place of each in the table.
        """
        if len(set(rows)) > self.capacity:
            raise ValueError(f"{len(rows)} rows for a table of {self.capacity}")
        absent = self.missing(list(dict.fromkeys(rows)))
        self._count(len(rows) - len(absent), len(absent))
        left = [row for row in absent if row not in given]
        memories = dict(given) | dict(zip(left, self._read(left) if left else (), strict=True))
        with self._lock:
            for row in rows:  # first those that stay, so that none of them leaves
                if row in self._places:
                    self._places.move_to_end(row)
            for row in absent:
                full = len(self._places) == self.capacity
                place = self._places.popitem(last=False)[1] if full else len(self._places)
                self._places[row] = place
            places = [self._places[row] for row in rows]
        if absent:
            at = np.array([self._places[row] for row in absent], np.int32)
            self._put(at, np.stack([memories[row] for row in absent]))
        return places

    def _put(self, places_K: np.ndarray, rows_KMD: np.ndarray) -> None:
        for start in range(0, max(len(places_K), 1), _AT_ONCE):
            places = np.full(_AT_ONCE, self.capacity, np.int32)  # beyond the table: not written
            rows = np.zeros((_AT_ONCE, *rows_KMD.shape[1:]), np.float32)
            part = places_K[start : start + _AT_ONCE]
            places[: len(part)], rows[: len(part)] = part, rows_KMD[start : start + _AT_ONCE]
            self.table_RMD = self._write(self.table_RMD, places, rows)
