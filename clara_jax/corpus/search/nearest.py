"""Brute force over search keys, which are sharded over all devices of a mesh.

Every device finds the best of its own rows, and the best of these are the best of all. On TPUs
that is `jax.lax.approx_max_k`; elsewhere exact, a block of rows after the other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clara_jax import sharding
from clara_jax.corpus.search.keys import Basis, query_keys

_BLOCK = 1 << 15  # rows whose scores exist at once, on one device that is no TPU
_ROWS = 128  # of a device's keys, a multiple of
# Of approx_max_k, among all candidates. It drops a row only for a better one of the same bin, so
# that of the first ones, which matter, far more is found.
_APPROX_RECALL = 0.95
_FEWEST = 8  # queries that are compiled for


def is_tpu(mesh: Mesh) -> bool:
    """Whether the devices are TPUs."""
    return mesh.devices.flat[0].platform == "tpu"


def dtype(mesh: Mesh) -> jnp.dtype:
    """Of keys on the devices: what they multiply fast."""
    return jnp.dtype(jnp.bfloat16 if is_tpu(mesh) else jnp.float32)


def keys_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def capacity(rows: int, devices: int) -> int:
    """Rows that are compiled for: up to an eighth more, so that few sizes are ever compiled."""
    step = max(_ROWS, (1 << max(rows // devices, 1).bit_length() - 1) // 8)
    each = max(-(-rows // devices), 1)
    return devices * step * -(-each // step)


@functools.lru_cache(maxsize=32)
def program(mesh: Mesh, score: str, k: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The jitted search of one mesh, score and number of candidates.

    Its arguments are queries' memories [n, M, D], components [X, K], and as `keys_sharding` has
    them keys [R, K] and what is added to each row's products [R] (0, or -inf for rows that are
    none). It gives the products float32 [n, k] of the best rows, the best first, and these rows;
    k is at most the rows of one device times the number of devices.
    """
    axes, devices = mesh.axis_names, mesh.size

    def of_shard(q_nK: jax.Array, keys_RK: jax.Array, added_R: jax.Array) -> tuple:
        rows = len(added_R)
        best = _approximate if is_tpu(mesh) else _blocked
        values_nk, rows_nk = best(q_nK.astype(keys_RK.dtype), keys_RK, added_R, min(k, rows))
        return values_nk, rows_nk + jax.lax.axis_index(axes) * rows

    whole, rows = PartitionSpec(), PartitionSpec(axes)
    columns = PartitionSpec(None, axes)
    sharded = jax.shard_map(
        of_shard,
        mesh=mesh,
        in_specs=(whole, rows, rows),
        out_specs=(columns, columns),
        check_vma=False,
    )

    @jax.jit
    def search(
        queries_nMD: jax.Array, components_XK: jax.Array, keys_RK: jax.Array, added_R: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        values, rows = sharded(query_keys(queries_nMD, components_XK, score), keys_RK, added_R)
        if devices > 1:
            everywhere = NamedSharding(mesh, PartitionSpec())
            values, rows = jax.lax.with_sharding_constraint((values, rows), everywhere)
            values, places = jax.lax.top_k(values, min(k, values.shape[1]))
            rows = jnp.take_along_axis(rows, places, 1)
        return values, rows

    return search


def _products(q_nK: jax.Array, keys_RK: jax.Array, added_R: jax.Array) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if keys_RK.dtype == jnp.float32 else None
    return added_R[None] + jnp.einsum(
        "nk,rk->nr", q_nK, keys_RK, precision=precision, preferred_element_type=jnp.float32
    )


def _approximate(q_nK: jax.Array, keys_RK: jax.Array, added_R: jax.Array, k: int) -> tuple:
    # Without the barrier the two are fused, which fails to compile where keys are wide.
    products_nR = jax.lax.optimization_barrier(_products(q_nK, keys_RK, added_R))
    return jax.lax.approx_max_k(products_nR, k, recall_target=_APPROX_RECALL)


def _blocked(q_nK: jax.Array, keys_RK: jax.Array, added_R: jax.Array, k: int) -> tuple:
    R, n = len(added_R), len(q_nK)
    size = min(max(_BLOCK, k), R)
    starts_s = jnp.arange(0, R, size)

    def step(best: tuple, start: jax.Array) -> tuple:
        # The last block begins earlier, to be as long; what the one before had counts once.
        first = jnp.minimum(start, R - size)
        block_rK = jax.lax.dynamic_slice_in_dim(keys_RK, first, size)
        added_r = jax.lax.dynamic_slice_in_dim(added_R, first, size)
        rows_r = first + jnp.arange(size)
        added_r = jnp.where(rows_r >= start, added_r, -jnp.inf)
        values_nk, places_nk = jax.lax.top_k(_products(q_nK, block_rK, added_r), k)
        values = jnp.concatenate([best[0], values_nk], 1)
        rows = jnp.concatenate([best[1], first + places_nk], 1)
        values_nk, places_nk = jax.lax.top_k(values, k)
        return (values_nk, jnp.take_along_axis(rows, places_nk, 1)), None

    none = (jnp.full((n, k), -jnp.inf), jnp.zeros((n, k), jnp.int32))
    return jax.lax.scan(step, none, starts_s)[0]


class Nearest:
    """Keys on the devices of a mesh.

    Args:
        mesh: whose devices hold them; all of one process.
        basis: of the keys.
        keys_RK: of all rows, float16 or float32.
        alive_R: rows that may be found.
    """

    def __init__(self, mesh: Mesh, basis: Basis, keys_RK: np.ndarray, alive_R: np.ndarray):
        self._mesh, self.basis, self._rows = mesh, basis, len(keys_RK)
        self._components = sharding.put_whole(sharding.replicated(mesh), basis.components_XK)
        self._keys = self._put(keys_RK, dtype(mesh), 0)
        self._mask(alive_R)

    def masked(self, alive_R: np.ndarray) -> "Nearest":
        """The same keys with other rows that may be found."""
        other = object.__new__(Nearest)
        other.__dict__ |= self.__dict__
        other._mask(alive_R)
        return other

    def search(self, queries_nMD: np.ndarray, k: int) -> np.ndarray:
        """Rows int [n, k] of the best keys, the best first; -1 where there are fewer."""
        n = len(queries_nMD)
        best_nk = np.full((n, k), -1)
        if not n or not self._rows:
            return best_nk
        size = max(_FEWEST, 1 << (n - 1).bit_length())
        filled = np.zeros((size, *queries_nMD.shape[1:]), np.float32)
        filled[:n] = queries_nMD
        search = program(self._mesh, self.basis.score, k)
        values, rows = jax.device_get(search(filled, self._components, self._keys, self._added))
        best_nk[:, : rows.shape[1]] = np.where(values[:n] > -np.inf, rows[:n], -1)
        return best_nk

    def _mask(self, alive_R: np.ndarray) -> None:
        self._added = self._put(np.where(alive_R, 0, -np.inf), np.dtype(np.float32), -np.inf)

    def _put(self, array: np.ndarray, dtype: np.dtype, value: float) -> jax.Array:
        """Rows on the devices, and `value` where they end, copied shard by shard."""
        size = capacity(self._rows, self._mesh.size)

        def part(place: Any) -> np.ndarray:
            start, stop, _ = place[0].indices(size)
            filled = np.full((stop - start, *array.shape[1:]), value, dtype)
            own = array[start:stop]
            filled[: len(own)] = own
            return filled

        shape = (size, *array.shape[1:])
        return jax.make_array_from_callback(shape, keys_sharding(self._mesh), part)
