"""Base weights written as Hugging Face safetensors, a file at a time; the way back of hf.py."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from clara_jax import distributed, files
from clara_jax.errors import UserError
from clara_jax.interop.hf import INDEX, SINGLE
from clara_jax.interop.names import TABLE, Part, Row, part
from clara_jax.interop.weights import Stored
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params
from clara_jax.models.quantize import dequantize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor of the checkpoint.

    Attributes:
        name: its name.
        shape: its shape.
        parts: the parameters in it, one below the other.
        layer: which layer's; None: the parameters have no layers.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Row, ...]
    layer: int | None


def save_params(
    directory: str | pathlib.Path,
    params: Any,
    config: ModelConfig,
    *,
    adapter: Any = None,
    lora: LoraConfig | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    shard_bytes: int = 10**9,
) -> None:
    """Writes model.safetensors, or several files and their index, named as the family has it.

    All processes must call it; the first writes. Beside the model, the devices hold one layer's
    matrix, or the embedding or the head, and the host the tensors of one file twice, the second
    time as safetensors encodes them.

    Args:
        directory: where to write; made if it is not there. config.json is `hf_config`'s.
        params: base weights, which may lie on a mesh, may be int8, and may be `weights.stored`.
        config: their architecture.
        adapter: folded in, W + scale * A B in float32, a matrix at a time.
        lora: the adapter's settings.
        dtype: of what is written.
        shard_bytes: most bytes of a file's tensors, unless one alone has more.

    Raises:
        UserError: the directory is not local, holds model files already, or cannot be written.
    """
    if files.is_remote(directory):
        raise UserError(f"{directory}: a model is written into a local directory")
    directory = pathlib.Path(directory)
    if adapter is not None and lora is None:
        raise ValueError("an adapter needs its LoraConfig")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    held = dataclasses.replace(config, param_dtype="float32")
    if missing := flax.traverse_util.flatten_dict(abstract_params(held), sep="/").keys() - flat:
        raise ValueError(f"the base lacks {sorted(missing)[0]}")
    low_rank = flax.traverse_util.flatten_dict(adapter or {}, sep="/")
    scale = lora.scale if lora else 0.0
    plan = _plan(_tensors(flat, config), np.dtype(dtype).itemsize, shard_bytes)
    if distributed.is_first():
        _prepare(directory)
    for name, tensors in plan.items():
        arrays = {
            tensor.name: _fetch(tensor, flat, low_rank, scale, dtype, config) for tensor in tensors
        }
        if distributed.is_first():
            try:
                safetensors.numpy.save_file(arrays, directory / name, metadata={"format": "pt"})
            except (safetensors.SafetensorError, OSError) as e:
                raise UserError(f"{directory / name}: cannot be written ({e})") from e
        del arrays  # before the next file's
    if distributed.is_first() and len(plan) > 1:
        size = sum(
            math.prod(tensor.shape) * np.dtype(dtype).itemsize
            for tensors in plan.values()
            for tensor in tensors
        )
        weight_map = {tensor.name: name for name, tensors in plan.items() for tensor in tensors}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    distributed.barrier("save_params")


def _prepare(directory: pathlib.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{directory}: cannot be made ({e.strerror})") from e
    # A reader would take the index or the single file of an earlier model for this one's.
    found = sorted(directory.glob("model*.safetensors*"))
    if found:
        raise UserError(f"{directory}: holds {found[0].name} already; give another directory")


def _tensors(flat: dict[str, Any], config: ModelConfig) -> Iterator[_Tensor]:
    """The checkpoint's tensors: what has no layers where TABLE has it, and layer after layer."""
    groups: dict[str, list[tuple[Row, Part]]] = {}
    for row in TABLE:
        if row.path in flat:
            where = part(row, config, "hf")
            groups.setdefault(where.pattern, []).append((row, where))
    layered = [rows for rows in groups.values() if rows[0][0].stacked]
    done = False
    for rows in groups.values():
        if not rows[0][0].stacked:
            yield _tensor(rows, flat, None)
        elif not done:
            done = True
            for layer in range(config.n_layers):
                yield from (_tensor(rows, flat, layer) for rows in layered)


def _tensor(rows: list[tuple[Row, Part]], flat: dict[str, Any], layer: int | None) -> _Tensor:
    rows = sorted(rows, key=lambda pair: pair[1].start)
    row, where = rows[0]
    shape = flat[row.path].shape[row.stacked :]
    shape = (where.rows, *(shape[::-1] if row.transposed else shape)[1:])
    name = where.pattern.format(layer=layer)
    return _Tensor(name, shape, tuple(row for row, _ in rows), layer)


def _plan(tensors: Iterator[_Tensor], itemsize: int, shard_bytes: int) -> dict[str, list[_Tensor]]:
    """The tensors of each file, in order."""
    groups: list[list[_Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        size = itemsize * math.prod(tensor.shape)
        if groups[-1] and held + size > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": tensors
        for number, tensors in enumerate(groups, 1)
    }


def _fetch(
    tensor: _Tensor,
    flat: dict[str, Any],
    low_rank: dict[str, Any],
    scale: float,
    dtype: str,
    config: ModelConfig,
) -> np.ndarray:
    """One tensor on the host, in every process."""
    out = np.empty(tensor.shape, dtype)
    for row in tensor.parts:
        name = row.path.rpartition("/")[0]
        leaf, pair = {"kernel": flat[row.path]}, {}
        if row.transposed:
            leaf |= {key: flat[f"{name}/{key}"] for key in ["scale"] if f"{name}/{key}" in flat}
            pair = {key: low_rank[f"{name}/{key}"] for key in "ab" if f"{name}/a" in low_rank}
        layer = None if tensor.layer is None else np.int32(tensor.layer)
        if isinstance(leaf["kernel"], Stored):
            leaf = {"kernel": jnp.asarray(leaf["kernel"].layer(tensor.layer))}
            if layer is not None:  # the only one that was read
                pair = {key: np.asarray(x[layer : layer + 1]) for key, x in pair.items()}
                layer = np.int32(0)
        sharding = leaf["kernel"].sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        array = _program(sharding, scale, dtype, row.transposed)(leaf, pair, layer)
        where = part(row, config, "hf")
        out[where.start : where.stop] = np.asarray(array.addressable_data(0))
    return out


@functools.lru_cache(maxsize=8)
def _program(sharding: jax.sharding.Sharding, scale: float, dtype: str, transposed: bool) -> Any:
    """A function that takes one layer of a parameter, as the checkpoint has it."""

    def run(
        leaf: dict[str, jax.Array], pair: dict[str, jax.Array], layer: jax.Array | None
    ) -> jax.Array:
        if layer is not None:
            leaf, pair = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), (leaf, pair)
            )
        array = leaf["kernel"]
        if pair or "scale" in leaf:
            array = dequantize(leaf)
        if pair:
            array += scale * jnp.einsum("ri,ro->io", pair["a"], pair["b"], precision="highest")
        return (array.T if transposed else array).astype(dtype)

    return jax.jit(run, out_shardings=sharding)
