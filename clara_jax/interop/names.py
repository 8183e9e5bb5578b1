"""Names of the base weights in checkpoints: one table for every format and both directions."""

import dataclasses
import functools

import flax.traverse_util

from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import abstract_params


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
    *(
        Row(
            f"layers/attention/{name}/bias",
            f"model.layers.{{layer}}.self_attn.{name}_proj.bias",
            f"blk.{{layer}}.attn_{name}.bias",
        )
        for name in "qkv"
    ),
    *(
        Row(
            f"layers/attention/{name}_norm/scale",
            f"model.layers.{{layer}}.self_attn.{name}_norm.weight",
            f"blk.{{layer}}.attn_{name}_norm.weight",
        )
        for name in "qk"
    ),
    Row("norm/scale", "model.norm.weight", "output_norm.weight"),
    Row("head/kernel", "lm_head.weight", "output.weight"),
)

# Tensors that hold several parameters, one below the other in this order, by format and family.
_FUSED = {
    ("hf", "phi3"): {
        "model.layers.{layer}.self_attn.qkv_proj.weight": tuple(
            f"layers/attention/{name}/kernel" for name in "qkv"
        ),
        "model.layers.{layer}.mlp.gate_up_proj.weight": (
            "layers/mlp/gate/kernel",
            "layers/mlp/up/kernel",
        ),
    },
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Where a checkpoint has a parameter: rows [start:stop] of a tensor, or of one a layer.

    Attributes:
        pattern: the tensor's name, with `{layer}` where there is one a layer.
        start: first row; of a linear layer [out, in] rows are outputs.
        stop: row after the last.
        rows: of the whole tensor.
    """

    pattern: str
    start: int
    stop: int
    rows: int

    def names(self, n_layers: int) -> list[str]:
        """Names of the tensors: one, or one a layer."""
        if "{layer}" not in self.pattern:
            return [self.pattern]
        return [self.pattern.format(layer=i) for i in range(n_layers)]


def part(row: Row, config: ModelConfig, format: str = "hf") -> Part:
    """Which rows of which tensor a parameter is in checkpoints of this model.

    It decides for adapters as well: a LoRA pair beside a tensor that holds several parameters is,
    for each of them, all of A and rows [start:stop] of B [out, rank].

    Args:
        row: of TABLE; a parameter that this model has.
        config: the architecture; its family decides which parameters share a tensor.
        format: column of TABLE, `hf` or `gguf`.
    """
    sizes = _rows(config)
    for pattern, paths in _FUSED.get((format, config.family), {}).items():
        if row.path in paths:
            before = sum(sizes[path] for path in paths[: paths.index(row.path)])
            total = sum(sizes[path] for path in paths)
            return Part(pattern, before, before + sizes[row.path], total)
    return Part(getattr(row, format), 0, sizes[row.path], sizes[row.path])


@functools.lru_cache(maxsize=8)
def _rows(config: ModelConfig) -> dict[str, int]:
    """Size of the first axis that each parameter has in a checkpoint's tensor, by its path."""
    held = dataclasses.replace(config, param_dtype="float32")
    params = flax.traverse_util.flatten_dict(abstract_params(held), sep="/")
    axes = {row.path: -1 if row.transposed else int(row.stacked) for row in TABLE}
    return {path: leaf.shape[axes[path]] for path, leaf in params.items()}


def tensor_names(row: Row, format: str, n_layers: int) -> list[str]:
    """Names of the tensors of a parameter that shares none: one, or one a layer."""
    whole = Part(getattr(row, format), 0, 0, 0)
    return whole.names(n_layers)
