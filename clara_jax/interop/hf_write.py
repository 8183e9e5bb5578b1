"""Base weights written as Hugging Face safetensors, a file at a time; the way back of hf.py."""

import functools
import json
import math
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from clara_jax import distributed, files
from clara_jax.errors import UserError
from clara_jax.interop import hf
from clara_jax.interop.names import Tensor, parameters, tensors
from clara_jax.interop.weights import Stored
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.quantize import dequantize

SHARD = 10**9  # bytes of a file's tensors


def save_params(
    directory: str | pathlib.Path,
    params: Any,
    config: ModelConfig,
    *,
    adapter: Any = None,
    lora: LoraConfig | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD,
) -> None:
    """Writes model.safetensors, or several files and their index, named as the family has it.

    All processes must call it; the first writes. Beside the model, the devices hold one layer's
    matrix, or the embedding or the head, and the host the tensors of one file twice, the second
    time as safetensors encodes them.

    Args:
        directory: where to write; made if it is not there. config.json is `hf_config`'s.
        params: base weights, which may be sharded, may be int8, and may be `weights.stored`.
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
    if missing := {row.path for row in parameters(config)} - flat.keys():
        raise ValueError(f"the base lacks {sorted(missing)[0]}")
    low_rank = flax.traverse_util.flatten_dict(adapter or {}, sep="/")
    scale = lora.scale if lora else 0.0
    itemsize = np.dtype(dtype).itemsize
    members_of = plan(config, itemsize, shard_bytes)
    if distributed.is_first():
        _prepare(directory)
    for name, members in members_of.items():
        arrays = {x.name: _fetch(x, flat, low_rank, scale, dtype) for x in members}
        if distributed.is_first():
            hf.save(directory / name, arrays)
        del arrays  # before the next file's
    if distributed.is_first() and len(members_of) > 1:
        write_index(directory, members_of, itemsize)
    distributed.barrier("save_params")


def _prepare(directory: pathlib.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{directory}: cannot be made ({e.strerror})") from e
    # A reader would take the index or the single file of an earlier model for this one's.
    if earlier := sorted(directory.glob("model*.safetensors*")):
        raise UserError(f"{directory}: holds {earlier[0].name} already; give another directory")


def plan(config: ModelConfig, itemsize: int, shard_bytes: int = SHARD) -> dict[str, list[Tensor]]:
    """The tensors of each file, of `shard_bytes` at most unless one tensor alone has more."""
    groups: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors(config):
        size = itemsize * math.prod(tensor.shape)
        if groups[-1] and held + size > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += size
    if len(groups) == 1:
        return {hf.SINGLE: groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": members
        for number, members in enumerate(groups, 1)
    }


def write_index(directory: pathlib.Path, files: dict[str, list[Tensor]], itemsize: int) -> None:
    """Writes the index of a checkpoint of several files, those of `plan`."""
    members = [(tensor, name) for name, tensors in files.items() for tensor in tensors]
    size = sum(math.prod(tensor.shape) * itemsize for tensor, _ in members)
    weight_map = {tensor.name: name for tensor, name in members}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / hf.INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _fetch(
    tensor: Tensor,
    flat: dict[str, Any],
    low_rank: dict[str, Any],
    scale: float,
    dtype: str,
) -> np.ndarray:
    """One tensor on the host, in every process."""
    out = np.empty(tensor.shape, dtype)
    for row, where in tensor.parts:
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
