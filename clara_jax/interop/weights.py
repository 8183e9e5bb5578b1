"""Loading base weights straight into device shards.

A checkpoint only has to say which tensors it holds and to read slices of them; which slices,
transposing and stacking of layers are decided here, by the names of interop/names.py.
"""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from clara_jax.errors import UserError
from clara_jax.interop.names import Row, parameters, part, tensors
from clara_jax.models.config import ModelConfig
from clara_jax.models.quantize import quantize

ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
Index = tuple[slice, ...]
Convert = Callable[[jax.Array], dict[str, jax.Array]]

# Elements of a tensor's whole rows that are read and converted at a time.
_BLOCK = 2**22


class Checkpoint(Protocol):
    """Where tensors are read from."""

    where: str  # path for error messages
    format: str  # column of TABLE that its tensors are named by, `hf` or `gguf`
    # shape of each tensor that it holds, [out, in] for linear layers
    shapes: dict[str, tuple[int, ...]]

    @property
    def kind(self) -> str:
        """What numbers are rounded to, if it is more than to bfloat16, such as Q8_0."""
        ...

    @property
    def is_bfloat16(self) -> bool:
        """Whether most of them are stored in bfloat16."""
        ...

    def read(self, name: str, index: Index) -> np.ndarray:
        """Reads tensor[index]; the slices are explicit and have step 1."""
        ...


def load(
    checkpoint: Checkpoint,
    config: ModelConfig,
    sharding_of: ShardingOf | None = None,
    parts: Sequence[str] = (),
) -> Any:
    """Loads the base weights; a process asks only for what its own devices hold, each part once.

    Beside the devices' arrays the host holds one device's part of one layer's matrix, or of the
    embedding, the head or all norms of one kind, for it is on its device before the next is read;
    and _BLOCK elements, as the checkpoint gives them. The devices hold one layer's matrix, or the
    head if it becomes int8, a second time, as it was read.

    Args:
        checkpoint: the tensors.
        config: the architecture that they must fit.
        sharding_of: gives the sharding of a parameter from its path ("layers/attention/q/kernel")
            and shape; it keeps the layers of a matrix together. None puts everything on the first
            device.
        parts: the only ones wanted of `embed`, `layers`, `norm` and `head`; all if none is named.

    Returns:
        The `params` tree of the decoder in `config.param_dtype`.

    Raises:
        UserError: a tensor is unknown, missing, mis-shaped, unreadable or holds no finite numbers.
    """
    _check(checkpoint, config)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding_of = sharding_of or (lambda path, shape: single)
    int8 = config.param_dtype == "int8"
    tree = {}
    # From the end, so that the head, held twice while it becomes int8, is done before the rest.
    for row, leaf in reversed(parameters(config).items()):
        if parts and row.path.split("/")[0] not in parts:
            continue
        read = _reader(checkpoint, row, config, leaf)
        put = functools.partial(_put, read, leaf.shape, sharding_of(row.path, leaf.shape))
        if not row.transposed or not (row.stacked or int8):
            tree[row.path] = put()
            continue
        name = row.path.removesuffix("/kernel")
        convert = quantize if int8 else _plain
        shapes = jax.eval_shape(convert, leaf)
        shardings = {key: sharding_of(f"{name}/{key}", x.shape) for key, x in shapes.items()}
        if row.stacked:
            made = _stack(put, convert, shapes, shardings)
        else:
            made = jax.block_until_ready(jax.jit(convert, out_shardings=shardings)(put()))
        tree |= {f"{name}/{key}": array for key, array in made.items()}
    tree = flax.traverse_util.unflatten_dict(tree, sep="/")
    check_finite(tree, checkpoint.where)
    return tree


