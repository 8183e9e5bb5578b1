"""The mesh, and one place that says how every array is sharded over it.

An array's path matches exactly one row of RULES, which names its logical axes, and MESH_AXES maps
those to mesh axes. Paths begin with the name of the tree (models/clara.py), or with `batch`,
`prompts` or `cache`; optimizer state is sharded like what it belongs to. Adapters and memory
embeddings are small and replicated: sharding them costs a 7B step on v5e:4x4 more in gathers than
it saves in memory.
"""

import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clara_jax.config import Mesh as MeshConfig
from clara_jax.errors import UserError
from clara_jax.models.layout import Layout

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"base/embed/embedding", ("vocab", "embed")),
    (r"base/head/kernel", ("embed", "vocab")),
    (r"base/layers/attention/[qkv]/kernel", (None, "embed", "heads")),
    (r"base/layers/attention/[qkv]/scale", (None, "heads")),
    (r"base/layers/attention/[qkv]/bias", (None, "heads")),
    (r"base/layers/attention/[qk]_norm/scale", ()),
    (r"base/layers/mlp/(gate|up)/scale", (None, "mlp")),
    (r"base/(layers/(attention/o|mlp/down)/scale)", (None, "embed")),
    (r"base/head/scale", ("vocab",)),
    (r"base/layers/attention/o/kernel", (None, "heads", "embed")),
    (r"base/layers/mlp/(gate|up)/kernel", (None, "embed", "mlp")),
    (r"base/layers/mlp/down/kernel", (None, "mlp", "embed")),
    (r"base/(layers/(attention|mlp)_)?norm/scale", ()),
    (r"(compressor|reasoner|generator)/.*", ()),
    (r"memory|pool|added/(embed|head)", ()),
    (r"(batch|prompts)/\w+", ("batch",)),
    (r"cache/[kv]", (None, "batch", "kv_heads")),
    (r"cache/positions_BS", ("batch",)),
    (r"cache/length", ()),
)

MESH_AXES = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """A mesh (data, fsdp, tensor); an axis of -1 takes the devices that the others leave.

    A single process may use fewer devices than there are; several use all of theirs, in the order
    of the processes, so that the rows of a batch on the devices of one are neighbours.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    used = math.prod(sizes)
    fits = used <= len(devices) if jax.process_count() == 1 else used == len(devices)
    if min(sizes) < 1 or not fits:
        raise UserError(
            f"config.mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not "
            f"fit {len(devices)} devices; the sizes must multiply to it, one of them may be -1"
        )
    grid = np.array(devices[:used]).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def array_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Sharding of one array, by its path such as `base/norm/scale` or `batch/enc_tokens`.

    Raises:
        UserError: the path has no rule, or the mesh does not divide the shape.
    """
    for pattern, logical in RULES:
        if re.fullmatch(pattern, path):
            axes = [MESH_AXES[name] if name else None for name in logical]
            break
    else:
        raise UserError(f"no sharding rule for the array {path}")
    for number, (size, axis) in enumerate(zip(shape, axes, strict=False)):
        names = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            raise UserError(
                f"{path}: axis {number} of size {size} does not divide by {parts}, which is "
                f"config.mesh {' x '.join(names)}"
            )
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(mesh: Mesh, name: str, tree: Any) -> Any:
    """`array_sharding` of every array or shape in the tree of that name."""

    def of(path: Any, x: Any) -> NamedSharding:
        keys = (str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        return array_sharding(mesh, "/".join((name, *keys)), x.shape)

    return jax.tree.map_with_path(of, tree)


def abstract(mesh: Mesh, name: str, tree: Any) -> Any:
    """Shapes, dtypes and shardings in place of the arrays of the tree of that name."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings(mesh, name, tree),
    )


def check_memory(tree: Any, what: str) -> None:
    """Refuses arrays that all devices together cannot hold: XLA might end the process instead.

    Args:
        tree: of arrays or their shapes.
        what: needs them, for the message.

    Raises:
        UserError: they need more than there is.
    """
    needed = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
    own = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if own is None:  # CPUs share what the machine has
        own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        own = own * jax.process_count() / jax.device_count()
    if needed > own * jax.device_count():
        raise UserError(
            f"{what} needs {needed / 1e9:,.0f} GB of memory at least, all devices together have "
            f"{own * jax.device_count() / 1e9:,.0f}"
        )


def layout(mesh: Mesh) -> Layout:
    """What the decoder needs of this file: the mesh and MESH_AXES."""
    return Layout(mesh, tuple(MESH_AXES.items()))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of adapters, memory embeddings, optimizer state and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES["batch"]))


def rows_of_processes(mesh: Mesh, rows: int) -> list[range]:
    """Which rows of a batch of `rows` are stored on the devices of each process."""
    ranges = [range(0)] * (1 + max(device.process_index for device in mesh.devices.flat))
    for device, (place,) in batch_sharding(mesh).devices_indices_map((rows,)).items():
        start, stop, _ = place.indices(rows)
        own = ranges[device.process_index]
        first = min(start, own.start) if own else start
        ranges[device.process_index] = range(first, max(stop, own.stop))
    return ranges


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from this process's rows of a batch (`rows_of_processes`)."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put_whole(sharding: NamedSharding, tree: Any) -> Any:
    """Global arrays from numpy arrays that every process has whole."""

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda place: x[place])

    return jax.tree.map(put, tree)
