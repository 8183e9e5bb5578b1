"""Names of the base weights in checkpoints, and loading them straight into device shards.

One table serves every format and both directions. A checkpoint only has to say which tensors it
holds and to read slices of them; which slices, transposing and stacking of layers are decided here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import flax.traverse_util
import jax
import numpy as np

from clara_jax.errors import UserError
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import abstract_params
from clara_jax.models.quantize import quantize

ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

# Rows that are read and converted at a time, which bounds the float32 scratch of a big table.
_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class Row:
    """One base parameter: our path, and its name in each format.

    Checkpoints hold linear layers as [out, in], one tensor a layer; we hold [in, out], layers
    stacked in front.
    """

    path: str
    hf: str
    gguf: str

    @property
    def stacked(self) -> bool:
        """Whether the checkpoint has one tensor for each layer."""
        return "{layer}" in self.hf

    @property
    def transposed(self) -> bool:
        """Whether the checkpoint's last two axes are ours swapped."""
        return self.path.endswith("/kernel")


TABLE = (
    Row("embed/embedding", "model.embed_tokens.weight", "token_embd.weight"),
    Row(
        "layers/attention_norm/scale",
        "model.layers.{layer}.input_layernorm.weight",
        "blk.{layer}.attn_norm.weight",
    ),
    Row(
        "layers/attention/q/kernel",
        "model.layers.{layer}.self_attn.q_proj.weight",
        "blk.{layer}.attn_q.weight",
    ),
    Row(
        "layers/attention/k/kernel",
        "model.layers.{layer}.self_attn.k_proj.weight",
        "blk.{layer}.attn_k.weight",
    ),
    Row(
        "layers/attention/v/kernel",
        "model.layers.{layer}.self_attn.v_proj.weight",
        "blk.{layer}.attn_v.weight",
    ),
    Row(
        "layers/attention/o/kernel",
        "model.layers.{layer}.self_attn.o_proj.weight",
        "blk.{layer}.attn_output.weight",
    ),
    Row(
        "layers/mlp_norm/scale",
        "model.layers.{layer}.post_attention_layernorm.weight",
        "blk.{layer}.ffn_norm.weight",
    ),
    Row(
        "layers/mlp/gate/kernel",
        "model.layers.{layer}.mlp.gate_proj.weight",
        "blk.{layer}.ffn_gate.weight",
    ),
    Row(
        "layers/mlp/up/kernel",
        "model.layers.{layer}.mlp.up_proj.weight",
        "blk.{layer}.ffn_up.weight",
    ),
    Row(
        "layers/mlp/down/kernel",
        "model.layers.{layer}.mlp.down_proj.weight",
        "blk.{layer}.ffn_down.weight",
    ),
    Row("norm/scale", "model.norm.weight", "output_norm.weight"),
    Row("head/kernel", "lm_head.weight", "output.weight"),
)


class Checkpoint(Protocol):
    """Where tensors are read from.

    Attributes:
        where: path for error messages.
        format: column of TABLE that its tensors are named by, `hf` or `gguf`.
        shapes: shape of each tensor that it holds, [out, in] for linear layers.
    """

    where: str
    format: str
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads tensor[index]; the slices are explicit and have step 1."""
        ...


def load(checkpoint: Checkpoint, config: ModelConfig, sharding_of: ShardingOf | None = None) -> Any:
    """Loads the base weights; every device shard reads only its own part of the file.

    Args:
        checkpoint: the tensors, already opened.
        config: the architecture that they must fit.
        sharding_of: gives the sharding of a parameter from its path ("layers/attention/q/kernel")
            and shape; None puts everything on the first device.

    Returns:
        The `params` tree of the decoder in `config.param_dtype`.

    Raises:
        UserError: a tensor is unknown, missing, mis-shaped or unreadable.
    """
    held = dataclasses.replace(config, param_dtype=config.held_dtype)
    wanted = flax.traverse_util.flatten_dict(abstract_params(held), sep="/")
    rows = [row for row in TABLE if row.path in wanted]
    _check(checkpoint, config, rows, {path: leaf.shape for path, leaf in wanted.items()})
    dtype = jax.numpy.dtype(config.held_dtype)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    tree = {}
    for row in rows:
        shape = wanted[row.path].shape
        sharding = sharding_of(row.path, shape) if sharding_of else single
        tree[row.path] = jax.make_array_from_callback(
            shape, sharding, _shard_reader(checkpoint, row, shape, dtype), dtype
        )
        if config.param_dtype == "int8" and row.path.endswith("/kernel"):
            # One by one, so that no more than one matrix is ever there in both forms.
            name = row.path.removesuffix("/kernel")
            quantized = _quantize(tree.pop(row.path), name, sharding_of)
            tree |= {f"{name}/{leaf}": array for leaf, array in quantized.items()}
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def _quantize(kernel: jax.Array, name: str, sharding_of: ShardingOf | None) -> dict[str, jax.Array]:
    shardings = None
    if sharding_of:
        shapes = jax.eval_shape(quantize, kernel)
        shardings = {leaf: sharding_of(f"{name}/{leaf}", x.shape) for leaf, x in shapes.items()}
    return jax.block_until_ready(jax.jit(quantize, out_shardings=shardings)(kernel))


def tensor_names(row: Row, format: str, n_layers: int) -> list[str]:
    """Names of the tensors that make up a parameter: one, or one a layer."""
    pattern = getattr(row, format)
    return [pattern.format(layer=i) for i in range(n_layers)] if row.stacked else [pattern]


def _check(
    checkpoint: Checkpoint,
    config: ModelConfig,
    rows: list[Row],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    expected = {}
    for row in rows:
        shape = shapes[row.path][1:] if row.stacked else shapes[row.path]
        for name in tensor_names(row, checkpoint.format, config.n_layers):
            expected[name] = shape[::-1] if row.transposed else shape
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


def _shard_reader(
    checkpoint: Checkpoint, row: Row, shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[Any], np.ndarray]:
    n_layers = shape[0] if row.stacked else 1
    names = tensor_names(row, checkpoint.format, n_layers)

    def read(index: Any) -> np.ndarray:
        index = tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))
        out = np.empty([s.stop - s.start for s in index], dtype)
        if row.stacked:
            targets = zip(names[index[0]], out, strict=True)
            index = index[1:]
        else:
            targets = zip(names, [out], strict=True)
        for name, target in targets:
            if row.transposed:
                _read_blocks(checkpoint, name, index[::-1], target.T)
            else:
                _read_blocks(checkpoint, name, index, target)
        return out

    return read


def _read_blocks(
    checkpoint: Checkpoint, name: str, index: tuple[slice, ...], out: np.ndarray
) -> None:
    first, last = index[0].start, index[0].stop
    for start in range(first, last, _ROWS):
        rows = slice(start, min(start + _ROWS, last))
        # Assignment rounds to the target's dtype.
        out[rows.start - first : rows.stop - first] = checkpoint.read(name, (rows, *index[1:]))