def check_finite(tree: Any, where: str | os.PathLike[str]) -> None:
    """Checks weights that were read, on the devices that hold them.

    Args:
        tree: of arrays.
        where: they come from, for the message.

    Raises:
        UserError: a number is infinite or none (NaN).
    """
    for path, array in jax.tree.leaves_with_path(tree):  # one by one, for what each takes meanwhile
        if not jax.block_until_ready(_is_finite(array)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{where}: {name} holds NaN or infinite numbers; is it damaged?")


@jax.jit
def _is_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is still in its checkpoint."""

    shape: tuple[int, ...]  # as the decoder has it, layers in front
    # gives parameter[index] in float32; the slices are explicit and have step 1
    read: Callable[[Index], np.ndarray]

    def layer(self, layer: int | None) -> np.ndarray:
        """One layer [1, ...], or the whole of what has no layers."""
        whole = [slice(0, n) for n in self.shape]
        return self.read(tuple(whole if layer is None else [slice(layer, layer + 1), *whole[1:]]))


def stored(checkpoint: Checkpoint, config: ModelConfig) -> Any:
    """The `params` tree with `Stored` in place of arrays; nothing is read yet.

    Raises:
        UserError: a tensor is unknown, missing or mis-shaped.
    """
    _check(checkpoint, config)
    tree = {}
    for row, leaf in parameters(config).items():
        leaf = jax.ShapeDtypeStruct(leaf.shape, np.float32)
        tree[row.path] = Stored(leaf.shape, _reader(checkpoint, row, config, leaf))
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def fingerprint(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """Tells a model from others of its shapes: a hash of norms, and of two rows of every matrix.

    Numbers are rounded to bfloat16, so that a copy in float32 has the same. In front stands what
    else they are rounded to (`Checkpoint.kind`), which the original's cannot be compared with.
    """
    total = hashlib.blake2b(digest_size=8)
    for row, leaf in parameters(config).items():
        shape = leaf.shape
        read = _reader(checkpoint, row, config, jax.ShapeDtypeStruct(shape, np.float32))
        axis = len(shape) - 1 if row.transposed else int(row.stacked)  # of a matrix, its rows
        is_matrix = len(shape) - row.stacked > 1
        for start in (shape[axis] // 3, 2 * shape[axis] // 3) if is_matrix else [None]:
            index = [slice(0, n) for n in shape]
            if start is not None:
                index[axis] = slice(start, start + 1)
            total.update(read(tuple(index)).astype(ml_dtypes.bfloat16).tobytes())
    return f"{checkpoint.kind}:{total.hexdigest()}".removeprefix(":")


def _put(
    read: Callable[[Index], np.ndarray],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    layer: int | None = None,
) -> jax.Array:
    """Puts a parameter [L, ...], or one layer [1, ...] of it, on the devices part by part."""
    # `jax.make_array_from_callback` would hold all parts on the host until the last one is read.
    if layer is not None:
        shape = (1, *shape[1:])
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None  # of these devices
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, copies in devices.items():
        index = tuple(slice(*b) for b in bounds)
        part = read(index if layer is None else (slice(layer, layer + 1), *index[1:]))
        arrays += jax.block_until_ready([jax.device_put(part, device) for device in copies])
        del part  # before the next is read
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _stack(
    put: Callable[..., jax.Array],
    convert: Convert,
    shapes: dict[str, jax.ShapeDtypeStruct],
    shardings: dict[str, jax.sharding.Sharding],
) -> dict[str, jax.Array]:
    """Converts a parameter layer by layer, each written into the arrays that hold all of them."""
    start = jax.jit(_zeros, static_argnums=0, out_shardings=shardings)
    insert = jax.jit(_insert, static_argnums=0, donate_argnums=1, out_shardings=shardings)
    stacked = start(tuple(shapes.items()))
    for i in range(shapes["kernel"].shape[0]):
        # Waits, so that no later layer is on the devices before it.
        stacked = jax.block_until_ready(insert(convert, stacked, put(layer=i), i))
    return stacked


def _plain(kernel: jax.Array) -> dict[str, jax.Array]:
    return {"kernel": kernel}


def _zeros(shapes: tuple[tuple[str, jax.ShapeDtypeStruct], ...]) -> dict[str, jax.Array]:
    return {key: jnp.zeros(x.shape, x.dtype) for key, x in shapes}


def _insert(
    convert: Convert, stacked: dict[str, jax.Array], layer: jax.Array, i: int
) -> dict[str, jax.Array]:
    def write(whole: jax.Array, one: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, one, i, 0)

    return jax.tree.map(write, stacked, convert(layer))


def _check(checkpoint: Checkpoint, config: ModelConfig) -> None:
    expected = {tensor.name: tensor.shape for tensor in tensors(config, checkpoint.format)}
    for name, shape in expected.items():
        if name not in checkpoint.shapes:
            raise UserError(f"{checkpoint.where}: tensor {name} is missing")
        if checkpoint.shapes[name] != shape:
            raise UserError(
                f"{checkpoint.where}: tensor {name} has shape {list(checkpoint.shapes[name])}, "
                f"but the config asks for {list(shape)}"
            )
    unknown = sorted(set(checkpoint.shapes) - set(expected))
    if unknown:
        raise UserError(
            f"{checkpoint.where}: unknown tensor {unknown[0]} ({len(unknown)} in all); "
            "this decoder has no such parameter"
        )


def _reader(
    checkpoint: Checkpoint, row: Row, config: ModelConfig, leaf: jax.ShapeDtypeStruct
) -> Callable[[Index], np.ndarray]:
    """A function that reads parameter[index], whose slices are explicit and have step 1."""
    where = part(row, config, checkpoint.format)
    names = where.names(config.n_layers)

    def read(index: Index) -> np.ndarray:
        out = np.empty([s.stop - s.start for s in index], leaf.dtype)
        targets = zip(names, [out], strict=True)
        if row.stacked:
            targets = zip(names[index[0]], out, strict=True)
            index = index[1:]
        if row.transposed:
            index = index[::-1]
        first = slice(index[0].start + where.start, index[0].stop + where.start)
        for name, target in targets:
            target = target.T if row.transposed else target
            _read_blocks(checkpoint, name, (first, *index[1:]), target)
        return out

    return read


def _read_blocks(checkpoint: Checkpoint, name: str, index: Index, out: np.ndarray) -> None:
    # Whole rows count: GGUF expands these even for a part of each.
    n_rows = max(1, _BLOCK // math.prod(checkpoint.shapes[name][1:]))
    first, last = index[0].start, index[0].stop
    for start in range(first, last, n_rows):
        rows = slice(start, min(start + n_rows, last))
        # Assignment rounds to the target's dtype.
        out[rows.start - first : rows.stop - first] = checkpoint.read(name, (rows, *index[1:]))
